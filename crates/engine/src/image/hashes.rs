//! Compares the hashes of decoded chunks with those that were computed when the disk was read.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use snapferry_base::units::{ByteCount, GuestOffset, SECTOR, to_u64, to_usize};
use snapferry_qcow2::SEGMENT;

use crate::hash::{CHUNK, GuestHash, ZeroHashes, segment_hash};
use crate::manifest::{Manifest, VERSION};

/// Difference between the decoded bytes and the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum HashFinding {
    /// The segment holds other bytes than those that were read from the disk.
    Segment {
        /// Disk offset of the first byte.
        guest: GuestOffset,
        /// Length in bytes.
        len: u64,
    },
    /// The image holds data where the disk had nothing but zeros.
    Unlisted {
        /// Disk offset of the chunk.
        guest: GuestOffset,
    },
    /// A chunk is not stored in one place, as it was when the image was made.
    Scattered {
        /// Disk offset of the chunk.
        guest: GuestOffset,
    },
}

impl fmt::Display for HashFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment { guest, len } => {
                write!(
                    f,
                    "the {len} bytes of the disk from {guest} are not those that were read when the image was made"
                )
            }
            Self::Unlisted { guest } => {
                write!(f, "the disk was all zeros around byte {guest}, and the image holds something there")
            }
            Self::Scattered { guest } => {
                write!(
                    f,
                    "the disk's bytes from {guest} are not stored where they were when the image was made"
                )
            }
        }
    }
}

/// Reason why an image can't be checked against a manifest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ManifestError {
    /// The file is not a manifest.
    #[error("it is no manifest: {reason}")]
    Unreadable { reason: String },
    /// The manifest has a version that is too new.
    #[error("the manifest is of version {version}, and only those up to {VERSION} are known")]
    Version { version: u32 },
    /// The manifest belongs to another image.
    #[error(
        "the manifest is of a file of {expected} bytes with a disk of {disk}, and this one has {found} with {found_disk}"
    )]
    Other {
        /// Size of the file in bytes, by the manifest.
        expected: u64,
        /// Size of the disk in bytes, by the manifest.
        disk: u64,
        /// Size of the file in bytes.
        found: u64,
        /// Size of the disk in bytes.
        found_disk: u64,
    },
    /// The image of this manifest does not hold all of the disk.
    #[error(
        "the image accounts for {accounted} of the {size} bytes of the disk that it was made from: it is not whole"
    )]
    NotWhole {
        /// Bytes of the disk that the image accounts for.
        accounted: u64,
        /// Size of the disk in bytes.
        size: u64,
    },
    /// A field of the manifest has an impossible value.
    #[error("the manifest says {field} is {value}, which can't be")]
    Nonsense {
        /// Name of the field.
        field: &'static str,
        value: u64,
    },
}

/// Hashes of chunks, collected as they are decoded.
#[derive(Debug)]
pub struct ChunkHashes {
    /// Size of the source in bytes, which is what was hashed: the disk in the image may be longer by part of
    /// a sector.
    source_size: u64,
    found: Mutex<BTreeMap<u64, FoundHash>>,
}

/// Result of decoding one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FoundHash {
    /// The chunk came in one piece.
    Whole(GuestHash),
    /// The chunk came in several pieces.
    Parts,
    /// A body in the chunk does not decode.
    Damaged,
}

/// Report of a decoder about one chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Decoded<'a> {
    /// All bytes of the chunk.
    Whole(&'a [u8]),
    /// Some bytes of the chunk came in another piece.
    Part,
    /// Some bytes of the chunk can't be decoded.
    Damaged,
}

impl ChunkHashes {
    /// Creates an empty collection for an image of a source of `source_size` bytes.
    #[must_use]
    pub fn new(source_size: ByteCount) -> Self {
        Self { source_size: source_size.0, found: Mutex::default() }
    }

    /// Records a chunk or one of its parts.
    pub(crate) fn put(&self, start: GuestOffset, decoded: Decoded<'_>) {
        let found = match decoded {
            Decoded::Whole(bytes) => {
                FoundHash::Whole(*blake3::hash(&bytes[..self.chunk_len(start.0).min(bytes.len())]).as_bytes())
            }
            Decoded::Part => FoundHash::Parts,
            Decoded::Damaged => FoundHash::Damaged,
        };
        // Damage in one part is damage to the chunk.
        self.found()
            .entry(start.0 / CHUNK.0)
            .and_modify(|old| *old = if *old == FoundHash::Damaged { *old } else { found })
            .or_insert(found);
    }

