//! Objects and buckets: writing, reading, listing, refusals.

use aws_sdk_s3::Client;
use aws_sdk_s3::config::RequestChecksumCalculation;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use snapferry_engine::hash::Crc64;
use snapferry_sim::{Operation, SimConfig, SimStore};
use tokio::io::AsyncWriteExt as _;

use super::{
    BUCKET, Fixture, answer_by_hand, bearer, client_config, noise, refusal, refused, sent_by_hand, stream,
};

#[tokio::test]
async fn an_object_comes_back_whole_and_by_range() {
    let f = Fixture::start().await;
    let body = noise(700_001, 1);
    f.put("a/b c.qcow2", &body).await;
    assert_eq!(f.get("a/b c.qcow2").await, body);

    let read = async |range: &str| {
        let answer = f.client.get_object().bucket(BUCKET).key("a/b c.qcow2").range(range).send().await?;
        let content_range = answer.content_range().map(str::to_owned);
        Ok::<_, aws_sdk_s3::error::SdkError<_, _>>((
            content_range,
            answer.body.collect().await.expect("a body").into_bytes(),
        ))
    };
    let (content_range, piece) = read("bytes=1000-1999").await.expect("a piece");
    assert_eq!((content_range.as_deref(), piece), (Some("bytes 1000-1999/700001"), body.slice(1000..2000)));
    let (_, piece) = read("bytes=-5").await.expect("the end");
    assert_eq!(piece, body.slice(700_001 - 5..));
    let (content_range, piece) = read("bytes=700000-900000").await.expect("clipped");
    assert_eq!(
        (content_range.as_deref(), piece),
        (Some("bytes 700000-700000/700001"), body.slice(700_000..))
    );
    assert_eq!(
        refusal(read("bytes=700001-700001").await.expect_err("past the end")),
        refused(416, "InvalidRange")
    );
}

#[tokio::test]
async fn head_tells_size_tag_and_on_demand_the_checksum() {
    let f = Fixture::start().await;
    let body = noise(1000, 2);
    f.put("a", &body).await;
    let head = f
        .client
        .head_object()
        .bucket(BUCKET)
        .key("a")
        .checksum_mode(ChecksumMode::Enabled)
        .send()
        .await
        .expect("found");
    assert_eq!(head.content_length(), Some(1000));
    assert_eq!(head.checksum_crc64_nvme(), Some(Crc64::of(&body).to_base64().as_str()));
    assert!(head.e_tag().expect("a tag").starts_with('"'));
    let head = f.client.head_object().bucket(BUCKET).key("a").send().await.expect("found");
    assert_eq!(head.checksum_crc64_nvme(), None);
    assert_eq!(f.store.stats().of(Operation::HeadObject).bytes_out, 0, "HEAD sends no body");
}

#[tokio::test]
async fn what_a_client_says_of_an_object_comes_back() {
    let f = Fixture::start().await;
    let put = f.client.put_object().bucket(BUCKET).key("a").body(stream(&noise(10, 3)));
    put.content_type("application/x-qemu-disk")
        .cache_control("no-store")
        .metadata("source", "vdc")
        .send()
        .await
        .expect("stored");
    let head = f.client.head_object().bucket(BUCKET).key("a").send().await.expect("found");
    assert_eq!(
        (head.content_type(), head.cache_control()),
        (Some("application/x-qemu-disk"), Some("no-store"))
    );
    assert_eq!(head.metadata().and_then(|metadata| metadata.get("source")).map(String::as_str), Some("vdc"));
}

