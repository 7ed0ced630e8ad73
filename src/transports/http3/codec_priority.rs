//! Priorities of requests (RFC 9218, sections 4 and 5): what `priority` fields and updates say.

/// How urgent an answer is, and whether parts of it are of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// From 0, the first, to 7.
    pub urgency: u8,
    /// Whether it may take turns with others.
    pub incremental: bool,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { urgency: 3, incremental: false }
    }
}

impl Wanted {
    /// Reads the value of a field. What is not understood counts as not said (section 4).
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let mut wanted = Self::default();
        for member in text.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            // Parameters of a member mean nothing here.
            let member = member.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
            match member {
                [b'u', b'=', digit @ b'0'..=b'7'] => wanted.urgency = digit - b'0',
                b"i" | b"i=?1" => wanted.incremental = true,
                b"i=?0" => wanted.incremental = false,
                _ => {}
            }
        }
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_counts_as_not_said() {
        for (text, urgency, incremental) in [
            ("", 3, false),
            ("u=0", 0, false),
            ("u=7, i", 7, true),
            ("i;x=1,u=2;y", 2, true),
            ("u=8", 3, false),
            ("u=-1, i=?0", 3, false),
            ("u=1, u=5", 5, false),
            ("x=\"u=1\"", 3, false),
        ] {
            assert_eq!(Wanted::parse(text.as_bytes()), Wanted { urgency, incremental }, "{text}");
        }
    }
}
