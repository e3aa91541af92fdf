//! Test suite for the behaviour that all stores have in common. It runs against each store.

use std::sync::Arc;

use bytes::Bytes;
use snapferry_base::retry::Class;
use snapferry_base::units::{ByteCount, MIB, to_u64, to_usize};
use snapferry_engine::hash::Crc64;
use snapferry_engine::store::Overwrite;
use snapferry_engine::store::{
    CopySource, ETag, ExpectedObject, ObjectKey, ObjectStore, Part, PartNumber, StoreError, StoredPart,
    Upload, UploadPlan,
};

mod copies;

/// Differences between stores.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    /// Size of every part but the last, in bytes.
    pub part_size: ByteCount,
    /// True if the response to HEAD has the CRC64NVME of the object.
    pub keeps_crc64: bool,
    /// True if the parts of a completed upload can no longer be listed. (Swift still lists them.)
    pub forgets_completed: bool,
    /// True if more than a thousand parts are cheap enough for a test.
    pub many_parts: bool,
    /// True if the store takes no part number above 10,000.
    pub last_number: bool,
}

/// Smallest part that real stores accept.
pub const REAL_PART: ByteCount = ByteCount(5 * MIB);

/// Returns bytes that differ from part to part and do not repeat within one.
fn bytes_of(seed: u64, len: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(to_usize(len) + 8);
    while to_u64(bytes.len()) < len {
        // xorshift64: Marsaglia, "Xorshift RNGs".
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(to_usize(len));
    Bytes::from(bytes)
}

fn part(number: u32, at: u64, body: Bytes) -> Part {
    let crc64 = Crc64::of(&body);
    Part { number: PartNumber(number), at, body, crc64 }
}

/// Returns the present version of an object as the source of copies.
///
/// # Panics
/// If there is no such object.
pub async fn copy_source(store: &dyn ObjectStore, key: &ObjectKey) -> CopySource {
    let meta = store.head(key).await.expect("asked").expect("there");
    CopySource { key: key.clone(), etag: meta.etag, size: meta.size }
}

/// Runs all tests one after the other, with keys that begin with `prefix`. No other process may use that
/// prefix.
///
/// # Panics
/// On the first error of the store.
pub async fn run(store: Arc<dyn ObjectStore>, traits: Traits, prefix: &str) {
    let suite = Suite { store, traits, prefix: prefix.to_owned() };
    suite.small_objects().await;
    suite.parts_in_any_order_make_exactly_their_bytes().await;
    suite.a_part_sent_again_counts_once().await;
    suite.nothing_is_visible_before_complete_and_nothing_remains_after_abort().await;
    suite.wrong_parts_are_refused().await;
    suite.an_object_is_replaced_only_where_asked().await;
    suite.a_version_that_is_gone_is_not_read().await;
    suite.exactly_our_uploads_are_listed().await;
    if suite.traits.many_parts {
        suite.lists_its_objects().await;
        suite.more_parts_than_a_page().await;
    }
    suite.copies().await;
    suite.leaves_nothing_behind().await;
}

struct Suite {
    store: Arc<dyn ObjectStore>,
    traits: Traits,
    prefix: String,
}

impl Suite {
    fn key(&self, name: &str) -> ObjectKey {
        ObjectKey::new(&format!("{}{name}", self.prefix)).unwrap()
    }

    fn plan(&self, overwrite: Overwrite) -> UploadPlan {
        UploadPlan { part_size: self.traits.part_size, overwrite }
    }

    async fn begin(&self, key: &ObjectKey) -> Upload {
        self.store.create_upload(key, &self.plan(Overwrite::Replace)).await.expect("an upload begins")
    }

    /// Makes two full parts and a short one.
    fn three_parts(&self) -> (Vec<Part>, Bytes) {
        let size = self.traits.part_size.0;
        let bodies = [bytes_of(1, size), bytes_of(2, size), bytes_of(3, 12_345)];
        let bytes = Bytes::from(bodies.concat());
        let parts = (0_u32..).zip(bodies).map(|(nth, body)| part(nth + 1, u64::from(nth) * size, body));
        (parts.collect(), bytes)
    }

    async fn send(&self, upload: &Upload, parts: &[Part], order: &[usize]) -> Vec<StoredPart> {
        let mut stored = Vec::new();
        for &index in order {
            stored.push(self.store.put_part(upload, parts[index].clone()).await.expect("a part is taken"));
        }
        stored.sort_by_key(|part| part.number);
        stored
    }

    async fn small_objects(&self) {
        let (store, key) = (&self.store, self.key("disk.qcow2").manifest());
        assert_eq!(store.head(&key).await.expect("head of nothing"), None);
        let missing = store.get_range(&key, 0..1, None).await.expect_err("there is nothing");
        assert!(matches!(missing, StoreError::NoSuchKey { .. }), "{missing}");
        let body = Bytes::from_static(b"{\"version\": 1}\n");
        store.put(&key, body.clone()).await.expect("stored");
        let meta = store.head(&key).await.expect("asked").expect("there");
        assert_eq!(meta.size, to_u64(body.len()));
        assert_eq!(store.get_range(&key, 0..meta.size, Some(&meta.etag)).await.expect("read"), body);
        assert_eq!(store.get_range(&key, 3..10, None).await.expect("read"), body.slice(3..10));
        assert_eq!(store.get_range(&key, 3..3, None).await.expect("nothing is always there"), Bytes::new());
        let beyond =
            store.get_range(&key, 5..meta.size + 1, None).await.expect_err("exactly the range or an error");
        assert_eq!(beyond.class(), Class::Permanent, "{beyond}");
        store.put(&key, Bytes::from_static(b"{}")).await.expect("replaced");
        assert_eq!(store.head(&key).await.expect("asked").expect("there").size, 2);
        store.delete(&key).await.expect("removed");
        store.delete(&key).await.expect("removed twice");
        assert_eq!(store.head(&key).await.expect("asked"), None);
    }

    async fn parts_in_any_order_make_exactly_their_bytes(&self) {
        let (store, key) = (&self.store, self.key("any-order.qcow2"));
        let (parts, bytes) = self.three_parts();
        let upload = self.begin(&key).await;
        let stored = self.send(&upload, &parts, &[1, 2, 0]).await;
        assert_eq!(store.list_parts(&upload).await.expect("listed"), stored);
        let expected = ExpectedObject { size: to_u64(bytes.len()), crc64: Crc64::of(&bytes), replaces: None };
        store.complete(&upload, &stored, &expected).await.expect("completed");
        let meta = store.head(&key).await.expect("asked").expect("there");
        assert_eq!(meta.size, expected.size);
        assert_eq!(meta.crc64, self.traits.keeps_crc64.then_some(expected.crc64));
        let size = self.traits.part_size.0;
        for range in [
            0..expected.size,
            0..1,
            size - 3..size + 3,
            2 * size - 1..expected.size,
            expected.size - 1..expected.size,
        ] {
            let got = store.get_range(&key, range.clone(), Some(&meta.etag)).await.expect("read");
            assert!(got == bytes.slice(to_usize(range.start)..to_usize(range.end)), "{range:?} differs");
        }
        if self.traits.forgets_completed {
            let err = store.list_parts(&upload).await.expect_err("the upload has ended");
            assert!(matches!(err, StoreError::NoSuchUpload { .. }), "{err}");
        }
        store.delete(&key).await.expect("removed");
    }

    async fn a_part_sent_again_counts_once(&self) {
        let (store, key) = (&self.store, self.key("again.qcow2"));
        let upload = self.begin(&key).await;
        let old = part(1, 0, bytes_of(9, self.traits.part_size.0));
        let new = part(1, 0, bytes_of(10, self.traits.part_size.0 - 4096));
        let last = self.store.put_part(&upload, old).await.expect("taken");
        let stored = store.put_part(&upload, new.clone()).await.expect("taken");
        assert_ne!(stored.etag, last.etag);
        assert_eq!(store.put_part(&upload, new.clone()).await.expect("taken"), stored);
        assert_eq!(store.list_parts(&upload).await.expect("listed"), std::slice::from_ref(&stored));
        let expected = ExpectedObject { size: stored.size, crc64: new.crc64, replaces: None };
        store.complete(&upload, &[stored], &expected).await.expect("completed");
        assert!(store.get_range(&key, 0..expected.size, None).await.expect("read") == new.body);
        store.delete(&key).await.expect("removed");
    }

    async fn nothing_is_visible_before_complete_and_nothing_remains_after_abort(&self) {
        let (store, key) = (&self.store, self.key("aborted.qcow2"));
        let (parts, bytes) = self.three_parts();
        let upload = self.begin(&key).await;
        let stored = self.send(&upload, &parts, &[0, 1, 2]).await;
        assert_eq!(store.head(&key).await.expect("asked"), None);
        store.abort(&upload).await.expect("aborted");
        store.abort(&upload).await.expect("aborted twice");
        let expected = ExpectedObject { size: to_u64(bytes.len()), crc64: Crc64::of(&bytes), replaces: None };
        for err in [
            store.complete(&upload, &stored, &expected).await.expect_err("gone"),
            store.put_part(&upload, parts[0].clone()).await.expect_err("gone"),
            store.list_parts(&upload).await.expect_err("gone"),
        ] {
            assert!(matches!(err, StoreError::NoSuchUpload { .. }), "{err}");
        }
        assert_eq!(store.head(&key).await.expect("asked"), None);
    }

    async fn wrong_parts_are_refused(&self) {
        let (store, key) = (&self.store, self.key("wrong.qcow2"));
        let (parts, bytes) = self.three_parts();
        let upload = self.begin(&key).await;
        let stored = self.send(&upload, &parts, &[0, 1, 2]).await;
        let expected = ExpectedObject { size: to_u64(bytes.len()), crc64: Crc64::of(&bytes), replaces: None };
        let mut wrong_mark = stored.clone();
        wrong_mark[1].etag = ETag("0123456789abcdef0123456789abcdef".to_owned());
        let mut wrong_order = stored.clone();
        wrong_order.swap(0, 1);
        for wrong in [wrong_mark, wrong_order] {
            let err = store.complete(&upload, &wrong, &expected).await.expect_err("not what was sent");
            assert_eq!(err.class(), Class::Permanent, "{err}");
            assert_eq!(store.head(&key).await.expect("asked"), None);
        }
        let zero = Part { number: PartNumber(0), ..parts[0].clone() };
        store.put_part(&upload, zero).await.expect_err("parts begin at 1");
        let beyond = Part { number: PartNumber(10_001), ..parts[0].clone() };
        if self.traits.last_number {
            store.put_part(&upload, beyond).await.expect_err("parts end at 10000");
        }
        if self.traits.keeps_crc64 {
            let damaged = Part { crc64: Crc64::of(b"something else"), ..parts[0].clone() };
            let err = store.put_part(&upload, damaged).await.expect_err("the sum is wrong");
            assert!(err.is_damage(), "{err}");
            let wrong = ExpectedObject { crc64: Crc64::of(b"something else"), ..expected.clone() };
            store.complete(&upload, &stored, &wrong).await.expect_err("the whole sum is wrong");
            assert_eq!(store.head(&key).await.expect("asked"), None);
        }
        store.abort(&upload).await.expect("aborted");
    }

    async fn an_object_is_replaced_only_where_asked(&self) {
        let (store, key) = (&self.store, self.key("replaced.qcow2"));
        store.put(&key, Bytes::from_static(b"the old one")).await.expect("stored");
        let before = store.head(&key).await.expect("asked").expect("there");
        let err = store.create_upload(&key, &self.plan(Overwrite::Refuse)).await.expect_err("there is one");
        assert!(matches!(err, StoreError::Precondition { .. }), "{err}");
        let upload = self.begin(&key).await;
        let only = part(1, 0, bytes_of(5, 4097));
        let stored = store.put_part(&upload, only.clone()).await.expect("taken");
        assert_eq!(store.head(&key).await.expect("asked").as_ref(), Some(&before));
        let expected = ExpectedObject { size: 4097, crc64: only.crc64, replaces: Some(before.etag.clone()) };
        store.complete(&upload, &[stored], &expected).await.expect("completed");
        let after = store.head(&key).await.expect("asked").expect("there");
        assert_eq!(after.size, 4097);
        assert_ne!(after.etag, before.etag);
        store.delete(&key).await.expect("removed");
    }

    async fn a_version_that_is_gone_is_not_read(&self) {
        let (store, key) = (&self.store, self.key("version.manifest"));
        store.put(&key, Bytes::from_static(b"one version")).await.expect("stored");
        let old = store.head(&key).await.expect("asked").expect("there").etag;
        store.put(&key, Bytes::from_static(b"the other one")).await.expect("stored");
        let err = store.get_range(&key, 0..4, Some(&old)).await.expect_err("another version by now");
        assert!(matches!(err, StoreError::Precondition { .. }), "{err}");
        store.delete(&key).await.expect("removed");
    }

    async fn exactly_our_uploads_are_listed(&self) {
        let store = &self.store;
        assert_eq!(store.list_uploads(&self.prefix).await.expect("listed"), []);
        let mut uploads = Vec::new();
        for name in ["list-a.qcow2", "list-b.qcow2", "other.qcow2"] {
            uploads.push(self.begin(&self.key(name)).await);
        }
        let listed = store.list_uploads(self.key("list-").as_str()).await.expect("listed");
        let mut listed: Vec<Upload> = listed.into_iter().map(|open| open.upload).collect();
        listed.sort_by(|a, b| a.key.cmp(&b.key));
        assert_eq!(listed, uploads[..2]);
        for upload in &uploads {
            store.abort(upload).await.expect("aborted");
        }
    }

    async fn lists_its_objects(&self) {
        let store = &self.store;
        let names = ["objects-b.qcow2", "objects-a.qcow2", "other-object"];
        for (size, name) in (1..).zip(names) {
            store.put(&self.key(name), bytes_of(size, size)).await.expect("stored");
        }
        // An incomplete upload is not an object.
        let upload = self.begin(&self.key("objects-c.qcow2")).await;
        let listed = store.list(self.key("objects-").as_str()).await.expect("listed");
        let listed: Vec<_> = listed.into_iter().map(|object| (object.key, object.size)).collect();
        assert_eq!(listed, [(self.key("objects-a.qcow2"), 2), (self.key("objects-b.qcow2"), 1)]);
        store.abort(&upload).await.expect("aborted");
        for name in names {
            store.delete(&self.key(name)).await.expect("removed");
        }
        assert_eq!(store.list(self.key("objects-").as_str()).await.expect("listed"), []);
    }

    async fn more_parts_than_a_page(&self) {
        let (store, key) = (&self.store, self.key("many.qcow2"));
        let plan = UploadPlan { part_size: ByteCount(16), overwrite: Overwrite::Replace };
        let upload = store.create_upload(&key, &plan).await.expect("an upload begins");
        let (mut all, mut stored) = (Vec::new(), Vec::new());
        for number in 1..=2501 {
            let body = bytes_of(u64::from(number), 16);
            all.extend_from_slice(&body);
            stored.push(
                store.put_part(&upload, part(number, u64::from(number - 1) * 16, body)).await.expect("taken"),
            );
        }
        assert_eq!(store.list_parts(&upload).await.expect("listed"), stored);
        let expected = ExpectedObject { size: to_u64(all.len()), crc64: Crc64::of(&all), replaces: None };
        store.complete(&upload, &stored, &expected).await.expect("completed");
        assert!(store.get_range(&key, 0..expected.size, None).await.expect("read") == all);
        store.delete(&key).await.expect("removed");
    }

    async fn leaves_nothing_behind(&self) {
        assert_eq!(self.store.list_uploads(&self.prefix).await.expect("listed"), []);
    }
}
