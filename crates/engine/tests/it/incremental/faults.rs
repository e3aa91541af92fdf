//! Whatever is wrong with the base, with its copies or with their completion leads to a full run, at once;
//! all else is an error. Nothing is left of what was given up.

use std::sync::Arc;

use snapferry_base::cancel::Reason;
use snapferry_engine::convert::{ConvertError, Converted, Failure};
use snapferry_engine::pipeline::PipelineError;
use snapferry_engine::store::{Location, ObjectStore, StoreError};

use super::liar::{Liar, Lie};
use super::{Run, SEGMENT, disk, key, options};
use crate::support::Disk;

/// A store that lies, an image of a disk, and the disk as it is by now: some of it changed, and its last
/// segment did not, but is too short for a part of its own.
struct Bench {
    liar: Arc<Liar>,
    store: Arc<dyn ObjectStore>,
    first: Vec<u8>,
    disk: Vec<u8>,
    /// Image that a full run makes of the disk.
    full: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let liar = Liar::new(key("first.qcow2"));
        let store: Arc<dyn ObjectStore> = Arc::clone(&liar) as _;
        let first = disk();
        let mut disk = first.clone();
        disk[3] ^= 1;
        disk[4 * SEGMENT..5 * SEGMENT].fill(0);
        disk[4 * SEGMENT] = 1;
        let bench = Self { liar, store, first, disk, full: Vec::new() };
        let run = bench.run();
        run.convert(&bench.first, "first.qcow2", None).expect("an image");
        run.convert(&bench.disk, "full.qcow2", None).expect("an image");
        let full = run.bytes("full.qcow2");
        drop(run);
        Self { full, ..bench }
    }

    fn run(&self) -> Run<'_> {
        Run::new(&self.store, Location::Bucket, options())
    }

    /// Converts the disk into the store, which has this lie. Passes the run and its result to `check`.
    fn with(&self, lie: Lie, check: impl FnOnce(&Run<'_>, Result<Converted, Failure>)) {
        let run = self.run();
        self.liar.lie(lie);
        let converted = run.convert(&self.disk, "second.qcow2", Some("first.qcow2"));
        check(&run, converted);
        assert_eq!(run.uploads(), 0, "{lie:?}: no upload is left");
        self.liar.lie(Lie::None);
        let deleted = run.runtime.block_on(self.store.delete(&key("second.qcow2")));
        deleted.expect("removed");
        if matches!(lie, Lie::Remove | Lie::RemoveLater | Lie::Replace | Lie::ReplaceLater) {
            run.convert(&self.first, "first.qcow2", None).expect("an image");
        }
    }

    /// Expects a full run, and this word for its reason.
    fn expect_full(&self, lie: Lie, word: &str) {
        self.with(lie, |run, converted| {
            let converted = converted.unwrap_or_else(|failure| panic!("{lie:?}: {failure:?}"));
            let why = converted.given_up.as_ref().unwrap_or_else(|| panic!("{lie:?}: the base was used"));
            assert_eq!(why.word(), word, "{lie:?}: {why}");
            assert!(converted.reused.is_none() && converted.manifest.base.is_none(), "{lie:?}");
            assert!(run.bytes("second.qcow2") == self.full, "{lie:?}: another image");
            let refused = matches!(word, "refused" | "equal-parts");
            let recorded = &converted.manifest.refused;
            assert_eq!(recorded.is_some(), refused, "{lie:?}: {recorded:?}");
            let totals = run.counters.totals();
            assert!(totals.done_in_all > totals.done && totals.unchanged == 0, "{lie:?}: {totals:?}");
        });
    }
}

#[test]
fn a_store_that_refuses_copies_gets_all_of_the_disk() {
    let bench = Bench::new();
    for (status, code) in [(403, "AccessDenied"), (501, "NotImplemented")] {
        bench.expect_full(Lie::Refuse(status, code), "refused");
    }
    bench.expect_full(Lie::Precondition, "refused");
    bench.expect_full(Lie::RefuseReads, "refused");
}

#[test]
fn a_base_that_is_removed_or_replaced_is_given_up() {
    let bench = Bench::new();
    bench.expect_full(Lie::Remove, "vanished");
    bench.expect_full(Lie::RemoveLater, "vanished");
    bench.expect_full(Lie::Replace, "replaced");
    bench.expect_full(Lie::ReplaceLater, "replaced");
}

#[test]
fn damage_of_the_base_is_found_before_its_bytes_are_sent() {
    let bench = Bench::new();
    bench.expect_full(Lie::Flip, "damaged");
}

#[test]
fn copies_are_compared_with_the_stores_list() {
    let bench = Bench::new();
    bench.expect_full(Lie::CopyShort, "disproved");
    bench.expect_full(Lie::ListOtherSum, "disproved");
    bench.expect_full(Lie::RefuseList, "unlisted");
}

#[test]
fn a_completion_that_is_refused_leads_to_a_full_run() {
    let bench = Bench::new();
    for (code, word) in [
        ("InvalidPart", "equal-parts"),
        ("EntityTooSmall", "refused"),
        ("InvalidRequest", "refused"),
        ("BadDigest", "disproved"),
    ] {
        bench.expect_full(Lie::RefuseCompletion(code), word);
    }
}

#[test]
fn without_checksums_of_copies_some_are_read_back() {
    let bench = Bench::new();
    bench.with(Lie::NoSums, |run, converted| {
        let reused = converted.expect("an image").reused.expect("a base was used");
        assert!((1..=4).contains(&reused.read_back), "{reused:?}");
        assert!(run.bytes("second.qcow2") == bench.full);
    });
    bench.expect_full(Lie::NoSumsOtherBytes, "disproved");
}

#[test]
fn what_has_nothing_to_do_with_the_base_is_an_error() {
    let bench = Bench::new();
    for lie in [Lie::TimeOut, Lie::RefuseParts] {
        bench.with(lie, |run, converted| {
            let failure = converted.expect_err("no image");
            assert!(matches!(failure.error, ConvertError::Store(_)), "{lie:?}: {failure:?}");
            assert!(failure.orphaned_upload.is_none());
            assert_eq!(run.head("second.qcow2"), None);
        });
    }
}

#[test]
fn a_word_to_stop_ends_a_run_with_a_base() {
    let bench = Bench::new();
    let run = bench.run();
    let disk = Disk::new(bench.disk.clone());
    let plan = run.plan(&disk);
    let base = run.base("first.qcow2", &plan);
    bench.liar.lie(Lie::Hang);
    let failure = std::thread::scope(|scope| {
        let converting = scope.spawn(|| run.convert_with(&disk, &plan, "second.qcow2", Some(base)));
        bench.liar.wait_for_a_copy();
        run.cancel.cancel(Reason::Requested);
        converting.join().expect("no panic").expect_err("stopped")
    });
    assert!(matches!(failure.error, ConvertError::Pipeline(PipelineError::Interrupted)), "{failure:?}");
    assert_eq!((run.uploads(), run.head("second.qcow2")), (0, None));
}

#[test]
fn a_second_attempt_that_fails_reports_its_own_error() {
    let bench = Bench::new();
    bench.liar.full_runs_fail();
    bench.with(Lie::Refuse(501, "NotImplemented"), |run, converted| {
        let failure = converted.expect_err("no image");
        let expected = matches!(&failure.error, ConvertError::Store(StoreError::Refused { code, .. }) if code == "QuotaExceeded");
        assert!(expected, "{failure:?}");
        assert_eq!(run.head("second.qcow2"), None);
    });
}
