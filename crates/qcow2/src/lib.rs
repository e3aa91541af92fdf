//! The qcow2 format, sans-IO: lengths and offsets in, tables out. No payload, file or thread is known here.
//!
//! ```text
//! head:  header cluster | refcount table | L1 table        sizes known from the virtual size, contents known last
//! data:  segment 0 | segment 1 | ...                        compressed bodies packed to the byte, raw ones cluster aligned
//! tail:  L2 tables | refcount blocks                        only tables that map something
//! ```
//!
//! [`Geometry`] says what an image of a disk can look like, before its first byte: where the data begins, how long the file can
//! get. [`Layout`] then gives each body its place and, when all are placed, the tables that lead to them ([`Finished`]). The words of
//! the format itself are in [`header`], [`l2`] and [`refcount`].
//!
//! The other way, [`Image`] opens what may come from anywhere, [`Mappings`] says where each cluster's bytes lie, and [`check`](mod@check) audits
//! all tables. They ask an [`ImageFile`] for ranges, whoever keeps the bytes.
//!
//! "Specification" here means QEMU's `docs/interop/qcow2.txt`.

pub mod bitmaps;
pub mod check;
mod codec;
pub mod facts;
pub mod geometry;
pub mod header;
pub mod image;
pub mod l2;
pub mod layout;
pub mod mappings;
mod memory;
pub mod refcount;
mod references;
pub mod snapshots;

pub use bitmaps::Bitmap;
pub use facts::{BitmapDirectory, HeaderFacts};
pub use geometry::{Geometry, GeometryError, SEGMENT};
pub use codec::Codec;
pub use header::{Header, HeaderError};
pub use image::{FileError, Image, ImageError, ImageFile, Limits, Marked, PlaceError};
pub use l2::{EntryError, L1Entry, L2Entry, Mapping};
pub use layout::{Finished, Layout, RawPlace, Tail};
pub use mappings::{Mappings, Stored};
pub use memory::MemoryFile;
pub use snapshots::Snapshot;
