//! The second night of a server, as a user runs it: what did not change is copied from the first night's
//! image, and the image that results is the one of a full run.

use serde_json::Value;
use snapferry_sim::{Action, Operation as Store, Rule};

use super::crashes::{At, Moment};
use crate::support::{AWAY, Bench, Host};

/// Segments of the server's disk that hold data.
const SEGMENTS: u64 = 7;

pub(super) fn key_of(report: &Value) -> String {
    report["object"]["key"].as_str().expect("a key").to_owned()
}

fn sha256(report: &Value) -> &str {
    report["object"]["sha256"].as_str().expect("a sum")
}

impl Bench {
    /// Replicates the server on its own host, and returns the report.
    async fn night(&self, args: &[&str]) -> Value {
        self.run(Host::Own, &[args, &["--json"]].concat()).await.json()
    }

    /// Keys of the objects that are images.
    pub fn stored_images(&self) -> Vec<String> {
        let bucket = self.stored("");
        let names = std::fs::read_dir(bucket).unwrap().map(|entry| entry.unwrap().file_name());
        let names = names.map(|name| name.into_string().unwrap().replace("%2F", "/"));
        let mut keys: Vec<String> = names.filter(|name| name.ends_with(".qcow2")).collect();
        keys.sort_unstable();
        keys
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_night_copies_what_did_not_change_and_makes_the_image_of_a_full_run() {
    let bench = Bench::start_large().await;
    let first = bench.night(&[]).await;
    assert_eq!((&first["object"]["base"], &first["object"]["full_because"]), (&Value::Null, &"none".into()));
    assert_eq!(first["object"]["bytes_sent"], first["object"]["size"]);
    bench.use_disk(1);
    let copies = bench.sim.store().stats().of(Store::UploadPartCopy).requests;
    let second = bench.night(&[]).await;
    let object = &second["object"];
    let base = &object["base"];
    assert_eq!(base["key"], first["object"]["key"], "{second}");
    assert_eq!((&base["segments"], &base["segments_unchanged"]), (&SEGMENTS.into(), &5.into()));
    let number = |value: &Value| value.as_u64().expect("a number");
    let (sent, copied) = (number(&object["bytes_sent"]), number(&base["bytes_copied"]));
    assert_eq!(sent + copied, number(&object["size"]), "{second}");
    let fetched = number(&base["bytes_fetched"]);
    let third = number(&object["size"]) / 3;
    assert!(copied > third && sent - fetched < third, "{second}");
    let requests = bench.sim.store().stats().of(Store::UploadPartCopy).requests - copies;
    assert_eq!(number(&base["copies"]), requests);
    assert_eq!((&object["full_because"], &second["warnings"]), (&Value::Null, &Value::Array(Vec::new())));
    let steps = second["steps"].as_array().expect("steps");
    let convert = steps.iter().find(|step| step["step"] == "convert").expect("a conversion");
    let did = convert["did"].as_str().expect("text");
    assert!(did.contains("5 of 7 segments unchanged;") && did.contains("copied in the store,"), "{did}");
    let full = bench.night(&["--base", "none"]).await;
    assert_eq!(
        (&full["object"]["base"], &full["object"]["full_because"]),
        (&Value::Null, &"not-asked".into())
    );
    assert_eq!(sha256(&second), sha256(&full), "the images differ");
    assert_ne!(sha256(&second), sha256(&first));
    assert_eq!(bench.leaks().await, Vec::<String>::new());
    bench.sim.shutdown().await;
}

/// A byte of the first night's image changes in the store. The second night finds it before it imports
/// anything, and sends all of the disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_byte_that_was_flipped_in_the_base_is_found_before_the_import() {
    let bench = Bench::with_large_night().await;
    let base = bench.stored_images().pop().expect("the first night's");
    let mut bytes = std::fs::read(bench.stored(&base)).unwrap();
    let clean = bytes.clone();
    bytes[50 << 20] ^= 1;
    std::fs::write(bench.stored(&base), &bytes).unwrap();
    let second = bench.night(&[]).await;
    assert_eq!(
        (&second["object"]["base"], &second["object"]["full_because"]),
        (&Value::Null, &"disproved".into())
    );
    let warnings = second["warnings"].to_string();
    assert!(warnings.contains(&base) && warnings.contains("all of the disk was sent"), "{warnings}");
    assert!(std::fs::read(bench.stored(&key_of(&second))).unwrap() == clean, "not the image of a full run");
    assert_eq!(bench.images().await.len(), 2);
    bench.sim.shutdown().await;
}

/// A job of another region that shares the bucket copies from the last object that retention would remove:
/// that object stays until the upload has ended.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_another_region_copies_from_is_not_pruned() {
    let bench = Bench::with_large_night().await;
    let first = bench.stored_images().pop().expect("the first night's");
    let keep = ["--keep-objects", "1", "--keep-images", "1"];
    // A job into another region is in the middle of its copies.
    let copying = At::Bucket(Store::UploadPartCopy, 1);
    let place = ["--to", "eu-de", "--bucket-region", AWAY, "--bucket-location", AWAY];
    let words = [&place[..], &["--keep-objects", "all"]].concat();
    bench.crash_with(Host::Other, copying, Moment::Before, &words).await;
    bench.use_disk(1);
    let second = bench.night(&keep).await;
    assert_eq!(second["object"]["base"]["key"], *first);
    let pruned = second["pruned"].to_string();
    assert!(!pruned.contains(&first), "the base of an open upload is pruned: {pruned}");
    // The other job goes on, from the same image.
    let resumed = bench.run(Host::Other, &["--resume", "--json"]).await.json();
    assert_eq!(resumed["object"]["base"]["key"], *first, "{resumed}");
    assert_eq!(resumed["object"]["full_because"], Value::Null);
    // With the upload ended, nothing protects the first night's object any more.
    let third = bench.night(&keep).await;
    let pruned = third["pruned"].to_string();
    assert!(pruned.contains(&first), "{pruned}");
    bench.sim.shutdown().await;
}

