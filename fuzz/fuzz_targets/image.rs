//! Any bytes as an image: it is opened, checked, loaded and decoded without a panic and in bounded memory.
//! Two readers return the same content.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use snapferry_base::cancel::Cancel;
use snapferry_base::units::{ByteCount, GIB, GuestCluster};
use snapferry_engine::image::ImageSource;
use snapferry_engine::source::Source;
use snapferry_qcow2::MemoryFile;
use snapferry_qcow2::check::check;
use snapferry_qcow2::{CorruptPolicy, Image, Limits};
use snapferry_testkit::simple_reader::decode_cluster;

/// Largest number of clusters of one image that are decoded: enough for each kind, and few enough to continue
/// with the next image.
const CLUSTERS: usize = 64;

fuzz_target!(|bytes: &[u8]| {
    let file = MemoryFile::new(bytes.into());
    let limits = Limits { largest_disk: ByteCount(64 * GIB), marked_corrupt: CorruptPolicy::Read };
    let Ok(image) = Image::open(&file, &limits) else { return };
    // The findings don't matter, only that the check ends.
    let _ = check(&file, &image, &Cancel::new());
    let Ok(mappings) = image.load(&file) else { return };
    let source = ImageSource::open(Arc::new(MemoryFile::new(bytes.into())), &limits)
        .expect("it was opened and loaded just now");
    let cluster = mappings.cluster();
    let last = GuestCluster(mappings.guest_clusters().saturating_sub(1));
    for (guest, _) in mappings.iter().take(CLUSTERS) {
        let plain = decode_cluster(&file, &image, &mappings, guest);
        // The source reads only whole sectors within the disk.
        if guest == last || cluster.len() < source.alignment() {
            continue;
        }
        let mut read = vec![0; cluster.len()];
        match (plain, source.read_at(guest.offset(cluster), &mut read)) {
            (Ok(plain), Ok(())) => assert!(plain == read, "cluster {} reads in two ways", guest.0),
            (Err(_), Err(_)) => {}
            (plain, read) => {
                panic!("cluster {}: {:?} and {:?}", guest.0, plain.map(|bytes| bytes.len()), read)
            }
        }
    }
    assert!(mappings.memory().0 <= image.file_len().0, "tables of more bytes than the file has");
});
