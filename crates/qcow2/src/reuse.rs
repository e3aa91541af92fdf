//! Segments of an image that go into another image as they are: their shapes, found in the tables alone.
//!
//! A segment's bytes depend on its content and the encoder, not on their place in the file. To place them in
//! another image, a program needs the form and the length of each body, which it finds here without reading
//! one of them. Only a segment that lies exactly as [`Layout`](crate::Layout) places bodies has a shape: raw
//! ones first, from the start of a cluster on, then the compressed ones, to the byte, each in the order of
//! the disk.
//!
//! The tables may be damaged or forged: every number is checked, and what is accepted is what the layout
//! would have made. Damage that turns one such image into another can't be noticed here, but by a checksum of
//! the tables.

use snapferry_base::units::{GuestOffset, HostOffset, to_usize};

use crate::l2::{Mapping, Ownership, sectors_touched};
use crate::{Geometry, Header, Mappings, SEGMENT};

/// Stored form of one guest cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Nothing is stored: the cluster reads as zeros.
    Zero,
    /// The cluster's bytes are stored as they are.
    Raw,
    /// The body has this many bytes, right behind the previous compressed body.
    Compressed(usize),
}

/// Place of a segment in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredSegment {
    /// Offset of the segment in the disk, a multiple of [`SEGMENT`].
    pub guest: GuestOffset,
    /// Offset of its first body in the file.
    pub host: HostOffset,
    /// Length of all its bodies in bytes.
    pub length: u64,
}

/// Reason why an image, or a segment of it, can't go into another image.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReuseError {
    /// Another program made the image, or its header is damaged.
    #[error("the header is not the one that belongs to an image of this size")]
    Header,
    /// No segment of the disk begins there.
    #[error("no segment of the disk begins at byte {guest}")]
    Outside {
        /// Offset of the segment in the disk.
        guest: GuestOffset,
    },
    /// The segment has no bytes, or would end past the largest offset.
    #[error("the segment at byte {host} can't have {length} bytes")]
    SegmentLength {
        /// Offset of the segment in the file.
        host: HostOffset,
        /// Length of the segment in bytes.
        length: u64,
    },
    /// The cluster is stored in a form that the layout never makes: as marked zeros, in a shared host
    /// cluster, or in subclusters.
    #[error("the disk's bytes from {guest} are stored as no image of this kind stores them")]
    Form {
        /// Offset of the cluster in the disk.
        guest: GuestOffset,
    },
    /// The body is not where the bodies before it end.
    #[error("the disk's bytes from {guest} are stored at byte {found}, not at {expected}")]
    Position {
        /// Offset of the cluster in the disk.
        guest: GuestOffset,
        /// Offset of the body by its table.
        found: HostOffset,
        /// Offset that follows from the bodies before it.
        expected: HostOffset,
    },
    /// The compressed body would be empty, or no shorter than a cluster.
    #[error(
        "the disk's bytes from {guest} are stored in bytes {start} to {end}, which is no compressed body"
    )]
    BodyLength {
        /// Offset of the cluster in the disk.
        guest: GuestOffset,
        /// Offset of the body.
        start: HostOffset,
        /// Offset of the next body, or end of the segment.
        end: HostOffset,
    },
    /// The table counts other sectors than the body has.
    #[error("the disk's bytes from {guest} are stored in {expected} sectors, and their table counts {found}")]
    Sectors {
        /// Offset of the cluster in the disk.
        guest: GuestOffset,
        /// Sectors that the table counts.
        found: u64,
        /// Sectors that contain bytes of the body.
        expected: u64,
    },
    /// The bodies end elsewhere than the segment.
    #[error("the segment's bodies end at byte {found}, and the segment at {expected}")]
    End {
        /// Offset after the last body.
        found: HostOffset,
        /// End of the segment.
        expected: HostOffset,
    },
}