    /// Returns the bytes of the source in the chunk that begins at `start`.
    fn chunk_len(&self, start: u64) -> usize {
        to_usize(CHUNK.0.min(self.source_size.saturating_sub(start)))
    }

    fn found(&self) -> MutexGuard<'_, BTreeMap<u64, FoundHash>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares all recorded chunks with a manifest that [`check_manifest`] accepted. Returns the differences
    /// in the order of the disk, and the number of segments that were compared.
    pub fn compare(&self, manifest: &Manifest) -> (Vec<HashFinding>, u64) {
        let found = self.found();
        let zeros = ZeroHashes::default();
        let mut findings = Vec::new();
        let mut compared = 0;
        let mut listed = std::collections::BTreeSet::new();
        for segment in &manifest.segments {
            listed.insert(segment.guest.0 / SEGMENT.0);
            let Some(expected) = segment.blake3 else { continue };
            let end = segment.guest.0.saturating_add(SEGMENT.0).min(self.source_size);
            let mut hashes = Vec::with_capacity(to_usize(SEGMENT.0 / CHUNK.0));
            let mut scattered = None;
            let mut damaged = false;
            for start in (segment.guest.0..end).step_by(to_usize(CHUNK.0)) {
                match found.get(&(start / CHUNK.0)) {
                    Some(FoundHash::Whole(hash)) => hashes.push(*hash),
                    Some(FoundHash::Parts) => scattered = scattered.or(Some(GuestOffset(start))),
                    Some(FoundHash::Damaged) => damaged = true,
                    None => hashes.push(zeros.of(self.chunk_len(start))),
                }
            }
            // The damage is reported already, body by body.
            if damaged {
                continue;
            }
            compared += 1;
            if let Some(guest) = scattered {
                findings.push(HashFinding::Scattered { guest });
            } else if segment_hash(&hashes) != expected {
                findings.push(HashFinding::Segment { guest: segment.guest, len: end - segment.guest.0 });
            }
        }
        for (chunk, found_hash) in found.iter() {
            let start = chunk * CHUNK.0;
            if !listed.contains(&(start / SEGMENT.0))
                && *found_hash != FoundHash::Whole(zeros.of(self.chunk_len(start)))
            {
                findings.push(HashFinding::Unlisted { guest: GuestOffset(start) });
            }
        }
        (findings, compared)
    }
}

/// Checks that the manifest can be used to check an image.
///
/// # Errors
/// With the reason, if it can't.
pub fn check_manifest(manifest: &Manifest) -> Result<(), ManifestError> {
    if manifest.version > VERSION {
        return Err(ManifestError::Version { version: manifest.version });
    }
    let nonsense = |field, value| Err(ManifestError::Nonsense { field, value });
    let encoder = &manifest.encoder;
    if encoder.chunk_size != CHUNK {
        return nonsense("encoder.chunk_size", encoder.chunk_size.0);
    }
    if encoder.segment_size != SEGMENT {
        return nonsense("encoder.segment_size", encoder.segment_size.0);
    }
    let source_size = manifest.source.size.0;
    if source_size.checked_next_multiple_of(SECTOR) != Some(manifest.image.virtual_size.0) {
        return nonsense("source.size", source_size);
    }
    if let Some(ByteCount(accounted)) = manifest.image.accounted
        && accounted != source_size
    {
        return Err(ManifestError::NotWhole { accounted, size: source_size });
    }
    let mut min_guest = None;
    for segment in &manifest.segments {
        let (guest, host) = (segment.guest.0, segment.host.0);
        if !guest.is_multiple_of(SEGMENT.0)
            || guest >= source_size
            || min_guest.is_some_and(|min_guest| guest < min_guest)
        {
            return nonsense("segments[].guest", guest);
        }
        min_guest = Some(guest.saturating_add(1));
        if host > manifest.image.size.0 {
            return nonsense("segments[].host", host);
        }
        if segment.length > manifest.image.size.0 - host {
            return nonsense("segments[].length", segment.length);
        }
    }
    Ok(())
}

/// Checks that the manifest can be used to check an image, and belongs to an image of these sizes.
///
/// # Errors
/// With the reason, if it can't be used; with the sizes, if they differ.
pub(crate) fn check_sizes(
    manifest: &Manifest,
    file: ByteCount,
    disk: ByteCount,
) -> Result<(), ManifestError> {
    check_manifest(manifest)?;
    let image = &manifest.image;
    if (image.size, image.virtual_size) == (file, disk) {
        return Ok(());
    }
    Err(ManifestError::Other {
        expected: image.size.0,
        disk: image.virtual_size.0,
        found: file.0,
        found_disk: disk.0,
    })
}

