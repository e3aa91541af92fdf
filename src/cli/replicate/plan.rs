//! `snapferry plan`: forecasts how long replicating a server takes, and what limits it. Also the checks of a
//! dry run.

use std::io::Write as _;
use std::num::NonZeroU32;
use std::path::Path;

use clap::Args as Group;
use clap_complete::ArgValueCompleter;
use snapferry_base::retry::chain;
use snapferry_fleet::replicate::forecast::{Converter, Forecast, forecast, profile_bandwidth};
use snapferry_fleet::replicate::state::DiskState;
use snapferry_fleet::replicate::steps::Look;
use snapferry_fleet::replicate::{Fault, JobContext, JobSpec};
use snapferry_ibmcloud::iam::{CLOUD_INIT, instance_of_cloud_init};
use snapferry_ibmcloud::vpc::model::Instance;
use snapferry_ibmcloud::vpc::{InstanceId, LARGEST_IMAGE, RegionClient, VpcError};

use crate::cli::args::{CloudArgs, OutputArgs};
use crate::cli::cloud::{Cloud, run as run_on_cloud};
use crate::cli::completions::names;
use crate::cli::credentials;
use crate::cli::error::CommandResult;
use crate::cli::error::UsageError;
use crate::cli::exit::Code;
use crate::cli::print_json;
use crate::cli::printable;
use crate::cli::session::Session;

/// Checks a job as a dry run does.
pub async fn preflight(job: &JobSpec, site: &JobContext) -> Result<Look, Fault> {
    Look::at(job, site).await
}

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry plan web01\n  snapferry plan web01 --on ferry1 --concurrency 2\n  snapferry plan web01 --volume-profile general-purpose --json"
)]
pub struct PlanArgs {
    /// Name of the server
    #[arg(value_name = "SERVER", add = ArgValueCompleter::new(names::servers))]
    pub server: String,

    /// The profile of the volume that is read [default: the fastest of its generation]
    #[arg(long, value_name = "PROFILE")]
    pub volume_profile: Option<String>,

    /// The server that converts [default: this one]
    #[arg(long, value_name = "SERVER", add = ArgValueCompleter::new(names::servers))]
    pub on: Option<String>,

    /// Volumes that it reads at a time, as a worker's --concurrency
    #[arg(long = "concurrency", default_value = "1", value_name = "N")]
    pub at_a_time: NonZeroU32,

    #[command(flatten)]
    pub output: OutputArgs,

    #[command(flatten)]
    pub cloud: CloudArgs,
}

pub fn run(args: &PlanArgs, session: &Session) -> CommandResult<Code> {
    let (forecast, converter, on) = run_on_cloud(&args.cloud, session, async |cloud| {
        let client = cloud.client()?;
        let server = client.server(&args.server).await?;
        let volume = client.boot_volume(&server).await?;
        let disk = DiskState {
            capacity: volume.capacity,
            generation: volume.storage_generation,
            operating_system: None,
            resource_group: None,
        };
        if let Some(requested) = &args.volume_profile {
            let profiles = client.volume_profiles().await?;
            if !profiles.iter().any(|profile| profile.name == *requested) {
                let names: Vec<&str> = profiles.iter().map(|profile| profile.name.as_str()).collect();
                let message = format!(
                    "{} has no volume profile {requested:?}; it has {}",
                    cloud.home,
                    names.join(", ")
                );
                return Err(UsageError(message).into());
            }
        }
        let on = converting_server(args, cloud, &client).await?;
        let converter = converter(&client, &on, args.at_a_time.get().into()).await?;
        Ok((forecast(&disk, args.volume_profile.as_deref(), &converter), converter, on.name))
    })?;
    if args.output.json {
        let report = serde_json::json!({ "server": args.server, "on": on, "cores": converter.cores, "forecast": forecast });
        print_json(&report)?;
    } else {
        write(&args.server, &on, &converter, &forecast)?;
    }
    Ok(Code::Done)
}

async fn converting_server(args: &PlanArgs, cloud: &Cloud, client: &RegionClient) -> CommandResult<Instance> {
    if let Some(on) = &args.on {
        return Ok(client.server(on).await?);
    }
    let server = credentials::metadata(&args.cloud.identity)?.instance().await;
    let id = match server {
        Ok(server) => server.id,
        Err(err) => {
            let usage = || {
                UsageError(format!(
                    "which server converts? Give --on SERVER; this one does not know itself ({})",
                    chain(&err)
                ))
            };
            instance_of_cloud_init(Path::new(CLOUD_INIT)).ok_or_else(usage)?
        }
    };
    let missing = || VpcError::missing("server", &id, &cloud.home);
    Ok(client.instance(&InstanceId::new(id.clone())).await?.ok_or_else(missing)?)
}

/// Returns the resources that the server has for the job, by its profile and its own settings.
async fn converter(client: &RegionClient, on: &Instance, at_a_time: u64) -> CommandResult<Converter> {
    let profiles = client.instance_profiles().await?;
    let profile = profiles.into_iter().find(|profile| profile.name == on.profile.name);
    let all = profile.as_ref().and_then(|profile| profile.bandwidth.as_ref()?.usual());
    let volumes = on.total_volume_bandwidth;
    let mut other_volumes = 0;
    for attachment in client
        .attachments(&on.id)
        .await?
        .iter()
        .filter(|attachment| attachment.kind.as_deref() != Some("boot"))
    {
        let Some(attached) = &attachment.volume else { continue };
        if let Some(volume) = client.volume(&attached.id).await? {
            other_volumes += profile_bandwidth(&volume.profile.name, volume.capacity, volume.bandwidth);
        }
    }
    Ok(Converter {
        other_volumes,
        at_a_time,
        // Two if the profile does not report them: the smallest number that makes sense.
        cores: profile.and_then(|profile| profile.vcpu_count?.usual()).unwrap_or(2),
        volume_bandwidth: volumes,
        network_bandwidth: all.map(|all| all.saturating_sub(volumes.unwrap_or_default())),
    })
}

fn write(server: &str, on: &str, converter: &Converter, forecast: &Forecast) -> CommandResult<()> {
    let mut out = printable::out();
    let mbit =
        |known: Option<u64>| known.map_or_else(|| "unknown".to_owned(), |known| format!("{known} Mbit/s"));
    writeln!(
        out,
        "{server}: {} GB, read from a volume of profile {} ({} Mbit/s)",
        forecast.capacity_gb, forecast.volume_profile, forecast.volume_bandwidth
    )?;
    let sharing = if converter.at_a_time > 1 {
        format!(", shared by {} conversions", converter.at_a_time)
    } else {
        String::new()
    };
    writeln!(
        out,
        "on {on}: {} cores, {} for volumes, {} for the network{sharing}",
        converter.cores,
        mbit(converter.volume_bandwidth),
        mbit(converter.network_bandwidth)
    )?;
    if forecast.capacity_gb > LARGEST_IMAGE {
        writeln!(
            out,
            "An image may have {LARGEST_IMAGE} GB: this disk can be carried as an object only (--no-import)."
        )?;
    }
    for phase in &forecast.phases {
        let speed = phase.megabytes_per_second.map_or_else(String::new, |speed| format!("{speed:.0} MB/s, "));
        writeln!(
            out,
            "  {:<22} {:>6.1} min  {speed}limited by {}",
            phase.name,
            phase.minutes,
            phase.limit.description()
        )?;
    }
    writeln!(out, "  {:<22} {:>6.1} min", "all", forecast.minutes)?;
    writeln!(
        out,
        "A volume is filled from its snapshot while it is read; IBM publishes no speed for that, and it may take longer."
    )?;
    Ok(())
}