/// Returns the geometry of an image whose header is, field for field, the one that this program writes for a
/// disk of that size, in either version.
///
/// # Errors
/// [`ReuseError::Header`] if the header has any other value.
pub fn geometry(header: &Header) -> Result<Geometry, ReuseError> {
    let geometry = Geometry::new(header.virtual_size, header.cluster).map_err(|_| ReuseError::Header)?;
    let expected = Header { version: header.version, ..Header::new(&geometry, header.compression) };
    (*header == expected).then_some(geometry).ok_or(ReuseError::Header)
}

/// Returns the form and length of each body of a segment: one entry for each cluster of the segment that lies
/// in the disk.
///
/// # Errors
/// If a table entry is not as the layout makes it, with the first cluster that differs.
pub fn shape(mappings: &Mappings, segment: &StoredSegment) -> Result<Vec<Body>, ReuseError> {
    let StoredSegment { guest, host, length } = *segment;
    let cluster = mappings.cluster();
    if !guest.0.is_multiple_of(SEGMENT.0) || guest.0 >= mappings.virtual_size().0 {
        return Err(ReuseError::Outside { guest });
    }
    let end = host.0.checked_add(length).filter(|_| length > 0);
    let end = HostOffset(end.ok_or(ReuseError::SegmentLength { host, length })?);
    let first = guest.cluster(cluster);
    if mappings.subclusters(first).is_some() {
        return Err(ReuseError::Form { guest });
    }
    let clusters = (SEGMENT.0 >> cluster.bits()).min(mappings.guest_clusters().saturating_sub(first.0));
    let entries = || {
        (0..clusters).map(|index| {
            let guest = first + index;
            (to_usize(index), guest.offset(cluster), mappings.mapping(guest))
        })
    };
    let mut bodies = vec![Body::Zero; to_usize(clusters)];
    let mut next = host;
    for (index, guest, mapping) in entries() {
        match mapping {
            Mapping::Unallocated | Mapping::Compressed { .. } => {}
            Mapping::Raw { host: found, ownership: Ownership::Sole } => {
                if found != next {
                    return Err(ReuseError::Position { guest, found, expected: next });
                }
                bodies[index] = Body::Raw;
                next = found + cluster.size();
            }
            Mapping::Raw { .. } | Mapping::Zero { .. } => return Err(ReuseError::Form { guest }),
        }
    }
    let mut ends = Compressed { cluster: cluster.size(), next, open: None };
    for (index, guest, mapping) in entries() {
        if let Mapping::Compressed { host: found, sectors } = mapping {
            ends.close(found, &mut bodies)?;
            if found != ends.next {
                return Err(ReuseError::Position { guest, found, expected: ends.next });
            }
            ends.open = Some(Open { index, guest, sectors });
        }
    }
    ends.close(end, &mut bodies)?;
    if ends.next != end {
        return Err(ReuseError::End { found: ends.next, expected: end });
    }
    Ok(bodies)
}

/// Compressed body whose end is not known yet: that of the next one's beginning.
struct Open {
    index: usize,
    guest: GuestOffset,
    sectors: u64,
}

/// Run of compressed bodies.
struct Compressed {
    /// Bytes in a cluster.
    cluster: u64,
    /// Offset after the last body whose end is known.
    next: HostOffset,
    open: Option<Open>,
}

