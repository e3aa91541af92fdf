//! Bases of new images: what an earlier image must be, and each reason against one.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;
use snapferry_base::clock::rfc3339;
use snapferry_base::retry::Class;
use snapferry_base::units::{ByteCount, ClusterBits, GIB, HostOffset, MIB, to_u64, to_usize};
use snapferry_engine::compress::{Codec, Encoder};
use snapferry_engine::convert::plan::{Hashing, Options, StoreAs};
use snapferry_engine::hash::Crc64;
use snapferry_engine::image::base::{
    Base, BaseRequirements, BaseSegment, Damage, LEAST, NotUsable, RequiredProof,
};
use snapferry_engine::manifest::{Manifest, RefusedRecord};
use snapferry_engine::store::{
    CopiedPart, CopySource, ETag, ExpectedObject, ListedObject, Location, ObjectKey, ObjectMeta, ObjectStore,
    OpenUpload, Operation, Part, StoreError, StoredPart, Upload, UploadPlan,
};
use snapferry_qcow2::{Body, SEGMENT};
use snapferry_testkit::memory::MemoryStore;
use tokio::runtime::Runtime;

use crate::support::{Disk, Stores, convert, key, mixed, plan, runtime};

/// A disk whose image is larger than the least base has to be.
fn disk() -> Disk {
    Disk::new(mixed(222 * MIB, 3))
}

/// An image, its manifest and its metadata, in a store that returns them as they are here.
struct Shown {
    image: Vec<u8>,
    /// Bits of the image that are returned flipped.
    flipped: Vec<u64>,
    manifest: Vec<u8>,
    meta: ObjectMeta,
    /// Error of each read of the image.
    refused: Option<fn(Operation) -> StoreError>,
    /// Store for all else.
    rest: MemoryStore,
    runtime: Runtime,
}

impl Shown {
    /// Converts the disk, and takes the image out of its store.
    fn new(disk: &Disk, options: &Options) -> (Self, Manifest, BaseRequirements) {
        let stores = Stores::memory();
        let manifest = convert(disk, &stores, options);
        let runtime = runtime();
        let meta = runtime.block_on(stores.store.head(&key())).expect("asked").expect("an image");
        let image = runtime.block_on(stores.store.get_range(&key(), 0..meta.size, None)).expect("read");
        let requirements = BaseRequirements {
            encoder: plan(disk, Location::Bucket, options).encoder_record(),
            proof: RequiredProof::Made,
            now: SystemTime::now(),
        };
        let shown = Self {
            image: image.to_vec(),
            flipped: Vec::new(),
            manifest: manifest.to_json(),
            meta,
            refused: None,
            rest: MemoryStore::new("images"),
            runtime,
        };
        (shown, manifest, requirements)
    }

    fn show(&mut self, manifest: &Manifest) {
        self.manifest = manifest.to_json();
    }

    fn load(&self, requirements: &BaseRequirements) -> Result<Base, NotUsable> {
        self.runtime.block_on(Base::load(self, &key(), requirements))
    }
}

#[async_trait]
impl ObjectStore for Shown {
    fn url(&self, key: &ObjectKey) -> String {
        self.rest.url(key)
    }
    async fn head(&self, asked: &ObjectKey) -> Result<Option<ObjectMeta>, StoreError> {
        if *asked == key() {
            return Ok((!self.image.is_empty()).then(|| self.meta.clone()));
        }
        let size = to_u64(self.manifest.len());
        Ok((size > 0).then(|| ObjectMeta { size, etag: ETag("m".into()), crc64: None }))
    }
    async fn put(&self, key: &ObjectKey, body: Bytes) -> Result<(), StoreError> {
        self.rest.put(key, body).await
    }
    async fn get_range(
        &self,
        asked: &ObjectKey,
        range: Range<u64>,
        version: Option<&ETag>,
    ) -> Result<Bytes, StoreError> {
        assert!(range.end - range.start <= 8 * MIB, "a request of {range:?}");
        let bytes = |from: &[u8]| from[to_usize(range.start)..to_usize(range.end)].to_vec();
        if *asked != key() {
            return Ok(bytes(&self.manifest).into());
        }
        assert_eq!(version, Some(&self.meta.etag), "the version that HEAD returned");
        if let Some(refused) = self.refused {
            return Err(refused(Operation { request: "GetObject", target: "the image".into() }));
        }
        let mut bytes = bytes(&self.image);
        for bit in self.flipped.iter().filter(|bit| range.contains(&(**bit / 8))) {
            bytes[to_usize(bit / 8 - range.start)] ^= 1 << (bit % 8);
        }
        Ok(bytes.into())
    }
    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.rest.delete(key).await
    }
    async fn create_upload(&self, key: &ObjectKey, plan: &UploadPlan) -> Result<Upload, StoreError> {
        self.rest.create_upload(key, plan).await
    }
    async fn put_part(&self, upload: &Upload, part: Part) -> Result<StoredPart, StoreError> {
        self.rest.put_part(upload, part).await
    }
    async fn copy_part(
        &self,
        upload: &Upload,
        part: CopiedPart,
        from: &CopySource,
    ) -> Result<StoredPart, StoreError> {
        self.rest.copy_part(upload, part, from).await
    }
    fn proves(&self, stored: &StoredPart, part: &Part) -> bool {
        self.rest.proves(stored, part)
    }
    async fn list_parts(&self, upload: &Upload) -> Result<Vec<StoredPart>, StoreError> {
        self.rest.list_parts(upload).await
    }
    async fn complete(
        &self,
        upload: &Upload,
        parts: &[StoredPart],
        whole: &ExpectedObject,
    ) -> Result<(), StoreError> {
        self.rest.complete(upload, parts, whole).await
    }
    async fn abort(&self, upload: &Upload) -> Result<(), StoreError> {
        self.rest.abort(upload).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        self.rest.list(prefix).await
    }
    async fn list_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        self.rest.list_uploads(prefix).await
    }
}

