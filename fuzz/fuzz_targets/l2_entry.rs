//! Any word as an entry: it is refused, or decoding and encoding it gives the same bits. The entry for any
//! body that fits decodes to the same location.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use snapferry_base::units::{ClusterBits, HostOffset, SECTOR};
use snapferry_qcow2::l2::compressed_limit;
use snapferry_qcow2::{L1Entry, L2Entry, Mapping};

#[derive(Arbitrary, Debug)]
struct Entries {
    cluster: u8,
    raw: u64,
    host: u64,
    len: u32,
}

fuzz_target!(|words: Entries| {
    let cluster = ClusterBits::new(9 + u32::from(words.cluster) % 13).expect("from 9 to 21");
    if let Ok(mapping) = L2Entry(words.raw).decode(cluster) {
        assert_eq!(mapping.encode(cluster), L2Entry(words.raw));
    }
    if let Ok(Some((table, _))) = L1Entry(words.raw).decode(cluster) {
        assert_eq!(L1Entry::new(table, cluster).0 << 1, words.raw << 1, "all but COPIED");
    }

    let len = u64::from(words.len) % (cluster.size() - 1) + 1;
    let room = compressed_limit(cluster).0 - cluster.size() - len;
    let host = HostOffset(cluster.size() + words.host % (room + 1));
    let mapping = Mapping::compressed(host, len, cluster);
    assert_eq!(mapping.encode(cluster).decode(cluster), Ok(mapping));
    let Mapping::Compressed { sectors, .. } = mapping else { panic!("{mapping:?}") };
    // Bytes that a reader takes, from the first byte of the body to the end of its last sector: the whole
    // body, and less than a sector more.
    let taken = sectors * SECTOR - host.0 % SECTOR;
    assert!((len..len + SECTOR).contains(&taken), "{taken} bytes for a body of {len}");
});
