//! Digests: those that a request claims for its body, and those that the body proves to have.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use crc_fast::CrcAlgorithm;
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use md5::{Digest as _, Md5};
use s3s::crypto::{Checksum as _, Sha1, Sha256};
use s3s::{S3Result, s3_error};
use serde::{Deserialize, Serialize};
use snapferry_base::units::to_u64;
use snapferry_engine::hash::Crc64;

/// Checksum algorithms that S3 knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) enum Algorithm {
    Crc32,
    Crc32c,
    Crc64Nvme,
    Sha1,
    Sha256,
}

impl Algorithm {
    const ALL: [Self; 5] = [Self::Crc32, Self::Crc32c, Self::Crc64Nvme, Self::Sha1, Self::Sha256];

    /// Returns the algorithm with this name, as in `x-amz-checksum-algorithm`.
    pub(super) fn parse(name: &str) -> S3Result<Self> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| s3_error!(InvalidRequest, "Checksum algorithm provided is unsupported: {name}"))
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "CRC32",
            Self::Crc32c => "CRC32C",
            Self::Crc64Nvme => "CRC64NVME",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
        }
    }

    pub(super) fn header(self) -> HeaderName {
        HeaderName::from_static(match self {
            Self::Crc32 => "x-amz-checksum-crc32",
            Self::Crc32c => "x-amz-checksum-crc32c",
            Self::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Self::Sha1 => "x-amz-checksum-sha1",
            Self::Sha256 => "x-amz-checksum-sha256",
        })
    }

    /// Returns the CRC behind the algorithm, if it is one: CRCs of parts can be combined into the CRC of the
    /// whole.
    pub(super) fn crc(self) -> Option<CrcAlgorithm> {
        match self {
            Self::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
            Self::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
            Self::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
            Self::Sha1 | Self::Sha256 => None,
        }
    }

    /// Encodes a CRC as S3 writes it: big-endian bytes in base64.
    pub(super) fn encode_crc(self, sum: u64) -> String {
        let bytes = sum.to_be_bytes();
        match self {
            Self::Crc32 | Self::Crc32c => BASE64.encode(&bytes[4..]),
            Self::Crc64Nvme | Self::Sha1 | Self::Sha256 => BASE64.encode(bytes),
        }
    }

    /// Decodes a CRC: the inverse of [`Self::encode_crc`].
    pub(super) fn decode_crc(text: &str) -> Option<u64> {
        let bytes = BASE64.decode(text).ok()?;
        let mut wide = [0; 8];
        wide.get_mut(8_usize.checked_sub(bytes.len())?..)?.copy_from_slice(&bytes);
        Some(u64::from_be_bytes(wide))
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Returns the one `x-amz-checksum-*` header of a request or a trailer, if there is one.
pub(super) fn checksum_in(headers: &HeaderMap) -> S3Result<Option<(Algorithm, String)>> {
    let mut found = None;
    for algorithm in Algorithm::ALL {
        let Some(value) = headers.get(algorithm.header()) else { continue };
        if found.is_some() {
            return Err(s3_error!(
                InvalidRequest,
                "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed."
            ));
        }
        let value = value
            .to_str()
            .map_err(|_| s3_error!(InvalidRequest, "Value for {} header is invalid.", algorithm.header()))?;
        found = Some((algorithm, value.to_owned()));
    }
    Ok(found)
}

/// Digests that a request claims for its body.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    md5: Option<[u8; 16]>,
    checksum: Option<(Algorithm, String)>,
    /// Algorithm that `x-amz-trailer` announces; its value comes after the body.
    trailer: Option<Algorithm>,
}

impl Claims {
    /// Reads the claims from a request's headers.
    pub(super) fn of(headers: &HeaderMap) -> S3Result<Self> {
        let md5 = match headers.get("content-md5") {
            None => None,
            Some(value) => {
                let bytes =
                    BASE64.decode(value.as_bytes()).ok().and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
                Some(
                    bytes.ok_or_else(|| {
                        s3_error!(InvalidDigest, "The Content-MD5 you specified was invalid.")
                    })?,
                )
            }
        };
        let checksum = checksum_in(headers)?;
        let mut trailer = None;
        if let Some(names) = headers.get("x-amz-trailer") {
            let names = names.as_bytes();
            trailer = Algorithm::ALL
                .into_iter()
                .find(|algorithm| algorithm.header().as_str().as_bytes().eq_ignore_ascii_case(names));
        }
        // This is S3's own message. Some real clients name an algorithm and then send no value.
        if headers.contains_key("x-amz-sdk-checksum-algorithm")
            && checksum.is_none()
            && trailer.is_none()
            && md5.is_none()
        {
            return Err(s3_error!(
                InvalidRequest,
                "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or x-amz-trailer headers were found."
            ));
        }
        Ok(Self { md5, checksum, trailer })
    }

