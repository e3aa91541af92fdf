//! Whole images in memory, placed as the converter places them, for tests and fuzz targets of the layout
//! alone.

use std::collections::BTreeMap;

use snapferry_base::units::{ClusterBits, GuestCluster, to_u64, to_usize};
use snapferry_qcow2::{Codec, Finished, Geometry, Layout};

/// Stored content of a guest cluster that is not zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Compressed bytes, fewer than a cluster has.
    Compressed(Vec<u8>),
    /// Bytes of one cluster.
    Raw(Vec<u8>),
}

/// Builds the image that holds `bodies` at these guest clusters, with gaps filled with zeros.
///
/// # Panics
/// If the layout breaks a promise: a gap as long as a cluster, more than one gap in a segment, a head, tail
/// or file of another length than announced, or a file longer than its upper bound.
#[must_use]
pub fn build(geometry: Geometry, compression: Codec, bodies: &BTreeMap<u64, Body>) -> Vec<u8> {
    let mut layout = Layout::new(geometry, compression);
    let cluster = geometry.cluster().size();
    // Placeholder for the head until its content is known.
    let mut file = vec![0; to_usize(geometry.head_len())];
    let mut remaining = bodies.iter().peekable();
    while let Some(&(&first, _)) = remaining.peek() {
        let segment = geometry.segment_of(GuestCluster(first));
        let members: Vec<_> = std::iter::from_fn(|| {
            remaining.next_if(|&(&guest, _)| geometry.segment_of(GuestCluster(guest)) == segment)
        })
        .collect();
        let mut gaps = Vec::new();
        for &(&guest, body) in &members {
            if let Body::Compressed(bytes) = body {
                let at = layout.place_compressed(GuestCluster(guest), bytes.len());
                assert_eq!(at.0, to_u64(file.len()), "compressed bodies leave no gaps");
                file.extend(bytes);
            }
        }
        for &(&guest, body) in &members {
            if let Body::Raw(bytes) = body {
                let location = layout.place_raw(GuestCluster(guest));
                gaps.push(location.gap);
                file.resize(file.len() + to_usize(location.gap), 0);
                assert_eq!(location.at.0, to_u64(file.len()), "the gap leads to the body");
                assert_eq!(to_u64(bytes.len()), cluster, "a raw body is a cluster");
                file.extend(bytes);
            }
        }
        gaps.push(layout.pad_to_cluster());
        file.resize(file.len() + to_usize(gaps[gaps.len() - 1]), 0);
        assert!(gaps.iter().all(|&gap| gap < cluster), "a gap of a cluster or more: {gaps:?}");
        assert!(
            gaps.iter().filter(|&&gap| gap > 0).count() <= 1,
            "a segment with more than one gap: {gaps:?}"
        );
    }
    assert_eq!(layout.end().0, to_u64(file.len()));
    let Finished { head, tail, file_len } = layout.finish();
    file[..head.len()].copy_from_slice(&head);
    assert_eq!(to_u64(head.len()), geometry.head_len());
    let announced = tail.len();
    let mut tables = 0;
    for table in tail {
        assert_eq!(to_u64(table.len()), cluster, "a table fills a cluster");
        file.extend(table);
        tables += 1;
    }
    assert_eq!(announced, tables, "the tail's length");
    assert_eq!(file_len.0, to_u64(file.len()));
    assert!(file_len <= geometry.upper_bound(), "{file_len} is longer than {}", geometry.upper_bound());
    file
}

/// Compresses a disk with level 1 of libdeflate or zstd. A cluster that does not become shorter stays raw.
#[must_use]
pub fn encode(disk: &[u8], cluster: ClusterBits, compression: Codec) -> BTreeMap<u64, Body> {
    // Not `fastest`, which is level 0 and stores the bytes uncompressed.
    let level = libdeflater::CompressionLvl::new(1).expect("libdeflate has levels 0 to 12");
    let mut deflate = libdeflater::Compressor::new(level);
    let mut bodies = BTreeMap::new();
    for (guest, chunk) in (0..).zip(disk.chunks(cluster.len())) {
        if chunk.iter().all(|&byte| byte == 0) {
            continue;
        }
        let mut padded = chunk.to_vec();
        padded.resize(cluster.len(), 0);
        let body = match compression {
            Codec::Deflate => {
                let mut out = vec![0; deflate.deflate_compress_bound(padded.len())];
                let len = deflate.deflate_compress(&padded, &mut out).expect("the bound is enough");
                out.truncate(len);
                out
            }
            Codec::Zstd => zstd::bulk::compress(&padded, 1).expect("memory is enough"),
        };
        bodies.insert(
            guest,
            if body.len() < padded.len() { Body::Compressed(body) } else { Body::Raw(padded) },
        );
    }
    bodies
}
