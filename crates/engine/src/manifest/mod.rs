//! Manifest: the small object beside an image that ties it to the disk it was made from. `docs/manifest.md`
//! explains each field.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use snapferry_base::clock::rfc3339;
use snapferry_base::units::{BadRange, ByteCount, GuestOffset, HostOffset};

use crate::hash::Crc64;
use crate::store::{ETag, ObjectKey};

mod fold;
mod free;

pub use fold::{FoldError, Folded, fold};
pub use free::{EvidenceRecord, FreeRecord};

/// Version of the format. A reader refuses versions above the one it knows. Within a version, fields are only
/// added.
pub const VERSION: u32 = 1;

/// One segment of the disk that holds data, and its place in the image. Segments that hold only zeros are
/// left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Offset of the segment in the disk: a multiple of the segment size.
    pub guest: GuestOffset,
    /// Offset of the segment in the image: a multiple of the cluster size if the segment holds raw clusters,
    /// any byte otherwise.
    pub host: HostOffset,
    /// Length of the segment in the image, in bytes.
    pub length: u64,
    /// CRC64NVME of the segment's bytes in the image.
    pub crc64: Crc64,
    /// BLAKE3 over the BLAKE3 of each of the segment's 2 MiB chunks as read from the disk; `None` with
    /// `--no-hash`.
    #[serde(with = "hex", default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<blake3::Hash>,
}

/// Source that an image was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// Device or file, as the user named it.
    pub name: String,
    /// Host name of the machine that read the source.
    pub host: String,
    /// Size of the source in bytes.
    pub size: ByteCount,
}

/// First bytes of an image: header, refcount table and L1 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadRecord {
    /// Length of the head in bytes: a whole number of clusters.
    pub length: u64,
    /// CRC64NVME of the head.
    pub crc64: Crc64,
}

/// Last bytes of an image: L2 tables and refcount blocks, up to the end of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablesRecord {
    /// Offset of the first table in the image: a multiple of the cluster size.
    pub offset: HostOffset,
    /// Length of all tables in bytes: a whole number of clusters.
    pub length: u64,
    /// CRC64NVME of the tables.
    pub crc64: Crc64,
}

/// Earlier image that unchanged segments were copied from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRecord {
    /// Key of the earlier image.
    pub key: ObjectKey,
    /// Version of the earlier image.
    pub etag: ETag,
    /// Number of segments that were copied.
    pub segments: u64,
    /// Bytes that were copied.
    pub bytes: ByteCount,
}

/// Reason why the store could not make the image from an earlier one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedRecord {
    /// Request that the store refused, and its answer.
    pub what: String,
    /// Time of the refusal: UTC, RFC 3339, to the second.
    pub at: String,
}

/// Sizes and checksums of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Size of the image file in bytes.
    pub size: ByteCount,
    /// Size of the disk as the guest sees it, in bytes.
    pub virtual_size: ByteCount,
    /// CRC64NVME of the whole file, as S3 returns it.
    pub crc64: Crc64,
    /// Version of the image, as the store returned it after the image was complete. `None` if the store
    /// returned none, or if the program that made the image did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<ETag>,
    /// Length and checksum of the head. `None` if the program that made the image did not keep them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<HeadRecord>,
    /// Place and checksum of the tables. `None` if the program that made the image did not keep them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tables: Option<TablesRecord>,
    /// Bytes of the source that were laid out in the file, as bodies or as zeros, counted during the layout.
    /// The image is whole only if these are all bytes of the source. `None` if the program that made the
    /// image did not count them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accounted: Option<ByteCount>,
    /// SHA-256 of the whole file in lower-case hex, as image libraries report it. Set once the file was read
    /// back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Time when all of the image had been read back, decoded, and found to hold what was read from the disk:
    /// UTC, RFC 3339, to the second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_at: Option<String>,
}

/// Settings of the encoder: the same source with the same settings gives the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncoderRecord {
    /// `deflate` or `zstd`; `none` if every cluster is stored as it is.
    pub codec: String,
    /// `fast`, `balanced`, `small` or `smallest`.
    pub level: String,
    /// Compression library, its version and its level.
    pub library: String,
    /// Architecture of the machine, as Rust names it: `x86_64`, `aarch64`. A library's output may differ
    /// between two of them. `None` if the program that made the image did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Version of the rules by which bodies are placed, see [`snapferry_qcow2::layout::VERSION`]. `None` if
    /// the program that made the image did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<u32>,
    /// Size of a qcow2 cluster in bytes.
    pub cluster_size: ByteCount,
    /// Bytes of the disk in each segment but the last.
    pub segment_size: ByteCount,
    /// Bytes of the disk in each chunk but the last.
    pub chunk_size: ByteCount,
}

/// Content of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the format, see [`VERSION`].
    pub version: u32,
    /// Program that made the image, and its version.
    pub made_by: String,
    /// Start of the conversion: UTC, RFC 3339, to the second.
    pub created: String,
    pub source: SourceRecord,
    pub image: ImageRecord,
    pub encoder: EncoderRecord,
    /// Earlier image that unchanged segments were copied from; `None` if all of the image was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseRecord>,
    /// Reason why all of the image was sent although there was an earlier one, if the store is that reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusedRecord>,
    /// Ranges that could not be read and hold zeros; only with `--salvage`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub salvaged: Vec<BadRange>,
    /// Filesystems whose free blocks the image holds as zeros; only with `--skip-free`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub free: Vec<FreeRecord>,
    /// Every segment that holds data, in disk order.
    pub segments: Vec<Segment>,
}

