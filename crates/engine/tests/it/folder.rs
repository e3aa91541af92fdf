//! A folder has no highest part number: a local image of more than 40 GB has over 10,000 parts of 4 MiB.

use bytes::Bytes;
use snapferry_base::units::{ByteCount, to_u64};
use snapferry_engine::hash::Crc64;
use snapferry_engine::store::{
    ExpectedObject, FolderStore, ObjectKey, ObjectStore as _, Overwrite, Part, PartNumber, UploadPlan,
};

#[tokio::test]
async fn a_file_has_more_parts_than_an_object_may_have() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = FolderStore::new(folder.path().to_owned());
    let key = ObjectKey::new("large.qcow2").expect("a key");
    let body = Bytes::from(vec![7; 4096]);
    let (size, sum) = (to_u64(body.len()), Crc64::of(&body));
    let plan = UploadPlan { part_size: ByteCount(size), overwrite: Overwrite::Refuse };
    let upload = store.create_upload(&key, &plan).await.expect("begun");
    let (mut parts, mut whole) = (Vec::new(), Crc64::default());
    for number in 1..=10_002_u32 {
        let at = u64::from(number - 1) * size;
        let part = Part { number: PartNumber(number), at, body: body.clone(), crc64: sum };
        parts.push(store.put_part(&upload, part).await.expect("stored"));
        whole = whole.then(sum, size);
    }
    let overlapping = Part { number: PartNumber(9), at: 0, body: body.clone(), crc64: sum };
    store.put_part(&upload, overlapping).await.expect_err("the place of part 1");
    let expected = ExpectedObject { size: 10_002 * size, crc64: whole, replaces: None };
    store.complete(&upload, &parts, &expected).await.expect("complete");
    let found = store.head(&key).await.expect("asked").expect("a file");
    assert_eq!(found.size, expected.size);
}
