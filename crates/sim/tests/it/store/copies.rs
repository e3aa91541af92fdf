//! Copies by a store that lies about them, as a client sees it.

use aws_sdk_s3::types::CompletedPart;
use bytes::Bytes;
use snapferry_engine::hash::Crc64;
use snapferry_sim::{Action, Operation, Rule};

use super::{BUCKET, Fixture, PART, noise, refusal, refused};

/// Store with an object "old" of two parts' length, and an open upload "new".
struct Scene {
    f: Fixture,
    id: String,
    old: Bytes,
}

type Copy = aws_sdk_s3::operation::upload_part_copy::builders::UploadPartCopyFluentBuilder;

impl Scene {
    async fn with(action: Action) -> Self {
        let f = Fixture::start().await;
        let old = noise(2 * PART, 1);
        f.put("old", &old).await;
        let id = f.begin("new").await;
        f.store.faults().add(Rule::any(), action);
        Self { f, id, old }
    }

    fn copy(&self, number: i32, first: usize, last: usize) -> Copy {
        let copy = self.f.client.upload_part_copy().bucket(BUCKET).key("new").upload_id(&self.id);
        copy.part_number(number)
            .copy_source(format!("{BUCKET}/old"))
            .copy_source_range(format!("bytes={first}-{last}"))
    }

    /// Sends a copy that the store answers with 200, and checks that it made the part of `copied`.
    async fn makes(&self, copy: Copy, copied: &[u8]) -> CompletedPart {
        let result = copy.send().await.expect("answered 200").copy_part_result.expect("a result");
        assert_eq!(result.checksum_crc64_nvme(), Some(Crc64::of(copied).to_base64().as_str()));
        let list = self.f.client.list_parts().bucket(BUCKET).key("new").upload_id(&self.id);
        let list = list.send().await.expect("a list");
        let part = list.parts().last().expect("a part");
        assert_eq!(part.size(), i64::try_from(copied.len()).ok());
        CompletedPart::builder().part_number(1).set_e_tag(result.e_tag).build()
    }
}

#[tokio::test]
async fn a_range_past_the_end_may_be_clipped() {
    let scene = Scene::with(Action::ClipRange).await;
    scene.makes(scene.copy(1, PART, 3 * PART), &scene.old[PART..]).await;
    scene.makes(scene.copy(2, 5, PART + 4), &scene.old[5..PART + 5]).await;
}

#[tokio::test]
async fn less_than_the_range_may_be_copied_and_is_what_is_counted() {
    let scene = Scene::with(Action::CopyShort { bytes: 7575 }).await;
    let part = scene.makes(scene.copy(1, 10, PART + 9), &scene.old[10..7585]).await;
    assert_eq!(scene.f.store.stats().bytes_copied, 7575);
    scene.f.complete("new", &scene.id, vec![part]).send().await.expect("completed");
    assert!(scene.f.get("new").await == scene.old.slice(10..7585));
}

#[tokio::test]
async fn conditions_on_the_source_may_be_ignored_or_never_met() {
    let right = |scene: &Scene| scene.f.client.head_object().bucket(BUCKET).key("old");
    let scene = Scene::with(Action::IgnoreConditions).await;
    let wrong = scene.copy(1, 0, PART - 1).copy_source_if_match("\"0000000000000000\"");
    scene.makes(wrong, &scene.old[..PART]).await;

    let scene = Scene::with(Action::RefuseConditions).await;
    let etag = right(&scene).send().await.expect("found").e_tag.expect("an ETag");
    let conditional = scene.copy(1, 0, PART - 1).copy_source_if_match(etag);
    assert_eq!(refusal(conditional.send().await.expect_err("refused")), refused(412, "PreconditionFailed"));
    scene.makes(scene.copy(1, 0, PART - 1), &scene.old[..PART]).await;
}

#[tokio::test]
async fn parts_of_different_sizes_may_be_refused_in_the_end() {
    let f = Fixture::start().await;
    f.store.faults().add(Rule::on(Operation::CompleteMultipartUpload), Action::EqualParts);
    for (sizes, accepted) in [
        (vec![PART, PART, 10], true),
        (vec![PART, PART], true),
        (vec![10], true),
        (vec![PART, PART + 1, 10], false),
        (vec![PART, PART + 1], false),
    ] {
        let id = f.begin("a").await;
        let mut parts = Vec::new();
        for (number, size) in (1..).zip(&sizes) {
            parts.push(f.part("a", &id, number, &noise(*size, 1)).await);
        }
        let answer = f.complete("a", &id, parts).send().await;
        match answer {
            Ok(_) => assert!(accepted, "{sizes:?}"),
            Err(err) => {
                assert!(!accepted, "{sizes:?}");
                assert_eq!(refusal(err), refused(400, "InvalidPart"));
            }
        }
    }
}

#[tokio::test]
async fn a_store_without_copies_takes_everything_else() {
    let scene = Scene::with(Action::NoCopies).await;
    let err = scene.copy(1, 0, PART - 1).send().await.expect_err("no copies");
    assert_eq!(refusal(err), refused(501, "NotImplemented"));
    let part = scene.f.part("new", &scene.id, 1, &noise(10, 3)).await;
    scene.f.complete("new", &scene.id, vec![part]).send().await.expect("completed");
    assert_eq!(scene.f.store.stats().bytes_copied, 0);
}