#[tokio::test]
async fn every_digest_is_checked_and_a_wrong_one_leaves_nothing() {
    let f = Fixture::start().await;
    let body = Bytes::from_static(b"123456789");
    let put = |key: &str, body: &'static [u8]| {
        f.client.put_object().bucket(BUCKET).key(key).body(ByteStream::from_static(body))
    };
    // Digests of "123456789" by the CRC catalogue and the coreutils.
    type Put = aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
    type Claim = fn(Put) -> Put;
    let claims: [(&str, Claim); 6] = [
        ("crc32", |put| put.checksum_crc32("y/Q5Jg==")),
        ("crc32c", |put| put.checksum_crc32_c("4waSgw==")),
        ("crc64nvme", |put| put.checksum_crc64_nvme("rosUhgp5mIg=")),
        ("sha1", |put| put.checksum_sha1("98O8HYCOBHMq32eZZczDTKeuNEE=")),
        ("sha256", |put| put.checksum_sha256("FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=")),
        ("md5", |put| put.content_md5("JfnnlDI7RTiF9RgfG2JNCw==")),
    ];
    for (key, claim) in claims {
        let err = claim(put(key, b"123456780")).send().await.expect_err("another body");
        assert_eq!(refusal(err), refused(400, "BadDigest"), "{key}");
        assert!(!f.has(key).await, "{key}");
        let stored = claim(put(key, b"123456789")).send().await.expect("the right body");
        let echoed = [
            stored.checksum_crc32(),
            stored.checksum_crc32_c(),
            stored.checksum_crc64_nvme(),
            stored.checksum_sha1(),
            stored.checksum_sha256(),
        ];
        assert_eq!(echoed.iter().flatten().count(), usize::from(key != "md5"), "{key}: {echoed:?}");
        assert_eq!(f.get(key).await, body, "{key}");
    }
    let err = put("a", b"1").content_md5("no md5").send().await.expect_err("nonsense");
    assert_eq!(refusal(err), refused(400, "InvalidDigest"));
    let err =
        put("a", b"1").checksum_crc32("y/Q5Jg==").checksum_crc32_c("4waSgw==").send().await.expect_err("two");
    assert_eq!(refusal(err), refused(400, "InvalidRequest"));
    // With checksums "when required", naming an algorithm makes the SDK announce a checksum that it doesn't
    // send.
    let err =
        put("a", b"1").checksum_algorithm(ChecksumAlgorithm::Crc32).send().await.expect_err("announced only");
    assert_eq!(refusal(err), refused(400, "InvalidRequest"));
}

#[tokio::test]
async fn an_md5_makes_the_tag() {
    let f = Fixture::start().await;
    let put = f.client.put_object().bucket(BUCKET).key("a").body(ByteStream::from_static(b"123456789"));
    let stored = put.content_md5("JfnnlDI7RTiF9RgfG2JNCw==").send().await.expect("stored");
    assert_eq!(stored.e_tag(), Some("\"25f9e794323b453885f5181f1b624d0b\""));
}

#[tokio::test]
async fn a_checksum_may_trail_the_body() {
    let f = Fixture::start().await;
    let body = noise(300_000, 4);
    let file = f.folder.path().join("body");
    std::fs::write(&file, &body).expect("a file");
    let config =
        client_config(&f.store).request_checksum_calculation(RequestChecksumCalculation::WhenSupported);
    let client = Client::from_conf(config.build());
    let stream = ByteStream::from_path(&file).await.expect("a stream");
    let put = client
        .put_object()
        .bucket(BUCKET)
        .key("a")
        .checksum_algorithm(ChecksumAlgorithm::Crc64Nvme)
        .body(stream);
    let stored = put.send().await.expect("stored");
    assert_eq!(stored.checksum_crc64_nvme(), Some(Crc64::of(&body).to_base64().as_str()));
    assert_eq!(f.get("a").await, body, "without the framing of aws-chunked");
}

#[tokio::test]
async fn a_body_that_breaks_off_leaves_nothing() {
    let f = Fixture::start().await;
    let head = format!(
        "PUT /{BUCKET}/a HTTP/1.1\r\nAuthorization: Bearer {}\r\nContent-Length: 1000",
        bearer(&f.store).await
    );
    let mut line = sent_by_hand(&f.store, &head, &[7; 999]).await;
    line.shutdown().await.expect("the end, too early");
    let (status, answer) = answer_by_hand(line).await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer.contains("<Code>IncompleteBody</Code>"), "{answer}");
    assert!(!f.has("a").await);
    let drafts = std::fs::read_dir(f.folder.path().join(BUCKET).join(".drafts")).expect("the drafts");
    assert_eq!(drafts.count(), 0);
}

