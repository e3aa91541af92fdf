//! Tests of resumed uploads: which one is resumed, and which of its parts stay.

use std::sync::Arc;

use bytes::Bytes;
use snapferry_base::retry::Class;
use snapferry_base::units::{ByteCount, to_u64};
use snapferry_engine::convert::resume::{HOPELESS, KeyUploads, Resumed, find};
use snapferry_engine::hash::Crc64;
use snapferry_engine::store::{
    CopiedPart, ETag, ExpectedObject, ObjectKey, ObjectStore, Operation, Overwrite, Part, PartNumber,
    StoreError, StoredPart, Upload, UploadPlan,
};
use snapferry_testkit::memory::MemoryStore;
use snapferry_testkit::scripted::{Fault, ScriptedStore};

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).expect("a key")
}

fn part(number: u32, at: usize, body: &'static [u8]) -> Part {
    Part {
        number: PartNumber(number),
        at: to_u64(at),
        body: Bytes::from_static(body),
        crc64: Crc64::of(body),
    }
}

async fn begin(store: &dyn ObjectStore, name: &str) -> Upload {
    let plan = UploadPlan { part_size: ByteCount(100), overwrite: Overwrite::Replace };
    store.create_upload(&key(name), &plan).await.expect("begun")
}

fn error(request: &'static str, status: u16, code: &str) -> StoreError {
    StoreError::Refused {
        operation: Operation { request, target: "s3://images/disk.qcow2".to_owned() },
        status,
        code: code.to_owned(),
        message: "scripted".to_owned(),
        retry_after: None,
    }
}

async fn resumed(store: &dyn ObjectStore) -> Resumed {
    find(store, &key("disk.qcow2")).await.expect("found").resumed.expect("an upload")
}

#[tokio::test]
async fn a_run_that_resumes_sends_what_is_missing_and_makes_the_same_object() {
    let store = MemoryStore::new("images");
    let old = begin(&store, "disk.qcow2").await;
    let parts = [part(1, 0, b"head"), part(2, 4, b"the middle"), part(3, 14, b"end")];
    for part in &parts[1..] {
        store.put_part(&old, part.clone()).await.expect("taken");
    }
    let mut resumed = resumed(&store).await;
    assert_eq!((&resumed.upload, resumed.held()), (&old, 2));
    let (mut stored, mut sent) = (Vec::new(), 0);
    for part in &parts {
        stored.push(match resumed.keep(&store, part) {
            Some(kept) => kept,
            None => {
                sent += 1;
                store.put_part(&resumed.upload, part.clone()).await.expect("taken")
            }
        });
    }
    assert_eq!(sent, 1);
    let whole = ExpectedObject { size: 17, crc64: Crc64::of(b"headthe middleend"), replaces: None };
    store.complete(&resumed.upload, &stored, &whole).await.expect("completed");
}

#[tokio::test]
async fn only_the_same_bytes_stay() {
    let store = MemoryStore::new("images");
    let old = begin(&store, "disk.qcow2").await;
    store.put_part(&old, part(1, 0, b"as it was")).await.expect("taken");
    let mut resumed = resumed(&store).await;
    assert_eq!(resumed.keep(&store, &part(1, 0, b"as it is!")), None, "other bytes");
    assert_eq!(resumed.keep(&store, &part(1, 0, b"as it was!")), None, "another size");
    assert_eq!(resumed.keep(&store, &part(2, 0, b"as it was")), None, "another number");
    assert!(resumed.keep(&store, &part(1, 0, b"as it was")).is_some());
}

