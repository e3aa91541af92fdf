//! snapferry carries a raw block device into object storage as a compressed qcow2 image, at the speed of the disk, and back.
//!
//! ```text
//! source ──chunk──▶ zero test + hash + compress ──bodies──▶ assemble (owns the layout) ──parts──▶ upload ──▶ store
//!         O_DIRECT        private rayon pool                   one thread                   tokio
//!
//! image ──batch──▶ decode + hash ──chunk──▶ disk, or comparison, or nothing
//!        in order   private rayon pool      O_DIRECT
//! ```
//!
//! Folders are layers, and a module names only what lies below it (`tests/it/layers.rs` holds them to it):
//!
//! | layer | modules | what they know |
//! |---|---|---|
//! | 6 | [`cli`] | arguments, terminal, environment, which concrete types are used |
//! | 5 | [`worker`] | a whole job: from a server to its image in another region; what it leaves, what is kept |
//! | 4 | [`convert`], [`restore`], [`vpc`], [`queue`] | the pipeline from a device to an image; what reads images; the cloud's API; jobs that wait for a worker |
//! | 3 | [`source`], [`compress`], [`qcow2`], [`store`] | devices, codecs, the image format, object stores |
//! | 2 | [`identity`], [`manifest`] | who we are to the cloud: tokens; what ties an image to its disk |
//! | 1 | [`answers`], [`given`], [`units`], [`clock`], [`cancel`], [`fence`], [`retry`], [`secret`], [`hash`], [`trust`], [`job`], [`near`], [`limits`], [`threads`] | words that everything else is said in |
//!
//! `sim` (the simulated cloud and its S3 store) and `testing` stand beside the tower: only tests, benches, fuzz targets and the commands
//! `demo` and `sim` use them.

pub mod answers;
pub mod cancel;
pub mod clock;
pub mod fence;
pub mod given;
pub mod hash;
pub mod job;
pub mod limits;
pub mod near;
pub mod retry;
pub mod secret;
pub mod threads;
pub mod trust;
pub mod units;

pub mod identity;
pub mod manifest;

pub mod compress;
pub mod qcow2;
pub mod source;
pub mod store;

pub mod convert;
pub mod queue;
pub mod restore;
pub mod vpc;

pub mod worker;

pub mod cli;

#[cfg(feature = "sim")]
pub mod sim;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
