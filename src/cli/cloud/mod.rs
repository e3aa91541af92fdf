//! Commands on the cloud: what is there, and small changes to it.

use crate::cli::error::CommandResult;
use crate::cli::args::{CloudArgs, OutputArgs};
use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use snapferry_base::cancel::Cancel;
use snapferry_base::clock::SystemClock;
use snapferry_base::fence::{Fence, Unfenced};
use snapferry_ibmcloud::vpc::{
    ClientConfig, Endpoint, GLOBAL_TAGGING, Heard, LogWatch, Means, PRIVATE_TAGGING, Policy, RegionClient,
    Tagging, TaggingConfig, Waits, Watch,
};

use super::credentials::{self, Identity};
use super::error::UsageError;
use super::print_json;
use super::session::Session;
use super::signals::Left;
use crate::cli::foreign;

pub mod boot_volume;
pub mod doctor;
pub mod images;
pub mod provision;
pub mod snapshot;

/// The cloud as a command sees it: one region at a time, one identity.
#[derive(Clone)]
pub struct Cloud {
    args: CloudArgs,
    identity: Identity,
    means: Means,
    policy: Policy,
    /// The region that is meant where none is named.
    pub home: String,
}

/// What a job's requests go by.
pub struct Terms {
    /// The word to stop.
    pub cancel: Cancel,
    /// Told what is waited for.
    pub watch: Arc<dyn Watch>,
    /// Asked before anything is changed.
    pub fence: Arc<dyn Fence>,
    /// How long one answer is waited for, where it is not as usual.
    pub deadline: Option<Duration>,
}

impl Terms {
    /// Those of a process that has its jobs to itself.
    pub fn alone(cancel: &Cancel, watch: &Arc<dyn Watch>) -> Self {
        Self { cancel: cancel.clone(), watch: Arc::clone(watch), fence: Arc::new(Unfenced), deadline: None }
    }
}

/// Runs a command on the cloud: with a runtime, and the word to stop.
pub fn run<T>(args: &CloudArgs, session: &Session, work: impl AsyncFnOnce(&Cloud) -> CommandResult<T>) -> CommandResult<T> {
    run_leaving(args, session, Left::Nothing, work)
}

/// The same for a command that leaves something behind if it is not let end.
pub fn run_leaving<T>(
    args: &CloudArgs,
    session: &Session,
    left: Left,
    work: impl AsyncFnOnce(&Cloud) -> CommandResult<T>,
) -> CommandResult<T> {
    session.start(left)?.block_on(async {
        let cloud = Cloud::open(args, session).await?;
        work(&cloud).await
    })
}

impl Cloud {
    async fn open(args: &CloudArgs, session: &Session) -> CommandResult<Self> {
        let identity = Identity::find(&args.identity, &session.environment)?;
        let means = Means {
            tokens: Arc::clone(&identity.tokens),
            clock: Arc::new(SystemClock),
            cancel: session.cancel.clone(),
            watch: Arc::new(LogWatch),
            fence: Arc::new(Unfenced),
            heard: Heard::default(),
        };
        let home = home_region(args).await?;
        Ok(Self { args: args.clone(), identity, means, policy: Policy::default(), home })
    }

    /// The same cloud for one job.
    pub fn on(&self, terms: &Terms) -> Self {
        let means = Means {
            cancel: terms.cancel.clone(),
            watch: Arc::clone(&terms.watch),
            fence: Arc::clone(&terms.fence),
            ..self.means.clone()
        };
        let deadline = terms.deadline.unwrap_or(self.policy.deadline);
        Self { means, policy: Policy { deadline, ..self.policy }, ..self.clone() }
    }

    /// The same cloud, which is waited for as the user wants.
    pub fn waiting(&self, waits: Waits) -> Self {
        Self { policy: Policy { waits, ..self.policy }, ..self.clone() }
    }

    /// Who we are.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The word to stop.
    pub fn cancel(&self) -> &Cancel {
        &self.means.cancel
    }

    /// The API of a region.
    pub fn region(&self, region: &str) -> CommandResult<RegionClient> {
        let config = ClientConfig {
            region: region.to_owned(),
            endpoint: Endpoint::parse(&self.args.vpc_endpoint),
            ca_file: self.args.identity.ca_file.clone(),
            policy: self.policy,
        };
        Ok(RegionClient::new(config, self.means.clone())?)
    }

    /// Global Tagging, which has no regions.
    pub fn tagging(&self) -> CommandResult<Tagging> {
        let config = tagging_config(&self.args, self.policy);
        Ok(Tagging::new(&config, self.means.clone())?)
    }

    /// The API of the region that is meant where none is named.
    pub fn client(&self) -> CommandResult<RegionClient> {
        self.region(&self.home)
    }
}

/// Where Global Tagging is: named, or beside the VPC API, publicly or privately.
fn tagging_config(args: &CloudArgs, policy: Policy) -> TaggingConfig {
    let beside = match Endpoint::parse(&args.vpc_endpoint) {
        Endpoint::Private => PRIVATE_TAGGING,
        Endpoint::Public | Endpoint::Template(_) => GLOBAL_TAGGING,
    };
    let endpoint = args.tagging_endpoint.clone().unwrap_or_else(|| beside.to_owned());
    TaggingConfig { endpoint, ca_file: args.identity.ca_file.clone(), policy }
}

/// The region that is meant where none is named.
pub async fn home_region(args: &CloudArgs) -> CommandResult<String> {
    match &args.region {
        Some(region) => Ok(region.clone()),
        None => own_region(args).await,
    }
}

/// Where we run.
async fn own_region(args: &CloudArgs) -> CommandResult<String> {
    let own = credentials::metadata(&args.identity)?.instance().await;
    own.map(|own| own.region).map_err(|err| {
        tracing::debug!("{}", snapferry_base::retry::chain(&err));
        // One that is on and fails may answer the next time.
        if err.class().is_retryable() {
            return err.into();
        }
        let why = "which region? Give --region (this server's own is known only where its instance metadata service is on)";
        UsageError(why.to_owned()).into()
    })
}

/// What would be done without `--dry-run`: a line for people, an object for programs.
fn would(output: OutputArgs, words: std::fmt::Arguments<'_>) -> CommandResult<()> {
    if output.json {
        return print_json(&serde_json::json!({ "dry_run": true, "would": words.to_string() }));
    }
    Ok(say(format_args!("would {words}"))?)
}

/// What was done, for people.
fn say(words: std::fmt::Arguments<'_>) -> io::Result<()> {
    writeln!(foreign::out(), "{words}")
}
