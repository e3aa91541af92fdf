//! Multipart uploads, and the rules by which they become objects.

use aws_sdk_s3::Client;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode, ChecksumType, CompletedPart};
use bytes::Bytes;
use snapferry_engine::hash::Crc64;
use snapferry_sim::{Action, Operation, Rule, SimStore, When};

use super::{BUCKET, Fixture, PART, client_config, noise, refusal, refused, stream};

fn joined(parts: &[&Bytes]) -> Bytes {
    parts.iter().flat_map(|part| part.iter().copied()).collect()
}

#[tokio::test]
async fn parts_in_any_order_become_the_object_once_its_sum_is_right() {
    let f = Fixture::start().await;
    let (first, second, last) = (noise(PART, 1), noise(PART + 1, 2), noise(10, 3));
    let whole = joined(&[&first, &second, &last]);
    let total = Crc64::of(&whole).to_base64();
    let id = f.begin("a").await;
    let third = f.part("a", &id, 7, &last).await;
    let second = f.part("a", &id, 2, &second).await;
    // Sent twice, stored once.
    f.part("a", &id, 1, &noise(PART, 9)).await;
    let first = f.part("a", &id, 1, &first).await;
    let parts = vec![first, second, third];

    let complete = |crc: &str, size: i64| {
        let complete = f.complete("a", &id, parts.clone()).checksum_type(ChecksumType::FullObject);
        complete.checksum_crc64_nvme(crc).mpu_object_size(size)
    };
    let size = i64::try_from(whole.len()).expect("a size");
    let err = complete(&Crc64(1).to_base64(), size).send().await.expect_err("another sum");
    assert_eq!(refusal(err), refused(400, "BadDigest"));
    let err = complete(&total, size - 1).send().await.expect_err("another size");
    assert_eq!(refusal(err), refused(400, "InvalidRequest"));
    assert!(!f.has("a").await, "nothing is visible before it is right");
    assert_eq!(f.open_uploads().await, 1);

    let done = complete(&total, size).send().await.expect("completed");
    assert_eq!(done.checksum_crc64_nvme(), Some(total.as_str()));
    assert!(f.get("a").await == whole);
    let head = f
        .client
        .head_object()
        .bucket(BUCKET)
        .key("a")
        .checksum_mode(ChecksumMode::Enabled)
        .send()
        .await
        .expect("found");
    assert_eq!((head.content_length(), head.checksum_crc64_nvme()), (Some(size), Some(total.as_str())));
    assert_eq!(head.checksum_type(), Some(&ChecksumType::FullObject));
    assert_eq!(head.e_tag(), done.e_tag());

    let err = complete(&total, size).send().await.expect_err("twice");
    assert_eq!(refusal(err), refused(404, "NoSuchUpload"));
    assert_eq!(f.open_uploads().await, 0);
}

#[tokio::test]
async fn equal_parts_make_the_object_whatever_was_refused_or_sent_twice_before() {
    // The store keeps equal parts in one file: bytes of a refused part, and of one that was sent again, must
    // not remain in the object.
    for (refuse, again) in [(false, false), (true, false), (false, true), (true, true)] {
        let f = Fixture::start().await;
        let id = f.begin("a").await;
        let bodies = [noise(PART, 1), noise(PART, 2), noise(77, 3)];
        let mut parts = Vec::new();
        for (number, body) in [(3, &bodies[2]), (2, &bodies[1]), (1, &bodies[0])] {
            if refuse {
                let put = f.client.upload_part().bucket(BUCKET).key("a").upload_id(&id).part_number(number);
                let put = put.checksum_crc64_nvme(Crc64(1).to_base64()).body(stream(&noise(PART, 4)));
                assert_eq!(refusal(put.send().await.expect_err("another sum")), refused(400, "BadDigest"));
            }
            if again {
                f.part("a", &id, number, &noise(PART, 5)).await;
            }
            parts.insert(0, f.part("a", &id, number, body).await);
        }
        let whole = joined(&bodies.each_ref());
        let complete = f.complete("a", &id, parts).checksum_crc64_nvme(Crc64::of(&whole).to_base64());
        complete.send().await.expect("completed");
        assert!(f.get("a").await == whole, "refused {refuse}, again {again}");
        let file = std::fs::read(f.folder.path().join(BUCKET).join("a")).expect("a plain file");
        assert!(file == whole, "refused {refuse}, again {again}");
    }
}

