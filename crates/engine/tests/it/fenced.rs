//! Tests of a store behind a fence.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use snapferry_base::fence::{Fence, Fenced};
use snapferry_base::retry::Class;
use snapferry_engine::store::Overwrite;
use snapferry_engine::store::{FencedStore, ObjectKey, ObjectStore as _, StoreError, UploadPlan};
use snapferry_testkit::memory::MemoryStore;

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
    let store = FencedStore::new(inner, Arc::new(Closed));
    let refused = [
        store.put(&key, Bytes::new()).await.expect_err("put"),
        store.delete(&key).await.expect_err("delete"),
        store
            .create_upload(
                &key,
                &UploadPlan {
                    part_size: snapferry_base::units::ByteCount(5 << 20),
                    overwrite: Overwrite::Replace,
                },
            )
            .await
            .map(drop)
            .expect_err("create"),
    ];
    for err in refused {
        assert!(matches!(&err, StoreError::Fenced { .. }) && err.class() == Class::LeaseLost, "{err}");
    }
    assert_eq!(store.get_range(&key, 0..9, None).await.expect("read"), Bytes::from_static(b"as it was"));
}
