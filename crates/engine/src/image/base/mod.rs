//! Base of a new image: an earlier image of the same disk, from which unchanged segments are copied.
//!
//! It is checked once, before the first byte of the disk is read. Of the image itself only head and tables
//! are fetched, for the forms and lengths of the bodies. Their checksums are in the manifest, and those of
//! all pieces join to that of the whole image. What passes here can fail later only because the store fails,
//! or because another process changes the image.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use snapferry_base::clock::rfc3339;
use snapferry_base::limits::try_with_capacity;
use snapferry_base::units::{ByteCount, ClusterBits, GuestOffset, HostOffset, MIB, to_u64, to_usize};
use snapferry_qcow2::reuse::{self, Body, StoredSegment};
use snapferry_qcow2::{Geometry, HeadAndTables, Image, ImageError, Limits, Mappings, SEGMENT};

mod not_usable;

pub use not_usable::{Damage, NotUsable};

use super::check_manifest;
use super::stored_image::LONGEST_RANGE;
use crate::hash::Crc64;
use crate::manifest::{EncoderRecord, HeadRecord, Manifest, TablesRecord, VERSION};
use crate::store::{CopySource, ObjectKey, ObjectMeta, ObjectStore, Operation, StoreError};

/// Size of the smallest image that is used: below it, all of the image is sent in two or three parts.
pub const LEAST: ByteCount = ByteCount(64 * MIB);

/// Time for which a store that refused to copy is not asked again.
const REFUSAL_HOLDS: Duration = Duration::from_hours(30 * 24);

/// Largest manifest that is read. The manifest of a 10 TB image has some 120 MB.
const LARGEST_MANIFEST: u64 = 256 * MIB;

/// Proof that an image needs before it is a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequiredProof {
    /// The checks of its conversion.
    Made,
    /// All of it was read back and decoded after it was made.
    Verified,
}

/// Properties that the base of a run must have.
#[derive(Clone, Debug)]
pub struct BaseRequirements {
    /// Settings of the run's encoder. The level's name may differ, if the library and its level do not.
    pub encoder: EncoderRecord,
    pub proof: RequiredProof,
    /// Time now, which decides if a refusal of the store is old.
    pub now: SystemTime,
}

/// Segment of a base that holds data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseSegment {
    /// Offset of the segment in the disk.
    pub guest: GuestOffset,
    /// Offset of the segment in the base.
    pub host: HostOffset,
    /// Length of the segment in the base, in bytes.
    pub length: u64,
    /// Zeros in front of the segment in the base, up to the piece before it.
    pub before: u64,
    /// Zeros behind the segment in the base, up to the next piece.
    pub behind: u64,
    /// CRC64NVME of the segment's bytes in the base.
    pub crc64: Crc64,
    /// BLAKE3 over the BLAKE3 of each of its chunks.
    pub blake3: blake3::Hash,
}

/// Image that was checked, from which segments can be copied.
#[derive(Debug)]
pub struct Base {
    source: CopySource,
    /// Segments in the order of the disk.
    segments: Vec<BaseSegment>,
    mappings: Mappings,
}

impl Base {
    /// Reads the manifest, the head and the tables of the image under `key`, and checks that the image can be
    /// the base of a run with these requirements.
    ///
    /// # Errors
    /// With the first reason against it.
    pub async fn load(
        store: &dyn ObjectStore,
        key: &ObjectKey,
        requirements: &BaseRequirements,
    ) -> Result<Self, NotUsable> {
        let meta = store.head(key).await.map_err(NotUsable::Store)?.ok_or(NotUsable::Missing)?;
        let manifest = read_manifest(store, key).await?;
        let Pieces { head, tables } = usable(&manifest, &meta, requirements)?;
        let source = CopySource { key: key.clone(), etag: meta.etag, size: meta.size };
        let head_bytes = fetch(store, &source, 0..head.length).await?;
        check_sum("head", head.crc64, &head_bytes)?;
        let table_bytes = fetch(store, &source, tables.offset.0..source.size).await?;
        check_sum("tables", tables.crc64, &table_bytes)?;
        let file = HeadAndTables::new(store.url(key), head_bytes, tables.offset, table_bytes)
            .ok_or(Damage::Length { piece: "head", length: head.length })?;
        let mappings = load_tables(&file, &manifest)?;
        drop(file);
        let segments = with_gaps(&manifest, &head, &tables)?;
        let base = Self { source, segments, mappings };
        base.check_shapes(&manifest.encoder)?;
        Ok(base)
    }

