//! A valid header with any tables after it: the walk over L1 and L2 accepts or refuses each entry, and the
//! accepted ones lie within the file.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use snapferry_base::cancel::Cancel;
use snapferry_base::units::{ByteCount, ClusterBits, MIB, to_u64, to_usize};
use snapferry_qcow2::MemoryFile;
use snapferry_qcow2::check::check;
use snapferry_qcow2::{Codec, Geometry, Header, Image, Limits, Stored};

#[derive(Arbitrary, Debug)]
struct Tables {
    small: bool,
    extended: bool,
    zstd: bool,
    refcount_order: u8,
    l1: Vec<u64>,
    refcount_table: Vec<u64>,
    rest: Vec<u64>,
}

fuzz_target!(|tables: Tables| {
    let bits = if tables.extended {
        14
    } else if tables.small {
        9
    } else {
        12
    };
    let cluster = ClusterBits::new(bits).expect("a cluster size");
    let geometry = Geometry::new(ByteCount(2 * MIB), cluster).expect("a disk that fits");
    let compression = if tables.zstd { Codec::Zstd } else { Codec::Deflate };
    let mut header = Header::new(&geometry, compression);
    header.extended_l2 = tables.extended;
    header.refcount_order = u32::from(tables.refcount_order % 7);
    // Twice as many entries as are needed, because an extended L2 table maps half as many clusters.
    header.l1_entries *= 2;
    let mut file = Vec::new();
    header.write(&mut file);
    let to_bytes = |words: &[u64]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
    for (at, table) in [(header.refcount_table.0, &tables.refcount_table), (header.l1_table.0, &tables.l1)] {
        file.resize(to_usize(at), 0);
        let room = cluster.len();
        file.extend(to_bytes(table).into_iter().take(room));
    }
    file.resize(to_usize(geometry.head_len() * 2), 0);
    file.extend(to_bytes(&tables.rest));
    let len = to_u64(file.len());
    let file = MemoryFile::new(file.into());
    let image = Image::open(&file, &Limits::default()).expect("a good header");
    check(&file, &image, &Cancel::new()).expect("all of it lies in the file");
    let Ok(mappings) = image.load(&file) else { return };
    for (guest, stored) in mappings.iter() {
        assert_eq!(mappings.stored(guest), stored);
        match stored {
            Stored::Zero => panic!("zeros are not iterated over"),
            Stored::Raw(at) | Stored::Subclusters(at, _) => assert!(at.0 < len, "{at} of {len}"),
            Stored::Compressed { at, len: body } => {
                assert!(at.0 + body <= len && body > 0, "{at} {body} of {len}")
            }
        }
    }
});
