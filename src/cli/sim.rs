//! `snapferry sim`: the embedded services by themselves, to try things on.

use std::io::{Write as _, stdout};

use super::args::{SimAction, SimArgs, SimStoreArgs};
use super::credentials::Environment;
use super::exit::{Code, UsageError};
use super::signals;
use crate::cancel::Cancel;
use crate::secret::Secret;
use crate::sim::{SimConfig, SimStore};

pub fn run(args: &SimArgs) -> anyhow::Result<Code> {
    match &args.action {
        SimAction::Store(args) => store(args),
    }
}

fn store(args: &SimStoreArgs) -> anyhow::Result<Code> {
    let runtime = super::runtime()?;
    let cancel = Cancel::new();
    signals::listen(runtime.handle(), &cancel, signals::Left::Nothing)?;
    runtime.block_on(async {
        let mut config = SimConfig::new(&args.dir);
        config.bind = (std::net::Ipv4Addr::LOCALHOST, args.port).into();
        // The caller's own keys and region where there are any, so that a script need not read ours.
        let environment = Environment::of_process();
        if let (Some(access_key), Some(secret)) = (environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")) {
            config.access_key = access_key.to_owned();
            config.secret_key = Secret::new(secret);
        }
        if let Some(region) = environment.get("AWS_REGION") {
            config.region = region.to_owned();
        }
        let store = SimStore::start(config).await?;
        if let Some(path) = &args.faults {
            store.faults().add_file(path).map_err(|error| UsageError(error.to_string()))?;
        }
        for bucket in &args.bucket {
            store.create_bucket(bucket).await?;
        }
        let config = store.config();
        let mut out = stdout();
        writeln!(out, "export AWS_ENDPOINT_URL_S3={}", store.endpoint())?;
        writeln!(out, "export AWS_REGION={}", config.region)?;
        writeln!(out, "export AWS_ACCESS_KEY_ID={}", config.access_key)?;
        // A made-up key of a store that listens on this machine alone.
        writeln!(out, "export AWS_SECRET_ACCESS_KEY={}", config.secret_key.reveal())?;
        writeln!(out, "# serving {} until Ctrl-C", args.dir.display())?;
        out.flush()?;
        cancel.cancelled().await;
        store.shutdown().await;
        Ok(Code::Done)
    })
}