    /// Returns the algorithm of the checksum that came with the body, or will come after it.
    pub(super) fn algorithm(&self) -> Option<Algorithm> {
        self.checksum.as_ref().map(|(algorithm, _)| *algorithm).or(self.trailer)
    }

    /// Creates a tally of the digests that these claims need, and of the one by `also`.
    pub(super) fn tally(&self, also: Option<Algorithm>) -> Tally {
        let wants = |algorithm| self.algorithm() == Some(algorithm) || also == Some(algorithm);
        let crc = |algorithm: Algorithm| {
            let crc = algorithm.crc()?;
            wants(algorithm).then(|| crc_fast::Digest::new(crc))
        };
        Tally {
            size: 0,
            crc64: crc_fast::Digest::new(CrcAlgorithm::Crc64Nvme),
            crc32: crc(Algorithm::Crc32),
            crc32c: crc(Algorithm::Crc32c),
            sha1: wants(Algorithm::Sha1).then(Sha1::new),
            sha256: wants(Algorithm::Sha256).then(Sha256::new),
            md5: self.md5.map(|_| Md5::new()),
        }
    }

    /// Compares the digests of the body with the claims.
    pub(super) fn check(&self, sums: &Sums, trailers: Option<&HeaderMap>) -> S3Result<()> {
        if let Some(md5) = self.md5
            && sums.md5 != Some(md5)
        {
            return Err(s3_error!(
                BadDigest,
                "The Content-MD5 you specified did not match what we received."
            ));
        }
        let trailing = match (self.trailer, trailers) {
            (Some(announced), trailers) => {
                let found = trailers.map(checksum_in).transpose()?.flatten();
                let found = found.filter(|(algorithm, _)| *algorithm == announced);
                Some(found.ok_or_else(|| {
                    s3_error!(
                        InvalidRequest,
                        "The trailer {} was announced and did not come.",
                        announced.header()
                    )
                })?)
            }
            (None, _) => None,
        };
        for (algorithm, claimed) in self.checksum.iter().chain(&trailing) {
            if sums.checksums.get(algorithm) != Some(claimed) {
                return Err(s3_error!(
                    BadDigest,
                    "The {algorithm} you specified did not match the calculated checksum."
                ));
            }
        }
        Ok(())
    }
}

/// Digests of a body while it comes in. CRC64NVME is always computed, because those of the parts combine into
/// that of the object; the others only on demand.
pub(super) struct Tally {
    size: u64,
    crc64: crc_fast::Digest,
    crc32: Option<crc_fast::Digest>,
    crc32c: Option<crc_fast::Digest>,
    sha1: Option<Sha1>,
    sha256: Option<Sha256>,
    md5: Option<Md5>,
}

impl Tally {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.size += to_u64(bytes.len());
        self.crc64.update(bytes);
        if let Some(digest) = &mut self.crc32 {
            digest.update(bytes);
        }
        if let Some(digest) = &mut self.crc32c {
            digest.update(bytes);
        }
        if let Some(digest) = &mut self.sha1 {
            digest.update(bytes);
        }
        if let Some(digest) = &mut self.sha256 {
            digest.update(bytes);
        }
        if let Some(digest) = &mut self.md5 {
            digest.update(bytes);
        }
    }

    pub(super) fn finish(self) -> Sums {
        let crc64 = Crc64(self.crc64.finalize());
        let mut checksums = BTreeMap::from([(Algorithm::Crc64Nvme, crc64.to_base64())]);
        for (algorithm, digest) in [(Algorithm::Crc32, self.crc32), (Algorithm::Crc32c, self.crc32c)] {
            if let Some(digest) = digest {
                checksums.insert(algorithm, algorithm.encode_crc(digest.finalize()));
            }
        }
        if let Some(digest) = self.sha1 {
            checksums.insert(Algorithm::Sha1, BASE64.encode(digest.finalize()));
        }
        if let Some(digest) = self.sha256 {
            checksums.insert(Algorithm::Sha256, BASE64.encode(digest.finalize()));
        }
        Sums { size: self.size, crc64, checksums, md5: self.md5.map(|digest| digest.finalize().into()) }
    }
}

