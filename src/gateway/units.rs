//! Durations and sizes as they are written in a configuration file: a whole number and a unit.
//!
//! No fractions, no sums and no defaults for a missing unit: `"90s"`, never `"1.5m"` or `90`, so that a value reads the
//! same to everyone. A bare number of bytes is the one exception, because bytes are the unit of every interface.
use std::fmt;
use std::time::Duration;

/// Milliseconds per unit, largest first.
const DURATIONS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Bytes per unit, largest first.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("B", 1),
];

/// Why a text is no duration or size. `Display` says what is wrong, [`hint`](UnitError::hint) what is accepted.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnitError {
    /// It does not start with a whole number.
    NoNumber {
        /// What would be right.
        accepted: &'static str,
    },
    /// A duration without a unit.
    NoUnit {
        /// What would be right.
        accepted: &'static str,
    },
    /// The number is followed by something that is no unit.
    UnknownUnit {
        /// The unit that differs only in capitals, if there is one.
        nearest: Option<&'static str>,
        /// What would be right.
        accepted: &'static str,
    },
    /// More than 64 bits can count.
    TooLarge,
}

const DURATION_HINT: &str = "write a whole number and one of ms, s, m, h, d, such as \"500ms\", \"30s\" or \"5m\"";
const SIZE_HINT: &str = "write a number of bytes or a whole number and a unit, such as \"64KiB\" (65536) or \"64KB\" (64000); \
     units are B, KB, MB, GB, TB, KiB, MiB, GiB, TiB";

impl UnitError {
    /// What to write instead.
    pub fn hint(&self) -> String {
        match self {
            Self::UnknownUnit { nearest: Some(nearest), .. } => format!("did you mean the unit `{nearest}`?"),
            Self::NoNumber { accepted } | Self::NoUnit { accepted } | Self::UnknownUnit { accepted, .. } => {
                (*accepted).to_owned()
            }
            Self::TooLarge => "write a smaller number".to_owned(),
        }
    }
}

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoNumber { .. } => "does not start with a whole number",
            Self::NoUnit { .. } => "has no unit",
            Self::UnknownUnit { .. } => "has an unknown unit",
            Self::TooLarge => "is too large",
        })
    }
}

impl std::error::Error for UnitError {}

/// Reads a duration such as `500ms`, `30s`, `5m`, `1h` or `1d`.
///
/// # Errors
///
/// If it is not a whole number followed by one of these units.
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    let (number, unit) = split(text, DURATION_HINT)?;
    if unit.is_empty() {
        return Err(UnitError::NoUnit { accepted: DURATION_HINT });
    }
    let scale = scale(unit, &DURATIONS, DURATION_HINT)?;
    number.checked_mul(scale).map(Duration::from_millis).ok_or(UnitError::TooLarge)
}

/// Reads a size in bytes such as `64KiB`, `4MiB`, `1GB` or `4096`.
///
/// # Errors
///
/// If it is not a whole number, alone or followed by one of these units.
pub fn size(text: &str) -> Result<u64, UnitError> {
    let (number, unit) = split(text, SIZE_HINT)?;
    let scale = if unit.is_empty() { 1 } else { scale(unit, &SIZES, SIZE_HINT)? };
    number.checked_mul(scale).ok_or(UnitError::TooLarge)
}

/// Writes a duration in the largest unit that divides it, as [`duration`] reads it.
pub fn show_duration(value: Duration) -> String {
    let millis = u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
    show(millis, &DURATIONS).unwrap_or_else(|| "0s".to_owned())
}

/// Writes a size in the largest binary unit that divides it, as [`size`] reads it.
pub fn show_size(value: u64) -> String {
    const BINARY: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    show(value, &BINARY).unwrap_or_else(|| value.to_string())
}

fn split<'a>(text: &'a str, accepted: &'static str) -> Result<(u64, &'a str), UnitError> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    if digits.is_empty() {
        return Err(UnitError::NoNumber { accepted });
    }
    // One space between number and unit is how many people write it.
    let unit = unit.strip_prefix(' ').unwrap_or(unit);
    Ok((digits.parse().map_err(|_| UnitError::TooLarge)?, unit))
}

fn scale(unit: &str, units: &[(&'static str, u64)], accepted: &'static str) -> Result<u64, UnitError> {
    if let Some((_, scale)) = units.iter().find(|(name, _)| *name == unit) {
        return Ok(*scale);
    }
    let nearest = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(name, _)| *name);
    Err(UnitError::UnknownUnit { nearest, accepted })
}

fn show(value: u64, units: &[(&str, u64)]) -> Option<String> {
    let (name, scale) = units.iter().find(|(_, scale)| value > 0 && value.is_multiple_of(*scale))?;
    Some(format!("{}{name}", value / scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_unit() {
        let read = |text| duration(text).unwrap().as_millis();
        assert_eq!(
            ["500ms", "30s", "5m", "1h", "2d", "0s"].map(read),
            [500, 30_000, 300_000, 3_600_000, 172_800_000, 0]
        );
        let read = |text| size(text).unwrap();
        assert_eq!(["0", "17", "17B", "64KB", "64KiB", "4 MiB"].map(read), [0, 17, 17, 64_000, 65_536, 4 << 20]);
        assert_eq!(["1MB", "1GB", "1TB"].map(read), [1_000_000, 1_000_000_000, 1_000_000_000_000]);
        assert_eq!(["1GiB", "1TiB"].map(read), [1 << 30, 1 << 40]);
    }

    #[test]
    fn says_what_is_wrong() {
        assert_eq!(duration("30"), Err(UnitError::NoUnit { accepted: DURATION_HINT }));
        assert_eq!(duration("s"), Err(UnitError::NoNumber { accepted: DURATION_HINT }));
        assert_eq!(duration("-1s"), Err(UnitError::NoNumber { accepted: DURATION_HINT }));
        assert_eq!(duration("1.5s"), Err(UnitError::UnknownUnit { nearest: None, accepted: DURATION_HINT }));
        assert_eq!(duration("30S").unwrap_err().hint(), "did you mean the unit `s`?");
        assert_eq!(size("64kib").unwrap_err().hint(), "did you mean the unit `KiB`?");
        assert!(size("64Kbit").unwrap_err().hint().contains("KiB"));
        assert_eq!(size("99999999999999999999"), Err(UnitError::TooLarge));
        assert_eq!(size("99999999TiB"), Err(UnitError::TooLarge));
        assert_eq!(duration("18446744073709551615d"), Err(UnitError::TooLarge));
    }

    #[test]
    fn shows_what_it_reads() {
        for text in ["500ms", "30s", "5m", "1h", "1d", "0s"] {
            assert_eq!(show_duration(duration(text).unwrap()), text);
        }
        for text in ["0", "1000", "64KiB", "4MiB", "1GiB"] {
            assert_eq!(show_size(size(text).unwrap()), text);
        }
    }
}
