//! `snapferry doctor --copies` against stores that copy, that lie, and that do not copy.

use serde_json::Value;
use snapferry_sim::{Action, Operation, Rule};

use crate::support::{BUCKET, Bucket, run};

struct Checked {
    findings: Vec<Value>,
}

impl Checked {
    #[track_caller]
    fn has(&self, what: &str, verdict: &str, details: &str) {
        let found = self.findings.iter().filter(|finding| finding["what"] == what);
        let texts: Vec<String> = found
            .map(|finding| {
                format!("{} {}", finding["verdict"].as_str().unwrap(), finding["details"].as_str().unwrap())
            })
            .collect();
        assert!(
            texts.iter().any(|text| text.starts_with(verdict) && text.contains(details)),
            "{what}: no {verdict} {details:?} in {texts:?}"
        );
    }

    fn about_copies(&self) -> usize {
        let is_about = |finding: &&Value| finding["what"].as_str().unwrap().to_lowercase().contains("cop");
        self.findings.iter().filter(is_about).count()
    }
}

/// Checks the bucket, and that nothing of the check stays in it. The other checks of this command fail: no
/// cloud is there.
fn check(bucket: &Bucket) -> Checked {
    let mut command = bucket.command_without_bucket(&["doctor", "--copies", "--json", "--bucket", BUCKET]);
    command.args(["--metadata-endpoint", "http://127.0.0.1:9", "--vpc-endpoint", "http://127.0.0.1:9"]);
    let ended = run(command);
    let findings = ended.report().as_array().unwrap().clone();
    let store = bucket.client();
    let left = bucket.runtime.block_on(snapferry_engine::store::ObjectStore::list(&store, "")).unwrap();
    assert!(left.is_empty(), "{left:?} is left");
    assert_eq!(bucket.open_uploads(), 0, "uploads are left");
    Checked { findings }
}

fn lying(on: Option<Operation>, lie: Action) -> Bucket {
    let bucket = Bucket::start();
    bucket.sim.faults().add(Rule { on, ..Rule::any() }, lie);
    bucket
}

#[test]
fn a_store_that_copies_as_it_should_is_well() {
    let bucket = Bucket::start();
    let checked = check(&bucket);
    checked.has("copies", "ok", "5 MiB from an odd offset");
    checked.has("copy checksums", "ok", "with the copy and in the list");
    checked.has("copy versions", "ok", "another version is not copied");
    checked.has("copy ranges", "ok", "refused");
    checked.has("copied objects", "ok", "only with the right checksum");
    checked.has("copied objects", "ok", "three sizes");
    checked.has("small copies", "ok", "EntityTooSmall");
    checked.has("copies in place", "ok", "its own older version");
    assert_eq!(checked.about_copies(), 8, "{:#?}", checked.findings);
    assert!(bucket.sim.stats().bytes_copied > 0);

    // As text, one line each.
    let mut command = bucket.command_without_bucket(&["doctor", "--copies", "--bucket", BUCKET]);
    command.args(["--metadata-endpoint", "http://127.0.0.1:9"]);
    let text = run(command).out;
    assert!(text.contains("ok       copy versions    another version is not copied\n"), "{text}");
    // Without the flag nothing of it is tried.
    let before = bucket.sim.stats().bytes_copied;
    let mut command = bucket.command_without_bucket(&["doctor", "--bucket", BUCKET]);
    command.args(["--metadata-endpoint", "http://127.0.0.1:9", "--vpc-endpoint", "http://127.0.0.1:9"]);
    let text = run(command).out;
    assert!(!text.contains("copies"), "{text}");
    assert_eq!(bucket.sim.stats().bytes_copied, before);
}

#[test]
fn each_lie_has_its_line() {
    use Operation::{CompleteMultipartUpload as Complete, UploadPartCopy as Copy};
    for (on, lie, what, verdict, details) in [
        (Some(Copy), Action::IgnoreConditions, "copy versions", "warning", "ignored"),
        (Some(Copy), Action::RefuseConditions, "copy versions", "ok", "HEAD requests take its place"),
        (Some(Complete), Action::EqualParts, "copied objects", "warning", "InvalidPart"),
        (None, Action::IgnoreChecksums, "copy checksums", "warning", "returns none"),
        (None, Action::IgnoreChecksums, "copied objects", "warning", "any checksum"),
        (Some(Copy), Action::CopyShort { bytes: 7575 }, "copies", "failure", "CRC64NVME"),
        (Some(Copy), Action::NoCopies, "copies", "warning", "501 NotImplemented"),
        (Some(Copy), Action::answer(403, "AccessDenied"), "copies", "warning", "403 AccessDenied"),
    ] {
        let bucket = lying(on, lie.clone());
        let checked = check(&bucket);
        checked.has(what, verdict, details);
        let fails = verdict == "failure";
        let failures = |finding: &&Value| {
            finding["verdict"] == "failure" && finding["what"].as_str().unwrap().contains("cop")
        };
        assert_eq!(
            checked.findings.iter().any(|finding| failures(&finding)),
            fails,
            "{lie:?}: {:#?}",
            checked.findings
        );
    }
}

#[test]
fn without_checksums_the_list_shows_what_was_copied() {
    for (lie, what, verdict, details) in [
        (Action::CopyShort { bytes: 7575 }, "copies", "failure", "7575 of 5242880 bytes"),
        (Action::ClipRange, "copy ranges", "ok", "the list of the parts shows it"),
    ] {
        let bucket = lying(Some(Operation::UploadPartCopy), lie);
        bucket.sim.faults().add(Rule::any(), Action::IgnoreChecksums);
        check(&bucket).has(what, verdict, details);
    }
}

#[test]
fn a_missing_right_is_named_by_its_role() {
    let bucket = lying(Some(Operation::UploadPartCopy), Action::answer(403, "AccessDenied"));
    let checked = check(&bucket);
    let refused = checked.findings.iter().find(|finding| finding["what"] == "copies").unwrap();
    let fix = refused["fix"].as_str().unwrap();
    assert!(fix.contains("Writer") && fix.contains("Object Writer"), "{fix}");
}

#[test]
fn without_a_bucket_there_is_nothing_to_try() {
    let bucket = Bucket::start();
    let mut command = bucket.command_without_bucket(&["doctor", "--copies"]);
    command.args(["--metadata-endpoint", "http://127.0.0.1:9"]);
    let text = run(command).out;
    assert!(text.contains("FAILURE  copies") && text.contains("give --bucket NAME"), "{text}");
}