/// Returns the number of segments whose hashes the manifest has.
#[must_use]
pub(crate) fn hashed_segments(manifest: &Manifest) -> u64 {
    to_u64(manifest.segments.iter().filter(|segment| segment.blake3.is_some()).count())
}

#[cfg(test)]
mod tests {
    use snapferry_base::units::HostOffset;

    use super::*;
    use crate::hash::Crc64;
    use crate::manifest::{EncoderRecord, ImageRecord, Segment, SourceRecord};

    fn manifest(source_size: u64) -> Manifest {
        Manifest {
            version: VERSION,
            made_by: "x".into(),
            created: "2026-01-02T03:04:05Z".into(),
            source: SourceRecord { name: "a".into(), host: "b".into(), size: ByteCount(source_size) },
            image: ImageRecord {
                size: ByteCount(1 << 17),
                virtual_size: ByteCount(source_size.next_multiple_of(SECTOR)),
                crc64: Crc64(0),
                etag: None,
                head: None,
                tables: None,
                accounted: Some(ByteCount(source_size)),
                sha256: None,
                verified_at: None,
            },
            encoder: EncoderRecord {
                codec: "deflate".into(),
                level: "fast".into(),
                library: "x".into(),
                target: None,
                layout: None,
                cluster_size: ByteCount(1 << 16),
                segment_size: SEGMENT,
                chunk_size: CHUNK,
            },
            base: None,
            refused: None,
            salvaged: Vec::new(),
            free: Vec::new(),
            segments: vec![Segment {
                guest: GuestOffset(0),
                host: HostOffset(1 << 16),
                length: 10,
                crc64: Crc64(0),
                blake3: Some(blake3::hash(b"x")),
            }],
        }
    }

    #[test]
    fn a_manifest_with_sizes_that_none_has_is_refused() {
        assert_eq!(check_manifest(&manifest(1000)), Ok(()));
        type Change = fn(&mut Manifest);
        let changes: [(Change, &str, u64); 10] = [
            (|manifest| manifest.encoder.segment_size = ByteCount(0), "encoder.segment_size", 0),
            (|manifest| manifest.encoder.segment_size = ByteCount(1 << 62), "encoder.segment_size", 1 << 62),
            (|manifest| manifest.encoder.chunk_size = SEGMENT, "encoder.chunk_size", SEGMENT.0),
            (|manifest| manifest.source.size = ByteCount(1 << 62), "source.size", 1 << 62),
            (|manifest| manifest.source.size = ByteCount(u64::MAX), "source.size", u64::MAX),
            (|manifest| manifest.segments[0].guest = GuestOffset(SEGMENT.0), "segments[].guest", SEGMENT.0),
            (|manifest| manifest.segments[0].guest = GuestOffset(7), "segments[].guest", 7),
            (|manifest| manifest.segments.push(manifest.segments[0].clone()), "segments[].guest", 0),
            (
                |manifest| manifest.segments[0].host = HostOffset((1 << 17) + 1),
                "segments[].host",
                (1 << 17) + 1,
            ),
            (|manifest| manifest.segments[0].length = 1 << 17, "segments[].length", 1 << 17),
        ];
        for (change, field, value) in changes {
            let mut changed = manifest(1000);
            change(&mut changed);
            assert_eq!(check_manifest(&changed), Err(ManifestError::Nonsense { field, value }));
        }
    }

    #[test]
    fn a_manifest_of_a_part_of_the_disk_is_refused_and_one_that_does_not_count_is_not() {
        for accounted in [0, 999, 1001] {
            let mut short = manifest(1000);
            short.image.accounted = Some(ByteCount(accounted));
            assert_eq!(check_manifest(&short), Err(ManifestError::NotWhole { accounted, size: 1000 }));
        }
        let mut older = manifest(1000);
        older.image.accounted = None;
        assert_eq!(check_manifest(&older), Ok(()));
    }

    #[test]
    fn a_segment_at_the_largest_disks_end_is_compared() {
        let mut last = manifest(u64::MAX - 511);
        last.segments[0].guest = GuestOffset(u64::MAX / SEGMENT.0 * SEGMENT.0);
        assert_eq!(check_manifest(&last), Ok(()));
        let (findings, compared) = ChunkHashes::new(last.source.size).compare(&last);
        assert!(compared == 1 && matches!(findings[..], [HashFinding::Segment { .. }]), "{findings:?}");
    }
}