#[tokio::test]
async fn a_copy_stays_by_the_checksum_in_the_list_alone() {
    let store = MemoryStore::new("images");
    let upload = begin(&store, "disk.qcow2").await;
    let crc64 = Crc64::of(b"of the base");
    let listed = |number, crc64| StoredPart {
        number: PartNumber(number),
        size: 11,
        etag: ETag("an MD5".to_owned()),
        crc64,
    };
    let mut resumed = Resumed::new(
        upload,
        vec![listed(1, Some(crc64)), listed(2, None), listed(3, Some(Crc64::of(b"another")))],
    );
    let copied = |number, end| CopiedPart { number: PartNumber(number), at: 0, range: 5..end, crc64 };
    assert_eq!(resumed.keep_copy(&copied(1, 16)), Some(listed(1, Some(crc64))));
    assert_eq!(resumed.keep_copy(&copied(1, 17)), None, "another size");
    assert_eq!(resumed.keep_copy(&copied(2, 16)), None, "no checksum");
    assert_eq!(resumed.keep_copy(&copied(3, 16)), None, "another checksum");
    assert_eq!(resumed.keep_copy(&copied(4, 16)), None, "not there");
}

#[tokio::test]
async fn a_source_that_has_changed_is_noticed_soon_and_parts_behind_the_last_are_named() {
    let store = MemoryStore::new("images");
    let old = begin(&store, "disk.qcow2").await;
    for number in 1..=5 {
        store.put_part(&old, part(number, 0, b"as it was")).await.expect("taken");
    }
    let mut unlucky = resumed(&store).await;
    for compared in 1..=HOPELESS {
        assert!(!unlucky.is_hopeless(), "after {} parts", compared - 1);
        // A part that the store does not hold shows nothing.
        assert_eq!(unlucky.keep(&store, &part(9, 0, b"as it was")), None);
        assert_eq!(unlucky.keep(&store, &part(compared, 0, b"as it is!")), None);
    }
    assert!(unlucky.is_hopeless());

    let mut lucky = resumed(&store).await;
    assert!(lucky.keep(&store, &part(1, 0, b"as it was")).is_some());
    for number in 2..=5 {
        assert_eq!(lucky.keep(&store, &part(number, 0, b"as it is!")), None);
    }
    assert!(!lucky.is_hopeless(), "a part of it has stayed");
    assert_eq!(lucky.first_behind(PartNumber(3)).map(|part| part.number), Some(PartNumber(4)));
    assert_eq!(lucky.first_behind(PartNumber(5)), None);
    assert_eq!(lucky.first_behind(PartNumber(u32::MAX)), None);
}

#[tokio::test]
async fn what_can_not_be_listed_is_not_resumed_and_what_may_pass_is_an_error() {
    let scripted = Arc::new(ScriptedStore::new(Arc::new(MemoryStore::new("images"))));
    assert!(find(&*scripted, &key("disk.qcow2")).await.expect("found").resumed.is_none());
    let first = begin(&*scripted, "disk.qcow2").await;
    let second = begin(&*scripted, "disk.qcow2").await;
    begin(&*scripted, "disk.qcow2-of-another").await;

    let found = find(&*scripted, &key("disk.qcow2")).await.expect("found");
    let ids = |found: &KeyUploads| {
        let resumed = found.resumed.as_ref().map(|resumed| resumed.upload.id.clone());
        (resumed, found.others.iter().map(|upload| upload.id.clone()).collect::<Vec<_>>())
    };
    assert_eq!(ids(&found), (Some(first.id.clone()), vec![second.id.clone()]));

    scripted.next("ListParts", Fault::Fail(error("ListParts", 403, "AccessDenied")));
    let found = find(&*scripted, &key("disk.qcow2")).await.expect("found");
    assert_eq!(ids(&found), (Some(second.id.clone()), vec![first.id.clone()]));

    for request in ["ListParts", "ListMultipartUploads"] {
        scripted.next(request, Fault::Fail(error(request, 503, "SlowDown")));
        let err = find(&*scripted, &key("disk.qcow2")).await.expect_err("not known");
        assert_eq!(err.class(), Class::Throttled, "{err}");
    }
    // An upload that ended between the two lists.
    scripted.next(
        "ListParts",
        Fault::Fail(StoreError::NoSuchUpload {
            operation: Operation { request: "ListParts", target: "s3://images/disk.qcow2".to_owned() },
            id: first.id.clone(),
        }),
    );
    let found = find(&*scripted, &key("disk.qcow2")).await.expect("found");
    assert_eq!(ids(&found), (Some(second.id), vec![first.id]));
}
