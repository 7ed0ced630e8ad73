//! HTTP/1.1 and HTTP/2: a reverse proxy that is strict about what it reads.

pub mod codec_head;
