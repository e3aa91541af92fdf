//! Checksums that this store supports. No request returns that information; the client derives it from the
//! store's responses and remembers it for later requests.
//!
//! The best one is CRC64NVME, which the store checks for every part and for the whole object. A store from
//! before 2022 doesn't know it, and either refuses the fields or silently ignores them. Such a store gets an
//! MD5 with each part, which every store checks.

use std::sync::atomic::{AtomicU8, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use md5::{Digest as _, Md5};
use snapferry_engine::store::{Part, StoredPart};

/// Length of an MD5 in hexadecimal digits.
const MD5_DIGITS: usize = 32;

/// Checksum of the parts of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartChecksum {
    /// Not known yet: the next part is sent with CRC64NVME, and the response decides.
    Unknown,
    /// CRC64NVME, which the store returned in its response.
    Crc64,
    /// MD5, in the `content-md5` header.
    Md5,
}

/// Use of CRC64NVME in the requests that begin and complete an upload. A store from before 2022 may refuse
/// its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fields {
    Crc64,
    Without,
}

/// Checksum support of a store, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct ChecksumSupport {
    part: AtomicU8,
}

const CRC64: u8 = 1;
const MD5: u8 = 2;

impl ChecksumSupport {
    pub(super) fn part(&self) -> PartChecksum {
        match self.part.load(Ordering::Relaxed) {
            CRC64 => PartChecksum::Crc64,
            MD5 => PartChecksum::Md5,
            _ => PartChecksum::Unknown,
        }
    }

    /// Records that the store returned a part's CRC64NVME. Does not override an earlier response without the
    /// checksum.
    pub(super) fn mark_supported(&self) {
        let _already_known = self.part.compare_exchange(0, CRC64, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Records that the store refused the fields of CRC64NVME, or ignored them.
    pub(super) fn mark_unsupported(&self) {
        if self.part.swap(MD5, Ordering::Relaxed) != MD5 {
            tracing::debug!("the store does not know CRC64NVME: parts are sent with Content-MD5");
        }
    }
}

/// Computes the MD5 of a body on a blocking thread, because it takes 2 seconds for each gigabyte.
pub(super) async fn md5_of(body: Bytes) -> [u8; 16] {
    match tokio::task::spawn_blocking({
        let body = body.clone();
        move || Md5::digest(&body).into()
    })
    .await
    {
        Ok(digest) => digest,
        // The runtime is shutting down, so it doesn't matter that this blocks the thread.
        Err(_) => Md5::digest(&body).into(),
    }
}

/// True if the store's own record of a part proves that it has the bytes of `part`: by their CRC64NVME, or by
/// an ETag that is their MD5, as most stores make it. The ETag of an encrypted part is no MD5, so it proves
/// nothing.
pub(super) fn proves(stored: &StoredPart, part: &Part) -> bool {
    match stored.crc64 {
        Some(crc64) => crc64 == part.crc64,
        None => {
            stored.etag.0.len() == MD5_DIGITS
                && stored.etag.0.eq_ignore_ascii_case(&md5_etag(Md5::digest(&part.body).into()))
        }
    }
}

/// Formats an MD5 as in the `content-md5` header.
pub(super) fn md5_header(digest: [u8; 16]) -> String {
    BASE64.encode(digest)
}

/// Formats an MD5 as in the ETag that most stores give a single part.
pub(super) fn md5_etag(digest: [u8; 16]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_the_sum_decides_for_good() {
        let support = ChecksumSupport::default();
        assert_eq!(support.part(), PartChecksum::Unknown);
        support.mark_supported();
        assert_eq!(support.part(), PartChecksum::Crc64);
        support.mark_unsupported();
        support.mark_supported();
        assert_eq!(support.part(), PartChecksum::Md5);
    }

    #[tokio::test]
    async fn md5_in_both_forms() {
        // RFC 1321, A.5: MD5 ("abc").
        let digest = md5_of(Bytes::from_static(b"abc")).await;
        assert_eq!(md5_etag(digest), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(md5_header(digest), "kAFQmDzST7DWlj99KOF/cg==");
    }
}
