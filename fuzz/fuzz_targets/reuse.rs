//! Tables of an image, changed anywhere, and any place of a segment: the segment is refused, or each of its
//! bodies is where the layout would place it.
#![no_main]

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use snapferry_base::units::{
    ByteCount, ClusterBits, GuestCluster, GuestOffset, HostOffset, MIB, to_u64, to_usize,
};
use snapferry_qcow2::reuse::{self, StoredSegment};
use snapferry_qcow2::{
    Body, Codec, Finished, Geometry, HeadAndTables, Image, Layout, Limits, Mapping, SEGMENT,
};

#[derive(Arbitrary, Debug)]
struct Tables {
    cluster: u8,
    /// Clusters, and the lengths of their bodies. Those of a cluster or more are raw.
    bodies: Vec<(u16, u32)>,
    /// Words of head and tables to change, and what is XORed to them.
    changes: Vec<(u32, u64)>,
    /// Differences of the segment from the one that was placed.
    guest: u64,
    host: u64,
    length: u64,
    second: bool,
}

fuzz_target!(|tables: Tables| {
    let cluster = ClusterBits::new([12, 14, 16, 18, 21][usize::from(tables.cluster) % 5]).expect("a size");
    let geometry = Geometry::new(ByteCount(24 * MIB), cluster).expect("a disk that fits");
    let mut layout = Layout::new(geometry, Codec::Deflate);
    let mut placed = Vec::new();
    let bodies: BTreeMap<u64, u64> = tables
        .bodies
        .iter()
        .map(|&(guest, len)| {
            (u64::from(guest) % geometry.guest_clusters(), u64::from(len) % (cluster.size() * 2))
        })
        .filter(|&(_, len)| len > 0)
        .collect();
    for number in 0..geometry.segments() {
        let members =
            || bodies.iter().filter(|(guest, _)| geometry.segment_of(GuestCluster(**guest)) == number);
        let mut host = None;
        for (&guest, _) in members().filter(|(_, len)| **len >= cluster.size()) {
            host.get_or_insert(layout.place_raw(GuestCluster(guest)).at);
        }
        let host = host.unwrap_or(layout.end());
        for (&guest, &len) in members().filter(|(_, len)| **len < cluster.size()) {
            layout.place_compressed(GuestCluster(guest), to_usize(len));
        }
        let guest = GuestOffset(number * SEGMENT.0);
        placed.push(StoredSegment { guest, host, length: layout.end().0 - host.0 });
    }
    let _ = layout.pad_to_cluster();
    let offset = layout.end();
    let Finished { mut head, tail, .. } = layout.finish();
    let mut behind: Vec<u8> = tail.flatten().collect();
    for &(word, xor) in &tables.changes {
        let words = (head.len() + behind.len()) / 8;
        let at = to_usize(u64::from(word)) % words * 8;
        let (from, at) = if at < head.len() {
            (&mut head, at)
        } else {
            let at = at - head.len();
            (&mut behind, at)
        };
        for (byte, xor) in from[at..at + 8].iter_mut().zip(xor.to_be_bytes()) {
            *byte ^= xor;
        }
    }
    let file = HeadAndTables::new("tables".to_owned(), head, offset, behind).expect("one behind the other");
    let Ok(image) = Image::open(&file, &Limits::default()) else { return };
    let own = reuse::geometry(image.header());
    let Ok(mappings) = image.load(&file) else { return };
    let segment = placed[usize::from(tables.second)];
    let segment = StoredSegment {
        guest: GuestOffset(segment.guest.0 ^ tables.guest),
        host: HostOffset(segment.host.0 ^ tables.host),
        length: segment.length ^ tables.length,
    };
    let unchanged = tables.changes.is_empty() && (tables.guest, tables.host, tables.length) == (0, 0, 0);
    let Ok(shape) = reuse::shape(&mappings, &segment) else {
        assert!(!unchanged || segment.length == 0, "{segment:?} was placed like that");
        return;
    };
    assert!(!unchanged || own == Ok(geometry));
    // Places the bodies once more.
    let cluster = mappings.cluster();
    let first = segment.guest.cluster(cluster);
    let mut next = segment.host;
    for (index, _) in (0..).zip(&shape).filter(|(_, body)| **body == Body::Raw) {
        assert_eq!(mappings.mapping(first + index), Mapping::raw(next));
        next = next + cluster.size();
    }
    for (index, body) in (0..).zip(&shape) {
        match *body {
            Body::Raw => {}
            Body::Zero => assert_eq!(mappings.mapping(first + index), Mapping::Unallocated),
            Body::Compressed(len) => {
                let len = to_u64(len);
                assert_eq!(mappings.mapping(first + index), Mapping::compressed(next, len, cluster));
                next = next + len;
            }
        }
    }
    assert_eq!(next, segment.host + segment.length);
});
