//! Images back to bytes: where their files lie, and what reads them.
//!
//! An image is read through [`crate::qcow2::ImageFile`]: a [`LocalImage`] on this machine, or a [`StoredImage`] in a bucket, which is the
//! one bridge from the threads here to the store's tasks.

mod local;
mod stored;

pub use local::{LocalImage, LocalImageError};
pub use stored::StoredImage;
