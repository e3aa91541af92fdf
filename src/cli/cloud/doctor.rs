//! `snapferry doctor`: checks the environment of the program, and prints one line per check, with a fix if
//! there is one.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use clap::Args as Group;
use serde::Serialize;
use snapferry_base::clock::{SystemClock, rfc3339};
use snapferry_base::identity::TokenSource;
use snapferry_base::retry::{Backoff, chain};
use snapferry_base::units::to_u64;
use snapferry_engine::store::{ObjectKey, ObjectStore};
use snapferry_fleet::queue::examine::Severity;
use snapferry_fleet::replicate::device::BY_ID;
use snapferry_ibmcloud::iam::{CLOUD_INIT, Instance, instance_of_cloud_init};
use snapferry_ibmcloud::vpc::{
    ClientConfig, Crn, Endpoint, ImageFilter, KnownHosts, LogWatch, Policy, RegionClient, SnapshotFilter,
    Tagging, VolumeFilter, VpcError, Waits,
};

use super::{ClientContext, print_json, tagging_config};
use crate::cli::args::{CloudArgs, OutputArgs, QueueArgs, RecoveryArgs, StoreArgs};
use crate::cli::config::{self, ImageDestination, StoreOptions};
use crate::cli::credentials::{self, Identity};
use crate::cli::error::UsageError;
use crate::cli::error::{CommandError, CommandResult};
use crate::cli::exit::{Code, sentence};
use crate::cli::fleet;
use crate::cli::hints::AUTHORIZE;
use crate::cli::printable;
use crate::cli::session::Session;
use crate::cli::signals::Unfinished;

mod copies;
mod network;

/// Largest accepted difference between this machine's clock and the cloud's. Beyond it, tokens and signatures
/// may be refused: S3 allows 15 minutes, IAM less.
const MOST_SKEW: Duration = Duration::from_secs(60);
/// Policy for the requests of this command: few attempts, because the user waits for the whole list.
const HASTY: Policy = Policy {
    connect: Duration::from_secs(5),
    deadline: Duration::from_secs(15),
    budget: Duration::from_secs(20),
    backoff: Backoff { attempts: 3, first: Duration::from_millis(500), longest: Duration::from_secs(2) },
    list_lag: Duration::from_secs(1),
    waits: Waits { interval: None, deadline: Some(Duration::from_secs(20)) },
};

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry doctor\n  snapferry doctor --redis rediss://redis.example:6380 --redis-ca-file ca.pem\n  snapferry doctor --bucket images-us-east --bucket-region us-east --to us-east --json\n  snapferry doctor --bucket images-us-east --copies"
)]
pub struct DoctorArgs {
    /// Folder in which attached volumes turn up
    #[arg(long, default_value = BY_ID, value_name = "FOLDER")]
    pub device_folder: PathBuf,

    /// Try how the bucket copies parts of objects: stores up to 17 MiB there, and removes them
    #[arg(long)]
    pub copies: bool,

    #[command(flatten)]
    pub output: OutputArgs,

    #[command(flatten)]
    pub cloud: CloudArgs,

    #[command(flatten)]
    pub recovery: RecoveryArgs,

    #[command(flatten)]
    pub queue: QueueArgs,
}

/// Word for a severity in the table.
fn label(severity: Severity) -> &'static str {
    match severity {
        Severity::Ok => "ok",
        Severity::Warning => "warning",
        Severity::Failure => "FAILURE",
    }
}

/// One line of the output.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    verdict: Severity,
    details: String,
    fix: Option<String>,
    /// Exit code of the command if this is the first failure.
    #[serde(skip)]
    code: Code,
}