#[tokio::test]
async fn conditions_are_kept() {
    let f = Fixture::start().await;
    let (old, new) = (noise(10, 5), noise(10, 6));
    f.put("a", &old).await;
    let err = f
        .client
        .put_object()
        .bucket(BUCKET)
        .key("a")
        .if_none_match("*")
        .body(stream(&new))
        .send()
        .await
        .expect_err("taken");
    assert_eq!(refusal(err), refused(412, "PreconditionFailed"));
    f.client
        .put_object()
        .bucket(BUCKET)
        .key("b")
        .if_none_match("*")
        .body(stream(&new))
        .send()
        .await
        .expect("free");

    let tag =
        f.client.head_object().bucket(BUCKET).key("a").send().await.expect("found").e_tag.expect("a tag");
    let get = async |tag: &str| f.client.get_object().bucket(BUCKET).key("a").if_match(tag).send().await;
    get(&tag).await.expect("this version");
    f.put("a", &new).await;
    assert_eq!(refusal(get(&tag).await.expect_err("another version")), refused(412, "PreconditionFailed"));
    let err = f
        .client
        .put_object()
        .bucket(BUCKET)
        .key("a")
        .if_match(&tag)
        .body(stream(&old))
        .send()
        .await
        .expect_err("changed");
    assert_eq!(refusal(err), refused(412, "PreconditionFailed"));
    assert_eq!(f.get("a").await, new);
}

#[tokio::test]
async fn a_reader_keeps_the_version_that_it_opened() {
    let f = Fixture::start().await;
    // More than the socket and the channel hold, so that the response is still being read when the object is
    // replaced.
    let body = noise(32 << 20, 7);
    f.put("a", &body).await;
    let answer = f.client.get_object().bucket(BUCKET).key("a").send().await.expect("found");
    f.put("a", &noise(10, 8)).await;
    f.client.delete_object().bucket(BUCKET).key("a").send().await.expect("deleted");
    assert!(answer.body.collect().await.expect("all of it").into_bytes() == body);
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let f = Fixture::start().await;
    let err = f.client.get_object().bucket(BUCKET).key("a").send().await.expect_err("no object");
    assert_eq!(refusal(err), refused(404, "NoSuchKey"));
    let err = f.client.get_object().bucket("elsewhere").key("a").send().await.expect_err("no bucket");
    assert_eq!(refusal(err), refused(404, "NoSuchBucket"));
    let err = f
        .client
        .put_object()
        .bucket("elsewhere")
        .key("a")
        .body(stream(&noise(1, 9)))
        .send()
        .await
        .expect_err("no bucket");
    assert_eq!(refusal(err), refused(404, "NoSuchBucket"));
    let err = f.client.head_bucket().bucket("elsewhere").send().await.expect_err("no bucket");
    assert_eq!(refusal(err).0, 404);
    f.client.delete_object().bucket(BUCKET).key("a").send().await.expect("nothing to delete is no error");
}

#[tokio::test]
async fn buckets_are_made_listed_and_removed() {
    let f = Fixture::start().await;
    f.client.create_bucket().bucket("second").send().await.expect("made");
    let err = f.client.create_bucket().bucket("second").send().await.expect_err("there already");
    assert_eq!(refusal(err), refused(409, "BucketAlreadyOwnedByYou"));
    let head = f.client.head_bucket().bucket("second").send().await.expect("there");
    assert_eq!(head.bucket_region(), Some("us-south"));
    let list = f.client.list_buckets().send().await.expect("a list");
    let names: Vec<_> = list.buckets().iter().filter_map(|bucket| bucket.name()).collect();
    assert_eq!(names, [BUCKET, "second"]);
    f.put("a", &noise(1, 10)).await;
    let err = f.client.delete_bucket().bucket(BUCKET).send().await.expect_err("not empty");
    assert_eq!(refusal(err), refused(409, "BucketNotEmpty"));
    f.client.delete_bucket().bucket("second").send().await.expect("removed");
    assert_eq!(f.client.list_buckets().send().await.expect("a list").buckets().len(), 1);
}

