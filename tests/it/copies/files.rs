//! Parts that are copied from file to file.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use bytes::Bytes;
use snapferry_base::units::{KIB, MIB, to_u64, to_usize};
use snapferry_engine::hash::Crc64;
use snapferry_engine::store::{
    CopiedPart, ExpectedObject, FolderStore, ObjectKey, ObjectStore as _, PartNumber, StoreError,
};
use snapferry_testkit::loopdev::SmallFs;
use snapferry_testkit::skip::skip;
use snapferry_testkit::store_suite::copy_source;

use super::{noise, plan, sent};

const SIZE: u64 = 4 * MIB + 1234;

/// Copies ranges that lie in blocks in every way, with sent parts between them, and compares the file.
async fn every_alignment(folder: &Path) {
    let store = FolderStore::new(folder.to_owned());
    let (base, key) = (ObjectKey::new("base.qcow2").unwrap(), ObjectKey::new("new.qcow2").unwrap());
    let bytes = noise(SIZE);
    store.put(&base, bytes.clone()).await.unwrap();
    let from = copy_source(&store, &base).await;
    let upload = store.create_upload(&key, &plan()).await.unwrap();
    let (mut stored, mut all) = (Vec::new(), Vec::new());
    // Range of the source, and the bytes sent before it, which decide where it goes.
    let ranges = [
        (0..MIB, 0),
        // As it lies in the source, with edges before and behind the whole blocks.
        (MIB + 5..2 * MIB + 77, 5),
        // Otherwise than in the source.
        (4096..3 * MIB, 9),
        // Within one block, and across an edge without a whole block.
        (10..30, 7),
        (4000..4200, 3),
        // The end of the source, which is no whole block.
        (2 * MIB..SIZE, 64 * KIB),
    ];
    let mut number = 0;
    for (range, before) in ranges {
        if before > 0 {
            number += 1;
            let body = Bytes::from(vec![0xaa; to_usize(before)]);
            stored
                .push(store.put_part(&upload, sent(number, to_u64(all.len()), body.clone())).await.unwrap());
            all.extend_from_slice(&body);
        }
        number += 1;
        let copied = &bytes[to_usize(range.start)..to_usize(range.end)];
        let part =
            CopiedPart { number: PartNumber(number), at: to_u64(all.len()), range, crc64: Crc64::of(copied) };
        stored.push(store.copy_part(&upload, part, &from).await.unwrap());
        all.extend_from_slice(copied);
    }
    assert_eq!(store.list_parts(&upload).await.unwrap(), stored);
    let whole = ExpectedObject { size: to_u64(all.len()), crc64: Crc64::of(&all), replaces: None };
    store.complete(&upload, &stored, &whole).await.unwrap();
    assert!(std::fs::read(store.path(&key)).unwrap() == all);
    assert!(std::fs::read(store.path(&base)).unwrap() == bytes);
}

#[tokio::test]
async fn ranges_are_copied_however_they_lie_in_their_blocks() {
    let folder = crate::support::folder();
    every_alignment(folder.path()).await;
    match tempfile::tempdir_in("/dev/shm") {
        Ok(memory) => every_alignment(memory.path()).await,
        Err(_) => skip("there is no /dev/shm"),
    }
    if let Some(xfs) = SmallFs::xfs(512 * MIB) {
        every_alignment(xfs.path()).await;
    }
}