impl Manifest {
    /// Parses what [`Manifest::to_json`] wrote, in this version or another. Unknown fields are ignored.
    ///
    /// # Errors
    /// If `json` is not the JSON of a manifest.
    pub fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// Checks that the checksums of head, segments and tables join to that of the whole image, and that these
    /// pieces lie as in an image of this program, one behind the other, up to the end of the file.
    ///
    /// # Errors
    /// With the first difference; [`FoldError::Unsummed`] if the manifest has no checksums of head and
    /// tables.
    pub fn check_fold(&self) -> Result<(), FoldError> {
        let image = &self.image;
        let (Some(head), Some(tables)) = (&image.head, &image.tables) else {
            return Err(FoldError::Unsummed);
        };
        let folded = fold(head, &self.segments, tables, self.encoder.cluster_size)?;
        if folded.size != image.size {
            return Err(FoldError::Size { expected: image.size, found: folded.size });
        }
        if folded.crc64 != image.crc64 {
            return Err(FoldError::Sum { expected: image.crc64, found: folded.crc64 });
        }
        Ok(())
    }

    /// Records that the stored image was read back and matches this manifest, with the file's SHA-256 if it
    /// was computed.
    pub fn note_verified(&mut self, sha256: Option<String>, at: SystemTime) {
        self.image.sha256 = sha256;
        self.image.verified_at = Some(rfc3339(at));
    }

    /// Serialises the manifest as it is stored: JSON with one segment per line, so that a person can read it
    /// and `diff` can compare two.
    ///
    /// # Panics
    /// Never: every field has a JSON form.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        const SERIALISES: &str = "numbers and text always serialise";
        let mut rest = self.clone();
        rest.segments = Vec::new();
        let frame = serde_json::to_string_pretty(&rest).expect(SERIALISES);
        let (front, back) = frame.rsplit_once("[]").expect("segments are the last field, and empty");
        let mut json = Vec::with_capacity(frame.len() + self.segments.len() * 200);
        json.extend_from_slice(front.as_bytes());
        json.push(b'[');
        for (index, segment) in self.segments.iter().enumerate() {
            json.extend_from_slice(if index == 0 { b"\n    " } else { b",\n    " });
            serde_json::to_writer(&mut json, segment).expect(SERIALISES);
        }
        json.extend_from_slice(if self.segments.is_empty() { b"]" } else { b"\n  ]" });
        json.extend_from_slice(back.as_bytes());
        json.push(b'\n');
        json
    }
}

mod hex {
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    #[expect(clippy::ref_option, reason = "serde's `with` gives a reference to the field")]
    pub(super) fn serialize<S: Serializer>(hash: &Option<blake3::Hash>, to: S) -> Result<S::Ok, S::Error> {
        match hash {
            Some(hash) => to.serialize_str(hash.to_hex().as_str()),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<blake3::Hash>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| blake3::Hash::from_hex(&text).map_err(de::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let segment = |number: u64, blake3| Segment {
            guest: GuestOffset(number << 24),
            host: HostOffset(number << 16),
            length: 65536,
            crc64: Crc64(number),
            blake3,
        };
        let mut manifest = Manifest {
            version: VERSION,
            made_by: "snapferry 0".into(),
            created: "2026-01-02T03:04:05Z".into(),
            source: SourceRecord { name: "/dev/vdc".into(), host: "here".into(), size: ByteCount(1) },
            image: ImageRecord {
                size: ByteCount(2),
                virtual_size: ByteCount(512),
                crc64: Crc64(3),
                etag: Some(ETag("\"x\"".into())),
                head: Some(HeadRecord { length: 3 << 16, crc64: Crc64(7) }),
                tables: Some(TablesRecord { offset: HostOffset(4 << 16), length: 1 << 16, crc64: Crc64(8) }),
                accounted: Some(ByteCount(1)),
                sha256: Some("ab".into()),
                verified_at: None,
            },
            encoder: EncoderRecord {
                codec: "deflate".into(),
                level: "fast".into(),
                library: "some".into(),
                target: Some("x86_64".into()),
                layout: Some(1),
                cluster_size: ByteCount(65536),
                segment_size: ByteCount(1 << 24),
                chunk_size: ByteCount(1 << 21),
            },
            base: Some(BaseRecord {
                key: ObjectKey::new("older.qcow2").expect("a key"),
                etag: ETag("v1".into()),
                segments: 2,
                bytes: ByteCount(9),
            }),
            refused: Some(RefusedRecord { what: "501".into(), at: "2026-01-02T03:04:05Z".into() }),
            salvaged: vec![BadRange { offset: GuestOffset(512), length: 512 }],
            free: Vec::new(),
            segments: vec![segment(0, Some(blake3::hash(b"x"))), segment(3, None)],
        };
        let read = |json: &[u8]| serde_json::from_slice::<Manifest>(json).expect("our own JSON");
        assert_eq!(read(&manifest.to_json()), manifest);
        manifest.segments.clear();
        assert_eq!(read(&manifest.to_json()), manifest);
        let mut older = serde_json::to_value(&manifest).expect("numbers and text");
        let drop_key = |value: &mut serde_json::Value, key: &str| {
            let dropped = value.as_object_mut().and_then(|object| object.remove(key));
            assert!(dropped.is_some(), "{key}");
        };
        ["etag", "head", "tables"].iter().for_each(|key| drop_key(&mut older["image"], key));
        ["target", "layout"].iter().for_each(|key| drop_key(&mut older["encoder"], key));
        ["base", "refused"].iter().for_each(|key| drop_key(&mut older, key));
        let older = Manifest::from_json(older.to_string().as_bytes()).expect("a manifest of version 1");
        assert_eq!((older.image.head, older.encoder.layout, &older.base), (None, None, &None));
        assert_eq!(older.check_fold(), Err(FoldError::Unsummed));
    }
}
