//! The plainest way to read a cluster of an image.

use snapferry_base::units::{GuestCluster, HostOffset, to_usize};
use snapferry_engine::compress::{DecodeError, Decoder};
use snapferry_qcow2::mappings::SUBCLUSTERS;
use snapferry_qcow2::{Image, ImageFile, Mappings, Stored};

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
            Decoder::new(image.header().compression, cluster).expect("a decoder").decode(&read(at, to_usize(len)), &mut bytes)?;
        }
    }
    Ok(bytes)
}
