//! The one simulation binary: virtual time, seeded order, replayable. `PORTWAY_SEED=n` runs one seed alone.

mod actors;
mod framed;
mod relay;
mod rooms;
