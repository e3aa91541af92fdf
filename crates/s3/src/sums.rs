//! Which checksums this store understands. Nobody tells; it shows in the answers, and is remembered for the store's next requests.
//!
//! Best is CRC64NVME, which the store checks for every part and for the whole object. A store from before 2022 doesn't know it and
//! either refuses the fields or silently reads past them; there each part goes with the MD5 that every store checks.

use std::sync::atomic::{AtomicU8, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use md5::{Digest as _, Md5};

/// How the parts of an upload are covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartSum {
    /// Nobody has seen an answer yet: CRC64NVME goes out, and the answer tells.
    Unknown,
    /// CRC64NVME, echoed by the store.
    Crc64,
    /// Content-MD5.
    Md5,
}

/// Whether the requests that begin and complete an upload name CRC64NVME, which a store from before 2022 may refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fields {
    Crc64,
    Without,
}

/// What has been learnt of a store.
#[derive(Debug, Default)]
pub(super) struct Sums {
    part: AtomicU8,
}

const CRC64: u8 = 1;
const MD5: u8 = 2;

impl Sums {
    pub(super) fn part(&self) -> PartSum {
        match self.part.load(Ordering::Relaxed) {
            CRC64 => PartSum::Crc64,
            MD5 => PartSum::Md5,
            _ => PartSum::Unknown,
        }
    }

    /// The store answered a part with its CRC64NVME. Does not outvote an answer without.
    pub(super) fn echoed(&self) {
        let _already_known = self.part.compare_exchange(0, CRC64, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The store refused the fields of CRC64NVME, or read past them.
    pub(super) fn unknown_to_store(&self) {
        if self.part.swap(MD5, Ordering::Relaxed) != MD5 {
            tracing::debug!("the store does not know CRC64NVME: parts are sent with Content-MD5");
        }
    }
}

/// The MD5 of a body, off the async threads: it runs at half a gigabyte a second.
pub(super) async fn md5_of(body: Bytes) -> [u8; 16] {
    match tokio::task::spawn_blocking({
        let body = body.clone();
        move || Md5::digest(&body).into()
    })
    .await
    {
        Ok(digest) => digest,
        // The runtime is shutting down; nobody will wait for the answer.
        Err(_) => Md5::digest(&body).into(),
    }
}

/// As in the `content-md5` header.
pub(super) fn md5_header(digest: [u8; 16]) -> String {
    BASE64.encode(digest)
}

/// As most stores' ETag of a single part.
pub(super) fn md5_etag(digest: [u8; 16]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_the_sum_decides_for_good() {
        let sums = Sums::default();
        assert_eq!(sums.part(), PartSum::Unknown);
        sums.echoed();
        assert_eq!(sums.part(), PartSum::Crc64);
        sums.unknown_to_store();
        sums.echoed();
        assert_eq!(sums.part(), PartSum::Md5);
    }

    #[tokio::test]
    async fn md5_in_both_forms() {
        // RFC 1321, A.5: MD5 ("abc").
        let digest = md5_of(Bytes::from_static(b"abc")).await;
        assert_eq!(md5_etag(digest), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(md5_header(digest), "kAFQmDzST7DWlj99KOF/cg==");
    }
}
