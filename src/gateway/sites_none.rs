//! Stands for `sites` in a build without HTTP: nobody needs certificates, and no listener has a site.

use super::config::Config;

/// None are used.
#[derive(Debug, Clone, Default)]
pub(super) struct Certificates;

impl Certificates {
    #[expect(clippy::unnecessary_wraps, reason = "as its twin")]
    pub(super) const fn renewed(&self, _: &Config) -> Result<Self, String> {
        Ok(Self)
    }
}

/// No listener has one.
#[derive(Debug, Clone)]
pub(super) enum Web {}

impl Web {
    pub(super) const fn publish(&self) {
        match *self {}
    }
}
