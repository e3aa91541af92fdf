//! What tests, benches and fuzz targets share: doubles that fail on command, disks and images made to order, an independent reader, and
//! guards around the machine's own devices. Beside the tower: nothing else uses it.

// What a test double is given wrong is a mistake in the test.
#![allow(clippy::unwrap_used)]

pub mod clock;
pub mod disks;
pub mod hostile;
pub mod images;
pub mod loopdev;
pub mod memory;
pub mod model;
pub mod oracle;
pub mod plain;
pub mod scripted;
pub mod skip;
pub mod store_suite;
