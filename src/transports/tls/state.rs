//! What TLS has to decide: which certificate answers a name, which protocol is spoken, which key opens a ticket.
//!
//! Pure: names, lists and keys come in, a choice goes out.

/// Finds the certificate for a server name.
///
/// A certificate's own names win over wildcards; a wildcard stands for exactly one label (RFC 9525, section 6.3). Among
/// equals the first one wins. No name, or one that nobody has, gets the first certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NameTable {
    exact: Vec<(Box<str>, usize)>,
    wildcards: Vec<(Box<str>, usize)>,
}

impl NameTable {
    /// Takes the names of each certificate, in the order of the certificates.
    pub fn new<'a, N: IntoIterator<Item = &'a str>>(certificates: impl IntoIterator<Item = N>) -> Self {
        let mut table = Self::default();
        for (number, names) in certificates.into_iter().enumerate() {
            for name in names {
                let name = canonical(name);
                let (list, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut table.wildcards, parent.to_owned()),
                    None => (&mut table.exact, name),
                };
                list.push((name.into_boxed_str(), number));
            }
        }
        for list in [&mut table.exact, &mut table.wildcards] {
            // Stable, so of equal names the first certificate stays in front and the search below finds it.
            list.sort_by(|a, b| a.0.cmp(&b.0));
            list.dedup_by(|later, first| later.0 == first.0);
        }
        table
    }

    /// The number of the certificate for this name.
    #[must_use]
    pub fn find(&self, name: Option<&str>) -> usize {
        let Some(name) = name else { return 0 };
        let name = canonical(name);
        let found = lookup(&self.exact, &name).or_else(|| {
            let (label, parent) = name.split_once('.')?;
            if label.is_empty() { None } else { lookup(&self.wildcards, parent) }
        });
        found.unwrap_or(0)
    }
}

fn canonical(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

fn lookup(list: &[(Box<str>, usize)], name: &str) -> Option<usize> {
    let at = list.binary_search_by(|(known, _)| known.as_ref().cmp(name)).ok()?;
    list.get(at).map(|(_, number)| *number)
}

/// The protocol to speak: the first of `ours` that the client offers. `offered` is the client's list as it stands in
/// the handshake (RFC 7301, section 3.1); a list that is cut short ends where it is cut.
#[must_use]
pub fn choose_protocol<'a>(ours: &[Vec<u8>], offered: &'a [u8]) -> Option<&'a [u8]> {
    ours.iter().find_map(|wanted| Offered(offered).find(|name| name == wanted))
}

/// The names in an ALPN list.
struct Offered<'a>(&'a [u8]);

impl<'a> Iterator for Offered<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first()?;
        let (name, rest) = rest.split_at_checked(usize::from(*length))?;
        self.0 = rest;
        Some(name)
    }
}

/// A list of protocols as it stands in a handshake; nothing if a name is empty or longer than 255 bytes.
#[must_use]
pub fn protocol_list(protocols: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut list = Vec::new();
    for name in protocols {
        list.push(u8::try_from(name.len()).ok().filter(|length| *length > 0)?);
        list.extend(name);
    }
    Some(list)
}

/// The keys of tickets: the newest one seals, it and the one before it open.
///
/// A ticket thus lives at least one turn of the ring and at most two. `K` is the key, which knows its name.
#[derive(Debug, Clone)]
pub struct Ring<K> {
    newest: K,
    before: Option<K>,
}

/// A key that opens a ticket, and whether the client should get a new ticket with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opens<'a, K> {
    /// The key.
    pub key: &'a K,
    /// The key is on its way out.
    pub renew: bool,
}

impl<K> Ring<K> {
    /// A ring of one key.
    pub const fn new(key: K) -> Self {
        Self { newest: key, before: None }
    }

    /// The ring with a new key in front; the oldest key falls out.
    #[must_use]
    pub fn turned(&self, key: K) -> Self
    where
        K: Clone,
    {
        Self { newest: key, before: Some(self.newest.clone()) }
    }

    /// The key for new tickets.
    pub const fn seals(&self) -> &K {
        &self.newest
    }

    /// The key for a ticket that `is` tells by its name.
    pub fn opens(&self, is: impl Fn(&K) -> bool) -> Option<Opens<'_, K>> {
        if is(&self.newest) {
            return Some(Opens { key: &self.newest, renew: false });
        }
        self.before.as_ref().filter(|key| is(key)).map(|key| Opens { key, renew: true })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_of_its_own_wins_over_a_wildcard() {
        let table = NameTable::new([
            vec!["default.test"],
            vec!["*.example.org", "Example.ORG"],
            vec!["www.example.org", "*.example.org"],
        ]);
        for (name, number) in [
            ("www.example.org", 2),
            ("WWW.Example.org.", 2),
            ("mail.example.org", 1),
            ("example.org", 1),
            ("a.b.example.org", 0),
            (".example.org", 0),
            ("*.example.org", 1),
            ("default.test", 0),
            ("nobody.test", 0),
            ("", 0),
        ] {
            assert_eq!(table.find(Some(name)), number, "{name}");
        }
        assert_eq!(table.find(None), 0);
        assert_eq!(NameTable::default().find(Some("x")), 0);
    }

    #[test]
    fn the_servers_preference_counts() {
        let ours = [b"b".to_vec(), b"a".to_vec()];
        assert_eq!(choose_protocol(&ours, b"\x01a\x01b"), Some(&b"b"[..]));
        assert_eq!(choose_protocol(&ours, b"\x01a"), Some(&b"a"[..]));
        assert_eq!(choose_protocol(&ours, b"\x02ab"), None);
        assert_eq!(choose_protocol(&ours, b""), None);
        // Cut short: what came before the cut is read, and nothing beyond it.
        assert_eq!(choose_protocol(&ours, b"\x01a\x05b"), Some(&b"a"[..]));
    }

    #[test]
    fn a_list_of_protocols_refuses_what_it_cannot_carry() {
        assert_eq!(protocol_list(&[b"h3".to_vec(), b"x".to_vec()]), Some(b"\x02h3\x01x".to_vec()));
        assert_eq!(protocol_list(&[]), Some(vec![]));
        assert_eq!(protocol_list(&[vec![]]), None);
        assert_eq!(protocol_list(&[vec![0; 256]]), None);
    }

    #[test]
    fn a_ticket_outlives_one_turn_of_the_ring_and_not_two() {
        let ring = Ring::new(1);
        assert_eq!((*ring.seals(), ring.opens(|k| *k == 1)), (1, Some(Opens { key: &1, renew: false })));
        let ring = ring.turned(2);
        assert_eq!((*ring.seals(), ring.opens(|k| *k == 1)), (2, Some(Opens { key: &1, renew: true })));
        let ring = ring.turned(3);
        assert_eq!(ring.opens(|k| *k == 1), None);
        assert_eq!(ring.opens(|k| *k == 2), Some(Opens { key: &2, renew: true }));
    }

    proptest! {
        #[test]
        fn any_offer_is_read_without_a_panic(offered in proptest::collection::vec(any::<u8>(), 0..300)) {
            let ours = [b"h3".to_vec(), vec![], b"x".to_vec()];
            if let Some(chosen) = choose_protocol(&ours, &offered) {
                prop_assert!(ours.iter().any(|name| name == chosen));
            }
        }

        #[test]
        fn what_is_listed_is_found(names in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..256), 1..5)) {
            let list = protocol_list(&names).expect("all can be carried");
            for name in &names {
                prop_assert_eq!(choose_protocol(std::slice::from_ref(name), &list), Some(&name[..]));
            }
        }
    }
}
