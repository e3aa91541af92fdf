//! Checksum of a whole image, joined from those of its pieces: head, gaps, segments, tables.

use snapferry_base::units::{ByteCount, ClusterBits, HostOffset};

use super::{HeadRecord, Segment, TablesRecord};
use crate::hash::Crc64;

/// Size and checksum of an image, joined from its pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Folded {
    /// Size of the image in bytes.
    pub size: ByteCount,
    /// CRC64NVME of the whole image.
    pub crc64: Crc64,
}

/// Reason why the pieces of a manifest are not those of its image.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum FoldError {
    /// The program that made the image kept no checksums of them.
    #[error("the manifest has no checksums of the image's head and tables")]
    Unsummed,
    /// No image has clusters of that size.
    #[error("the manifest gives clusters of {size}, which no image has")]
    Cluster {
        /// Size by the manifest.
        size: ByteCount,
    },
    /// Head or tables are not whole clusters.
    #[error("the manifest's {piece} of {length} bytes are not whole clusters of the image")]
    Unaligned {
        /// `head` or `tables`.
        piece: &'static str,
        /// Length by the manifest, or offset of the tables.
        length: u64,
    },
    /// A piece holds no bytes, or lies past the end of any file.
    #[error("the manifest's segment at byte {host} of the image can't have {length} bytes")]
    Length {
        /// Offset of the segment in the image.
        host: HostOffset,
        /// Length by the manifest.
        length: u64,
    },
    /// Two pieces overlap, or the bytes between them are no gap that the layout leaves.
    #[error("the manifest has nothing for the image's bytes from {end} to {next}, or has them twice")]
    Gap {
        /// End of the piece before.
        end: HostOffset,
        /// Offset of the next piece.
        next: HostOffset,
    },
    /// The pieces end elsewhere than the file.
    #[error("the manifest's tables end at byte {found} of an image of {expected}")]
    Size {
        /// Size of the image by the manifest.
        expected: ByteCount,
        /// End of the last piece.
        found: ByteCount,
    },
    /// The checksums do not join to that of the whole image.
    #[error("the manifest's checksums join to {found}, and that of the whole image is {expected}")]
    Sum {
        /// Checksum of the whole image by the manifest.
        expected: Crc64,
        /// Checksum that the pieces join to.
        found: Crc64,
    },
}

/// Joins the checksums of an image's pieces, which lie one behind the other: head, segments, tables. In front
/// of a piece at the start of a cluster there may be a gap of zeros, shorter than a cluster.
///
/// # Errors
/// If the pieces do not lie like that.
pub fn fold(
    head: &HeadRecord,
    segments: &[Segment],
    tables: &TablesRecord,
    cluster: ByteCount,
) -> Result<Folded, FoldError> {
    ClusterBits::from_size(cluster).map_err(|_| FoldError::Cluster { size: cluster })?;
    let whole = |piece, length: u64| {
        let is_whole = length > 0 && length.is_multiple_of(cluster.0);
        is_whole.then_some(()).ok_or(FoldError::Unaligned { piece, length })
    };
    whole("head", head.length)?;
    whole("tables", tables.length)?;
    whole("tables", tables.offset.0)?;
    let mut joined = Joined { end: head.length, crc64: head.crc64, cluster };
    for segment in segments {
        joined.add(segment.host, segment.length, segment.crc64)?;
    }
    joined.add(tables.offset, tables.length, tables.crc64)?;
    Ok(Folded { size: ByteCount(joined.end), crc64: joined.crc64 })
}

/// Pieces so far.
struct Joined {
    /// Offset after the last piece.
    end: u64,
    crc64: Crc64,
    cluster: ByteCount,
}

