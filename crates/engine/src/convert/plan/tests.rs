use snapferry_base::units::GIB;

use super::*;
use crate::pipeline::PipelineError;

const CORES: NonZeroUsize = NonZeroUsize::new(2).expect("two");

fn plan(size: u64, options: &Options, destination: Location) -> Result<Plan, ConvertError> {
    Plan::new(ByteCount(size), options, destination, CORES)
}

#[test]
fn parts_stay_under_the_limit_at_every_size_a_store_takes() {
    for size in [512, GIB, 100 * GIB, 250 * GIB, 1024 * GIB, 9_000_000_000_000] {
        let plan = plan(size, &Options::default(), Location::Bucket).expect("a plan");
        assert!(plan.most_parts() <= PARTS_AIMED_AT, "{size}: {} parts", plan.most_parts());
        assert_eq!(plan.part_size.0 % PART_STEP, 0);
        assert!(plan.part_size.0 >= plan.geometry.head_len());
    }
    let error = plan(10_000_000_000_000, &Options::default(), Location::Bucket)
        .expect_err("over 10 TB with its tables");
    assert!(matches!(error, ConvertError::TooLarge { .. }), "{error}");
    plan(10_000_000_000_000, &Options::default(), Location::File).expect("a file has no such limit");
}

#[test]
fn memory_is_within_what_is_promised_for_two_cores() {
    let whole = Options::default();
    let changes = Options { reuse: Reuse::Unchanged, ..Options::default() };
    for (size, options) in
        [GIB, 64 * GIB, 250 * GIB].into_iter().flat_map(|size| [(size, &whole), (size, &changes)])
    {
        let bucket = plan(size, options, Location::Bucket).expect("a plan").peak_memory();
        let file = plan(size, options, Location::File).expect("a plan").peak_memory();
        assert!(bucket <= ByteCount(512 * MIB), "{bucket} for a bucket");
        assert!(file <= ByteCount(256 * MIB), "{file} for a file");
    }
}

/// Returns a plan with parts of 32 MiB, six at once, and 128 compressors: 1.1 GiB.
fn large(options: &Options) -> Plan {
    let cores = NonZeroUsize::new(128).expect("not zero");
    Plan::new(ByteCount(100 * GIB), options, Location::Bucket, cores).expect("a plan")
}

fn group(memory: u64) -> Allowance {
    Allowance { memory: Some(ByteCount(memory)), ..Allowance::default() }
}

#[test]
fn a_plan_fits_its_control_group_and_shrinks_no_further_than_it_must() {
    let options = Options::default();
    let free = large(&options);
    assert!(free.peak_memory() > ByteCount(GIB));
    let unlimited = free.clone().within(&options, Location::Bucket, &Allowance::default()).expect("no limit");
    assert_eq!(
        (unlimited.threads, unlimited.part_size, unlimited.connections),
        (128, BUCKET_PART, CONNECTIONS)
    );
    let mut before = free.threads;
    assert!(
        free.clone().within(&options, Location::Bucket, &group(150 * MIB)).is_ok(),
        "the least there is, with nothing to spare"
    );
    for mib in [1024, 512, 256, 192] {
        let plan = free.clone().within(&options, Location::Bucket, &group(mib * MIB)).expect("it fits");
        let limit = mib * MIB / 4 * 3;
        assert!(plan.peak_memory().0 <= limit, "{} of {mib} MiB", plan.peak_memory());
        assert!(mib < 512 || plan.peak_memory().0 > limit / 4 * 3, "{} of {mib} MiB", plan.peak_memory());
        assert!(plan.threads < before && plan.chunks == chunks(plan.readers, plan.threads), "{plan:?}");
        assert!(
            plan.part_size.0.is_multiple_of(PART_STEP) && plan.most_parts() <= PARTS_AIMED_AT,
            "{plan:?}"
        );
        before = plan.threads;
    }
    let refused =
        free.within(&options, Location::Bucket, &group(100 * MIB)).expect_err("nothing is so small");
    assert!(
        refused.to_string().contains("limited to 100 MiB (memory.max), and this conversion needs at least"),
        "{refused}"
    );
}

#[test]
fn what_the_user_chose_stays_or_is_refused_by_the_limits_name() {
    let options = Options { threads: NonZeroUsize::new(24), ..Options::default() };
    let plan =
        large(&options).within(&options, Location::Bucket, &group(512 * MIB)).expect("parts get smaller");
    assert_eq!(plan.threads, 24);
    assert!(plan.part_size < BUCKET_PART);
    let options = Options { threads: NonZeroUsize::new(128), ..Options::default() };
    let refused = large(&options)
        .within(&options, Location::Bucket, &group(512 * MIB))
        .expect_err("128 threads take more");
    assert!(matches!(refused, ConvertError::Pipeline(PipelineError::TooTight(_))), "{refused}");
}

#[test]
fn connections_follow_the_files_that_may_be_open_and_a_file_its_own_limit() {
    let options = Options::default();
    let few = Allowance { open_files: Some(26), ..Allowance::default() };
    assert_eq!(
        large(&options).within(&options, Location::Bucket, &few).expect("two connections").connections,
        2
    );
    let requested = Options { connections: NonZeroUsize::new(6), ..Options::default() };
    let refused =
        large(&requested).within(&requested, Location::Bucket, &few).expect_err("six were asked for");
    assert!(refused.to_string().contains("ulimit -n"), "{refused}");
    let short = Allowance { file_size: Some(ByteCount(100 * KIB)), ..Allowance::default() };
    let file = plan(GIB, &options, Location::File).expect("a plan");
    let refused = file.within(&options, Location::File, &short).expect_err("three clusters at least");
    assert!(refused.to_string().contains("ulimit -f"), "{refused}");
}

#[test]
fn a_slip_of_the_finger_starts_no_army_of_threads() {
    let options = Options { threads: NonZeroUsize::new(200_000), ..Options::default() };
    let error = plan(GIB, &options, Location::File).expect_err("refused");
    assert!(error.to_string().contains("200000 threads are too many: give at most 512"), "{error}");
}

#[test]
fn a_part_size_that_cannot_work_is_refused_with_one_that_can() {
    let requested = |size: u64| Options { part_size: Some(ByteCount(size)), ..Options::default() };
    let refusal =
        |size: u64| plan(1024 * GIB, &requested(size), Location::Bucket).expect_err("refused").to_string();
    assert!(refusal(5 * MIB).contains("multiple of 4 MiB"));
    assert!(refusal(4 * MIB).contains("at least 5 MiB"));
    assert!(refusal(8 * MIB).contains("give at least"));
    assert!(refusal(6 << 30).contains("at most 5 GiB"));
}
