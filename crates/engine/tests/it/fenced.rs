//! Tests of a store behind a fence.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use snapferry_base::fence::{Fence, Fenced, Unfenced};
use snapferry_base::retry::Class;
use snapferry_engine::hash::Crc64;
use snapferry_engine::store::Overwrite;
use snapferry_engine::store::{
    CopiedPart, FencedStore, ObjectKey, ObjectStore as _, PartNumber, StoreError, UploadPlan,
};
use snapferry_testkit::memory::MemoryStore;
use snapferry_testkit::store_suite::copy_source;

struct Closed;

#[async_trait]
impl Fence for Closed {
    async fn pass(&self) -> Result<(), Fenced> {
        Err(Fenced("somebody else has it".to_owned()))
    }
}

#[tokio::test]
async fn nothing_gets_through_but_questions() {
    let inner = Arc::new(MemoryStore::new("images"));
    let key = ObjectKey::new("a").expect("a key");
    inner.put(&key, Bytes::from_static(b"as it was")).await.expect("stored");
    let plan =
        UploadPlan { part_size: snapferry_base::units::ByteCount(5 << 20), overwrite: Overwrite::Replace };
    let upload = inner.create_upload(&key, &plan).await.expect("begun");
    let from = copy_source(&*inner, &key).await;
    let copied = CopiedPart { number: PartNumber(1), at: 0, range: 0..9, crc64: Crc64::of(b"as it was") };
    let store = FencedStore::new(inner.clone(), Arc::new(Closed));
    let refused = [
        store.put(&key, Bytes::new()).await.expect_err("put"),
        store.delete(&key).await.expect_err("delete"),
        store.create_upload(&key, &plan).await.map(drop).expect_err("create"),
        store.copy_part(&upload, copied.clone(), &from).await.map(drop).expect_err("copy"),
    ];
    for err in refused {
        assert!(matches!(&err, StoreError::Fenced { .. }) && err.class() == Class::LeaseLost, "{err}");
    }
    assert_eq!(store.get_range(&key, 0..9, None).await.expect("read"), Bytes::from_static(b"as it was"));
    assert_eq!(inner.list_parts(&upload).await.expect("listed"), []);
    let open = FencedStore::new(inner, Arc::new(Unfenced));
    open.copy_part(&upload, copied, &from).await.expect("copied by the holder of the work");
}
