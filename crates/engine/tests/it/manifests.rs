//! Manifests of conversions: checksums and version of the image that the store holds.

use snapferry_base::units::{MIB, to_usize};
use snapferry_engine::convert::plan::Options;
use snapferry_engine::hash::Crc64;

use crate::support::{Disk, Stores, convert, key, mixed, runtime};

#[test]
fn sums_and_version_are_those_of_the_stored_image() {
    let disk = Disk::new(mixed(40 * MIB + 513, 1));
    for stores in [Stores::memory(), Stores::folder()] {
        let manifest = convert(&disk, &stores, &Options::default());
        let runtime = runtime();
        let meta = runtime.block_on(stores.store.head(&key())).expect("asked").expect("an image");
        assert_eq!(manifest.image.etag.as_ref(), Some(&meta.etag));
        let image = runtime.block_on(stores.store.get_range(&key(), 0..meta.size, None)).expect("read");
        assert_eq!(manifest.image.crc64, Crc64::of(&image));
        let (head, tables) = (manifest.image.head.expect("a head"), manifest.image.tables.expect("tables"));
        assert_eq!(head.crc64, Crc64::of(&image[..to_usize(head.length)]));
        assert_eq!(tables.crc64, Crc64::of(&image[to_usize(tables.offset.0)..]));
        assert_eq!(tables.offset.0 + tables.length, meta.size);
        assert_eq!(manifest.check_fold(), Ok(()));
    }
}