/// Findings in the order of the checks.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, what: &'static str, details: impl Into<String>) {
        self.0.push(Finding {
            what,
            verdict: Severity::Ok,
            details: details.into(),
            fix: None,
            code: Code::Done,
        });
    }

    fn warning(&mut self, what: &'static str, details: impl Into<String>, fix: impl Into<String>) {
        let (details, fix) = (details.into(), Some(fix.into()));
        self.0.push(Finding { what, verdict: Severity::Warning, details, fix, code: Code::Done });
    }

    fn failure(&mut self, what: &'static str, code: Code, details: impl Into<String>, fix: Option<String>) {
        self.0.push(Finding { what, verdict: Severity::Failure, details: details.into(), fix, code });
    }

    /// Adds a failure with the text and the hint that every other command would print for `error`.
    fn failed(&mut self, what: &'static str, code: Code, error: &CommandError) {
        self.failure(what, code, sentence(error), error.hint());
    }
}

pub fn run(args: &DoctorArgs, session: &Session) -> CommandResult<Code> {
    let findings = session.start(Unfinished::Nothing)?.block_on(examine(args, session)).0;
    if args.output.json {
        print_json(&findings)?;
    } else {
        let mut out = printable::out();
        for finding in &findings {
            writeln!(out, "{:8} {:16} {}", label(finding.verdict), finding.what, finding.details)?;
            if let Some(fix) = &finding.fix {
                writeln!(out, "{:25} -> {fix}", "")?;
            }
        }
    }
    let first = findings.iter().find(|finding| finding.verdict == Severity::Failure);
    Ok(first.map_or(Code::Done, |finding| finding.code))
}

async fn examine(args: &DoctorArgs, session: &Session) -> Findings {
    let mut findings = Findings::default();
    network::routes(args, session, &mut findings).await;
    let own = own_server(args, &mut findings).await;
    let tokens = match identity(args, session).await {
        Ok((tokens, details)) => {
            findings.ok("token", details);
            Some(tokens)
        }
        Err(error) => {
            findings.failed("token", Code::Cloud, &error);
            None
        }
    };
    let home = args.cloud.region.clone().or_else(|| own.map(|own| own.region));
    if let Some(tokens) = tokens {
        let context = ClientContext {
            tokens,
            clock: std::sync::Arc::new(SystemClock),
            cancel: session.cancel.clone(),
            watch: std::sync::Arc::new(LogWatch),
            fence: std::sync::Arc::new(snapferry_base::fence::Unfenced),
            known_hosts: KnownHosts::default(),
        };
        match &home {
            Some(home) => region(args, session, &context, home, Side::Home, &mut findings).await,
            None => findings.failure(
                "region",
                Code::Usage,
                "not known",
                Some("give --region, or switch the metadata service on".into()),
            ),
        }
        if let Some(away) = args.recovery.to.as_ref().filter(|to| Some(*to) != home.as_ref()) {
            region(args, session, &context, away, Side::Recovery, &mut findings).await;
        }
    }
    bucket(args, session, &mut findings).await;
    if args.copies {
        copies::check(args, session, &mut findings).await;
    }
    queue(args, session, &mut findings).await;
    machine(&args.device_folder, &mut findings);
    findings
}

/// Checks the fleet's queue, if the user names one.
async fn queue(args: &DoctorArgs, session: &Session, findings: &mut Findings) {
    if args.queue.redis.is_none() {
        return;
    }
    let found = match fleet::examine(&args.queue, &session.environment).await {
        Ok(found) => found,
        Err(error) => return findings.failed("queue", Code::Queue, &error),
    };
    for found in found {
        let (details, fix) = (format!("{}: {}", found.what, found.details), found.fix.unwrap_or_default());
        match found.severity {
            Severity::Ok => findings.ok("queue", details),
            Severity::Warning => findings.warning("queue", details, fix),
            Severity::Failure => findings.failure("queue", Code::Queue, details, Some(fix)),
        }
    }
}

/// Gets a token. Returns its source, and a text with the kind of identity and the expiry.
async fn identity(
    args: &DoctorArgs,
    session: &Session,
) -> CommandResult<(std::sync::Arc<dyn TokenSource>, String)> {
    let identity = Identity::find(&args.cloud.identity, &session.environment)?;
    let token = identity.tokens.token().await?;
    let details = format!("for {}, good until {}", identity.kind(), rfc3339(token.expires));
    Ok((identity.tokens, details))
}