#[tokio::test]
async fn a_wrong_digest_leaves_no_part() {
    let f = Fixture::start().await;
    let id = f.begin("a").await;
    let put = || {
        f.client
            .upload_part()
            .bucket(BUCKET)
            .key("a")
            .upload_id(&id)
            .part_number(1)
            .body(stream(&noise(1000, 1)))
    };
    let err = put().checksum_crc64_nvme(Crc64(1).to_base64()).send().await.expect_err("another sum");
    assert_eq!(refusal(err), refused(400, "BadDigest"));
    let err = put().content_md5("JfnnlDI7RTiF9RgfG2JNCw==").send().await.expect_err("another digest");
    assert_eq!(refusal(err), refused(400, "BadDigest"));
    // All parts of an upload use the checksum that it was created with.
    let err = put().checksum_crc32("y/Q5Jg==").send().await.expect_err("another algorithm");
    assert_eq!(refusal(err), refused(400, "InvalidRequest"));
    let list = f.client.list_parts().bucket(BUCKET).key("a").upload_id(&id).send().await.expect("a list");
    assert_eq!(list.parts().len(), 0);
}

#[tokio::test]
async fn a_list_that_is_not_what_was_uploaded_is_refused() {
    let f = Fixture::start().await;
    let id = f.begin("a").await;
    let one = f.part("a", &id, 1, &noise(PART, 1)).await;
    let two = f.part("a", &id, 2, &noise(PART, 2)).await;
    let three = f.part("a", &id, 3, &noise(1, 3)).await;
    let made_up = CompletedPart::builder().part_number(4).e_tag("\"0000000000000000\"").build();
    let wrong_tag = CompletedPart::builder().part_number(3).e_tag("\"0000000000000000\"").build();
    let no_tag = CompletedPart::builder().part_number(3).build();
    let wrong_sum = CompletedPart::builder()
        .part_number(3)
        .set_e_tag(three.e_tag.clone())
        .checksum_crc64_nvme(Crc64(1).to_base64());
    let cases = [
        ("nothing", vec![], "MalformedXML"),
        ("out of order", vec![two.clone(), one.clone(), three.clone()], "InvalidPartOrder"),
        ("twice the same", vec![one.clone(), one.clone(), two.clone(), three.clone()], "InvalidPartOrder"),
        ("never uploaded", vec![one.clone(), two.clone(), three.clone(), made_up], "InvalidPart"),
        ("another tag", vec![one.clone(), two.clone(), wrong_tag], "InvalidPart"),
        ("no tag", vec![one.clone(), two.clone(), no_tag], "InvalidPart"),
        ("another sum", vec![one.clone(), two.clone(), wrong_sum.build()], "InvalidPart"),
        ("one left out", vec![one.clone(), three.clone()], "InvalidPart"),
    ];
    for (case, parts, code) in cases {
        let err = f.complete("a", &id, parts).send().await.expect_err(case);
        assert_eq!(refusal(err), refused(400, code), "{case}");
    }
    f.complete("a", &id, vec![one, two, three]).send().await.expect("the upload survived all that");
}

#[tokio::test]
async fn only_the_last_part_may_be_small() {
    let f = Fixture::start().await;
    let id = f.begin("a").await;
    let parts =
        vec![f.part("a", &id, 1, &noise(PART - 1, 1)).await, f.part("a", &id, 2, &noise(PART, 2)).await];
    let err = f.complete("a", &id, parts).send().await.expect_err("a small first part");
    assert_eq!(refusal(err), refused(400, "EntityTooSmall"));
}

#[tokio::test]
async fn part_numbers_end_at_ten_thousand() {
    let f = Fixture::start().await;
    let id = f.begin("a").await;
    for number in [0, -1, 10_001] {
        let put = f
            .client
            .upload_part()
            .bucket(BUCKET)
            .key("a")
            .upload_id(&id)
            .part_number(number)
            .body(stream(&noise(1, 1)));
        assert_eq!(
            refusal(put.send().await.expect_err("no part")),
            refused(400, "InvalidArgument"),
            "{number}"
        );
    }
    let part = f.part("a", &id, 10_000, &noise(1, 1)).await;
    f.complete("a", &id, vec![part]).send().await.expect("the last number is good");
}

#[tokio::test]
async fn an_aborted_upload_is_gone_with_its_parts() {
    let f = Fixture::start().await;
    let id = f.begin("a").await;
    let part = f.part("a", &id, 1, &noise(100, 1)).await;
    let abort =
        async || f.client.abort_multipart_upload().bucket(BUCKET).key("a").upload_id(&id).send().await;
    abort().await.expect("aborted");
    assert_eq!(refusal(abort().await.expect_err("again")), refused(404, "NoSuchUpload"));
    let put = f
        .client
        .upload_part()
        .bucket(BUCKET)
        .key("a")
        .upload_id(&id)
        .part_number(2)
        .body(stream(&noise(PART, 1)));
    assert_eq!(refusal(put.send().await.expect_err("no upload")), refused(404, "NoSuchUpload"));
    let list = f.client.list_parts().bucket(BUCKET).key("a").upload_id(&id).send().await;
    assert_eq!(refusal(list.expect_err("no upload")), refused(404, "NoSuchUpload"));
    let err = f.complete("a", &id, vec![part]).send().await.expect_err("no upload");
    assert_eq!(refusal(err), refused(404, "NoSuchUpload"));
    let left = std::fs::read_dir(f.folder.path().join(BUCKET).join(".uploads")).expect("the uploads").count();
    assert_eq!((left, f.open_uploads().await, f.has("a").await), (0, 0, false));
}

