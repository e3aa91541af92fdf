//! All integration tests in one binary: they are linked once, and share their helpers.

#![allow(clippy::unwrap_used, missing_docs)]

mod api_key;
mod check;
mod command_line;
mod convert;
mod copies;
mod demo;
mod determinism;
mod devices;
mod documents;
mod few_threads;
mod first_hour;
mod fleet;
mod help;
mod hostile;
mod image_source;
mod inspect;
mod layout;
mod limits;
mod logs;
mod metadata;
mod metrics_file;
mod network;
mod qemu_images;
mod qemu_img;
mod queue;
mod region;
mod replicate;
mod responses;
mod restore;
mod s3_faults;
mod signals;
mod stores;
mod support;
mod targets;
