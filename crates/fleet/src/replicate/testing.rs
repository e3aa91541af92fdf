//! Jobs that this crate's tests use.

use std::time::{Duration, SystemTime};

use snapferry_base::job::JobId;

use super::job::{BaseRule, BucketOptions, Encoding, Goal, JobSpec, Origin, Restore, SnapshotFate};
use super::retention::Retention;

/// Makes a job with usual values; `number` makes its id unique.
pub fn job(server: &str, number: u64) -> JobSpec {
    let begun = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_323_045 + number);
    JobSpec {
        id: JobId::at(begun, u128::from(number)),
        server: server.to_owned(),
        from: "us-south".to_owned(),
        to: "us-east".to_owned(),
        bucket: "images".to_owned(),
        bucket_location: "us-east".to_owned(),
        prefix: String::new(),
        bucket_region: None,
        endpoint: None,
        bucket_options: BucketOptions::default(),
        resource_group: None,
        origin: Origin::Server,
        goal: Goal::Image,
        restore: Restore::Plain,
        snapshot_fate: SnapshotFate::Prunable,
        operating_system: None,
        image_name: None,
        volume_profile: None,
        encoding: Encoding::default(),
        base: BaseRule::Auto,
        retention: Retention::default(),
    }
}
