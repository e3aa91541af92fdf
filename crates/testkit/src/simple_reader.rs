//! The simplest possible reader of a cluster in an image.

use snapferry_base::units::{GuestCluster, HostOffset, to_usize};
use snapferry_engine::compress::{DecodeError, Decoder};
use snapferry_qcow2::mappings::SUBCLUSTERS;
use snapferry_qcow2::{Image, ImageFile, Mappings, Stored};

/// Returns one whole cluster of the disk, with a new decoder for each call.
///
/// # Errors
/// If the body of the cluster can't be decoded.
///
/// # Panics
/// If the file can't be read.
pub fn decode_cluster(
    file: &dyn ImageFile,
    image: &Image,
    mappings: &Mappings,
    guest: GuestCluster,
) -> Result<Vec<u8>, DecodeError> {
    let cluster = mappings.cluster();
    // The file may end within a cluster, where the disk or the stored data end.
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
            Decoder::new(image.header().compression, cluster)
                .expect("a decoder")
                .decode(&read(at, to_usize(len)), &mut bytes)?;
        }
    }
    Ok(bytes)
}