#[tokio::test]
async fn objects_are_listed_by_page_prefix_and_delimiter() {
    let f = Fixture::start().await;
    for key in ["b/1", "b/2", "b/sub/3", "a", "c", "b.1"] {
        f.put(key, &noise(3, 11)).await;
    }
    let mut keys = Vec::new();
    let mut token = None;
    loop {
        let list = f
            .client
            .list_objects_v2()
            .bucket(BUCKET)
            .max_keys(4)
            .set_continuation_token(token)
            .send()
            .await
            .expect("a page");
        keys.extend(list.contents().iter().filter_map(|object| object.key().map(str::to_owned)));
        token = list.next_continuation_token().map(str::to_owned);
        assert_eq!(list.is_truncated(), Some(token.is_some()));
        if token.is_none() {
            break;
        }
        assert_eq!(list.key_count(), Some(4));
    }
    assert_eq!(keys, ["a", "b.1", "b/1", "b/2", "b/sub/3", "c"]);

    let list =
        f.client.list_objects_v2().bucket(BUCKET).prefix("b/").delimiter("/").send().await.expect("a folder");
    let keys: Vec<_> = list.contents().iter().filter_map(|object| object.key()).collect();
    let prefixes: Vec<_> = list.common_prefixes().iter().filter_map(|prefix| prefix.prefix()).collect();
    assert_eq!((keys, prefixes), (vec!["b/1", "b/2"], vec!["b/sub/"]));

    // One entry on each page, a common prefix among them.
    let (mut seen, mut marker) = (Vec::new(), None);
    loop {
        let list = f
            .client
            .list_objects()
            .bucket(BUCKET)
            .delimiter("/")
            .max_keys(1)
            .set_marker(marker)
            .send()
            .await
            .expect("a page");
        seen.extend(list.contents().iter().filter_map(|object| object.key().map(str::to_owned)));
        seen.extend(list.common_prefixes().iter().filter_map(|prefix| prefix.prefix().map(str::to_owned)));
        marker = list.next_marker().map(str::to_owned);
        if marker.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["a", "b.1", "b/", "c"]);
}

#[tokio::test]
async fn objects_are_copied_and_redescribed() {
    let f = Fixture::start().await;
    let body = noise(1000, 12);
    f.client
        .put_object()
        .bucket(BUCKET)
        .key("a")
        .metadata("mode", "1")
        .body(stream(&body))
        .send()
        .await
        .expect("stored");
    let copy = |key: &str| f.client.copy_object().bucket(BUCKET).key(key).copy_source(format!("{BUCKET}/a"));
    copy("b").send().await.expect("copied");
    assert_eq!(f.get("b").await, body);
    let err = copy("a").send().await.expect_err("onto itself");
    assert_eq!(refusal(err), refused(400, "InvalidRequest"));
    let replace = aws_sdk_s3::types::MetadataDirective::Replace;
    copy("a").metadata_directive(replace).metadata("mode", "2").send().await.expect("redescribed");
    for (key, mode) in [("a", "2"), ("b", "1")] {
        let head = f.client.head_object().bucket(BUCKET).key(key).send().await.expect("found");
        assert_eq!(
            head.metadata().and_then(|metadata| metadata.get("mode")).map(String::as_str),
            Some(mode),
            "{key}"
        );
    }
    assert_eq!(f.get("a").await, body);
}

#[tokio::test]
async fn everything_is_there_after_a_restart_and_objects_are_plain_files() {
    let f = Fixture::start().await;
    let body = noise(5000, 13);
    f.put("web01.qcow2", &body).await;
    let id = f.begin("big").await;
    let part = f.part("big", &id, 1, &body).await;
    let Fixture { folder, store, .. } = f;
    let config = store.config().clone();
    store.shutdown().await;

    assert_eq!(std::fs::read(folder.path().join(BUCKET).join("web01.qcow2")).expect("a plain file"), body);
    let store =
        SimStore::start(SimConfig { folder: folder.path().to_owned(), ..config }).await.expect("again");
    let client = Client::from_conf(client_config(&store).build());
    let f = Fixture { folder, store, client };
    assert_eq!(f.get("web01.qcow2").await, body);
    f.complete("big", &id, vec![part])
        .checksum_crc64_nvme(Crc64::of(&body).to_base64())
        .send()
        .await
        .expect("completed");
    assert_eq!(f.get("big").await, body);
}

#[test]
fn the_sum_of_nothing_is_eight_zero_bytes() {
    assert_eq!(Crc64::of(b"").to_base64(), BASE64.encode([0; 8]));
}
