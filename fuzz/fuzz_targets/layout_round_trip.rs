//! Any calls in any order, with any cluster size: the model reads the resulting image as it was placed, and
//! every refcount is right.
#![no_main]

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use snapferry_base::units::{ByteCount, ClusterBits, GuestCluster, to_u64, to_usize};
use snapferry_qcow2::{Codec, Finished, Geometry, Layout};
use snapferry_testkit::model::{Model, Stored};

/// Largest size of the head, and of the bodies, for one input. `MOST_CLUSTERS` raises it for large clusters.
/// More would only be slower.
const MOST_BYTES: u64 = 128 << 10;
const MOST_CLUSTERS: u64 = 4;

#[derive(Arbitrary, Debug)]
struct Disk {
    cluster: u8,
    size: u64,
    /// Number of bits by which `size` is shifted right, so that small disks are as likely as large ones.
    shift: u8,
    zstd: bool,
    calls: Vec<LayoutCall>,
}

#[derive(Arbitrary, Debug)]
enum LayoutCall {
    Compressed { guest: u64, len: u32 },
    Raw { guest: u64 },
    EndSegment,
}

/// Returns a byte that differs from that of the neighbouring clusters, and from the zeros of a gap.
fn mark(guest: u64) -> u8 {
    u8::try_from(guest % 255).expect("below 255") + 1
}

fuzz_target!(|disk: Disk| {
    // Seven of eight inputs have small clusters: large clusters make an input slower, but not more useful.
    let sizes = if disk.cluster < 32 { 13 } else { 5 };
    let cluster = ClusterBits::new(9 + u32::from(disk.cluster) % sizes).expect("from 9 to 21");
    let Ok(geometry) = Geometry::new(ByteCount(disk.size >> (disk.shift % 64)), cluster) else { return };
    let limit = MOST_BYTES.max(MOST_CLUSTERS * cluster.size());
    if geometry.head_len() > limit {
        return;
    }
    let compression = if disk.zstd { Codec::Zstd } else { Codec::Deflate };
    let mut layout = Layout::new(geometry, compression);
    let mut file = vec![0; to_usize(geometry.head_len())];
    let mut placed = BTreeMap::new();
    for call in disk.calls {
        let (guest, len) = match call {
            LayoutCall::Compressed { guest, len } => (guest, u64::from(len) % (cluster.size() - 1) + 1),
            LayoutCall::Raw { guest } => (guest, cluster.size()),
            LayoutCall::EndSegment => {
                let gap = layout.pad_to_cluster();
                assert!(gap < cluster.size());
                file.resize(file.len() + to_usize(gap), 0);
                continue;
            }
        };
        let guest = guest % geometry.guest_clusters();
        if placed.contains_key(&guest) || to_u64(file.len()) + len > geometry.head_len() + limit {
            continue;
        }
        placed.insert(guest, len);
        let at = if len < cluster.size() {
            layout.place_compressed(GuestCluster(guest), to_usize(len))
        } else {
            let place = layout.place_raw(GuestCluster(guest));
            assert!(place.gap < cluster.size());
            file.resize(file.len() + to_usize(place.gap), 0);
            place.at
        };
        assert_eq!(at.0, to_u64(file.len()));
        file.resize(file.len() + to_usize(len), mark(guest));
        assert_eq!(layout.end().0, to_u64(file.len()));
    }
    let gap = layout.pad_to_cluster();
    file.resize(file.len() + to_usize(gap), 0);

    let Finished { head, tail, file_len } = layout.finish();
    file[..head.len()].copy_from_slice(&head);
    tail.for_each(|table| file.extend(table));
    assert_eq!(file_len.0, to_u64(file.len()));
    assert!(file_len <= geometry.upper_bound());

    let model = Model::read(&file).expect("an image of ours");
    assert_eq!(model.virtual_size, geometry.virtual_size().0);
    assert!(model.stored.keys().eq(placed.keys()), "other clusters are mapped than were placed");
    for (guest, len) in placed {
        let bytes = match model.stored[&guest] {
            Stored::Raw { bytes, .. } | Stored::Compressed { bytes, .. } => bytes,
        };
        let body = &bytes[..to_usize(len)];
        assert!(body.iter().all(|&byte| byte == mark(guest)), "cluster {guest} differs");
        assert_eq!(matches!(model.stored[&guest], Stored::Raw { .. }), len == cluster.size());
    }
});