/// Returns the server that this process runs on, as its metadata service reports it. Without that service,
/// only the id that cloud-init left goes into the finding.
async fn own_server(args: &DoctorArgs, findings: &mut Findings) -> Option<Instance> {
    let service = match credentials::metadata(&args.cloud.identity) {
        Ok(service) => service,
        Err(error) => {
            findings.failed("own server", Code::Usage, &error);
            return None;
        }
    };
    const FIX: &str = "switch it on: `ibmcloud is instance-update SERVER --metadata-service true`; \
                       it is needed for trusted profiles and to know this server's region";
    match service.instance().await {
        Ok(server) => {
            findings.ok(
                "own server",
                format!("{} ({}) in {}, by the metadata service", server.name, server.id, server.zone),
            );
            Some(server)
        }
        Err(error) => {
            let details = match instance_of_cloud_init(Path::new(CLOUD_INIT)) {
                Some(id) => format!("{id}, by cloud-init; {}", chain(&error)),
                None => chain(&error),
            };
            findings.warning("own server", details, FIX);
            None
        }
    }
}

/// Role of a region in a replication.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Home,
    Recovery,
}

async fn region(
    args: &DoctorArgs,
    session: &Session,
    context: &ClientContext,
    name: &str,
    side: Side,
    findings: &mut Findings,
) {
    let config = ClientConfig {
        region: name.to_owned(),
        endpoint: Endpoint::parse(&args.cloud.vpc_endpoint),
        ca_file: args.cloud.identity.ca_file.clone(),
        proxies: session.environment.proxies(),
        policy: HASTY,
    };
    let client = match RegionClient::new(config, context.clone()) {
        Ok(client) => client,
        Err(error) => return findings.failed("region", Code::Usage, &error.into()),
    };
    match client.server_time().await {
        Ok(remote) => {
            findings.ok("region", format!("{name} answers at {}", client.base()));
            clock(remote, findings);
        }
        Err(error) => return findings.failed("region", Code::Cloud, &error.into()),
    }
    let mut rights = |what: &'static str, read: Result<usize, VpcError>| match read {
        Ok(count) => findings.ok(what, format!("may be listed in {name}: {count}")),
        Err(error) => findings.failed(what, Code::Cloud, &error.into()),
    };
    if side == Side::Home {
        let servers = client.instances().await;
        let any = servers.as_ref().ok().and_then(|all| all.first()).map(|server| server.crn.clone());
        rights("servers", servers.map(|all| all.len()));
        if let Some(any) = any {
            rights("tags", tags(args, session, context, &any).await);
        }
        rights("volumes", client.volumes(&VolumeFilter::default()).await.map(|all| all.len()));
        rights("snapshots", client.snapshots(&SnapshotFilter::default()).await.map(|all| all.len()));
    }
    let images = client.images(&ImageFilter::default()).await;
    let imported = images.as_ref().is_ok_and(|images| images.iter().any(|image| image.sha256().is_some()));
    rights("images", images.map(|all| all.len()));
    rights("OS names", client.operating_systems().await.map(|all| all.len()));
    let target = args.recovery.to.as_deref().unwrap_or(name);
    if name == target {
        if imported {
            findings.ok("image service", format!("has imported an image into {name} before"));
        } else {
            let details = "whether it may read the bucket shows when an image is imported, and not before";
            findings.warning("image service", details, format!("if it was not done yet: {AUTHORIZE}"));
        }
    }
}

/// Counts the tags of `any`, an existing resource, to try Global Tagging, which has an address of its own.
async fn tags(
    args: &DoctorArgs,
    session: &Session,
    context: &ClientContext,
    any: &Crn,
) -> Result<usize, VpcError> {
    let config = tagging_config(&args.cloud, HASTY, session.environment.proxies());
    let tagging = Tagging::new(&config, context.clone())?;
    Ok(tagging.tags(any).await?.len())
}

