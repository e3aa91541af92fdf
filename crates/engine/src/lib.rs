//! Conversion of disks into compressed qcow2 images and back: the engine reads devices, compresses, lays out
//! images, streams them into a store, reads images back, restores and verifies them.
//!
//! ```text
//! source ──chunk──▶ zero test, hash, compress ──bodies──▶ assemble (layout) ──parts──▶ upload ──▶ store
//!         O_DIRECT       private rayon pool                 one thread                  tokio
//!
//! image ──batch──▶ decode + hash ──chunk──▶ disk, or comparison, or nothing
//!        in order   private rayon pool      O_DIRECT
//! ```

pub mod compress;
pub mod convert;
pub mod disk;
pub mod error;
pub mod hash;
pub mod image;
pub mod manifest;
pub mod pipeline;
pub mod proof;
pub mod restore;
pub mod source;
pub mod store;
pub mod verify;