/// Size and digests of a body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sums {
    pub(super) size: u64,
    pub(super) crc64: Crc64,
    pub(super) checksums: BTreeMap<Algorithm, String>,
    pub(super) md5: Option<[u8; 16]>,
}

impl Sums {
    /// Returns the body's ETag: its MD5 if the client had it computed, as on S3, or else its CRC64NVME. The
    /// latter has sixteen digits, so that no client takes it for an MD5.
    pub(super) fn etag(&self) -> String {
        match self.md5 {
            Some(md5) => md5.iter().map(|byte| format!("{byte:02x}")).collect(),
            None => format!("{:016x}", self.crc64.0),
        }
    }
}

/// Input of a multipart object's checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    /// Computed over the object's bytes.
    FullObject,
    /// Computed over the parts' checksums.
    Composite,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::FullObject => "FULL_OBJECT",
            Self::Composite => "COMPOSITE",
        }
    }
}

/// Type of the checksum that an object or an upload was created with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Scheme {
    pub(super) algorithm: Algorithm,
    pub(super) kind: Kind,
}

impl Scheme {
    /// Checksum that S3 computes if the client chooses none.
    pub(super) const DEFAULT: Self = Self { algorithm: Algorithm::Crc64Nvme, kind: Kind::FullObject };

    /// Returns the scheme for the values of `x-amz-checksum-algorithm` and `x-amz-checksum-type`, by S3's
    /// table of the allowed combinations.
    pub(super) fn of(algorithm: Option<&str>, kind: Option<&str>) -> S3Result<Option<Self>> {
        let kind = match kind {
            None => None,
            Some("FULL_OBJECT") => Some(Kind::FullObject),
            Some("COMPOSITE") => Some(Kind::Composite),
            Some(other) => {
                return Err(s3_error!(
                    InvalidRequest,
                    "Value for x-amz-checksum-type header is invalid: {other}"
                ));
            }
        };
        let Some(algorithm) = algorithm else {
            return match kind {
                None => Ok(None),
                Some(_) => Err(s3_error!(
                    InvalidRequest,
                    "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header."
                )),
            };
        };
        let algorithm = Algorithm::parse(algorithm)?;
        let kind = match (algorithm, kind) {
            (Algorithm::Crc64Nvme, None | Some(Kind::FullObject)) => Kind::FullObject,
            (Algorithm::Crc32 | Algorithm::Crc32c, kind) => kind.unwrap_or(Kind::Composite),
            (Algorithm::Sha1 | Algorithm::Sha256, None | Some(Kind::Composite)) => Kind::Composite,
            (algorithm, Some(kind)) => {
                return Err(s3_error!(
                    InvalidRequest,
                    "The {} checksum type cannot be used with the {algorithm} checksum algorithm.",
                    kind.name()
                ));
            }
        };
        Ok(Some(Self { algorithm, kind }))
    }

    /// Combines the checksums of the parts into that of the object. Each part is `(size, checksum in
    /// base64)`, in order.
    pub(super) fn of_parts<'a>(self, parts: impl Iterator<Item = (u64, &'a str)>) -> Option<String> {
        match (self.kind, self.algorithm.crc()) {
            (Kind::FullObject, Some(crc)) => {
                let mut combined = crc_fast::checksum(crc, b"");
                for (size, sum) in parts {
                    combined = crc_fast::checksum_combine(crc, combined, Algorithm::decode_crc(sum)?, size);
                }
                Some(self.algorithm.encode_crc(combined))
            }
            (Kind::FullObject, None) => None,
            (Kind::Composite, crc) => {
                let mut joined = Vec::new();
                let mut count = 0_u32;
                for (_, sum) in parts {
                    joined.extend(BASE64.decode(sum).ok()?);
                    count += 1;
                }
                let combined = match (self.algorithm, crc) {
                    (algorithm, Some(crc)) => algorithm.encode_crc(crc_fast::checksum(crc, &joined)),
                    (Algorithm::Sha1, None) => BASE64.encode(Sha1::checksum(&joined)),
                    (_, None) => BASE64.encode(Sha256::checksum(&joined)),
                };
                Some(format!("{combined}-{count}"))
            }
        }
    }
}

