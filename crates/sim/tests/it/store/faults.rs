//! Each scripted fault, as a client sees it, and its effect on the store.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::operation::upload_part::{UploadPartError, UploadPartOutput};
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode, CompletedPart};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use bytes::Bytes;
use snapferry_engine::hash::Crc64;
use snapferry_sim::{Action, Operation, Rule, SimError, When};
use tokio::task::JoinHandle;

use super::{BUCKET, Fixture, PART, by_hand, noise, refusal, refused, stream};

type Put = Result<UploadPartOutput, SdkError<UploadPartError, HttpResponse>>;

/// Store with an open upload, and a part to send.
struct Scene {
    f: Fixture,
    id: String,
    body: Bytes,
}

impl Scene {
    async fn with(rule: Rule, action: Action) -> Self {
        let f = Fixture::start().await;
        let id = f.begin("a").await;
        f.store.faults().add(rule, action);
        Self { f, id, body: noise(PART, 1) }
    }

    fn put(&self) -> impl Future<Output = Put> + Send + 'static {
        let put = self.f.client.upload_part().bucket(BUCKET).key("a").upload_id(&self.id).part_number(1);
        put.checksum_crc64_nvme(Crc64::of(&self.body).to_base64()).body(stream(&self.body)).send()
    }

    fn completed(&self, put: UploadPartOutput) -> Vec<CompletedPart> {
        vec![CompletedPart::builder().part_number(1).set_e_tag(put.e_tag).build()]
    }

    async fn parts(&self) -> usize {
        let list = self
            .f
            .client
            .list_parts()
            .bucket(BUCKET)
            .key("a")
            .upload_id(&self.id)
            .send()
            .await
            .expect("a list");
        list.parts().len()
    }

    /// Starts the request in a task, and returns once the store has begun with it.
    async fn begun(&self) -> JoinHandle<Put> {
        let put = tokio::spawn(self.put());
        while self.f.store.stats().of(Operation::UploadPart).requests < 1 {
            tokio::task::yield_now().await;
        }
        put
    }
}

const FIRST_PART: Rule =
    Rule { on: Some(Operation::UploadPart), part: None, key: None, when: When::First(1) };

fn no_answer<T: std::fmt::Debug, E: std::fmt::Debug>(
    result: Result<T, SdkError<E, HttpResponse>>,
) -> SdkError<E, HttpResponse> {
    let err = result.expect_err("no answer");
    assert!(err.raw_response().is_none(), "{err:?}");
    err
}

#[tokio::test]
async fn an_error_is_answered_and_nothing_applied() {
    let action = Action::Answer { status: 503, code: Some("SlowDown".to_owned()), retry_after_s: Some(7) };
    let scene = Scene::with(FIRST_PART, action).await;
    let err = scene.put().await.expect_err("throttled");
    assert_eq!(err.raw_response().and_then(|answer| answer.headers().get("retry-after")), Some("7"));
    assert_eq!(refusal(err), refused(503, "SlowDown"));
    assert_eq!(scene.parts().await, 0);
    scene.put().await.expect("the second attempt");
    assert_eq!(scene.f.store.faults().fired(), [1]);
}

#[tokio::test]
async fn a_proxy_answers_in_html() {
    let scene =
        Scene::with(FIRST_PART, Action::Answer { status: 502, code: None, retry_after_s: None }).await;
    let err = scene.put().await.expect_err("a bad gateway");
    let answer = err.raw_response().expect("an answer");
    assert_eq!(answer.status().as_u16(), 502);
    assert!(answer.body().bytes().expect("in memory").starts_with(b"<html>"));
}

#[tokio::test]
async fn the_connection_drops_before_and_after_the_body() {
    for action in [Action::DropBeforeBody, Action::DropAfterBody] {
        let scene = Scene::with(FIRST_PART, action.clone()).await;
        no_answer(scene.put().await);
        assert_eq!(scene.parts().await, 0, "{action:?}");
        scene.put().await.expect("the second attempt");
        let stats = scene.f.store.stats();
        let dropped =
            stats.log.iter().find(|request| request.operation == Operation::UploadPart).expect("logged");
        assert_eq!(dropped.status, None);
        let received = stats.of(Operation::UploadPart).bytes_in;
        let once = u64::try_from(PART).expect("a size");
        assert_eq!(received, if action == Action::DropAfterBody { 2 * once } else { once });
    }
}

