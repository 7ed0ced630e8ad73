//! The one source of chance in a simulation: a small seeded generator, the same numbers on every machine.
//!
//! The generator is xoshiro256** 1.0, its state filled by SplitMix64, as its authors D. Blackman and S. Vigna ask
//! ("Scrambled Linear Pseudorandom Number Generators", ACM TOMS 47, 2021; public domain reference code at
//! prng.di.unimi.it). There is no floating point between a draw and its answer, so a seed replays bit for bit. It is
//! fast and statistically sound, and it is **not** for keys, tokens or anything else that must not be guessed.

/// A generator of numbers that follow from its seed alone.
///
/// A clone repeats what the original will say; for numbers of their own use [`Random::fork`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Random {
    state: [u64; 4],
}

impl Random {
    /// A generator; the same seed gives the same numbers. Every seed is good, 0 too.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut filler = seed;
        Self { state: std::array::from_fn(|_| split_mix(&mut filler)) }
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let [s0, s1, s2, s3] = self.state;
        let answer = s1.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let (t2, t3) = (s2 ^ s0, s3 ^ s1);
        self.state = [s0 ^ t3, s1 ^ t2, t2 ^ (s1 << 17), t3.rotate_left(45)];
        answer
    }

    /// A number from 0 to `bound - 1`, each as likely as any other; 0 if `bound` is 0.
    ///
    /// D. Lemire, "Fast Random Integer Generation in an Interval", ACM TOMACS 29, 2019: it draws once, and very rarely
    /// again where the first draw would favour some numbers.
    pub fn below(&mut self, bound: u64) -> u64 {
        let mut product = u128::from(self.next_u64()) * u128::from(bound);
        if low(product) < bound {
            let unfair = bound.wrapping_neg() % bound;
            while low(product) < unfair {
                product = u128::from(self.next_u64()) * u128::from(bound);
            }
        }
        high(product)
    }

    /// True with probability `p`. It draws exactly once, whatever `p` is.
    pub fn chance(&mut self, p: impl Into<Chance>) -> bool {
        high(u128::from(self.next_u64()) * u128::from(Chance::WHOLE)) < u64::from(p.into().0)
    }

    /// Fills `bytes` with random ones.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            for (to, from) in chunk.iter_mut().zip(self.next_u64().to_le_bytes()) {
                *to = from;
            }
        }
    }

    /// A generator with numbers of its own, seeded by the next draw of this one.
    ///
    /// Give one to each part of a simulation: then how often one part draws does not change what another part gets.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self::new(self.next_u64())
    }
}

/// A probability, kept in whole parts per billion.
///
/// From an `f64`: 0.25 is one in four; below 0 and not-a-number are never, above 1 is always, and anything above 0 is
/// at least one part per billion.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Chance(u32);

impl Chance {
    /// It does not happen.
    pub const NEVER: Self = Self(0);
    /// It happens each time.
    pub const ALWAYS: Self = Self(Self::WHOLE);
    const WHOLE: u32 = 1_000_000_000;

    /// `parts` in a million; a million and more is [`Chance::ALWAYS`].
    #[must_use]
    pub const fn per_million(parts: u32) -> Self {
        if parts >= 1_000_000 { Self::ALWAYS } else { Self(parts * 1_000) }
    }
}

impl From<f64> for Chance {
    fn from(p: f64) -> Self {
        if p > 0.0 {
            let parts = (p.min(1.0) * f64::from(Self::WHOLE)).round();
            Self((parts as u32).clamp(1, Self::WHOLE))
        } else {
            Self::NEVER
        }
    }
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn low(product: u128) -> u64 {
    product as u64
}

fn high(product: u128) -> u64 {
    (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sim_random_gives_the_published_numbers() {
        let mut random = Random { state: [1, 2, 3, 4] };
        let first: Vec<u64> = (0..8).map(|_| random.next_u64()).collect();
        assert_eq!(
            first,
            [
                11520,
                0,
                1509978240,
                1215971899390074240,
                1216172134540287360,
                607988272756665600,
                16172922978634559625,
                8476171486693032832
            ]
        );
        let mut filler = 1477776061723855037;
        let filled: [u64; 3] = std::array::from_fn(|_| split_mix(&mut filler));
        assert_eq!(filled, [1985237415132408290, 2979275885539914483, 13511426838097143398]);
    }

    #[test]
    fn sim_random_is_even_within_its_bounds() {
        let mut random = Random::new(7);
        let mut seen = [0_u32; 6];
        for _ in 0..60_000 {
            seen[random.below(6) as usize] += 1;
        }
        assert!(seen.iter().all(|n| (9_500..10_500).contains(n)), "{seen:?}");
        assert_eq!((random.below(0), random.below(1)), (0, 0));
        assert!((0..1000).all(|_| random.below(u64::MAX) < u64::MAX));
    }

    #[test]
    fn sim_random_chances_keep_to_their_range() {
        let mut random = Random::new(8);
        assert!((0..1000).all(|_| random.chance(1.0) && !random.chance(0.0)));
        assert_eq!(Chance::from(-1.0), Chance::NEVER);
        assert_eq!(Chance::from(f64::NAN), Chance::NEVER);
        assert_eq!(Chance::from(f64::INFINITY), Chance::ALWAYS);
        assert_eq!(Chance::from(1e-30), Chance(1));
        assert_eq!(Chance::from(0.05), Chance::per_million(50_000));
        assert_eq!(Chance::per_million(u32::MAX), Chance::ALWAYS);
        let hits = (0..100_000).filter(|_| random.chance(0.1)).count();
        assert!((9_500..10_500).contains(&hits), "{hits}");
    }

    #[test]
    fn sim_random_forks_say_something_else_and_repeat() {
        let mut random = Random::new(9);
        let (mut a, mut b) = (random.fork(), random.fork());
        assert_ne!(a, b);
        assert_eq!(Random::new(9).fork().next_u64(), a.next_u64());
        let mut bytes = [0; 11];
        b.fill(&mut bytes);
        assert_ne!(bytes, [0; 11]);
    }
}
