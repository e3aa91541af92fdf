//! Tests of a store with a rate limit.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use snapferry_base::clock::Clock as _;
use snapferry_base::units::ByteCount;
use snapferry_engine::hash::Crc64;
use snapferry_engine::store::{
    CopiedPart, Limited, ObjectKey, ObjectStore as _, Overwrite, PartNumber, UploadPlan,
};
use snapferry_testkit::clock::ManualClock;
use snapferry_testkit::memory::MemoryStore;
use snapferry_testkit::store_suite::copy_source;

#[tokio::test]
async fn bytes_go_out_at_the_rate_and_idle_time_is_not_saved_up() {
    let clock = ManualClock::hurried();
    let store = Limited::new(Arc::new(MemoryStore::new("images")), ByteCount(1000), clock.clone());
    let key = ObjectKey::new("a").expect("a key");
    let start = clock.instant();
    let mut at = Vec::new();
    for _ in 0..3 {
        store.put(&key, Bytes::from(vec![0; 500])).await.expect("stored");
        at.push((clock.instant() - start).as_millis());
    }
    assert_eq!(at, [0, 500, 1000]);
    clock.advance(Duration::from_secs(3600));
    let start = clock.instant();
    for _ in 0..2 {
        store.put(&key, Bytes::from(vec![0; 500])).await.expect("stored");
    }
    assert_eq!(clock.instant() - start, Duration::from_millis(500));
}

#[tokio::test]
async fn copies_inside_the_store_go_out_at_once() {
    let clock = ManualClock::hurried();
    let inner = Arc::new(MemoryStore::new("images"));
    let store = Limited::new(inner.clone(), ByteCount(1), clock.clone());
    let key = ObjectKey::new("a").expect("a key");
    let bytes = vec![7; 100_000];
    inner.put(&key, Bytes::from(bytes.clone())).await.expect("stored");
    let from = copy_source(&*inner, &key).await;
    let plan = UploadPlan { part_size: ByteCount(100_000), overwrite: Overwrite::Replace };
    let upload = store.create_upload(&key, &plan).await.expect("begun");
    let start = clock.instant();
    let copied = CopiedPart { number: PartNumber(1), at: 0, range: 0..from.size, crc64: Crc64::of(&bytes) };
    store.copy_part(&upload, copied, &from).await.expect("copied");
    assert_eq!(clock.instant(), start);
}
