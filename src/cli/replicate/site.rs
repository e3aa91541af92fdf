//! Context of a job, made from the arguments: this server, both regions, the bucket, the state folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use snapferry_base::cancel::Cancel;
use snapferry_base::clock::SystemClock;
use snapferry_base::fence::{Fence, Unfenced};
use snapferry_base::retry::chain;
use snapferry_engine::store::{ObjectKey, ObjectStore};
use snapferry_fleet::replicate::device::{DeviceFolder, DeviceKind, UDEV_LAG};
use snapferry_fleet::replicate::{Age, JobContext, JobSpec, OwnServer, ServerLocks, SnapshotHold, Waits};
use snapferry_ibmcloud::iam::{CLOUD_INIT, instance_of_cloud_init, region_of_zone};
use snapferry_ibmcloud::vpc::{InstanceId, VpcError};
use tokio::sync::Semaphore;

use crate::cli::args::{CloudArgs, PlaceArgs, RecoveryArgs, StoreArgs};
use crate::cli::cloud::{Cloud, RequestContext};
use crate::cli::config::{self, ImageDestination, StoreOptions};
use crate::cli::credentials;
use crate::cli::environment::Environment;
use crate::cli::error::CommandResult;
use crate::cli::error::UsageError;
use crate::cli::session::Session;

/// Parallel requests to the store: as many as a conversion has in flight by default.
const CONNECTIONS: usize = 6;

/// Everything that the context of a job is made from, except the job.
pub struct SiteArgs<'a> {
    pub cloud_args: &'a CloudArgs,
    pub recovery: &'a RecoveryArgs,
    pub place: &'a PlaceArgs,
    pub session: &'a Session,
}

/// Returns the folder of the journals.
pub fn state_folder(place: &PlaceArgs, environment: &Environment) -> PathBuf {
    if let Some(folder) = &place.state_folder {
        return folder.clone();
    }
    // systemd sets this variable, with StateDirectory=.
    if let Some(folder) = environment.get("STATE_DIRECTORY") {
        return folder.split(':').next().unwrap_or(folder).into();
    }
    if rustix::process::geteuid().is_root() {
        return "/var/lib/snapferry".into();
    }
    match (environment.get("XDG_STATE_HOME"), environment.get("HOME")) {
        (Some(state), _) => Path::new(state).join("snapferry"),
        (None, Some(home)) => Path::new(home).join(".local/state/snapferry"),
        (None, None) => std::env::temp_dir().join("snapferry"),
    }
}

pub fn waits(place: &PlaceArgs) -> Waits {
    Waits { interval: place.poll_every, deadline: place.wait_at_most.map(|Age(length)| length) }
}

/// Returns the locks by which the processes of this machine take turns to attach volumes to servers, and to
/// detach them.
pub fn turns(place: &PlaceArgs, environment: &Environment) -> ServerLocks {
    ServerLocks::new(state_folder(place, environment).join("servers"))
}

/// Returns the bucket, which the user has to name.
pub fn bucket(recovery: &RecoveryArgs) -> Result<&str, UsageError> {
    recovery
        .bucket
        .as_deref()
        .ok_or_else(|| UsageError("which bucket is the image to pass through? Give --bucket".into()))
}

/// Returns the recovery region, which the user has to name.
pub fn recovery_region(recovery: &RecoveryArgs) -> Result<&str, UsageError> {
    recovery.to.as_deref().ok_or_else(|| UsageError("which region is the image for? Give --to".into()))
}

