//! Stands for `sites` in a build without HTTP: nobody needs certificates, and no listener has a site.

/// None are used.
#[derive(Debug, Clone, Default)]
pub(super) struct Certificates;

/// No listener has one.
#[derive(Debug, Clone)]
pub(super) enum Web {}

impl Web {
    pub(super) const fn publish(&self) {
        match *self {}
    }
}
