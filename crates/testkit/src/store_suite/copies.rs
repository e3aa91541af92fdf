//! Part of the suite: parts that are copied inside the store.

use std::ops::Range;

use bytes::Bytes;
use snapferry_base::retry::Class;
use snapferry_base::units::{to_u64, to_usize};
use snapferry_engine::hash::Crc64;
use snapferry_engine::store::{
    CopiedPart, CopySource, ETag, ExpectedObject, ObjectKey, PartNumber, StoreError, StoredPart, Upload,
};

use super::{Suite, bytes_of, copy_source, part};

/// Object that the suite copies from, with its bytes.
struct Source {
    from: CopySource,
    bytes: Bytes,
}

impl Source {
    fn slice(&self, range: &Range<u64>) -> Bytes {
        self.bytes.slice(to_usize(range.start)..to_usize(range.end))
    }

    /// Returns a copied part, with the checksum that its bytes must have.
    fn part(&self, number: u32, at: u64, range: Range<u64>) -> CopiedPart {
        let crc64 = Crc64::of(&self.slice(&range));
        CopiedPart { number: PartNumber(number), at, range, crc64 }
    }
}

impl Suite {
    pub(super) async fn copies(&self) {
        self.copies_and_parts_make_exactly_their_bytes().await;
        self.an_object_is_made_of_its_own_older_version().await;
        self.a_range_past_the_end_never_looks_like_a_whole_one().await;
        self.only_the_version_that_was_meant_is_copied().await;
        self.a_part_is_proved_by_what_the_store_returns().await;
    }

    /// Uploads an object in parts: some stores treat the source of a copy differently if it has parts.
    async fn source(&self, key: &ObjectKey) -> Source {
        let (parts, bytes) = self.three_parts();
        let upload = self.begin(key).await;
        let stored = self.send(&upload, &parts, &[0, 1, 2]).await;
        self.complete(&upload, &stored, &bytes).await;
        Source { from: self.found(key).await, bytes }
    }

    async fn found(&self, key: &ObjectKey) -> CopySource {
        copy_source(&*self.store, key).await
    }

    async fn complete(&self, upload: &Upload, stored: &[StoredPart], bytes: &Bytes) {
        let expected = ExpectedObject { size: to_u64(bytes.len()), crc64: Crc64::of(bytes), replaces: None };
        self.store.complete(upload, stored, &expected).await.expect("completed");
        let got = self.store.get_range(&upload.key, 0..expected.size, None).await.expect("read");
        assert!(got == *bytes, "{} has other bytes than its parts", upload.key);
    }

    async fn copies_and_parts_make_exactly_their_bytes(&self) {
        let (store, key) = (&self.store, self.key("copied to.qcow2"));
        let source = self.source(&self.key("copied+from %41.qcow2")).await;
        let size = self.traits.part_size.0;
        // Parts of four sizes, a range on the edges of the source's parts and one across them.
        let first = source.part(1, 0, 777..777 + size);
        let second = part(2, size, bytes_of(20, size + 1000));
        let third = source.part(3, second.at + size + 1000, size..2 * size + 100);
        let last = part(4, third.at + third.len(), bytes_of(21, 12_345));
        let all =
            [source.slice(&first.range), second.body.clone(), source.slice(&third.range), last.body.clone()];
        let bytes = Bytes::from(all.concat());

        let upload = self.begin(&key).await;
        let mut stored = vec![
            store.put_part(&upload, last).await.expect("taken"),
            store.copy_part(&upload, third.clone(), &source.from).await.expect("copied"),
            store.put_part(&upload, second).await.expect("taken"),
            store.copy_part(&upload, first.clone(), &source.from).await.expect("copied"),
        ];
        // Again, as after a lost response.
        stored[1] = store.copy_part(&upload, third.clone(), &source.from).await.expect("copied again");
        stored.sort_by_key(|part| part.number);
        assert_eq!(store.list_parts(&upload).await.expect("listed"), stored);
        for (stored, copied) in [(&stored[0], &first), (&stored[2], &third)] {
            assert_eq!((stored.number, stored.size), (copied.number, copied.len()));
            assert!(stored.crc64.is_none_or(|crc64| crc64 == copied.crc64), "{stored:?} is not {copied:?}");
        }
        // The copies don't depend on the source any more.
        store.delete(&source.from.key).await.expect("removed");
        self.complete(&upload, &stored, &bytes).await;
        store.delete(&key).await.expect("removed");
    }

