//! Copies that the store does not make: the kind of each error, and what the client learns from it.

use std::time::Duration;

use snapferry_base::retry::Class;
use snapferry_engine::store::{CopySource, ObjectStore as _, StoreError, Upload};
use snapferry_sim::{Action, Operation, When};

use super::{Scene, replace};

const COPY: Operation = Operation::UploadPartCopy;

fn answer(status: u16, code: &str) -> Action {
    Action::answer(status, code)
}

fn page(status: u16) -> Action {
    Action::Answer { status, code: None, retry_after_s: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_refusal_of_a_copy_has_its_kind() {
    let scene = Scene::start().await;
    type Kind = fn(&StoreError) -> bool;
    let refused: Kind = |err| matches!(err, StoreError::CopyRefused { .. });
    let denied: Kind = |err| matches!(err, StoreError::Denied { .. });
    let unconfirmed: Kind = |err| matches!(err, StoreError::Connection { .. });
    let passing: Kind = |err| err.class() == Class::Transient;
    let throttled: Kind = |err| err.class() == Class::Throttled;
    let no_upload: Kind = |err| matches!(err, StoreError::NoSuchUpload { id, .. } if !id.is_empty());
    let no_source: Kind = |err| matches!(err, StoreError::NoSuchKey { .. });
    let no_bucket: Kind = |err| matches!(err, StoreError::NoSuchBucket { .. });
    let mismatch: Kind = |err| matches!(err, StoreError::Mismatch { .. });
    for (action, kind) in [
        // The store copies nothing, or not for this identity.
        (answer(403, "AccessDenied"), refused),
        (page(403), refused),
        (answer(405, "MethodNotAllowed"), refused),
        (answer(501, "NotImplemented"), refused),
        (page(501), refused),
        (Action::NoCopies, refused),
        (answer(400, "InvalidRequest"), refused),
        (answer(416, "InvalidRange"), refused),
        (Action::ErrorInOk { code: "AccessDenied".to_owned() }, refused),
        (Action::ErrorInOk { code: "NotImplemented".to_owned() }, refused),
        // It accepts this identity's requests no longer, copies or not.
        (answer(403, "SignatureDoesNotMatch"), denied),
        (answer(403, "InvalidObjectState"), denied),
        (answer(400, "ExpiredToken"), denied),
        // The code shows what is missing.
        (answer(404, "NoSuchUpload"), no_upload),
        (answer(404, "NoSuchKey"), no_source),
        (answer(404, "NoSuchBucket"), no_bucket),
        // Without a code HEAD shows that the base is there.
        (page(404), no_upload),
        (answer(404, "NotFound"), no_upload),
        // Another attempt may succeed.
        (answer(400, "RequestTimeout"), passing),
        (answer(500, "InternalError"), passing),
        (Action::ErrorInOk { code: "InternalError".to_owned() }, passing),
        (answer(503, "SlowDown"), throttled),
        (Action::ErrorInOk { code: "SlowDown".to_owned() }, throttled),
        (Action::Reset, unconfirmed),
        (Action::ApplyThenDrop, unconfirmed),
        // A 200 that does not confirm the copy.
        (Action::EmptyEtag, unconfirmed),
        (Action::Pretend, unconfirmed),
        (Action::CutAnswer { bytes: 40 }, unconfirmed),
        // Other bytes than the part must have.
        (Action::CorruptChecksum, mismatch),
    ] {
        scene.fault(COPY, When::First(1), action.clone());
        let client = scene.client();
        let err = client.copy_part(&scene.upload, scene.wanted(), &scene.from).await.unwrap_err();
        assert!(kind(&err), "{action:?} gave {err:?}");
        assert_eq!(scene.sim.faults().fired(), [1], "{action:?} was tried again");
        scene.sim.faults().clear();
        client.copy_part(&scene.upload, scene.wanted(), &scene.from).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bare_404_is_about_the_base_if_head_does_not_find_it() {
    let scene = Scene::start().await;
    let client = scene.client();
    client.delete(&scene.from.key).await.unwrap();
    for action in [page(404), answer(404, "NotFound")] {
        scene.fault(COPY, When::First(1), action);
        let err = client.copy_part(&scene.upload, scene.wanted(), &scene.from).await.unwrap_err();
        assert!(matches!(err, StoreError::NoSuchKey { .. }), "{err:?}");
        scene.sim.faults().clear();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_refuses_the_right_version_is_asked_without_it_from_then_on() {
    let scene = Scene::start().await;
    scene.fault(COPY, When::Always, Action::RefuseConditions);
    let client = scene.client();
    assert!(!client.refuses_copy_conditions());
    client.copy_part(&scene.upload, scene.wanted(), &scene.from).await.unwrap();
    assert!(client.refuses_copy_conditions());
    assert_eq!(scene.requests(COPY), 2, "once with the condition, once without");
    client.copy_part(&scene.upload, scene.wanted(), &scene.from).await.unwrap();
    assert_eq!(scene.requests(COPY), 3, "the client remembers");
    // HEAD takes the condition's place.
    replace(&client, &scene).await;
    let err = client.copy_part(&scene.upload, scene.wanted(), &scene.from).await.unwrap_err();
    assert!(matches!(err, StoreError::Precondition { .. }), "{err:?}");
    client.delete(&scene.from.key).await.unwrap();
    let err = client.copy_part(&scene.upload, scene.wanted(), &scene.from).await.unwrap_err();
    assert!(matches!(err, StoreError::NoSuchKey { .. }), "{err:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_condition_teaches_nothing_if_the_version_is_another_one() {
    let scene = Scene::start().await;
    let client = scene.client();
    replace(&client, &scene).await;
    let err = client.copy_part(&scene.upload, scene.wanted(), &scene.from).await.unwrap_err();
    assert!(matches!(&err, StoreError::Precondition { reason, .. } if reason.contains("by now")), "{err:?}");
    assert!(!client.refuses_copy_conditions());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_has_the_time_that_its_length_takes() {
    let scene = Scene::start().await;
    // The store moves the bytes before it answers: here longer than the deadline of a short request.
    scene.fault(COPY, When::Always, Action::Delay { milliseconds: 400 });
    let deadline = Duration::from_millis(200);
    let len = scene.wanted().len();
    let err = scene
        .impatient(deadline, u64::MAX)
        .copy_part(&scene.upload, scene.wanted(), &scene.from)
        .await
        .unwrap_err();
    assert!(matches!(err, StoreError::TimedOut { .. }), "{err:?}");
    let patient = scene.impatient(deadline, len / 60);
    patient.copy_part(&scene.upload, scene.wanted(), &scene.from).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_copied_is_refused_without_a_request() {
    let scene = Scene::start().await;
    let client = scene.client();
    let (size, wanted) = (scene.from.size, scene.wanted());
    let odd = [
        (scene.part(1, 0, 5, 5), scene.from.clone()),
        (wanted.clone(), CopySource { size: wanted.range.end - 1, ..scene.from.clone() }),
    ];
    for (part, from) in odd {
        let err = client.copy_part(&scene.upload, part, &from).await.unwrap_err();
        assert!(matches!(err, StoreError::Mismatch { .. }), "{err:?}");
    }
    let endless = Upload { id: "x".repeat(10_000), ..scene.upload.clone() };
    let err = client.copy_part(&endless, wanted, &scene.from).await.unwrap_err();
    assert!(matches!(err, StoreError::Mismatch { .. }), "{err:?}");
    assert_eq!((scene.requests(COPY), size), (0, scene.from.size));
}