#[tokio::test]
async fn an_upload_belongs_to_its_key() {
    let f = Fixture::start().await;
    let id = f.begin("a").await;
    let put = f
        .client
        .upload_part()
        .bucket(BUCKET)
        .key("b")
        .upload_id(&id)
        .part_number(1)
        .body(stream(&noise(1, 1)));
    assert_eq!(refusal(put.send().await.expect_err("another key")), refused(404, "NoSuchUpload"));
}

#[tokio::test]
async fn parts_and_uploads_are_listed_by_page() {
    let f = Fixture::start().await;
    let id = f.begin("a/1").await;
    for number in [3, 1, 2, 9] {
        f.part("a/1", &id, number, &noise(10, 1)).await;
    }
    let page = async |after: Option<String>| {
        let list = f.client.list_parts().bucket(BUCKET).key("a/1").upload_id(&id).max_parts(3);
        list.set_part_number_marker(after).send().await.expect("a page")
    };
    let numbers = |parts: &[aws_sdk_s3::types::Part]| {
        parts.iter().filter_map(|part| part.part_number()).collect::<Vec<_>>()
    };
    let first = page(None).await;
    assert_eq!((numbers(first.parts()), first.is_truncated()), (vec![1, 2, 3], Some(true)));
    assert_eq!(first.parts()[0].size(), Some(10));
    assert_eq!(first.parts()[0].checksum_crc64_nvme(), Some(Crc64::of(&noise(10, 1)).to_base64().as_str()));
    let second = page(first.next_part_number_marker().map(str::to_owned)).await;
    assert_eq!((numbers(second.parts()), second.is_truncated()), (vec![9], Some(false)));

    let (again, other) = (f.begin("a/1").await, f.begin("a/2").await);
    f.begin("b").await;
    let mut seen = Vec::new();
    let (mut key, mut upload) = (None, None);
    loop {
        let list = f.client.list_multipart_uploads().bucket(BUCKET).prefix("a/").max_uploads(1);
        let list = list.set_key_marker(key).set_upload_id_marker(upload).send().await.expect("a page");
        seen.extend(list.uploads().iter().map(|upload| {
            assert!(upload.initiated().is_some());
            (upload.key().unwrap_or_default().to_owned(), upload.upload_id().unwrap_or_default().to_owned())
        }));
        if list.is_truncated() != Some(true) {
            break;
        }
        (key, upload) =
            (list.next_key_marker().map(str::to_owned), list.next_upload_id_marker().map(str::to_owned));
    }
    let mut expected = vec![("a/1".to_owned(), id), ("a/1".to_owned(), again), ("a/2".to_owned(), other)];
    expected.sort();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn parts_are_copied_by_range() {
    let f = Fixture::start().await;
    let old = noise(PART + 1000, 1);
    f.put("old", &old).await;
    let id = f.begin("new").await;
    let copy = |number: i32, range: &str| {
        let copy = f.client.upload_part_copy().bucket(BUCKET).key("new").upload_id(&id).part_number(number);
        copy.copy_source(format!("{BUCKET}/old")).copy_source_range(range)
    };
    let whole = joined(&[&old.slice(500..500 + PART), &noise(7, 2)]);
    let range = format!("bytes=500-{}", 499 + PART);
    let copied = copy(1, &range).send().await.expect("copied").copy_part_result.expect("a result");
    assert_eq!(copied.checksum_crc64_nvme(), Some(Crc64::of(&old[500..500 + PART]).to_base64().as_str()));
    let first = CompletedPart::builder().part_number(1).set_e_tag(copied.e_tag).build();
    let second = f.part("new", &id, 2, &noise(7, 2)).await;
    for range in [format!("bytes=0-{}", old.len()), "bytes=5".to_owned(), "bytes=-5".to_owned()] {
        assert_eq!(
            refusal(copy(3, &range).send().await.expect_err("no such range")),
            refused(400, "InvalidArgument"),
            "{range}"
        );
    }
    let err = copy(3, &range)
        .copy_source_if_match("\"0000000000000000\"")
        .send()
        .await
        .expect_err("another version");
    assert_eq!(refusal(err), refused(412, "PreconditionFailed"));
    let complete =
        f.complete("new", &id, vec![first, second]).checksum_crc64_nvme(Crc64::of(&whole).to_base64());
    complete.send().await.expect("completed");
    assert!(f.get("new").await == whole);
    assert_eq!(f.store.stats().bytes_copied, u64::try_from(PART).expect("a length"));
}

#[tokio::test]
async fn an_existing_key_can_be_protected_from_a_complete() {
    let f = Fixture::start().await;
    let (old, new) = (noise(10, 1), noise(10, 2));
    let id = f.begin("a").await;
    let part = f.part("a", &id, 1, &new).await;
    f.put("a", &old).await;
    let err = f.complete("a", &id, vec![part.clone()]).if_none_match("*").send().await.expect_err("taken");
    assert_eq!(refusal(err), refused(412, "PreconditionFailed"));
    assert_eq!((f.get("a").await, f.open_uploads().await), (old, 1));
    f.complete("a", &id, vec![part]).send().await.expect("replaced");
    assert_eq!(f.get("a").await, new);
}

#[tokio::test]
async fn composite_checksums_are_kept_too() {
    let f = Fixture::start().await;
    let create = f
        .client
        .create_multipart_upload()
        .bucket(BUCKET)
        .key("a")
        .checksum_algorithm(ChecksumAlgorithm::Sha256);
    let id = create.send().await.expect("an upload").upload_id.expect("an id");
    let put = f
        .client
        .upload_part()
        .bucket(BUCKET)
        .key("a")
        .upload_id(&id)
        .part_number(1)
        .body(stream(&Bytes::from_static(b"123456789")));
    let put =
        put.checksum_sha256("FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=").send().await.expect("a part");
    let part = CompletedPart::builder()
        .part_number(1)
        .set_e_tag(put.e_tag)
        .set_checksum_sha256(put.checksum_sha256)
        .build();
    let done = f.complete("a", &id, vec![part]).send().await.expect("completed");
    assert!(done.checksum_sha256().expect("a sum").ends_with("-1"));
    assert_eq!(done.checksum_type(), Some(&ChecksumType::Composite));
}

#[tokio::test]
async fn an_upload_without_a_description_keeps_no_store_from_starting() {
    let f = Fixture::start().await;
    let id = f.begin("a").await;
    let config = f.store.config().clone();
    f.store.shutdown().await;
    // State after a kill between the creation of the folder and that of its description.
    std::fs::create_dir(f.folder.path().join(BUCKET).join(".uploads/0000")).expect("a folder");
    let store = SimStore::start(config).await.expect("the store starts");
    let client = Client::from_conf(client_config(&store).build());
    let listed = client.list_multipart_uploads().bucket(BUCKET).send().await.expect("a list");
    assert_eq!(
        listed.uploads().iter().map(|upload| upload.upload_id()).collect::<Vec<_>>(),
        [Some(id.as_str())]
    );
}

#[tokio::test]
async fn two_completes_at_once_make_one_object() {
    let f = Fixture::start().await;
    let id = f.begin("a").await;
    let part = f.part("a", &id, 1, &noise(PART, 1)).await;
    let complete = || f.complete("a", &id, vec![part.clone()]).send();
    let (one, other) = tokio::join!(complete(), complete());
    let lost = match (one, other) {
        (Ok(_), Err(err)) | (Err(err), Ok(_)) => refusal(err),
        both => panic!("{both:?}"),
    };
    assert_eq!(lost, refused(404, "NoSuchUpload"));
    assert!(f.has("a").await);
}

#[tokio::test]
async fn the_store_counts_what_it_is_asked() {
    let f = Fixture::start().await;
    let id = f.begin("a").await;
    // The first part never gets a response, so that both are in progress at the same time.
    f.store.faults().add(Rule::on(Operation::UploadPart).when(When::First(1)), Action::Hang);
    let client = f.client.clone();
    let upload = id.clone();
    let held = tokio::spawn(async move {
        client
            .upload_part()
            .bucket(BUCKET)
            .key("a")
            .upload_id(upload)
            .part_number(1)
            .body(stream(&noise(PART, 1)))
            .send()
            .await
    });
    while f.store.stats().of(Operation::UploadPart).requests < 1 {
        tokio::task::yield_now().await;
    }
    f.part("a", &id, 2, &noise(1000, 2)).await;
    assert!(!held.is_finished());
    let stats = f.store.stats();
    assert_eq!((stats.parts_in_flight, stats.max_parts_in_flight), (1, 2));
    let count = stats.of(Operation::UploadPart);
    assert_eq!((count.requests, count.succeeded, count.bytes_in), (2, 1, 1000));
    let last = stats.log.back().expect("a logged request");
    assert_eq!(
        (last.operation, last.method.as_str(), last.part, last.status),
        (Operation::UploadPart, "PUT", Some(2), Some(200))
    );
    assert!(last.path.starts_with("/images/a?") && last.path.contains(&id), "{}", last.path);
    held.abort();
}
