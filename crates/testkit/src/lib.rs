//! Shared code of tests, benches and fuzz targets: test doubles that fail on command, generated disks and
//! images, an independent reader, and guards for devices of the machine. The product does not use it.

// A wrong argument to a test double is a mistake in the test.
#![allow(clippy::unwrap_used)]

pub mod clock;
pub mod disks;
pub mod hostile;
pub mod images;
pub mod loopdev;
pub mod memory;
pub mod model;
pub mod oracle;
pub mod scripted;
pub mod simple_reader;
pub mod skip;
pub mod store_suite;
