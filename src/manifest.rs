//! The small object beside an image that ties it to the disk it was made from. `docs/manifest.md` explains each field.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::clock::rfc3339;
use crate::hash::Crc64;
use crate::units::{BadRange, ByteCount, GuestOffset, HostOffset};

/// The format's version. A reader refuses those above the one it knows; fields are only ever added within a version.
pub const VERSION: u32 = 1;

/// One segment of the disk that holds anything, and where it lies in the image. Segments that hold only zeros are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Its first byte in the disk: a multiple of the segment size.
    pub guest: GuestOffset,
    /// Its first byte in the image: a multiple of the cluster size where it holds raw clusters, any byte otherwise.
    pub host: HostOffset,
    /// Its bytes in the image.
    pub length: u64,
    /// CRC64NVME of those bytes.
    pub crc64: Crc64,
    /// BLAKE3 over the BLAKE3 of each of its 2 MiB chunks as read from the disk; none with `--no-hash`.
    #[serde(with = "hex", default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<blake3::Hash>,
}

/// Where the bytes came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// The device or file, as named.
    pub name: String,
    /// The machine that read it.
    pub host: String,
    /// Bytes.
    pub size: ByteCount,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Bytes of the file.
    pub size: ByteCount,
    /// Bytes of the disk as the guest sees it.
    pub virtual_size: ByteCount,
    /// CRC64NVME of the whole file, as S3 gives it.
    pub crc64: Crc64,
    /// Bytes of the source that were laid out in the file, as bodies or as zeros, counted while that was done: all of them, or the image is
    /// not whole. None where whoever made the image did not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accounted: Option<ByteCount>,
    /// SHA-256 of the whole file in lower-case hex, as image libraries report it; once it was read back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// UTC, RFC 3339, to the second: when all of it was read back, decoded, and found to hold what was read from the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_at: Option<String>,
}

/// How it was made: the same source with the same of these gives the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncoderRecord {
    /// `deflate` or `zstd`; `none` where every cluster is stored as it is.
    pub codec: String,
    /// `fast` to `smallest`.
    pub level: String,
    /// The library, its version and its level.
    pub library: String,
    /// qcow2's unit, bytes.
    pub cluster_size: ByteCount,
    /// Bytes of the disk in each segment but the last.
    pub segment_size: ByteCount,
    /// Bytes of the disk in each chunk but the last.
    pub chunk_size: ByteCount,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// See [`VERSION`].
    pub version: u32,
    /// The program and its version.
    pub made_by: String,
    /// UTC, RFC 3339, to the second: when the conversion began.
    pub created: String,
    /// Where the bytes came from.
    pub source: SourceRecord,
    /// What was made.
    pub image: ImageRecord,
    /// How.
    pub encoder: EncoderRecord,
    /// Stretches that could not be read and hold zeros; only with `--salvage`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub salvaged: Vec<BadRange>,
    /// Every segment that holds anything, in the order of the disk.
    pub segments: Vec<Segment>,
}

impl Manifest {
    /// From what [`Manifest::to_json`] wrote, in this version or another: fields that are not known are ignored.
    ///
    /// # Errors
    /// Where it is no such JSON.
    pub fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// Notes that the stored image was read back and holds what this says, and the file's SHA-256 where it was taken.
    pub fn note_verified(&mut self, sha256: Option<String>, at: SystemTime) {
        self.image.sha256 = sha256;
        self.image.verified_at = Some(rfc3339(at));
    }

    /// As stored: JSON, one segment a line, so that a person can read it and `diff` can compare two.
    ///
    /// # Panics
    /// Never: everything in it has a JSON form.
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
                accounted: Some(ByteCount(1)),
                sha256: Some("ab".into()),
                verified_at: None,
            },
            encoder: EncoderRecord {
                codec: "deflate".into(),
                level: "fast".into(),
                library: "some".into(),
                cluster_size: ByteCount(65536),
                segment_size: ByteCount(1 << 24),
                chunk_size: ByteCount(1 << 21),
            },
            salvaged: vec![BadRange { offset: GuestOffset(512), length: 512 }],
            segments: vec![segment(0, Some(blake3::hash(b"x"))), segment(3, None)],
        };
        let read = |json: &[u8]| serde_json::from_slice::<Manifest>(json).expect("our own JSON");
        assert_eq!(read(&manifest.to_json()), manifest);
        manifest.segments.clear();
        assert_eq!(read(&manifest.to_json()), manifest);
    }
}
