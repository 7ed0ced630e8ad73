//! The transports: in each, `codec` (bytes to frames), `state` (decisions) and `actor` (I/O).

pub mod framed;
