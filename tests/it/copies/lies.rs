//! Stores that copy something else than they were asked to, and say that all is well: each lie is noticed.

use bytes::Bytes;
use snapferry_base::retry::Class;
use snapferry_base::units::to_u64;
use snapferry_engine::hash::Crc64;
use snapferry_engine::store::{CopiedPart, CopySource, ExpectedObject, ObjectStore as _, StoreError};
use snapferry_sim::{Action, Operation, Rule, When};
use snapferry_testkit::store_suite::REAL_PART;

use super::{Scene, replace, sent};

const COPY: Operation = Operation::UploadPartCopy;

/// A store of before 2022, which returns no checksums, with this fault in its copies.
async fn without_checksums(action: Action) -> Scene {
    Scene::with(|sim| {
        sim.faults().add(Rule::on(COPY), action);
        sim.faults().add(Rule::any(), Action::IgnoreChecksums);
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_bytes_show_in_the_checksum() {
    for action in [Action::CopyShort { bytes: 7575 }, Action::ClipRange] {
        let scene = Scene::start().await;
        scene.fault(COPY, When::Always, action.clone());
        let (part, from) = asked(&scene, &action);
        let err = scene.client().copy_part(&scene.upload, part, &from).await.unwrap_err();
        // After a wrong checksum, HEAD shows whether the base is as long as it was said to be.
        let is_noticed = match action {
            Action::ClipRange => matches!(err, StoreError::Precondition { .. }),
            _ => matches!(err, StoreError::Mismatch { .. }),
        };
        assert!(is_noticed, "{action:?} gave {err:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_checksums_too_few_bytes_show_in_the_list() {
    for (action, held) in [(Action::CopyShort { bytes: 7575 }, 7575), (Action::ClipRange, REAL_PART.0)] {
        let scene = without_checksums(action.clone()).await;
        let (client, (part, from)) = (scene.client(), asked(&scene, &action));
        let copied = client.copy_part(&scene.upload, part.clone(), &from).await.unwrap();
        assert_eq!((copied.size, copied.crc64), (part.len(), None), "the answer to a copy has no size");
        let listed = client.list_parts(&scene.upload).await.unwrap();
        assert_eq!((listed.len(), listed[0].size), (1, held), "{action:?}");
        assert_ne!(listed[0].size, copied.size);
    }
}

/// A copy that the lie shortens: for a store that clips ranges, the last bytes of a base that is said to have
/// five more of them.
fn asked(scene: &Scene, lie: &Action) -> (CopiedPart, CopySource) {
    if *lie != Action::ClipRange {
        return (scene.wanted(), scene.from.clone());
    }
    let end = scene.from.size;
    let part = CopiedPart { range: end - REAL_PART.0..end + 5, ..scene.part(1, 0, end - REAL_PART.0, end) };
    let whole = Bytes::from([&scene.bytes[scene.bytes.len() - 5 * (1 << 20)..], &[0; 5]].concat());
    (CopiedPart { crc64: Crc64::of(&whole), ..part }, CopySource { size: end + 5, ..scene.from.clone() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_version_shows_in_the_checksum_and_else_in_head() {
    let scene = Scene::start().await;
    scene.fault(COPY, When::Always, Action::IgnoreConditions);
    replace(&scene.client(), &scene).await;
    let err = scene.client().copy_part(&scene.upload, scene.wanted(), &scene.from).await.unwrap_err();
    assert!(matches!(&err, StoreError::Precondition { reason, .. } if reason.contains("by now")), "{err:?}");
    assert_eq!(err.class(), Class::Permanent);

    let scene = without_checksums(Action::IgnoreConditions).await;
    let client = scene.client();
    replace(&client, &scene).await;
    client.copy_part(&scene.upload, scene.wanted(), &scene.from).await.unwrap();
    let found = client.head(&scene.from.key).await.unwrap().unwrap();
    assert_eq!(found.size, scene.from.size);
    assert_ne!(found.etag, scene.from.etag, "HEAD before Complete shows it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_wants_equal_parts_refuses_the_whole_and_keeps_the_parts() {
    let scene = Scene::start().await;
    let client = scene.client();
    scene.fault(Operation::CompleteMultipartUpload, When::Always, Action::EqualParts);
    let (size, last) = (REAL_PART.0, Bytes::from_static(b"the end"));
    let first = scene.part(1, 0, 0, size);
    let second = scene.part(2, size, 0, size + 1000);
    let stored = [
        client.copy_part(&scene.upload, first.clone(), &scene.from).await.unwrap(),
        client.copy_part(&scene.upload, second.clone(), &scene.from).await.unwrap(),
        client.put_part(&scene.upload, sent(3, 2 * size + 1000, last.clone())).await.unwrap(),
    ];
    let crc64 = first.crc64.then(second.crc64, second.len()).then(Crc64::of(&last), to_u64(last.len()));
    let whole = ExpectedObject { size: 2 * size + 1000 + to_u64(last.len()), crc64, replaces: None };
    let err = client.complete(&scene.upload, &stored, &whole).await.unwrap_err();
    assert!(matches!(&err, StoreError::Refused { code, .. } if code == "InvalidPart"), "{err:?}");
    assert_eq!(err.class(), Class::Permanent);
    assert_eq!(client.head(&scene.upload.key).await.unwrap(), None);
    // Nothing else is wrong with the parts.
    scene.sim.faults().clear();
    client.complete(&scene.upload, &stored, &whole).await.unwrap();
    assert_eq!(scene.sim.stats().bytes_copied, first.len() + second.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_base_is_not_copied_into_the_next_image() {
    let scene = Scene::start().await;
    let mut part = scene.wanted();
    part.crc64 = Crc64::of(b"what the base held when it was made");
    let err = scene.client().copy_part(&scene.upload, part, &scene.from).await.unwrap_err();
    assert!(matches!(&err, StoreError::Mismatch { reason, .. } if reason.contains("base.qcow2")), "{err:?}");
}
