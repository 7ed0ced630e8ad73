//! `[listener.options]`: what a protocol of the embedding program is told. It may be secrets.
//!
//! So it is treated as one: no message and no `Debug` shows a value, and strings are wiped when it is dropped.

use std::fmt;
use std::ops::Deref;

use toml::{Table, Value};
use zeroize::Zeroize;

use crate::memory::Secret;

/// The table as the file has it, with references expanded. Reads like a [`toml::Table`].
///
/// ```
/// use portway::gateway::{Builder, config::Protocol};
///
/// let builder = Builder::new().tcp_protocol("mine", |options| {
///     let token = options.secret("token").ok_or("`token` must be a string")?;
///     Ok(move || -> Mine { Mine { token: token.clone() } })
/// });
/// # use portway::{actors::{SpawnError, Turn}, memory::Secret, transports::tcp::{Accepted, Never, OnAccept}};
/// # struct Mine { token: Secret }
/// # impl OnAccept for Mine {
/// #     fn accepted(&mut self, _: Accepted, _: &Turn<'_, Never>) -> Result<(), SpawnError> { Ok(()) }
/// # }
/// ```
#[derive(Clone, Default, PartialEq)]
pub struct Options(Table);

impl Options {
    /// The string under this key, as a secret; `None` if there is none or it is no string.
    #[must_use]
    pub fn secret(&self, key: &str) -> Option<Secret> {
        self.0.get(key)?.as_str().map(|text| Secret::from(text.to_owned()))
    }
}

impl From<Table> for Options {
    fn from(table: Table) -> Self {
        Self(table)
    }
}

impl Deref for Options {
    type Target = Table;

    fn deref(&self) -> &Table {
        &self.0
    }
}

impl fmt::Debug for Options {
    /// The keys alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

fn wipe(table: &mut Table) {
    table.iter_mut().for_each(|(_, value)| wipe_value(value));
}

/// As deep as the parser let it be.
fn wipe_value(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(values) => values.iter_mut().for_each(wipe_value),
        Value::Table(table) => wipe(table),
        Value::Integer(number) => number.zeroize(),
        Value::Float(number) => number.zeroize(),
        Value::Boolean(_) | Value::Datetime(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_it_is_shown_and_all_of_it_is_wiped() {
        let text = "token = \"hunter2\"\nlist = [\"hunter2\", 7]\n[deep]\nkey = \"hunter2\"\n";
        let mut options = Options::from(text.parse::<Table>().unwrap());
        assert!(options.secret("token").unwrap().is(b"hunter2"));
        assert!(options.secret("list").is_none() && options.secret("none").is_none());
        assert_eq!(format!("{options:?}"), "[\"deep\", \"list\", \"token\"]");
        wipe(&mut options.0);
        let left = toml::to_string(&options.0).unwrap();
        assert!(!left.contains("hunter2") && !left.contains('7'), "{left}");
    }
}
