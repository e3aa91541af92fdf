//! Tests with real filesystems: made by their own tools, written to by the kernel, and judged by both.

mod fixtures;
mod lab;
mod live;
mod live_btrfs;
mod oracle;
mod refusals;
mod tree;
mod writers;