impl Compressed {
    /// Ends the open body, if there is one, at `end`.
    fn close(&mut self, end: HostOffset, bodies: &mut [Body]) -> Result<(), ReuseError> {
        let Some(Open { index, guest, sectors: found }) = self.open.take() else { return Ok(()) };
        let start = self.next;
        let len = end.0.checked_sub(start.0).filter(|&len| len > 0 && len < self.cluster);
        let len = len.ok_or(ReuseError::BodyLength { guest, start, end })?;
        let expected = sectors_touched(start, len);
        if found != expected {
            return Err(ReuseError::Sectors { guest, found, expected });
        }
        bodies[index] = Body::Compressed(to_usize(len));
        self.next = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use snapferry_base::units::{ByteCount, ClusterBits, GuestCluster, MIB, to_u64};

    use super::*;
    use crate::{Codec, Finished, HeadAndTables, Image, Layout, Limits};

    /// Numbers of a xorshift generator.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, end: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % end
        }
    }

    struct Made {
        head: Vec<u8>,
        /// Offset of the first table behind the bodies.
        offset: HostOffset,
        tables: Vec<u8>,
        segments: Vec<(StoredSegment, Vec<Body>)>,
    }

    /// Places random bodies as the converter does.
    fn made(numbers: &mut Numbers, cluster: ClusterBits) -> Made {
        let size = 3 * SEGMENT.0 + 1 + numbers.below(SEGMENT.0);
        let geometry = Geometry::new(ByteCount(size), cluster).expect("a disk that fits");
        let mut layout = Layout::new(geometry, Codec::Deflate);
        let mut segments = Vec::new();
        for number in 0..geometry.segments() {
            let guest = GuestOffset(number * SEGMENT.0);
            let first = guest.cluster(cluster);
            let clusters = geometry.segment_clusters().min(geometry.guest_clusters() - first.0);
            // Sparse, dense, all raw, all compressed, or empty.
            let kind = numbers.below(6);
            let bodies: Vec<Body> = (0..clusters)
                .map(|_| match (kind, numbers.below(4)) {
                    (0, _) | (1, 1..) => Body::Zero,
                    (2, _) => Body::Raw,
                    (3, 0..2) => Body::Zero,
                    (3, 2) | (4, 0) => Body::Raw,
                    _ => Body::Compressed(to_usize(1 + numbers.below(cluster.size() - 1))),
                })
                .collect();
            let mut host = None;
            for (index, _) in (0..).zip(&bodies).filter(|(_, body)| **body == Body::Raw) {
                host.get_or_insert(layout.place_raw(first + index).at);
            }
            let host = host.unwrap_or(layout.end());
            for (index, body) in (0..).zip(&bodies) {
                if let Body::Compressed(len) = *body {
                    layout.place_compressed(first + index, len);
                }
            }
            let length = layout.end().0 - host.0;
            if length > 0 {
                segments.push((StoredSegment { guest, host, length }, bodies));
            }
        }
        let _ = layout.pad_to_cluster();
        let offset = layout.end();
        let Finished { head, tail, .. } = layout.finish();
        Made { head, offset, tables: tail.flatten().collect(), segments }
    }

    fn load(head: &[u8], offset: HostOffset, tables: &[u8]) -> Option<Mappings> {
        let file = HeadAndTables::new("memory".to_owned(), head.to_vec(), offset, tables.to_vec());
        let file = file.expect("tables behind the head");
        let image = Image::open(&file, &Limits::default()).ok()?;
        geometry(image.header()).expect("a header of this program");
        image.load(&file).ok()
    }

    /// Places the bodies again, and compares each with its table entry.
    fn assert_as_placed(mappings: &Mappings, segment: &StoredSegment, bodies: &[Body]) {
        let cluster = mappings.cluster();
        let first = segment.guest.cluster(cluster);
        let mut next = segment.host;
        for (index, _) in (0..).zip(bodies).filter(|(_, body)| **body == Body::Raw) {
            assert_eq!(mappings.mapping(first + index), Mapping::raw(next));
            next = next + cluster.size();
        }
        for (index, body) in (0..).zip(bodies) {
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
    }

    #[test]
    fn the_shape_is_what_was_placed_and_damage_never_makes_another_than_the_layout_would() {
        let mut numbers = Numbers(7);
        let (mut damages, mut noticed) = (0, 0);
        for bits in [12, 14, 16, 18, 21] {
            let cluster = ClusterBits::new(bits).expect("a cluster size");
            for _ in 0..6 {
                let made = made(&mut numbers, cluster);
                let mappings = load(&made.head, made.offset, &made.tables).expect("an image of this program");
                for (segment, bodies) in &made.segments {
                    assert_eq!(shape(&mappings, segment).as_ref(), Ok(bodies), "{segment:?}");
                    assert_as_placed(&mappings, segment, bodies);
                }
                let entries: Vec<usize> = (0..made.tables.len())
                    .step_by(8)
                    .filter(|at| made.tables[*at..at + 8] != [0; 8])
                    .collect();
                for _ in 0..40 {
                    let mut tables = made.tables.clone();
                    let pick =
                        |numbers: &mut Numbers| entries[to_usize(numbers.below(to_u64(entries.len())))];
                    let (at, other) = (pick(&mut numbers), pick(&mut numbers));
                    let word = u64::from_be_bytes(tables[at..at + 8].try_into().expect("eight"));
                    match numbers.below(5) {
                        0 => tables[at..at + 8].fill(0),
                        1 => tables[at..at + 8].copy_from_slice(&(word + 1).to_be_bytes()),
                        2 => {
                            let flipped = word ^ 1 << numbers.below(64);
                            tables[at..at + 8].copy_from_slice(&flipped.to_be_bytes());
                        }
                        3 => tables.copy_within(other..other + 8, at),
                        _ => (0..8).for_each(|byte| tables.swap(at + byte, other + byte)),
                    }
                    if tables == made.tables {
                        continue;
                    }
                    damages += 1;
                    let Some(mappings) = load(&made.head, made.offset, &tables) else {
                        noticed += 1;
                        continue;
                    };
                    let mut is_noticed = false;
                    for (segment, _) in &made.segments {
                        match shape(&mappings, segment) {
                            Ok(bodies) => assert_as_placed(&mappings, segment, &bodies),
                            Err(_) => is_noticed = true,
                        }
                    }
                    noticed += u32::from(is_noticed);
                }
            }
        }
        // Refcounts are no part of a shape, and a body that ends elsewhere may touch as many sectors. The
        // checksum of the tables finds these.
        assert!(damages > 1000 && noticed > damages / 2, "{noticed} of {damages}");
    }

    /// An image with clusters of 64 KiB: in its second segment two raw and three compressed bodies.
    fn small(change: impl Fn(&mut [u8])) -> (Mappings, StoredSegment) {
        let geometry = Geometry::new(ByteCount(40 * MIB), ClusterBits::DEFAULT).expect("a disk that fits");
        let mut layout = Layout::new(geometry, Codec::Zstd);
        let host = layout.place_raw(GuestCluster(257)).at;
        let _ = layout.place_raw(GuestCluster(259));
        for (guest, len) in [(256, 100), (258, 65_535), (500, 700)] {
            layout.place_compressed(GuestCluster(guest), len);
        }
        let length = layout.end().0 - host.0;
        let _ = layout.pad_to_cluster();
        let offset = layout.end();
        let Finished { head, tail, .. } = layout.finish();
        let mut tables: Vec<u8> = tail.flatten().collect();
        change(&mut tables);
        (
            load(&head, offset, &tables).expect("an image that can be read"),
            StoredSegment { guest: GuestOffset(SEGMENT.0), host, length },
        )
    }

    #[test]
    fn each_difference_is_reported_with_its_place() {
        let (mappings, good) = small(|_| {});
        let bodies = shape(&mappings, &good).expect("a segment of this program");
        assert_eq!(bodies.len(), 256);
        assert_eq!(bodies[..4], [Body::Compressed(100), Body::Raw, Body::Compressed(65_535), Body::Raw]);
        assert_eq!((bodies[4], bodies[244]), (Body::Zero, Body::Compressed(700)));
        let guest = |cluster: u64| GuestOffset(cluster << 16);
        let end = good.host + good.length;
        for (segment, expected) in [
            (StoredSegment { guest: GuestOffset(1), ..good }, ReuseError::Outside { guest: GuestOffset(1) }),
            (
                StoredSegment { guest: GuestOffset(3 * SEGMENT.0), ..good },
                ReuseError::Outside { guest: GuestOffset(3 * SEGMENT.0) },
            ),
            (StoredSegment { length: 0, ..good }, ReuseError::SegmentLength { host: good.host, length: 0 }),
            (
                StoredSegment { length: u64::MAX, ..good },
                ReuseError::SegmentLength { host: good.host, length: u64::MAX },
            ),
            (
                StoredSegment { guest: GuestOffset(0), ..good },
                ReuseError::End { found: good.host, expected: end },
            ),
            (
                StoredSegment { host: HostOffset(0), ..good },
                ReuseError::Position { guest: guest(257), found: good.host, expected: HostOffset(0) },
            ),
            (
                StoredSegment { length: good.length - 700, ..good },
                ReuseError::BodyLength {
                    guest: guest(500),
                    start: HostOffset(end.0 - 700),
                    end: HostOffset(end.0 - 700),
                },
            ),
            (
                StoredSegment { length: good.length + 512, ..good },
                ReuseError::Sectors { guest: guest(500), found: 2, expected: 3 },
            ),
        ] {
            assert_eq!(shape(&mappings, &segment), Err(expected));
        }
        type Change = fn(&mut u64);
        let changes: [(u64, Change, ReuseError); 5] = [
            (257, |entry| *entry &= !(1 << 63), ReuseError::Form { guest: guest(257) }),
            (257, |entry| *entry = 1, ReuseError::Form { guest: guest(257) }),
            (
                257,
                |entry| *entry = 0,
                ReuseError::Position { guest: guest(259), found: good.host + (1 << 16), expected: good.host },
            ),
            (
                256,
                |entry| *entry += 1,
                ReuseError::Position {
                    guest: guest(256),
                    found: good.host + (2 << 16) + 1,
                    expected: good.host + (2 << 16),
                },
            ),
            (
                258,
                |entry| *entry -= 1 << 54,
                ReuseError::Sectors { guest: guest(258), found: 128, expected: 129 },
            ),
        ];
        for (cluster, change, expected) in changes {
            let (mappings, segment) = small(|tables| {
                let at = to_usize(cluster) * 8;
                let mut entry = u64::from_be_bytes(tables[at..at + 8].try_into().expect("eight"));
                change(&mut entry);
                tables[at..at + 8].copy_from_slice(&entry.to_be_bytes());
            });
            assert_eq!(shape(&mappings, &segment), Err(expected));
        }
    }

    #[test]
    fn only_the_header_of_this_program_is_taken() {
        let size = ByteCount(40 * MIB);
        let own = Geometry::new(size, ClusterBits::DEFAULT).expect("a disk that fits");
        let header = Header::new(&own, Codec::Deflate);
        assert_eq!(geometry(&header), Ok(own));
        assert_eq!(geometry(&Header { version: crate::header::Version::V2, ..header }), Ok(own));
        let others = [
            Header { virtual_size: ByteCount(0), ..header },
            Header { virtual_size: ByteCount(u64::MAX), ..header },
            Header { l1_entries: header.l1_entries + 1, ..header },
            Header { l1_table: HostOffset(header.l1_table.0 + 65_536), ..header },
            Header { refcount_table: HostOffset(0), ..header },
            Header { refcount_table_clusters: 2, ..header },
            Header { refcount_order: 5, ..header },
            Header { snapshots: 1, ..header },
            Header { dirty: true, ..header },
            Header { extended_l2: true, ..header },
        ];
        let refused: BTreeSet<usize> = (0..)
            .zip(&others)
            .filter(|(_, other)| geometry(other).is_err())
            .map(|(index, _)| index)
            .collect();
        assert_eq!(refused.len(), others.len(), "only these were refused: {refused:?}");
    }
}
