//! The `portway` binary.
fn main() {}
