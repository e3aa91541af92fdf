//! An image file in memory, and the plainest way to read a cluster of one.

use std::sync::Arc;

use crate::compress::{Codec, DecodeError, Decoder};
use crate::qcow2::mappings::SUBCLUSTERS;
use crate::qcow2::{Compression, FileError, Image, ImageFile, Mappings, Stored};
use crate::units::{ByteCount, GuestCluster, HostOffset, to_u64, to_usize};

/// A file in memory. To ask for what lies past its end is a mistake of the reader.
#[derive(Clone, Debug)]
pub struct MemoryFile(Arc<[u8]>);

impl MemoryFile {
    /// Of these bytes.
    #[must_use]
    pub fn new(bytes: Arc<[u8]>) -> Self {
        Self(bytes)
    }
}

impl ImageFile for MemoryFile {
    fn name(&self) -> &str {
        "memory"
    }

    fn size(&self) -> ByteCount {
        ByteCount(to_u64(self.0.len()))
    }

    fn read_at(&self, at: HostOffset, into: &mut [u8]) -> Result<(), FileError> {
        let at = to_usize(at.0);
        into.copy_from_slice(&self.0[at..at + into.len()]);
        Ok(())
    }
}

/// One cluster of the disk, whole, by a decoder of its own.
///
/// # Errors
/// Where its body does not decode.
///
/// # Panics
/// Where the file can't be read.
pub fn decode_cluster(
    file: &dyn ImageFile,
    image: &Image,
    mappings: &Mappings,
    guest: GuestCluster,
) -> Result<Vec<u8>, DecodeError> {
    let cluster = mappings.cluster();
    // The file may end where the disk or what is stored does.
    let read = |at: HostOffset, len: usize| {
        let mut bytes = vec![0; len.min(to_usize(file.size().0.saturating_sub(at.0)))];
        file.read_at(at, &mut bytes).expect("bytes that are there");
        bytes.resize(len, 0);
        bytes
    };
    let mut bytes = vec![0; cluster.len()];
    match mappings.stored(guest) {
        Stored::Zero => {}
        Stored::Raw(at) => bytes = read(at, cluster.len()),
        Stored::Subclusters(at, allocated) => {
            let len = cluster.len() / to_usize(u64::from(SUBCLUSTERS));
            let stored = read(at, cluster.len());
            for (number, (to, from)) in (0..SUBCLUSTERS).zip(bytes.chunks_mut(len).zip(stored.chunks(len))) {
                if allocated >> number & 1 == 1 {
                    to.copy_from_slice(from);
                }
            }
        }
        Stored::Compressed { at, len } => {
            let codec = match image.header().compression {
                Compression::Deflate => Codec::Deflate,
                Compression::Zstd => Codec::Zstd,
            };
            Decoder::new(codec, cluster).expect("a decoder").decode(&read(at, to_usize(len)), &mut bytes)?;
        }
    }
    Ok(bytes)
}