/// Compresses each cluster of a segment again, and returns the forms of the bodies.
fn encoded(disk: &Disk, segment: &BaseSegment, options: &Options) -> Vec<Body> {
    let cluster = options.cluster;
    let mut encoder = Encoder::new(options.codec, options.level, cluster).expect("an encoder");
    let mut out = vec![0; cluster.len()];
    let start = to_usize(segment.guest.0);
    let end = disk.bytes.len().min(start + to_usize(SEGMENT.0));
    let bodies = disk.bytes[start..end].chunks(cluster.len()).map(|bytes| {
        let mut padded = bytes.to_vec();
        padded.resize(cluster.len(), 0);
        match options.store_as {
            _ if padded.iter().all(|&byte| byte == 0) => Body::Zero,
            StoreAs::Raw => Body::Raw,
            StoreAs::Compressed => encoder.encode(&padded, &mut out).map_or(Body::Raw, Body::Compressed),
        }
    });
    bodies.collect()
}

/// Compares a base with the disk and the manifest that it was made of.
fn assert_is_of(base: &Base, disk: &Disk, manifest: &Manifest, options: &Options) {
    assert_eq!(base.segments().len(), manifest.segments.len());
    let tables = manifest.image.tables.expect("tables");
    let mut end = manifest.image.head.expect("a head").length;
    let mut listed = manifest.segments.iter().zip(base.segments()).peekable();
    while let Some((listed_segment, segment)) = listed.next() {
        let next = listed.peek().map_or(tables.offset, |(next, _)| next.host);
        assert_eq!(segment.before, segment.host.0 - end);
        end = segment.host.0 + segment.length;
        assert_eq!(segment.behind, next.0 - end);
        assert_eq!(
            (segment.guest, segment.host, segment.length, segment.crc64, Some(segment.blake3)),
            (
                listed_segment.guest,
                listed_segment.host,
                listed_segment.length,
                listed_segment.crc64,
                listed_segment.blake3
            )
        );
        let number = segment.guest.0 / SEGMENT.0;
        assert_eq!(base.segment(number), Some(segment));
        let shape = base.shape(number).expect("a shape");
        assert!(shape == encoded(disk, segment, options), "the segment at {}, {options:?}", segment.guest);
    }
    // Eight bytes for each cluster of a segment; the last segment is shorter.
    let least = 8 * (to_u64(base.segments().len()) - 1) * SEGMENT.0 / options.cluster.size();
    assert!(base.memory().0 >= least, "{}", base.memory());
}