    /// Returns the segment with this number on the disk, or `None` if it holds only zeros, or lies past the
    /// disk that the base was made from.
    #[must_use]
    pub fn segment(&self, number: u64) -> Option<&BaseSegment> {
        let found = self.segments.binary_search_by_key(&number, |segment| segment.guest.0 / SEGMENT.0);
        found.ok().and_then(|index| self.segments.get(index))
    }

    /// Returns the form and length of each body of the segment with this number, or `None` if there is none.
    #[must_use]
    pub fn shape(&self, number: u64) -> Option<Vec<Body>> {
        // All shapes were found when the base was loaded.
        self.segment(number).and_then(|segment| reuse::shape(&self.mappings, &stored(segment)).ok())
    }

    /// Returns the segments that hold data, in the order of the disk.
    #[must_use]
    pub fn segments(&self) -> &[BaseSegment] {
        &self.segments
    }

    /// Returns the version of the object that was checked, for copies.
    #[must_use]
    pub fn copy_source(&self) -> &CopySource {
        &self.source
    }

    /// Returns the memory that the base takes. While it is loaded, it takes up to twice as much.
    #[must_use]
    pub fn memory(&self) -> ByteCount {
        ByteCount(self.mappings.memory().0 + to_u64(self.segments.capacity() * size_of::<BaseSegment>()))
    }

    /// Finds the shape of each segment, and checks that no body is outside of them.
    fn check_shapes(&self, encoder: &EncoderRecord) -> Result<(), Damage> {
        let mut listed = 0;
        for segment in &self.segments {
            let guest = segment.guest;
            let bodies = reuse::shape(&self.mappings, &stored(segment))
                .map_err(|source| Damage::Segment { guest, source })?;
            let is_compressed = bodies.iter().any(|body| matches!(body, Body::Compressed(_)));
            if is_compressed && encoder.codec == "none" {
                return Err(Damage::Compressed { guest });
            }
            listed += to_u64(bodies.iter().filter(|body| **body != Body::Zero).count());
        }
        let found = to_u64(self.mappings.iter().count());
        if found != listed {
            return Err(Damage::Unlisted { found, listed });
        }
        Ok(())
    }
}

fn stored(segment: &BaseSegment) -> StoredSegment {
    StoredSegment { guest: segment.guest, host: segment.host, length: segment.length }
}

/// Pieces of an image around its segments.
struct Pieces {
    head: HeadRecord,
    tables: TablesRecord,
}