/// Kills a second night at `at`, resumes it on `host`, and checks that the same base is used, that the image
/// is the one of a full run, and that nothing is left.
async fn killed_and_resumed(at: At, moment: Moment, host: Host) {
    let bench = Bench::with_large_night().await;
    let base = bench.stored_images().pop().expect("the first night's");
    let expected = std::fs::read(bench.stored(&base)).unwrap();
    let before = bench.latest().await.expect("there is one");
    bench.crash_with(Host::Own, at, moment, &[]).await;
    let resumed = bench.run(host, &["--resume", "--json"]).await.json();
    let case = format!("{at:?} {moment:?}, resumed on {host:?}: {resumed}");
    assert_eq!(resumed["object"]["base"]["key"], *base, "{case}");
    assert_eq!(resumed["object"]["full_because"], Value::Null, "{case}");
    assert_ne!(key_of(&resumed), base, "{case}");
    assert!(std::fs::read(bench.stored(&key_of(&resumed))).unwrap() == expected, "{case}: another image");
    assert_ne!(bench.latest().await.map(|latest| latest.id), Some(before.id), "{case}");
    bench.gc(Host::Own).await;
    assert_eq!(bench.leaks().await, Vec::<String>::new(), "{case}");
    assert_eq!(bench.images().await.len(), 2, "{case}");
    bench.sim.shutdown().await;
}

macro_rules! crashes {
    ($($name:ident: $call:ident, $nth:expr, $moment:ident;)*) => {
        mod killed_and_resumed_here {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    killed_and_resumed(At::Bucket(Store::$call, $nth), Moment::$moment, Host::Own).await;
                }
            )*
        }

        mod killed_and_resumed_elsewhere {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    killed_and_resumed(At::Bucket(Store::$call, $nth), Moment::$moment, Host::Other).await;
                }
            )*
        }
    };
}

crashes! {
    list_of_earlier_images: ListObjectsV2, 1, Before;
    head_of_the_base: HeadObject, 2, Before;
    head_of_its_manifest: HeadObject, 3, Before;
    read_of_its_manifest: GetObject, 1, Before;
    read_of_its_head: GetObject, 2, Before;
    read_of_its_tables: GetObject, 3, Before;
    create_multipart_upload: CreateMultipartUpload, 1, In;
    upload_part_copy: UploadPartCopy, 1, Before;
    upload_part_copy_done: UploadPartCopy, 1, In;
    upload_part: UploadPart, 1, In;
    list_parts: ListParts, 1, Before;
    complete_multipart_upload: CompleteMultipartUpload, 1, Before;
}

/// After the completion, another process proves the image and finds in its manifest what was copied.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_takes_over_a_complete_image_reports_what_its_manifest_shows() {
    let bench = Bench::with_large_night().await;
    let base = bench.stored_images().pop().expect("the first night's");
    bench.use_disk(1);
    bench.crash_with(Host::Own, At::Bucket(Store::PutObject, 2), Moment::Before, &[]).await;
    let resumed = bench.run(Host::Other, &["--resume", "--json"]).await.json();
    let object = &resumed["object"];
    assert_eq!(
        (&object["base"]["key"], &object["base"]["segments_unchanged"]),
        (&base.into(), &5.into()),
        "{resumed}"
    );
    assert_eq!((&object["bytes_sent"], &object["base"]["copies"]), (&Value::Null, &Value::Null));
    bench.gc(Host::Own).await;
    assert_eq!(bench.leaks().await, Vec::<String>::new());
    bench.sim.shutdown().await;
}

/// A store that refuses to copy is not asked again the next night.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_copies_is_not_asked_every_night() {
    let bench = Bench::with_large_night().await;
    bench.sim.store().faults().add(Rule::on(Store::UploadPartCopy), Action::NoCopies);
    let second = bench.night(&[]).await;
    assert_eq!(second["object"]["full_because"], "refused");
    let asked = bench.sim.store().stats().of(Store::UploadPartCopy).requests;
    let third = bench.night(&[]).await;
    assert_eq!(third["object"]["full_because"], "refused");
    assert_eq!(bench.sim.store().stats().of(Store::UploadPartCopy).requests, asked);
    bench.sim.store().faults().clear();
    bench.sim.shutdown().await;
}
