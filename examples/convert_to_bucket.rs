//! Converts a disk into a bucket, as `snapferry convert` does, with the library alone.
//!
//! ```sh
//! export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=...
//! cargo run --release --example convert_to_bucket -- disk.raw http://127.0.0.1:9000 us-south images
//! disk.qcow2
//! ```

#![allow(clippy::print_stdout)]

use std::env;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use snapferry_base::cancel::Cancel;
use snapferry_base::clock::SystemClock;
use snapferry_base::retry::Backoff;
use snapferry_base::secret::Secret;
use snapferry_engine::convert::plan::Options;
use snapferry_engine::convert::{Conversion, Target, plan_for};
use snapferry_engine::source::{InUse, RawSource, Source as _};
use snapferry_engine::store::{Location, ObjectKey, Overwrite, Pace, Retrying};
use snapferry_s3::{Auth, S3Config, S3Store};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [disk, endpoint, region, bucket, key] = args.as_slice() else {
        return Err("usage: convert_to_bucket DISK ENDPOINT REGION BUCKET KEY".into());
    };
    let source = RawSource::open(Path::new(disk), InUse::Refuse)?;
    let plan = plan_for(&source, &Options::default(), Location::Bucket)?;
    println!("{} of {disk}, with at most {} of memory", source.size(), plan.peak_memory());

    let auth = Auth::Hmac {
        access_key: env::var("AWS_ACCESS_KEY_ID")?,
        secret_key: Secret::new(&env::var("AWS_SECRET_ACCESS_KEY")?),
        session_token: None,
    };
    let runtime = tokio::runtime::Runtime::new()?;
    // The HTTP client looks for the runtime that it is made in.
    let _inside = runtime.enter();
    let bucket = Arc::new(S3Store::connect(S3Config::new(endpoint, region, bucket, auth))?);
    let cancel = Cancel::new();
    let store = Retrying::new(
        bucket,
        Arc::new(SystemClock),
        cancel.clone(),
        Pace::new(plan.connections),
        Backoff::STORE,
    );
    let converted = Conversion {
        source: &source,
        target: Target {
            store: Arc::new(store),
            key: ObjectKey::of_image(key)?,
            overwrite: Overwrite::Refuse,
        },
        plan: &plan,
        host: "example".to_owned(),
        clock: &SystemClock,
        cancel,
        counters: Arc::default(),
        base: None,
        refused: None,
    }
    .run(runtime.handle())?;
    println!("{}: {} in {:.1} s", converted.url, converted.manifest.image.size, converted.took.as_secs_f64());
    Ok(())
}