/// Checks all that manifest and metadata show, without reading the image.
fn usable(
    manifest: &Manifest,
    meta: &ObjectMeta,
    requirements: &BaseRequirements,
) -> Result<Pieces, NotUsable> {
    let (image, encoder) = (&manifest.image, &manifest.encoder);
    if manifest.version > VERSION {
        return Err(NotUsable::Newer { version: manifest.version });
    }
    let older = |missing| NotUsable::Older { made_by: manifest.made_by.clone(), missing };
    let head = image.head.ok_or_else(|| older("checksum of its head"))?;
    let tables = image.tables.ok_or_else(|| older("checksum of its tables"))?;
    encoder.layout.ok_or_else(|| older("version of its layout"))?;
    encoder.target.as_ref().ok_or_else(|| older("architecture"))?;
    if let Some(segment) = manifest.segments.iter().find(|segment| segment.blake3.is_none()) {
        return Err(NotUsable::NoHashes { guest: segment.guest });
    }
    same_encoder(encoder, &requirements.encoder)?;
    if image.size < LEAST {
        return Err(NotUsable::TooSmall { size: image.size });
    }
    same_object(manifest, meta)?;
    check_manifest(manifest).map_err(Damage::from)?;
    check_lengths(manifest, &head, &tables)?;
    manifest.check_fold().map_err(Damage::from)?;
    if requirements.proof == RequiredProof::Verified && image.verified_at.is_none() {
        return Err(NotUsable::NotVerified);
    }
    if let Some(refused) = &manifest.refused {
        // Times in this form sort as text.
        let since = requirements.now.checked_sub(REFUSAL_HOLDS).unwrap_or(SystemTime::UNIX_EPOCH);
        if (rfc3339(since)..=rfc3339(requirements.now)).contains(&refused.at) {
            return Err(NotUsable::Refused { what: refused.what.clone(), at: refused.at.clone() });
        }
    }
    Ok(Pieces { head, tables })
}

/// Checks that both encoders make the same bytes of the same segment.
fn same_encoder(base: &EncoderRecord, wanted: &EncoderRecord) -> Result<(), NotUsable> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let number = |value: Option<u32>| value.map(|value| value.to_string()).unwrap_or_default();
    let settings = [
        ("codec", base.codec.clone(), wanted.codec.clone()),
        ("library", base.library.clone(), wanted.library.clone()),
        ("architecture", text(&base.target), text(&wanted.target)),
        ("layout", number(base.layout), number(wanted.layout)),
        ("cluster size", base.cluster_size.to_string(), wanted.cluster_size.to_string()),
        ("segment size", base.segment_size.to_string(), wanted.segment_size.to_string()),
        ("chunk size", base.chunk_size.to_string(), wanted.chunk_size.to_string()),
    ];
    match settings.into_iter().find(|(_, base, wanted)| base != wanted) {
        None => Ok(()),
        Some((setting, base, wanted)) => Err(NotUsable::OtherEncoder { setting, base, wanted }),
    }
}

/// Checks that the object is the one that the manifest describes, as far as the store returns its properties.
fn same_object(manifest: &Manifest, meta: &ObjectMeta) -> Result<(), NotUsable> {
    let image = &manifest.image;
    let replaced = |reason| Err(NotUsable::Replaced { reason });
    if image.size.0 != meta.size {
        return replaced(format!("it has {} bytes, not {}", meta.size, image.size.0));
    }
    if let Some(crc64) = meta.crc64
        && crc64 != image.crc64
    {
        return replaced(format!("its CRC64NVME is {crc64}, not {}", image.crc64));
    }
    if let Some(etag) = &image.etag
        && *etag != meta.etag
    {
        return replaced(format!("its version is {}, not {}", meta.etag.0, etag.0));
    }
    Ok(())
}

/// Checks that head and tables are as long as those of a disk of that size can be. So no more is fetched, and
/// no more memory is taken.
fn check_lengths(manifest: &Manifest, head: &HeadRecord, tables: &TablesRecord) -> Result<(), Damage> {
    let cluster = ClusterBits::from_size(manifest.encoder.cluster_size);
    let geometry = cluster.ok().and_then(|cluster| Geometry::new(manifest.image.virtual_size, cluster).ok());
    let geometry = geometry.ok_or(Damage::Header)?;
    if head.length != geometry.head_len() {
        return Err(Damage::Length { piece: "head", length: head.length });
    }
    if tables.length > geometry.tables_bound().0 {
        return Err(Damage::Length { piece: "tables", length: tables.length });
    }
    Ok(())
}

