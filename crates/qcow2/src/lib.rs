//! The qcow2 format as pure computation (sans-IO): lengths and offsets in, tables out. The write side touches
//! no payload, file or thread.
//!
//! ```text
//! head:  header cluster | refcount table | L1 table   sizes follow from the disk's size, contents known last
//! data:  segment 0 | segment 1 | ...                  compressed bodies packed to the byte, raw ones aligned
//! tail:  L2 tables | refcount blocks                  only tables that map a cluster
//! ```
//!
//! A body is the stored form of one guest cluster: raw or compressed.
//!
//! Writing: [`Geometry`] computes the fixed measures of an image before its first byte is written: where the
//! data begin, and how long the file can get. [`Layout`] then assigns each body its offset and, when all are
//! placed, builds the tables that point to them ([`Finished`]). The structures of the format itself are in
//! [`header`], [`l2`] and [`refcount`].
//!
//! Reading: [`Image`] opens an image from an untrusted source, [`Mappings`] returns where the bytes of each
//! cluster are, and [`check`](mod@check) audits all tables. They read ranges from an [`ImageFile`], which may
//! be a file, an object in a bucket, or memory.
//!
//! Using again: [`reuse`] finds the shape of a segment that goes from one image into another as it is.
//!
//! "Specification" here means QEMU's `docs/interop/qcow2.txt`.

#![warn(missing_docs)]

pub mod bitmaps;
pub mod check;
mod codec;
pub mod geometry;
pub mod header;
pub mod header_info;
pub mod image;
pub mod l2;
pub mod layout;
pub mod mappings;
mod memory;
pub mod refcount;
mod references;
pub mod reuse;
pub mod snapshots;

pub use bitmaps::Bitmap;
pub use codec::Codec;
pub use geometry::{Geometry, GeometryError, SEGMENT};
pub use header::{Header, HeaderError};
pub use header_info::{BitmapDirectory, HeaderInfo};
pub use image::{CorruptPolicy, FileError, Image, ImageError, ImageFile, Limits, TableEntryError};
pub use l2::{EntryError, L1Entry, L2Entry, Mapping};
pub use layout::{Finished, Layout, RawLocation, Tail};
pub use mappings::{Mappings, Stored};
pub use memory::{HeadAndTables, MemoryFile};
pub use reuse::{Body, ReuseError, StoredSegment};
pub use snapshots::Snapshot;