#[test]
fn every_shape_is_what_the_encoder_makes_of_the_disk() {
    let bits = |bits| ClusterBits::new(bits).expect("a cluster size");
    for options in [
        Options::default(),
        Options { codec: Codec::Zstd, ..Options::default() },
        Options { cluster: bits(12), ..Options::default() },
        Options { cluster: bits(21), ..Options::default() },
        Options { store_as: StoreAs::Raw, ..Options::default() },
    ] {
        // The third segment holds only zeros.
        let mut disk = disk();
        disk.bytes[to_usize(2 * SEGMENT.0)..to_usize(3 * SEGMENT.0)].fill(0);
        let (shown, manifest, requirements) = Shown::new(&disk, &options);
        assert!(manifest.image.size > LEAST, "{}", manifest.image.size);
        let base = shown.load(&requirements).expect("a base");
        assert_is_of(&base, &disk, &manifest, &options);
        assert!(base.segment(2).is_none() && base.shape(2).is_none(), "only zeros");
        assert!(base.segment(14).is_none() && base.segment(u64::MAX).is_none(), "past the disk");
        let CopySource { key: copied, etag, size } = base.copy_source();
        assert_eq!((copied, etag, *size), (&key(), &shown.meta.etag, shown.meta.size));
    }
}

#[test]
fn a_local_file_is_a_base_until_it_is_written_to() {
    let disk = disk();
    let stores = Stores::folder();
    let options = Options::default();
    let manifest = convert(&disk, &stores, &options);
    let requirements = BaseRequirements {
        encoder: plan(&disk, Location::File, &options).encoder_record(),
        proof: RequiredProof::Made,
        now: SystemTime::now(),
    };
    let load = || runtime().block_on(Base::load(&*stores.store, &key(), &requirements));
    assert_is_of(&load().expect("a base"), &disk, &manifest, &options);
    let path = stores.store.url(&key());
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("the image");
    // Only the time of the change shows that a body is another one.
    file.set_modified(SystemTime::now() + Duration::from_secs(5)).expect("a time");
    assert_eq!(load().expect_err("it was written to").word(), "replaced");
}

#[test]
fn each_reason_against_a_base_has_its_word() {
    type Change = fn(&mut Shown, &mut Manifest, &mut BaseRequirements);
    let changes: [(Change, &str, &str); 26] = [
        (|shown, _, _| shown.image.clear(), "none", "no image of that name"),
        (|shown, _, _| shown.manifest.clear(), "unreadable", "none beside it"),
        (|shown, _, _| shown.manifest.truncate(100), "unreadable", "manifest can't be read"),
        (|_, manifest, _| manifest.image.size = ByteCount(LEAST.0 - 1), "too-small", "64 MiB"),
        (|_, manifest, _| manifest.version = 2, "other-version", "of version 2"),
        (|_, manifest, _| manifest.image.head = None, "other-version", "recorded no checksum of its head"),
        (
            |_, manifest, _| manifest.image.tables = None,
            "other-version",
            "recorded no checksum of its tables",
        ),
        (
            |_, manifest, _| manifest.encoder.layout = None,
            "other-version",
            "recorded no version of its layout",
        ),
        (|_, manifest, _| manifest.encoder.target = None, "other-version", "recorded no architecture"),
        (|_, manifest, _| manifest.segments[1].blake3 = None, "no-hashes", "from 16777216"),
        (|_, manifest, _| manifest.encoder.codec = "zstd".into(), "other-encoder", "its codec is zstd"),
        (|_, manifest, _| manifest.encoder.library = "x 1".into(), "other-encoder", "its library is x 1"),
        (|_, manifest, _| manifest.encoder.target = Some("z80".into()), "other-encoder", "is z80"),
        (|_, manifest, _| manifest.encoder.layout = Some(2), "other-encoder", "its layout is 2"),
        (|_, manifest, _| manifest.encoder.cluster_size = ByteCount(4096), "other-encoder", "is 4 KiB"),
        (|_, manifest, _| manifest.encoder.chunk_size = ByteCount(4096), "other-encoder", "its chunk size"),
        (|shown, _, _| shown.meta.size += 1, "replaced", "bytes, not"),
        (|shown, _, _| shown.meta.crc64 = Some(Crc64(1)), "replaced", "its CRC64NVME is"),
        (|shown, _, _| shown.meta.etag = ETag("v7".into()), "replaced", "its version is v7"),
        (|_, manifest, _| manifest.segments.swap(0, 1), "damaged", "segments[].guest"),
        (|_, manifest, _| manifest.image.accounted = Some(ByteCount(5)), "damaged", "not whole"),
        (|_, manifest, _| manifest.segments[0].crc64.0 ^= 1, "damaged", "join to"),
        (|_, _, wanted| wanted.proof = RequiredProof::Verified, "not-verified", "not verified"),
        (
            |_, manifest, wanted| {
                let at = rfc3339(wanted.now - Duration::from_hours(29 * 24));
                manifest.refused = Some(RefusedRecord { what: "501 NotImplemented".into(), at });
            },
            "refused",
            "501 NotImplemented",
        ),
        (
            |shown, _, _| shown.refused = Some(|operation| StoreError::NoSuchKey { operation }),
            "vanished",
            "removed just now",
        ),
        (
            |shown, _, _| {
                let changed = |operation| StoreError::Precondition { operation, reason: "412".into() };
                shown.refused = Some(changed);
            },
            "replaced",
            "412",
        ),
    ];
    let disk = disk();
    let (mut shown, manifest, requirements) = Shown::new(&disk, &Options::default());
    let (image, meta) = (shown.image.clone(), shown.meta.clone());
    for (change, word, text) in changes {
        let (mut changed, mut wanted) = (manifest.clone(), requirements.clone());
        if shown.image.is_empty() {
            shown.image.clone_from(&image);
        }
        (shown.meta, shown.refused) = (meta.clone(), None);
        shown.show(&changed);
        change(&mut shown, &mut changed, &mut wanted);
        if changed != manifest {
            shown.show(&changed);
        }
        let refused = shown.load(&wanted).expect_err(word);
        let message = snapferry_base::retry::chain(&refused);
        assert!(
            refused.word() == word && message.contains(text),
            "{}: {message}, not {word}: {text}",
            refused.word()
        );
    }
    (shown.meta, shown.refused) = (meta, None);
    // Neither differs in the bytes of a segment.
    let mut same = manifest.clone();
    same.encoder.level = "another".into();
    same.image.etag = None;
    let at = rfc3339(requirements.now - Duration::from_hours(31 * 24));
    same.refused = Some(RefusedRecord { what: "long ago".into(), at });
    same.note_verified(None, requirements.now);
    shown.show(&same);
    shown.load(&BaseRequirements { proof: RequiredProof::Verified, ..requirements.clone() }).expect("a base");
    // A stop proves nothing about the image.
    shown.refused = Some(|operation| StoreError::Cancelled { operation });
    let stopped = shown.load(&requirements).expect_err("stopped");
    assert_eq!((stopped.word(), stopped.class()), ("unreadable", Class::Cancelled));
}

