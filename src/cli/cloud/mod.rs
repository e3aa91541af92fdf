//! Commands on cloud resources: lists of them, and small changes.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use snapferry_base::cancel::Cancel;
use snapferry_base::clock::SystemClock;
use snapferry_base::fence::{Fence, Unfenced};
use snapferry_base::proxy::Proxies;
use snapferry_ibmcloud::vpc::{
    ClientConfig, ClientContext, Endpoint, GLOBAL_TAGGING, KnownHosts, LogWatch, PRIVATE_TAGGING, Policy,
    RegionClient, Tagging, TaggingConfig, Waits, Watch,
};

use super::credentials::{self, Identity};
use super::error::UsageError;
use super::print_json;
use super::session::Session;
use super::signals::Unfinished;
use crate::cli::args::CloudArgs;
use crate::cli::error::CommandResult;
use crate::cli::printable;

pub mod boot_volume;
pub mod doctor;
pub mod images;
pub mod provision;
pub mod snapshot;

/// Access to the cloud for one command: one identity, and a client for one region at a time.
#[derive(Clone)]
pub struct Cloud {
    args: CloudArgs,
    identity: Identity,
    context: ClientContext,
    policy: Policy,
    proxies: Proxies,
    /// Region that is used if the user names none.
    pub home: String,
}

/// Settings for the requests that one job makes.
pub struct RequestContext {
    pub cancel: Cancel,
    /// Observer of waits and responses.
    pub watch: Arc<dyn Watch>,
    /// Check before each change.
    pub fence: Arc<dyn Fence>,
    /// Time limit for one request, if it is not the default.
    pub deadline: Option<Duration>,
}

impl RequestContext {
    /// Returns the settings for a process that shares its jobs with no other: no fence, and the default
    /// deadline.
    pub fn alone(cancel: &Cancel, watch: &Arc<dyn Watch>) -> Self {
        Self { cancel: cancel.clone(), watch: Arc::clone(watch), fence: Arc::new(Unfenced), deadline: None }
    }
}

/// Runs `work` in a runtime, with access to the cloud; a signal to stop cancels it.
pub fn run<T>(
    args: &CloudArgs,
    session: &Session,
    work: impl AsyncFnOnce(&Cloud) -> CommandResult<T>,
) -> CommandResult<T> {
    run_leaving(args, session, Unfinished::Nothing, work)
}

/// Runs `work` as [`run`] does, for a command that leaves `unfinished` behind if it is interrupted.
pub fn run_leaving<T>(
    args: &CloudArgs,
    session: &Session,
    unfinished: Unfinished,
    work: impl AsyncFnOnce(&Cloud) -> CommandResult<T>,
) -> CommandResult<T> {
    session.start(unfinished)?.block_on(async {
        let cloud = Cloud::open(args, session).await?;
        work(&cloud).await
    })
}

impl Cloud {
    async fn open(args: &CloudArgs, session: &Session) -> CommandResult<Self> {
        let identity = Identity::find(&args.identity, &session.environment)?;
        let context = ClientContext {
            tokens: Arc::clone(&identity.tokens),
            clock: Arc::new(SystemClock),
            cancel: session.cancel.clone(),
            watch: Arc::new(LogWatch),
            fence: Arc::new(Unfenced),
            known_hosts: KnownHosts::default(),
        };
        let home = home_region(args).await?;
        let proxies = session.environment.proxies();
        Ok(Self { args: args.clone(), identity, context, policy: Policy::default(), proxies, home })
    }

    /// Returns the same cloud with the settings of one job.
    pub fn on(&self, request_context: &RequestContext) -> Self {
        let context = ClientContext {
            cancel: request_context.cancel.clone(),
            watch: Arc::clone(&request_context.watch),
            fence: Arc::clone(&request_context.fence),
            ..self.context.clone()
        };
        let deadline = request_context.deadline.unwrap_or(self.policy.deadline);
        Self { context, policy: Policy { deadline, ..self.policy }, ..self.clone() }
    }

    /// Returns the same cloud with the waiting times that the user gave.
    pub fn waiting(&self, waits: Waits) -> Self {
        Self { policy: Policy { waits, ..self.policy }, ..self.clone() }
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub fn cancel(&self) -> &Cancel {
        &self.context.cancel
    }

    /// Returns a client for the VPC API of a region.
    pub fn region(&self, region: &str) -> CommandResult<RegionClient> {
        let config = ClientConfig {
            region: region.to_owned(),
            endpoint: Endpoint::parse(&self.args.vpc_endpoint),
            ca_file: self.args.identity.ca_file.clone(),
            proxies: self.proxies.clone(),
            policy: self.policy,
        };
        Ok(RegionClient::new(config, self.context.clone())?)
    }

    /// Returns a client for Global Tagging, which has no regions.
    pub fn tagging(&self) -> CommandResult<Tagging> {
        let config = tagging_config(&self.args, self.policy, self.proxies.clone());
        Ok(Tagging::new(&config, self.context.clone())?)
    }

    /// Returns a client for the VPC API of the home region.
    pub fn client(&self) -> CommandResult<RegionClient> {
        self.region(&self.home)
    }
}

/// Returns the configuration of Global Tagging. Its endpoint is the one that the user named, or else the
/// public or private one, to match that of the VPC API.
fn tagging_config(args: &CloudArgs, policy: Policy, proxies: Proxies) -> TaggingConfig {
    let default_endpoint = match Endpoint::parse(&args.vpc_endpoint) {
        Endpoint::Private => PRIVATE_TAGGING,
        Endpoint::Public | Endpoint::Template(_) => GLOBAL_TAGGING,
    };
    let endpoint = args.tagging_endpoint.clone().unwrap_or_else(|| default_endpoint.to_owned());
    TaggingConfig { endpoint, ca_file: args.identity.ca_file.clone(), proxies, policy }
}

/// Returns the region that the user named, or else the region that this server runs in.
pub async fn home_region(args: &CloudArgs) -> CommandResult<String> {
    match &args.region {
        Some(region) => Ok(region.clone()),
        None => own_region(args).await,
    }
}

/// Reads the region of this server from its metadata service.
async fn own_region(args: &CloudArgs) -> CommandResult<String> {
    let server = credentials::metadata(&args.identity)?.instance().await;
    server.map(|server| server.region).map_err(|err| {
        tracing::debug!("{}", snapferry_base::retry::chain(&err));
        // A metadata service that is on and fails may answer the next time.
        if err.class().is_retryable() {
            return err.into();
        }
        let message = "which region? Give --region (this server's own is known only where its instance metadata service is on)";
        UsageError(message.to_owned()).into()
    })
}

/// Prints a line of text on stdout.
fn print_line(text: std::fmt::Arguments<'_>) -> io::Result<()> {
    writeln!(printable::out(), "{text}")
}