impl Joined {
    fn add(&mut self, host: HostOffset, length: u64, crc64: Crc64) -> Result<(), FoldError> {
        let gap = host
            .0
            .checked_sub(self.end)
            .filter(|&gap| gap == 0 || (gap < self.cluster.0 && host.0.is_multiple_of(self.cluster.0)))
            .ok_or(FoldError::Gap { end: HostOffset(self.end), next: host })?;
        let end = host.0.checked_add(length).filter(|_| length > 0);
        self.end = end.ok_or(FoldError::Length { host, length })?;
        if gap > 0 {
            self.crc64 = self.crc64.then(Crc64::of_zeros(gap), gap);
        }
        self.crc64 = self.crc64.then(crc64, length);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use snapferry_base::units::{GuestOffset, to_u64};

    use super::*;

    const CLUSTER: u64 = 4096;

    struct Pieces {
        file: Vec<u8>,
        head: HeadRecord,
        segments: Vec<Segment>,
        tables: TablesRecord,
        cluster: ByteCount,
    }

    impl Pieces {
        /// Makes a file of three clusters of head, two segments with a gap before the second, a pad, and a
        /// table.
        fn new() -> Self {
            let mut file = vec![1; 3 * 4096];
            let head = HeadRecord { length: to_u64(file.len()), crc64: Crc64::of(&file) };
            let mut segments = Vec::new();
            for (number, (gap, length)) in (0..).zip([(0, 5000), (2 * 4096 - 5000, 4100)]) {
                file.resize(file.len() + gap, 0);
                let body: Vec<u8> = (0..length).map(|at: u32| at.to_le_bytes()[0] | 1).collect();
                segments.push(Segment {
                    guest: GuestOffset(number << 24),
                    host: HostOffset(to_u64(file.len())),
                    length: u64::from(length),
                    crc64: Crc64::of(&body),
                    blake3: None,
                });
                file.extend(body);
            }
            file.resize(file.len().next_multiple_of(4096), 0);
            let offset = HostOffset(to_u64(file.len()));
            let table = [9; 4096];
            file.extend(table);
            let tables = TablesRecord { offset, length: CLUSTER, crc64: Crc64::of(&table) };
            Self { file, head, segments, tables, cluster: ByteCount(CLUSTER) }
        }

        fn fold(&self) -> Result<Folded, FoldError> {
            fold(&self.head, &self.segments, &self.tables, self.cluster)
        }
    }

    #[test]
    fn the_pieces_join_to_the_sum_of_the_file() {
        let mut pieces = Pieces::new();
        let size = ByteCount(to_u64(pieces.file.len()));
        assert_eq!(pieces.fold(), Ok(Folded { size, crc64: Crc64::of(&pieces.file) }));
        pieces.segments.clear();
        pieces.tables.offset = HostOffset(pieces.head.length);
        let crc64 = pieces.head.crc64.then(pieces.tables.crc64, CLUSTER);
        assert_eq!(pieces.fold(), Ok(Folded { size: ByteCount(4 * CLUSTER), crc64 }));
    }

    #[test]
    fn pieces_that_lie_otherwise_are_refused() {
        type Change = fn(&mut Pieces);
        let Pieces { segments, tables, .. } = Pieces::new();
        let (first_end, second) = (segments[0].host + segments[0].length, segments[1].host);
        let second_end = second + segments[1].length;
        let gap = |end, next| FoldError::Gap { end, next };
        let changes: [(Change, FoldError); 12] = [
            (|p| p.cluster.0 = 0, FoldError::Cluster { size: ByteCount(0) }),
            (|p| p.cluster.0 = 1 << 40, FoldError::Cluster { size: ByteCount(1 << 40) }),
            (|p| p.head.length = 0, FoldError::Unaligned { piece: "head", length: 0 }),
            (|p| p.head.length -= 1, FoldError::Unaligned { piece: "head", length: 3 * CLUSTER - 1 }),
            (|p| p.tables.length = 1, FoldError::Unaligned { piece: "tables", length: 1 }),
            (|p| p.segments[1].host.0 = 1, gap(first_end, HostOffset(1))),
            (|p| p.segments[1].host.0 += 1, gap(first_end, second + 1)),
            (|p| p.segments[1].host.0 += CLUSTER, gap(first_end, second + CLUSTER)),
            (|p| p.segments.truncate(1), gap(first_end, tables.offset)),
            (|p| p.segments[1].length = 0, FoldError::Length { host: second, length: 0 }),
            (|p| p.segments[1].length = u64::MAX, FoldError::Length { host: second, length: u64::MAX }),
            (|p| p.tables.offset.0 -= CLUSTER, gap(second_end, HostOffset(tables.offset.0 - CLUSTER))),
        ];
        for (change, expected) in changes {
            let mut pieces = Pieces::new();
            change(&mut pieces);
            assert_eq!(pieces.fold(), Err(expected));
        }
    }
}