/// Returns another checksum of the same form, for a fault in which the store returns a wrong one.
pub(super) fn corrupted(checksum: &str) -> String {
    let (sum, count) =
        checksum.split_once('-').map_or((checksum, ""), |(sum, _)| (sum, &checksum[sum.len()..]));
    let mut bytes = BASE64.decode(sum).unwrap_or_default();
    if let Some(first) = bytes.first_mut() {
        *first ^= 0x80;
    }
    format!("{}{count}", BASE64.encode(bytes))
}

/// Adds the checksum as a header to a response.
pub(super) fn echo(headers: &mut HeaderMap, algorithm: Algorithm, checksum: &str) {
    if let Ok(value) = HeaderValue::from_str(checksum) {
        headers.insert(algorithm.header(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(name: &'static str, value: &str) -> Claims {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).expect("a header"));
        Claims::of(&headers).expect("well-formed claims")
    }

    /// Check values of "123456789" in the CRC catalogue, and the digests that the coreutils print for it.
    const CHECKS: [(&str, &str); 6] = [
        ("x-amz-checksum-crc32", "y/Q5Jg=="),
        ("x-amz-checksum-crc32c", "4waSgw=="),
        ("x-amz-checksum-crc64nvme", "rosUhgp5mIg="),
        ("x-amz-checksum-sha1", "98O8HYCOBHMq32eZZczDTKeuNEE="),
        ("x-amz-checksum-sha256", "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU="),
        ("content-md5", "JfnnlDI7RTiF9RgfG2JNCw=="),
    ];

    #[test]
    fn each_digest_is_computed_and_checked() {
        for (name, right) in CHECKS {
            let claims = claims(name, right);
            let mut tally = claims.tally(None);
            tally.update(b"1234");
            tally.update(b"56789");
            claims.check(&tally.finish(), None).unwrap_or_else(|err| panic!("{name}: {err:?}"));

            let mut tally = claims.tally(None);
            tally.update(b"123456780");
            let err = claims.check(&tally.finish(), None).expect_err("another body");
            assert_eq!(err.code().as_str(), "BadDigest", "{name}");
        }
    }

    #[test]
    fn full_object_sums_combine_and_composite_ones_count_their_parts() {
        let parts: [&[u8]; 2] = [b"12345", b"6789"];
        for (name, combined) in &CHECKS[..3] {
            let algorithm =
                Algorithm::parse(name.trim_start_matches("x-amz-checksum-")).expect("an algorithm");
            let sums = parts.map(|part| {
                let mut tally = Claims::default().tally(Some(algorithm));
                tally.update(part);
                tally.finish()
            });
            let pairs = || sums.iter().map(|sums| (sums.size, sums.checksums[&algorithm].as_str()));
            let full = Scheme { algorithm, kind: Kind::FullObject };
            assert_eq!(full.of_parts(pairs()).as_deref(), Some(*combined), "{name}");
            let composite =
                Scheme { algorithm, kind: Kind::Composite }.of_parts(pairs()).expect("a composite sum");
            assert!(composite.ends_with("-2") && !composite.starts_with(combined), "{composite}");
        }
    }

    #[test]
    fn algorithms_and_types_go_together_as_on_s3() {
        let name = |scheme: Scheme| (scheme.algorithm.name(), scheme.kind.name());
        for (algorithm, kind, expected) in [
            ("CRC64NVME", None, ("CRC64NVME", "FULL_OBJECT")),
            ("CRC32C", None, ("CRC32C", "COMPOSITE")),
            ("CRC32", Some("FULL_OBJECT"), ("CRC32", "FULL_OBJECT")),
            ("SHA256", None, ("SHA256", "COMPOSITE")),
        ] {
            assert_eq!(Scheme::of(Some(algorithm), kind).expect("allowed").map(name), Some(expected));
        }
        for (algorithm, kind) in [
            (Some("CRC64NVME"), Some("COMPOSITE")),
            (Some("SHA1"), Some("FULL_OBJECT")),
            (None, Some("FULL_OBJECT")),
            (Some("MD5"), None),
        ] {
            let err = Scheme::of(algorithm, kind).expect_err("refused");
            assert_eq!(err.code().as_str(), "InvalidRequest");
        }
    }

    #[test]
    fn a_corrupted_sum_is_another_of_the_same_form() {
        for sum in ["rosUhgp5mIg=", "y/Q5Jg==-2"] {
            let other = corrupted(sum);
            assert_ne!(other, sum);
            assert_eq!(other.len(), sum.len());
        }
    }
}