#[tokio::test]
async fn the_connection_is_reset() {
    let scene = Scene::with(FIRST_PART, Action::Reset).await;
    let err = no_answer(scene.put().await);
    let mut causes = std::iter::successors(err.source(), |err| (*err).source());
    let reset = causes.any(|err| {
        let kind = err.downcast_ref::<io::Error>().map(io::Error::kind);
        matches!(kind, Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe))
    });
    assert!(reset, "{err:?}");
    assert_eq!(scene.parts().await, 0);
}

#[tokio::test]
async fn a_request_is_never_answered() {
    for (action, reads_it_all) in [(Action::Hang, true), (Action::StopReading, false)] {
        let scene = Scene::with(FIRST_PART, action).await;
        let put = scene.begun().await;
        assert_eq!(scene.parts().await, 0);
        assert!(!put.is_finished());
        let stats = if reads_it_all {
            // Only once the body is read, since hyper notices then that the client has gone.
            put.abort();
            while scene.f.store.stats().parts_in_flight > 0 {
                tokio::task::yield_now().await;
            }
            scene.f.store.shutdown().await
        } else {
            let stats = scene.f.store.shutdown().await;
            no_answer(put.await.expect("the task ends"));
            stats
        };
        let request =
            stats.log.iter().find(|request| request.operation == Operation::UploadPart).expect("logged");
        assert_eq!(request.status, None);
        assert!(stats.of(Operation::UploadPart).bytes_in < 2 << 20 || reads_it_all);
    }
}

#[tokio::test]
async fn a_slow_store_gets_there() {
    for action in [Action::delay(Duration::from_millis(20)), Action::Trickle { bytes_per_second: 100 << 20 }]
    {
        let scene = Scene::with(FIRST_PART, action).await;
        let begun = std::time::Instant::now();
        scene.put().await.expect("late, but right");
        assert!(begun.elapsed() >= Duration::from_millis(20), "a delay is a least time");
        assert_eq!((scene.parts().await, scene.f.store.faults().fired()), (1, vec![1]));
    }
}

#[tokio::test]
async fn the_echoed_checksum_is_wrong_or_missing() {
    let scene = Scene::with(FIRST_PART, Action::CorruptChecksum).await;
    let right = Crc64::of(&scene.body).to_base64();
    let echoed = scene.put().await.expect("stored").checksum_crc64_nvme.expect("an echo");
    assert!(echoed != right && Crc64::from_base64(&echoed).is_ok(), "{echoed}");
    assert_eq!(scene.put().await.expect("stored").checksum_crc64_nvme, Some(right));

    let scene = Scene::with(FIRST_PART, Action::IgnoreChecksums).await;
    assert_eq!(scene.put().await.expect("stored").checksum_crc64_nvme, None);
}

#[tokio::test]
async fn a_store_of_before_2022_knows_nothing_of_checksums() {
    let f = Fixture::start().await;
    f.store.faults().add(Rule::any(), Action::IgnoreChecksums);
    let body = noise(1000, 1);
    let id = f.begin("a").await;
    let put =
        || f.client.upload_part().bucket(BUCKET).key("a").upload_id(&id).part_number(1).body(stream(&body));
    let stored = put().checksum_crc64_nvme(Crc64(1).to_base64()).send().await.expect("not looked at");
    assert_eq!(stored.checksum_crc64_nvme(), None);
    // Such a store does check Content-MD5.
    let err = put().content_md5("JfnnlDI7RTiF9RgfG2JNCw==").send().await.expect_err("another digest");
    assert_eq!(refusal(err), refused(400, "BadDigest"));
    let part = CompletedPart::builder().part_number(1).set_e_tag(stored.e_tag).build();
    let done = f
        .complete("a", &id, vec![part])
        .checksum_crc64_nvme(Crc64(1).to_base64())
        .mpu_object_size(5)
        .send()
        .await;
    assert_eq!(done.expect("not looked at").checksum_crc64_nvme(), None);
    let head = f
        .client
        .head_object()
        .bucket(BUCKET)
        .key("a")
        .checksum_mode(ChecksumMode::Enabled)
        .send()
        .await
        .expect("found");
    assert_eq!((head.checksum_crc64_nvme(), head.content_length()), (None, Some(1000)));
}