#[tokio::test]
async fn files_on_xfs_share_the_blocks_of_a_copy() {
    let Some(xfs) = SmallFs::xfs(512 * MIB) else { return };
    let store = FolderStore::new(xfs.path().to_owned());
    let (base, key) = (ObjectKey::new("base.qcow2").unwrap(), ObjectKey::new("new.qcow2").unwrap());
    let bytes = noise(64 * MIB);
    store.put(&base, bytes.clone()).await.unwrap();
    let from = copy_source(&store, &base).await;
    let free = || {
        let found = rustix::fs::statvfs(xfs.path()).unwrap();
        found.f_bfree * found.f_bsize
    };
    std::process::Command::new("sync").arg("-f").arg(xfs.path()).status().unwrap();
    let before = free();
    let upload = store.create_upload(&key, &plan()).await.unwrap();
    // 17 bytes of a block on both edges, and all else in whole blocks.
    let head = sent(1, 0, Bytes::from(vec![1; 4096 - 17]));
    let range = 2 * 4096 - 17..64 * MIB - 4096 + 17;
    let copied = &bytes[to_usize(range.start)..to_usize(range.end)];
    let part = CopiedPart { number: PartNumber(2), at: 4096 - 17, range, crc64: Crc64::of(copied) };
    let all = [&head.body, copied].concat();
    let stored =
        [store.put_part(&upload, head).await.unwrap(), store.copy_part(&upload, part, &from).await.unwrap()];
    assert_eq!(stored[1].crc64, None, "nothing has seen the bytes that the files share");
    let whole = ExpectedObject { size: to_u64(all.len()), crc64: Crc64::of(&all), replaces: None };
    store.complete(&upload, &stored, &whole).await.unwrap();
    let taken = before.saturating_sub(free());
    assert!(taken < 4 * MIB, "{taken} bytes were taken for a copy of {}", copied.len());
    assert!(std::fs::metadata(store.path(&key)).unwrap().blocks() * 512 >= 63 * MIB);
    assert!(std::fs::read(store.path(&key)).unwrap() == all);
}

#[tokio::test]
async fn parts_that_overlap_or_leave_a_gap_make_no_file() {
    let folder = crate::support::folder();
    let store = FolderStore::new(folder.path().to_owned());
    let (base, key) = (ObjectKey::new("base.qcow2").unwrap(), ObjectKey::new("new.qcow2").unwrap());
    let bytes = noise(MIB);
    store.put(&base, bytes.clone()).await.unwrap();
    let from = copy_source(&store, &base).await;
    let copied = |number, at, start: u64, end: u64| CopiedPart {
        number: PartNumber(number),
        at,
        range: start..end,
        crc64: Crc64::of(&bytes[to_usize(start)..to_usize(end)]),
    };
    let upload = store.create_upload(&key, &plan()).await.unwrap();
    let first = store.copy_part(&upload, copied(1, 0, 0, 5000), &from).await.unwrap();
    for err in [
        store.copy_part(&upload, copied(2, 4999, 0, 10), &from).await.unwrap_err(),
        store.put_part(&upload, sent(2, 0, Bytes::from_static(b"over part 1"))).await.unwrap_err(),
        store.put_part(&upload, sent(2, u64::MAX, Bytes::from_static(b"past every end"))).await.unwrap_err(),
    ] {
        assert!(matches!(err, StoreError::Mismatch { .. }), "{err}");
    }
    // The same part again, shorter, and the next one where it ends now.
    let shorter = store.copy_part(&upload, copied(1, 0, 0, 4000), &from).await.unwrap();
    assert_ne!(first, shorter);
    let gap = store.copy_part(&upload, copied(2, 4001, 4001, 5000), &from).await.unwrap();
    let whole = ExpectedObject { size: 4999, crc64: Crc64::of(&bytes[..4999]), replaces: None };
    let err = store.complete(&upload, &[shorter.clone(), gap], &whole).await.unwrap_err();
    assert!(matches!(&err, StoreError::Mismatch { reason, .. } if reason.contains("part 2")), "{err}");
    let second = store.copy_part(&upload, copied(2, 4000, 4000, 5000), &from).await.unwrap();
    let whole = ExpectedObject { size: 5000, crc64: Crc64::of(&bytes[..5000]), replaces: None };
    store.complete(&upload, &[shorter, second], &whole).await.unwrap();
    assert!(std::fs::read(store.path(&key)).unwrap() == bytes[..5000]);
}

#[tokio::test]
async fn bytes_that_were_read_for_a_copy_are_compared() {
    let folder = crate::support::folder();
    let store = FolderStore::new(folder.path().to_owned());
    let base = ObjectKey::new("base.qcow2").unwrap();
    store.put(&base, noise(MIB)).await.unwrap();
    let from = copy_source(&store, &base).await;
    let upload = store.create_upload(&ObjectKey::new("new.qcow2").unwrap(), &plan()).await.unwrap();
    let crc64 = Crc64::of(b"what the base held when it was made");
    let part = CopiedPart { number: PartNumber(1), at: 0, range: 1..MIB, crc64 };
    let err = store.copy_part(&upload, part, &from).await.unwrap_err();
    assert!(matches!(&err, StoreError::Mismatch { reason, .. } if reason.contains("base.qcow2")), "{err}");
    assert_eq!(store.list_parts(&upload).await.unwrap(), []);
}