#[test]
fn an_image_without_hashes_is_no_base_and_a_small_one_neither() {
    let options = Options { hashing: Hashing::Off, ..Options::default() };
    let (shown, _, requirements) = Shown::new(&disk(), &options);
    assert_eq!(shown.load(&requirements).expect_err("no hashes").word(), "no-hashes");
    let (shown, _, requirements) = Shown::new(&Disk::new(mixed(4 * MIB, 1)), &Options::default());
    assert_eq!(shown.load(&requirements).expect_err("small").word(), "too-small");
}

#[test]
fn every_flipped_bit_of_head_and_tables_is_found() {
    let (mut shown, manifest, requirements) = Shown::new(&disk(), &Options::default());
    let (head, tables) = (manifest.image.head.expect("a head"), manifest.image.tables.expect("tables"));
    // Each seventh bit of the header's fields, and each 4999th of all else: primes, so that all bits of a
    // word occur.
    let fields = 0..112 * 8;
    let head_bits = fields.end..head.length * 8;
    let table_bits = tables.offset.0 * 8..shown.meta.size * 8;
    let sampled = head_bits.step_by(4999).chain(table_bits.step_by(4999));
    let mut found = 0;
    for bit in fields.step_by(7).chain(sampled) {
        shown.flipped = vec![bit];
        let damaged = shown.load(&requirements).expect_err("a flipped bit");
        let piece = if bit / 8 < head.length { "head" } else { "tables" };
        assert!(
            matches!(&damaged, NotUsable::Damaged(Damage::Sum { piece: found, .. }) if *found == piece),
            "bit {bit}: {damaged}"
        );
        found += 1;
    }
    assert!(found > 600, "{found} bits");
    // Bodies are not read. Their checksums are compared when they are copied.
    shown.flipped = vec![head.length * 8 + 1];
    shown.load(&requirements).expect("a base");
}

/// Returns the paths of all numbers and checksums in a manifest's JSON.
fn numbers(value: &Value, path: &str, into: &mut Vec<String>) {
    match value {
        Value::Object(entries) => {
            entries.iter().for_each(|(key, value)| numbers(value, &format!("{path}/{key}"), into));
        }
        Value::Array(entries) => {
            (0..).zip(entries).for_each(|(index, value)| numbers(value, &format!("{path}/{index}"), into));
        }
        Value::Number(_) => into.push(path.to_owned()),
        Value::String(_) if path.ends_with("crc64") => into.push(path.to_owned()),
        _ => {}
    }
}