fn clock(remote: Option<SystemTime>, findings: &mut Findings) {
    let Some(remote) = remote else { return };
    let local = SystemTime::now();
    let skew = local.duration_since(remote).or_else(|_| remote.duration_since(local)).unwrap_or_default();
    if skew <= MOST_SKEW {
        findings.ok("clock", format!("{} s from the cloud's", skew.as_secs()));
    } else {
        let details = format!("{} s from the cloud's: tokens and signatures may be refused", skew.as_secs());
        findings.failure(
            "clock",
            Code::Unexpected,
            details,
            Some("set it: `timedatectl set-ntp true`".into()),
        );
    }
}

async fn bucket(args: &DoctorArgs, session: &Session, findings: &mut Findings) {
    let Some(bucket) = &args.recovery.bucket else {
        return findings.warning("bucket", "none named", "give --bucket NAME to try it");
    };
    match probe(args, bucket, session).await {
        Ok(()) => findings.ok("bucket", format!("{bucket} takes an object, gives it back and lets it go")),
        Err(error) => findings.failed("bucket", Code::Store, &error),
    }
}

/// Returns the arguments for the bucket's store.
fn store_args(args: &DoctorArgs) -> StoreArgs {
    let store = args.recovery.store(&args.cloud.identity);
    StoreArgs { region: store.region.or_else(|| args.cloud.region.clone()), ..store }
}

/// Writes a small object, reads it, and removes it, even if writing or reading failed.
async fn probe(args: &DoctorArgs, bucket: &str, session: &Session) -> CommandResult<()> {
    let store = store_args(args);
    let key = ObjectKey::new(&format!("snapferry-doctor-{:016x}", rand::random::<u64>()))
        .map_err(|error| UsageError(error.to_string()))?;
    let destination = ImageDestination::Bucket { bucket: bucket.to_owned(), key: key.clone() };
    let store = config::open_store(
        &destination,
        &store,
        &StoreOptions::plain(1, &session.cancel, &session.environment),
    )?;
    let text = Bytes::from_static(b"a probe of snapferry doctor; it may be removed\n");
    let tried = try_object(&*store, &key, &text).await;
    let removed = store.delete(&key).await;
    tried?;
    Ok(removed?)
}

async fn try_object(store: &dyn ObjectStore, key: &ObjectKey, text: &Bytes) -> CommandResult<()> {
    store.put(key, text.clone()).await?;
    let read = store.get_range(key, 0..to_u64(text.len()), None).await?;
    if read == *text {
        Ok(())
    } else {
        Err(CommandError::Failed("the object came back with other bytes".into()))
    }
}

/// Checks this machine: the folder of devices, the rights and the tools.
fn machine(folder: &Path, findings: &mut Findings) {
    match std::fs::read_dir(folder) {
        Ok(_) => findings.ok("device folder", format!("{}", folder.display())),
        Err(error) if folder == Path::new(BY_ID) && error.kind() == std::io::ErrorKind::NotFound => {
            let fix = "udev makes it with the first disk that has a serial number; a server of IBM Cloud VPC has it";
            findings.warning("device folder", format!("{}: {error}", folder.display()), fix);
        }
        Err(error) => {
            let fix = Some("give the right one: --device-folder".to_owned());
            findings.failure("device folder", Code::Source, format!("{}: {error}", folder.display()), fix);
        }
    }
    if rustix::process::geteuid().is_root() {
        findings.ok("rights", "root: any device can be read");
    } else {
        let fix = "run as root, or join the group that owns the devices (often \"disk\")";
        findings.warning("rights", "not root: devices may be closed to us", fix);
    }
    for (tool, use_) in [("lsblk", "shows what is on a disk"), ("qemu-img", "reads what is not ours")] {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let is_installed = std::env::split_paths(&path).any(|folder| folder.join(tool).is_file());
        match is_installed {
            true => findings.ok("tools", tool),
            false => {
                findings.warning(
                    "tools",
                    format!("there is no {tool}"),
                    format!("not needed, but it {use_}"),
                );
            }
        }
    }
}