/// Reads the manifest of the image under `key`.
async fn read_manifest(store: &dyn ObjectStore, key: &ObjectKey) -> Result<Manifest, NotUsable> {
    let unreadable = |reason: String| NotUsable::Manifest { reason };
    let key = key.manifest();
    let meta = store.head(&key).await.map_err(NotUsable::Store)?;
    let meta = meta.ok_or_else(|| unreadable("there is none beside it".to_owned()))?;
    if meta.size > LARGEST_MANIFEST {
        return Err(unreadable(format!("it has {} bytes", meta.size)));
    }
    let source = CopySource { key, etag: meta.etag, size: meta.size };
    let json = fetch(store, &source, 0..meta.size).await.map_err(|error| match error {
        NotUsable::Vanished => unreadable("it was removed just now".to_owned()),
        NotUsable::Replaced { .. } => unreadable("it was replaced while it was read".to_owned()),
        error => error,
    })?;
    Manifest::from_json(&json).map_err(|error| unreadable(error.to_string()))
}

/// Fetches a range of one version of an object, in pieces.
async fn fetch(store: &dyn ObjectStore, from: &CopySource, range: Range<u64>) -> Result<Vec<u8>, NotUsable> {
    let mut bytes = try_with_capacity("the tables of an earlier image", to_usize(range.end - range.start))?;
    let version = (!from.etag.0.is_empty()).then_some(&from.etag);
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min(at + LONGEST_RANGE);
        let piece = store.get_range(&from.key, at..end, version).await.map_err(NotUsable::of_read)?;
        if to_u64(piece.len()) != end - at {
            let operation = Operation { request: "GetObject", target: store.url(&from.key) };
            let reason = format!("bytes {at} to {end} were asked for and {} bytes came", piece.len());
            return Err(NotUsable::Store(StoreError::Mismatch { operation, reason }));
        }
        bytes.extend_from_slice(&piece);
        at = end;
    }
    Ok(bytes)
}

fn check_sum(piece: &'static str, expected: Crc64, bytes: &[u8]) -> Result<(), Damage> {
    let found = Crc64::of(bytes);
    if found == expected { Ok(()) } else { Err(Damage::Sum { piece, expected, found }) }
}

/// Reads the tables, in an image whose header is the one that belongs to the manifest.
fn load_tables(file: &HeadAndTables, manifest: &Manifest) -> Result<Mappings, NotUsable> {
    let failed = |error| match error {
        ImageError::Memory(refused) => NotUsable::Memory(refused),
        error => Damage::Tables(error).into(),
    };
    let limits = Limits { largest_disk: manifest.image.virtual_size, ..Limits::default() };
    let image = Image::open(file, &limits).map_err(failed)?;
    let header = image.header();
    let encoder = &manifest.encoder;
    let is_expected = reuse::geometry(header).is_ok()
        && header.virtual_size == manifest.image.virtual_size
        && header.cluster.size() == encoder.cluster_size.0
        && (encoder.codec == "none" || header.compression.name() == encoder.codec);
    if !is_expected {
        return Err(Damage::Header.into());
    }
    image.load(file).map_err(failed)
}

/// Returns the manifest's segments with the gaps around them. The fold has shown that they lie one behind the
/// other.
fn with_gaps(
    manifest: &Manifest,
    head: &HeadRecord,
    tables: &TablesRecord,
) -> Result<Vec<BaseSegment>, NotUsable> {
    let mut segments: Vec<BaseSegment> =
        try_with_capacity("the segments of an earlier image", manifest.segments.len())?;
    let mut end = head.length;
    for segment in &manifest.segments {
        let blake3 = segment.blake3.ok_or(NotUsable::NoHashes { guest: segment.guest })?;
        let before = segment.host.0.saturating_sub(end);
        if let Some(last) = segments.last_mut() {
            last.behind = before;
        }
        let (guest, host, length, crc64) = (segment.guest, segment.host, segment.length, segment.crc64);
        segments.push(BaseSegment { guest, host, length, before, behind: 0, crc64, blake3 });
        end = host.0.saturating_add(length);
    }
    if let Some(last) = segments.last_mut() {
        last.behind = tables.offset.0.saturating_sub(end);
    }
    Ok(segments)
}