#[test]
fn every_flipped_bit_of_the_manifests_numbers_is_found() {
    let (mut shown, manifest, requirements) = Shown::new(&disk(), &Options::default());
    let json: Value = serde_json::from_slice(&manifest.to_json()).expect("JSON");
    let mut paths = Vec::new();
    numbers(&json, "", &mut paths);
    // Of the segments, the first, one in the middle, and the last.
    let last = manifest.segments.len() - 1;
    let is_tried = |path: &String| {
        let number = path.strip_prefix("/segments/").and_then(|rest| rest.split('/').next()?.parse().ok());
        number.is_none_or(|number: usize| number == 0 || number == last / 2 || number == last)
    };
    paths.retain(is_tried);
    assert!(paths.len() > 20, "{paths:?}");
    for path in &paths {
        let bits: u32 = if path == "/version" || path == "/encoder/layout" { 32 } else { 64 };
        for bit in (0..bits).step_by(3) {
            let mut changed = json.clone();
            let value = changed.pointer_mut(path).expect("it was there");
            *value = match value {
                Value::Number(number) => (number.as_u64().expect("a number") ^ 1 << bit).into(),
                Value::String(text) => {
                    let sum = Crc64::from_base64(text).expect("a checksum");
                    Crc64(sum.0 ^ 1 << bit).to_base64().into()
                }
                _ => panic!("{path}"),
            };
            // There never was a version 0, and it would be read as version 1.
            if path == "/version" && bit == 0 {
                continue;
            }
            shown.manifest = changed.to_string().into_bytes();
            let refused = shown.load(&requirements).expect_err(path);
            assert!(!matches!(refused, NotUsable::Store(_)), "{path}, bit {bit}: {refused:?}");
        }
    }
    // A flipped hash is that of no segment, so that segment is not copied.
    let mut changed = manifest.clone();
    changed.segments[0].blake3 = Some(blake3::hash(b"another"));
    shown.show(&changed);
    assert_eq!(shown.load(&requirements).expect("a base").segments()[0].blake3, blake3::hash(b"another"));
}

#[test]
fn tables_that_were_changed_together_with_their_sums_are_no_base_either() {
    let (mut shown, manifest, requirements) = Shown::new(&disk(), &Options::default());
    let tables = manifest.image.tables.expect("tables");
    let offset = to_usize(tables.offset.0);
    let whole = shown.image.clone();
    let entry = |cluster: usize| offset + cluster * 8..offset + cluster * 8 + 8;
    let mapped: Vec<usize> = (0..3000).filter(|&cluster| whole[entry(cluster)] != [0; 8]).collect();
    let unmapped = (0..3000).find(|&cluster| whole[entry(cluster)] == [0; 8]).expect("zeros");
    for number in 0..40 {
        let (one, other) = (mapped[number * 20], mapped[number * 20 + 7]);
        shown.image.clone_from(&whole);
        match number % 4 {
            0 => {
                let bytes = whole[entry(one)].to_vec();
                shown.image.copy_within(entry(other), offset + one * 8);
                shown.image[entry(other)].copy_from_slice(&bytes);
            }
            1 => shown.image[entry(one)].fill(0),
            2 => {
                let bytes = whole[entry(one)].to_vec();
                shown.image[entry(one)].fill(0);
                shown.image[entry(unmapped)].copy_from_slice(&bytes);
            }
            _ => shown.image[entry(unmapped)].copy_from_slice(&whole[entry(one)]),
        }
        let mut forged = manifest.clone();
        let sum = Crc64::of(&shown.image[offset..]);
        forged.image.tables.as_mut().expect("tables").crc64 = sum;
        let folded = snapferry_engine::manifest::fold(
            &manifest.image.head.expect("a head"),
            &manifest.segments,
            &forged.image.tables.expect("tables"),
            manifest.encoder.cluster_size,
        );
        forged.image.crc64 = folded.expect("pieces").crc64;
        shown.meta.crc64 = Some(forged.image.crc64);
        shown.show(&forged);
        let refused = shown.load(&requirements).expect_err("other tables");
        assert!(
            matches!(refused, NotUsable::Damaged(Damage::Segment { .. } | Damage::Tables(_))),
            "{number}: {refused:?}"
        );
    }
    // The places of the segments alone don't make a base of another image's tables.
    shown.image.clone_from(&whole);
    let mut moved = manifest;
    moved.segments[0].host = HostOffset(moved.segments[0].host.0 + GIB);
    shown.show(&moved);
    shown.load(&requirements).expect_err("past the end");
}