    async fn an_object_is_made_of_its_own_older_version(&self) {
        let (store, key) = (&self.store, self.key("nightly.qcow2"));
        let old = self.source(&key).await;
        let size = self.traits.part_size.0;
        let upload = self.begin(&key).await;
        let kept = old.part(1, 0, 4096..4096 + size);
        let new = part(2, size, bytes_of(22, 5000));
        let bytes = Bytes::from([old.slice(&kept.range), new.body.clone()].concat());
        let stored = [
            store.copy_part(&upload, kept, &old.from).await.expect("copied"),
            store.put_part(&upload, new).await.expect("taken"),
        ];
        assert_eq!(self.found(&key).await, old.from);
        self.complete(&upload, &stored, &bytes).await;
        assert_ne!(self.found(&key).await.etag, old.from.etag);
        store.delete(&key).await.expect("removed");
    }

    async fn a_range_past_the_end_never_looks_like_a_whole_one(&self) {
        let (store, key) = (&self.store, self.key("past-the-end.qcow2"));
        let source = self.source(&self.key("short.qcow2")).await;
        let (size, end) = (self.traits.part_size.0, source.from.size);
        let upload = self.begin(&key).await;
        let beyond = CopiedPart { range: end - size..end + 5, ..source.part(1, 0, end - size..end) };
        let err = store.copy_part(&upload, beyond.clone(), &source.from).await.expect_err("past the end");
        assert!(matches!(err, StoreError::Mismatch { .. }), "{err}");
        // A caller that is wrong about the size of the source.
        let longer = CopySource { size: end + 5, ..source.from.clone() };
        match store.copy_part(&upload, beyond.clone(), &longer).await {
            Err(err) => assert_eq!(err.class(), Class::Permanent, "{err}"),
            Ok(stored) => {
                let listed = store.list_parts(&upload).await.expect("listed");
                assert_eq!(listed.len(), 1);
                assert_eq!(
                    (listed[0].size, stored.size),
                    (size, beyond.len()),
                    "the list shows what is there"
                );
            }
        }
        let empty = CopiedPart { range: 5..5, ..beyond };
        let err = store.copy_part(&upload, empty, &source.from).await.expect_err("no byte");
        assert!(matches!(err, StoreError::Mismatch { .. }), "{err}");
        store.abort(&upload).await.expect("aborted");
        store.delete(&source.from.key).await.expect("removed");
    }

    async fn only_the_version_that_was_meant_is_copied(&self) {
        let (store, key) = (&self.store, self.key("other-version.qcow2"));
        let source = self.source(&self.key("versions.qcow2")).await;
        let size = self.traits.part_size.0;
        let upload = self.begin(&key).await;
        let wanted = source.part(1, 0, 0..size);
        let etag = ETag("0123456789abcdef0123456789abcdef".to_owned());
        let other = CopySource { etag, ..source.from.clone() };
        let copied_so_far = store.copy_part(&upload, wanted.clone(), &other).await;
        let err = copied_so_far.expect_err("there never was such a version");
        assert!(matches!(err, StoreError::Precondition { .. }), "{err}");
        let odd_numbers = [0, 10_001];
        for number in odd_numbers.into_iter().take(if self.traits.last_number { 2 } else { 1 }) {
            let odd = CopiedPart { number: PartNumber(number), ..wanted.clone() };
            store.copy_part(&upload, odd, &source.from).await.expect_err("parts are 1 to 10000");
        }
        // The right version, before and after the refusals: a client that has learnt from them goes on.
        store.copy_part(&upload, wanted.clone(), &source.from).await.expect("copied");
        store.put(&source.from.key, source.bytes.slice(1..)).await.expect("replaced");
        let err = store.copy_part(&upload, wanted.clone(), &source.from).await.expect_err("replaced");
        assert!(matches!(err, StoreError::Precondition { .. }), "{err}");
        store.delete(&source.from.key).await.expect("removed");
        let err = store.copy_part(&upload, wanted.clone(), &source.from).await.expect_err("removed");
        assert!(matches!(err, StoreError::NoSuchKey { .. }), "{err}");
        store.abort(&upload).await.expect("aborted");

        let source = self.source(&source.from.key).await;
        let err = store.copy_part(&upload, wanted, &source.from).await.expect_err("the upload has ended");
        assert!(matches!(&err, StoreError::NoSuchUpload { id, .. } if *id == upload.id), "{err}");
        store.delete(&source.from.key).await.expect("removed");
    }

    async fn a_part_is_proved_by_what_the_store_returns(&self) {
        let (store, key) = (&self.store, self.key("proved.qcow2"));
        let size = self.traits.part_size.0;
        let (sent, other) = (part(1, 0, bytes_of(30, size)), part(1, 0, bytes_of(31, size)));
        let upload = self.begin(&key).await;
        let stored = store.put_part(&upload, sent.clone()).await.expect("taken");
        let listed = store.list_parts(&upload).await.expect("listed");
        for record in [&stored, &listed[0]] {
            assert!(store.proves(record, &sent), "{record:?} does not prove its own part");
            assert!(!store.proves(record, &other), "{record:?} proves another part");
        }
        store.abort(&upload).await.expect("aborted");
    }
}
