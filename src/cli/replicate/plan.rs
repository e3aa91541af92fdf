//! `snapferry plan`: how long replicating a server will take, and what limits it; and the look before a dry run.

use std::io::{Write as _, stdout};

use super::args::PlanArgs;
use crate::cli::cloud::{Cloud, run as run_on_cloud};
use crate::cli::credentials;
use crate::cli::exit::{Code, UsageError};
use crate::vpc::model::Instance;
use crate::vpc::{InstanceId, RegionClient, VpcError};
use crate::worker::forecast::{Converter, Forecast, forecast};
use crate::worker::state::DiskState;
use crate::worker::steps::Look;
use crate::worker::{Fault, Job, Site};

/// What a dry run finds out.
pub async fn preflight(job: &Job, site: &Site) -> Result<Look, Fault> {
    Look::at(job, site).await
}

pub fn run(args: &PlanArgs) -> anyhow::Result<Code> {
    let (forecast, converter, on) = run_on_cloud(&args.cloud, async |cloud| {
        let client = cloud.client()?;
        let server = client.server(&args.server).await?;
        let volume = client.boot_volume(&server).await?;
        let disk = DiskState { capacity: volume.capacity, generation: volume.storage_generation, operating_system: None };
        let on = converting_server(args, cloud, &client).await?;
        let converter = converter(&client, &on).await?;
        Ok((forecast(&disk, args.volume_profile.as_deref(), &converter), converter, on.name))
    })?;
    if args.output.json {
        let told = serde_json::json!({ "server": args.server, "on": on, "cores": converter.cores, "forecast": forecast });
        writeln!(stdout().lock(), "{told}")?;
    } else {
        write(&args.server, &on, &converter, &forecast)?;
    }
    Ok(Code::Done)
}

async fn converting_server(args: &PlanArgs, cloud: &Cloud, client: &RegionClient) -> anyhow::Result<Instance> {
    if let Some(on) = &args.on {
        return Ok(client.server(on).await?);
    }
    let own = credentials::metadata(&args.cloud.identity)?.instance().await;
    let own = own.map_err(|_| UsageError("which server converts? Give --on SERVER (this one's metadata service is off)".into()))?;
    let missing = || VpcError::missing("server", &own.name, &cloud.home);
    Ok(client.instance(&InstanceId::new(own.id.clone())).await?.ok_or_else(missing)?)
}

/// What the server has for the job, by its profile and its own settings.
async fn converter(client: &RegionClient, on: &Instance) -> anyhow::Result<Converter> {
    let profiles = client.instance_profiles().await?;
    let profile = profiles.into_iter().find(|profile| profile.name == on.profile.name);
    let all = profile.as_ref().and_then(|profile| profile.bandwidth.as_ref()?.usual());
    let volumes = on.total_volume_bandwidth;
    Ok(Converter {
        // Two where nobody tells: the smallest that makes sense.
        cores: profile.and_then(|profile| profile.vcpu_count?.usual()).unwrap_or(2),
        volume_bandwidth: volumes,
        network_bandwidth: all.map(|all| all.saturating_sub(volumes.unwrap_or_default())),
    })
}

fn write(server: &str, on: &str, converter: &Converter, forecast: &Forecast) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    let mbit = |known: Option<u64>| known.map_or_else(|| "unknown".to_owned(), |known| format!("{known} Mbit/s"));
    writeln!(
        out,
        "{server}: {} GB, read from a volume of profile {} ({} Mbit/s)",
        forecast.capacity_gb, forecast.volume_profile, forecast.volume_bandwidth
    )?;
    writeln!(
        out,
        "on {on}: {} cores, {} for volumes, {} for the network",
        converter.cores,
        mbit(converter.volume_bandwidth),
        mbit(converter.network_bandwidth)
    )?;
    for phase in &forecast.phases {
        let speed = phase.megabytes_per_second.map_or_else(String::new, |speed| format!("{speed:.0} MB/s, "));
        writeln!(out, "  {:<22} {:>6.1} min  {speed}limited by {}", phase.name, phase.minutes, phase.limit.words())?;
    }
    writeln!(out, "  {:<22} {:>6.1} min", "all", forecast.minutes)?;
    writeln!(
        out,
        "A volume is filled from its snapshot while it is read; IBM publishes no speed for that, and it may take longer."
    )?;
    Ok(())
}