#[tokio::test]
async fn a_store_of_before_2022_may_refuse_what_it_does_not_know() {
    let f = Fixture::start().await;
    f.store.faults().add(Rule::any(), Action::RefuseChecksums);
    let create = || f.client.create_multipart_upload().bucket(BUCKET).key("a");
    let err =
        create().checksum_algorithm(ChecksumAlgorithm::Crc64Nvme).send().await.expect_err("unknown header");
    assert_eq!(refusal(err), refused(501, "NotImplemented"));
    let id = create().send().await.expect("an upload").upload_id.expect("an id");
    let body = noise(10, 1);
    let put =
        || f.client.upload_part().bucket(BUCKET).key("a").upload_id(&id).part_number(1).body(stream(&body));
    let err =
        put().checksum_crc64_nvme(Crc64::of(&body).to_base64()).send().await.expect_err("unknown header");
    assert_eq!(refusal(err), refused(501, "NotImplemented"));
    put().send().await.expect("without it");
    f.client.head_bucket().bucket(BUCKET).send().await.expect("reads are not refused");
}

#[tokio::test]
async fn a_complete_fails_inside_a_200() {
    let complete = Rule::on(Operation::CompleteMultipartUpload).when(When::First(1));
    let scene = Scene::with(complete, Action::ErrorInOk { code: "InternalError".to_owned() }).await;
    let parts = scene.completed(scene.put().await.expect("stored"));
    let err = scene.f.complete("a", &scene.id, parts.clone()).send().await.expect_err("an error in the body");
    assert_eq!(refusal(err), refused(200, "InternalError"));
    assert!(!scene.f.has("a").await);
    scene.f.complete("a", &scene.id, parts).send().await.expect("the second attempt");
}

#[tokio::test]
async fn a_complete_answers_without_a_tag() {
    let scene = Scene::with(Rule::on(Operation::CompleteMultipartUpload), Action::EmptyEtag).await;
    let parts = scene.completed(scene.put().await.expect("stored"));
    let done = scene.f.complete("a", &scene.id, parts).send().await.expect("completed");
    assert_eq!(done.e_tag(), Some(""));
    let head = scene.f.client.head_object().bucket(BUCKET).key("a").send().await.expect("found");
    assert!(head.e_tag().is_some_and(|tag| tag.len() > 2));
}

#[tokio::test]
async fn what_was_applied_stays_when_the_answer_is_lost() {
    let scene = Scene::with(FIRST_PART, Action::ApplyThenDrop).await;
    let complete = Rule::on(Operation::CompleteMultipartUpload).when(When::Nth(1));
    scene.f.store.faults().add(complete, Action::ApplyThenDrop);
    no_answer(scene.put().await);
    assert_eq!(scene.parts().await, 1);
    let parts = scene.completed(scene.put().await.expect("sent twice, stored once"));
    no_answer(scene.f.complete("a", &scene.id, parts.clone()).send().await);
    assert!(scene.f.get("a").await == scene.body);
    let err = scene.f.complete("a", &scene.id, parts).send().await.expect_err("it was done");
    assert_eq!(refusal(err), refused(404, "NoSuchUpload"));
}

#[tokio::test]
async fn what_was_applied_stays_when_the_answer_is_an_error() {
    let complete = Rule::on(Operation::CompleteMultipartUpload);
    let scene =
        Scene::with(complete, Action::ApplyThenAnswer { status: 500, code: "InternalError".to_owned() })
            .await;
    let parts = scene.completed(scene.put().await.expect("stored"));
    let err = scene.f.complete("a", &scene.id, parts).send().await.expect_err("an error");
    assert_eq!(refusal(err), refused(500, "InternalError"));
    assert!(scene.f.has("a").await);
}

#[tokio::test]
async fn iam_can_fail_too() {
    let f = Fixture::start().await;
    f.store
        .faults()
        .add(Rule::on(Operation::IdentityToken).when(When::First(1)), Action::answer(429, "TooManyRequests"));
    let (status, _) = by_hand(&f.store, "POST /identity/token HTTP/1.1\r\nContent-Length: 0", b"").await;
    assert_eq!(status, 429);
    super::bearer(&f.store).await;
}

#[tokio::test]
async fn scripts_come_from_files() {
    let f = Fixture::start().await;
    let file = f.folder.path().join("faults.json");
    std::fs::write(
        &file,
        r#"[{"on": "HeadObject", "key": "a", "do": {"answer": {"status": 500, "code": "InternalError"}}}]"#,
    )
    .expect("a file");
    f.store.faults().add_file(&file).expect("a script");
    f.put("a", &noise(1, 1)).await;
    let err = f.client.head_object().bucket(BUCKET).key("a").send().await.expect_err("scripted");
    assert_eq!(refusal(err).0, 500);
    assert!(!f.has("b").await, "another key");
    f.store.faults().clear();
    assert!(f.has("a").await);

    std::fs::write(&file, "[{}]").expect("a file");
    let err = f.store.faults().add_file(&file).expect_err("no action");
    assert!(matches!(err, SimError::Script { .. }), "{err:?}");
}