impl SiteArgs<'_> {
    /// Returns the server that this process runs on.
    pub async fn own(&self, cloud: &Cloud) -> CommandResult<OwnServer> {
        let id = match &self.place.instance {
            Some(id) => id.clone(),
            None => match credentials::metadata(&self.cloud_args.identity)?.instance().await {
                Ok(own) => {
                    let id = InstanceId::new(own.id);
                    return Ok(OwnServer { id, name: own.name, zone: own.zone, region: own.region });
                }
                Err(err) => {
                    tracing::debug!("{}", chain(&err));
                    let message = "this server's id is not known, and volumes are attached to it: switch its metadata service on \
                               (`ibmcloud is instance-update SERVER --metadata-service true`), or give --instance ID";
                    instance_of_cloud_init(Path::new(CLOUD_INIT))
                        .ok_or_else(|| UsageError(message.to_owned()))?
                }
            },
        };
        let client = cloud.client()?;
        let missing = || VpcError::missing("server", &id, &cloud.home);
        let own = client.instance(&InstanceId::new(id.clone())).await?.ok_or_else(missing)?;
        let region = region_of_zone(&own.zone.name).unwrap_or(&cloud.home).to_owned();
        Ok(OwnServer { id: own.id, name: own.name, zone: own.zone.name, region })
    }

    /// Opens the bucket that the user named. The store stops when the cloud's requests are cancelled.
    pub fn store(&self, bucket: &str, cloud: &Cloud) -> CommandResult<Arc<dyn ObjectStore>> {
        self.open(bucket, cloud, None, self.recovery.store(&self.cloud_args.identity))
    }

    /// Opens a job's bucket with the settings that the job keeps, so that the user who resumes it need not
    /// repeat them.
    fn store_of(
        &self,
        job: &JobSpec,
        cloud: &Cloud,
        fence: &Arc<dyn Fence>,
    ) -> CommandResult<Arc<dyn ObjectStore>> {
        let typed = self.recovery.store(&self.cloud_args.identity);
        let region = job.bucket_region.clone().or(typed.region).or_else(|| Some(job.to.clone()));
        let endpoint = typed.endpoint.or_else(|| job.endpoint.clone());
        let requirements = typed.requirements.clone().or_of_job(&job.bucket_options).map_err(UsageError)?;
        self.open(&job.bucket, cloud, Some(fence), StoreArgs { region, endpoint, requirements, ..typed })
    }

    /// Opens a bucket. If there is a `fence`, it is checked before each change.
    fn open(
        &self,
        bucket: &str,
        cloud: &Cloud,
        fence: Option<&Arc<dyn Fence>>,
        args: StoreArgs,
    ) -> CommandResult<Arc<dyn ObjectStore>> {
        let key = ObjectKey::new("snapferry").map_err(|error| UsageError(error.to_string()))?;
        let destination = ImageDestination::Bucket { bucket: bucket.to_owned(), key };
        let options = StoreOptions {
            fence,
            identity: Some(cloud.identity()),
            ..StoreOptions::plain(CONNECTIONS, cloud.cancel(), &self.session.environment)
        };
        config::open_store(&destination, &args, &options)
    }

    /// Makes the context of a job, with the request settings `request_context`. The job has its turn to
    /// convert for itself, unless the caller replaces it by a shared one.
    pub fn site(
        &self,
        cloud: &Cloud,
        job: &JobSpec,
        own: &OwnServer,
        request_context: &RequestContext,
    ) -> CommandResult<JobContext> {
        let waiting = cloud.waiting(waits(self.place));
        // The hold is looked up by a client that no fence stops.
        let hold_context = RequestContext {
            fence: Arc::new(Unfenced),
            cancel: Cancel::new(),
            watch: Arc::clone(&request_context.watch),
            ..*request_context
        };
        let home = waiting.on(&hold_context).region(&job.from)?;
        let hold = Arc::new(SnapshotHold::new(
            &own.name,
            Some(home),
            Arc::clone(&request_context.fence),
            Arc::new(SystemClock),
        ));
        let fence: Arc<dyn Fence> = Arc::<SnapshotHold>::clone(&hold);
        let request_context = &RequestContext {
            fence,
            cancel: request_context.cancel.clone(),
            watch: Arc::clone(&request_context.watch),
            ..*request_context
        };
        let cloud = waiting.on(request_context);
        let device_kind = if self.place.device_files { DeviceKind::DeviceOrFile } else { DeviceKind::Device };
        Ok(JobContext {
            own: own.clone(),
            home: cloud.region(&job.from)?,
            away: cloud.region(&job.to)?,
            tagging: cloud.tagging()?,
            store: self.store_of(job, &cloud, &request_context.fence)?,
            devices: DeviceFolder {
                folder: self.place.device_folder.clone(),
                device_kind,
                deadline: waits(self.place).deadline.unwrap_or(UDEV_LAG),
            },
            clock: Arc::new(SystemClock),
            cancel: request_context.cancel.clone(),
            volume_permits: Arc::new(Semaphore::new(1)),
            runtime: tokio::runtime::Handle::current(),
            waits: waits(self.place),
            hold,
            server_locks: turns(self.place, &self.session.environment),
        })
    }
}
