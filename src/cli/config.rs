//! Configuration of the layers below, made from arguments and environment.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use snapferry_base::cancel::Cancel;
use snapferry_base::clock::{Clock, SystemClock, compact};
use snapferry_base::fence::Fence;
use snapferry_base::retry::Backoff;
use snapferry_base::units::ByteCount;
use snapferry_engine::store::Location;
use snapferry_engine::store::{FencedStore, FolderStore, Limited, ObjectKey, ObjectStore, Pace, Retrying};
use snapferry_s3::{Auth, S3Config, S3Store};

use super::credentials::{self, Credentials, Identity};
use super::error::UsageError;
use crate::cli::args::{DestinationArgs, StoreArgs};
use crate::cli::environment::Environment;
use crate::cli::error::CommandResult;

/// Name and place of an image to be written. Nothing is opened or created for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageDestination {
    Bucket {
        bucket: String,
        key: ObjectKey,
    },
    /// File, with the key that it has in its folder's store.
    File {
        path: PathBuf,
        key: ObjectKey,
    },
}

impl ImageDestination {
    /// Resolves the arguments; `device`, `host` and `now` make the default key.
    pub fn resolve(
        args: &DestinationArgs,
        device: &Path,
        host: &str,
        now: SystemTime,
    ) -> CommandResult<Self> {
        if let Some(output) = &args.output {
            return Self::file(output);
        }
        let bucket =
            args.bucket.clone().ok_or_else(|| UsageError("give --bucket NAME or --output FILE".into()))?;
        let key = args.key.clone().unwrap_or_else(|| default_key(device, host, now));
        let key = ObjectKey::of_image(&key).map_err(|error| UsageError(error.to_string()))?;
        if !key.as_str().ends_with(".qcow2") {
            tracing::warn!(%key, "IBM Cloud imports images only under names that end in .qcow2, in lower case");
        }
        Ok(Self::Bucket { bucket, key })
    }

    /// Returns the destination of a file.
    pub fn file(output: &Path) -> CommandResult<Self> {
        if output.as_os_str() == "-" {
            return Err(UsageError(
                "--output - is not possible: the image's header is known last, and a pipe can't go back to it; give a file, or --bucket".into(),
            )
            .into());
        }
        let invalid = || UsageError(format!("--output {} does not name a file", output.display()));
        // A symbolic link stays; the file that it points to is replaced.
        let link_target = output.is_symlink().then(|| std::fs::canonicalize(output).ok()).flatten();
        let output = link_target.as_deref().unwrap_or(output);
        let (store, key) = FolderStore::of(output).ok_or_else(invalid)?;
        Ok(Self::File { path: store.path(&key), key })
    }

    pub fn key(&self) -> &ObjectKey {
        match self {
            Self::Bucket { key, .. } | Self::File { key, .. } => key,
        }
    }

    pub fn location(&self) -> Location {
        match self {
            Self::Bucket { .. } => Location::Bucket,
            Self::File { .. } => Location::File,
        }
    }

    /// Returns the image's URL or path for messages, as its store writes it.
    pub fn url(&self) -> String {
        match self {
            Self::Bucket { bucket, key } => format!("s3://{bucket}/{key}"),
            Self::File { path, .. } => path.display().to_string(),
        }
    }

    /// Checks that the manifest can be written beside a local image. The image itself needs no check here:
    /// starting its upload fails before anything is read.
    pub fn check_manifest(&self) -> CommandResult<()> {
        match self {
            Self::Bucket { .. } => Ok(()),
            Self::File { path, key } => Ok(folder(path)?.check(&key.manifest())?),
        }
    }

    /// Returns the path of a local image.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Bucket { .. } => None,
            Self::File { path, .. } => Some(path.clone()),
        }
    }
}

/// Returns the folder of a file as a store.
fn folder(path: &Path) -> Result<FolderStore, UsageError> {
    FolderStore::of(path)
        .map(|(store, _)| store)
        .ok_or_else(|| UsageError(format!("{} does not name a file", path.display())))
}

/// Returns `<host>-<device>-<UTC yyyymmddhhmmss>.qcow2`, with nothing but letters, digits, dots and dashes.
fn default_key(device: &Path, host: &str, now: SystemTime) -> String {
    format!("{}{}.qcow2", default_key_prefix(device, host), compact(now))
}

/// Returns the front that all default keys of a device have: `<host>-<device>-`.
pub fn default_key_prefix(device: &Path, host: &str) -> String {
    let device = device.file_stem().map_or("disk".into(), |name| name.to_string_lossy());
    let clean = |text: &str| {
        text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect::<String>()
    };
    format!("{}-{}-", clean(host), clean(&device))
}

/// Returns the host name of this machine.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Options for [`open_store`].
pub struct StoreOptions<'a> {
    /// Highest upload rate, in bytes per second.
    pub limit: Option<ByteCount>,
    /// Highest number of requests at once.
    pub connections: usize,
    /// Cancels the store's requests and retries.
    pub cancel: &'a Cancel,
    /// Checked before each change in the store.
    pub fence: Option<&'a Arc<dyn Fence>>,
    /// Identity whose tokens are reused if the store has the same credentials.
    pub identity: Option<&'a Identity>,
    /// Source of keys and endpoints that the arguments leave open.
    pub environment: &'a Environment,
}

impl<'a> StoreOptions<'a> {
    /// Returns options without a rate limit, a fence or an identity to share.
    pub fn plain(connections: usize, cancel: &'a Cancel, environment: &'a Environment) -> Self {
        Self { limit: None, connections, cancel, fence: None, identity: None, environment }
    }
}

/// Opens the store of the image, with its decorators: each attempt counts against the rate limit, failures
/// are retried, and throttling halves the number of requests in flight. With a fence, each attempt to change
/// something checks the fence first.
pub fn open_store(
    destination: &ImageDestination,
    args: &StoreArgs,
    options: &StoreOptions<'_>,
) -> CommandResult<Arc<dyn ObjectStore>> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let bare: Arc<dyn ObjectStore> = match destination {
        ImageDestination::Bucket { bucket, .. } => {
            Arc::new(S3Store::connect(s3_config(bucket, args, options.environment, options.identity)?)?)
        }
        ImageDestination::File { path, .. } => Arc::new(folder(path)?),
    };
    let limited: Arc<dyn ObjectStore> = match options.limit {
        Some(rate) if rate.0 == 0 => {
            return Err(UsageError("--limit 0 would never send a byte".into()).into());
        }
        Some(rate) => Arc::new(Limited::new(bare, rate, Arc::clone(&clock))),
        None => bare,
    };
    let fenced: Arc<dyn ObjectStore> = match options.fence {
        Some(fence) => Arc::new(FencedStore::new(limited, Arc::clone(fence))),
        None => limited,
    };
    Ok(Arc::new(Retrying::new(
        fenced,
        clock,
        options.cancel.clone(),
        Pace::new(options.connections),
        Backoff::STORE,
    )))
}

/// Returns the configuration of the S3 client.
pub fn s3_config(
    bucket: &str,
    args: &StoreArgs,
    environment: &Environment,
    identity: Option<&Identity>,
) -> CommandResult<S3Config> {
    let region = region_of(args, environment);
    let endpoint = endpoint_of(args, environment)?;
    let auth = match credentials::find(args, environment)? {
        Credentials::Hmac { access_key, secret_key, session_token } => {
            Auth::Hmac { access_key, secret_key, session_token }
        }
        found => Auth::Bearer(match identity.filter(|identity| identity.is(&found)) {
            Some(identity) => Arc::clone(&identity.tokens),
            None => credentials::token_source(&found, &args.identity, environment)?,
        }),
    };
    // Stores other than IBM's and Amazon's rarely check the region, and accept this one.
    let config = S3Config::new(&endpoint, region.unwrap_or("us-east-1"), bucket, auth);
    let proxies = environment.proxies();
    // A wrong address of a proxy is a fault of the configuration, not of the store.
    if let Ok(address) = endpoint.parse() {
        proxies.route(&address).map_err(|error| UsageError(error.to_string()))?;
    }
    Ok(S3Config {
        ca_file: args.identity.ca_file.clone(),
        proxies,
        addressing: args.requirements.addressing.unwrap_or_default(),
        requirements: args.requirements.headers(),
        ..config
    })
}

fn of_aws<'a>(names: &[&str], environment: &'a Environment) -> Option<&'a str> {
    names.iter().find_map(|name| environment.get(name))
}

fn region_of<'a>(args: &'a StoreArgs, environment: &'a Environment) -> Option<&'a str> {
    args.region.as_deref().or_else(|| of_aws(&["AWS_REGION", "AWS_DEFAULT_REGION"], environment))
}

/// Returns the address of the store that the user named.
pub fn endpoint_of(args: &StoreArgs, environment: &Environment) -> CommandResult<String> {
    let of_environment = || of_aws(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"], environment);
    let requested = args.endpoint.as_deref().or_else(of_environment);
    endpoint(requested.unwrap_or("direct"), region_of(args, environment))
}

/// Returns a URL as it is, or IBM COS' own endpoint of the kind and region (IBM's documentation, "Endpoints
/// and storage locations").
fn endpoint(requested: &str, region: Option<&str>) -> CommandResult<String> {
    if requested.starts_with("http://") || requested.starts_with("https://") {
        return Ok(requested.trim_end_matches('/').to_owned());
    }
    let kind = match requested {
        "public" => "",
        "private" => "private.",
        "direct" => "direct.",
        other => {
            let message = format!(
                "--endpoint {other:?} is neither a URL (https://...) nor one of direct, private, public"
            );
            return Err(UsageError(message).into());
        }
    };
    let region = region.ok_or_else(|| {
        UsageError(
            "where is the bucket? Give its region (--bucket-region, or --region of the commands that have no --bucket-region), as in \
             us-south; or --endpoint URL for a store other than IBM COS"
                .into(),
        )
    })?;
    // The region becomes part of a host name, and credentials are sent to that host.
    if region.is_empty()
        || !region.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    {
        return Err(UsageError(format!(
            "{region:?} is not the region of a bucket: give one such as us-south"
        ))
        .into());
    }
    Ok(format!("https://s3.{kind}{region}.cloud-object-storage.appdomain.cloud"))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_default_key_is_clean_and_dated() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_323_045);
        assert_eq!(
            default_key(Path::new("/dev/vdc"), "conv_1.eu", now),
            "conv-1.eu-vdc-20260102030405.qcow2"
        );
        assert_eq!(default_key(Path::new("my disk.raw"), "h", now), "h-my-disk-20260102030405.qcow2");
    }

    #[test]
    fn endpoints_are_urls_or_ibms_own() {
        let at = |requested: &str, region| endpoint(requested, region).map_err(|error| error.to_string());
        assert_eq!(at("http://127.0.0.1:9000/", None).as_deref(), Ok("http://127.0.0.1:9000"));
        assert_eq!(
            at("direct", Some("us-south")).as_deref(),
            Ok("https://s3.direct.us-south.cloud-object-storage.appdomain.cloud")
        );
        assert_eq!(
            at("public", Some("eu-de")).as_deref(),
            Ok("https://s3.eu-de.cloud-object-storage.appdomain.cloud")
        );
        assert!(at("direct", None).expect_err("no region").contains("--region"));
        assert!(
            at("direct", Some("us.example.com/")).expect_err("a host").contains("not the region of a bucket")
        );
        assert!(at("s3.example.com", Some("x")).expect_err("no scheme").contains("neither a URL"));
    }

    #[test]
    fn a_pipe_is_refused_with_the_reason() {
        let error = ImageDestination::file(Path::new("-")).expect_err("refused").to_string();
        assert!(error.contains("header is known last"), "{error}");
        assert!(
            ImageDestination::file(Path::new("/")).is_err()
                && ImageDestination::file(Path::new("a/..")).is_err()
        );
        assert_eq!(
            ImageDestination::file(Path::new("x.qcow2")).expect("a file").path().as_deref(),
            Some(Path::new("./x.qcow2"))
        );
        let odd = Path::new(OsStr::from_bytes(b"/a/x\xff\n.qcow2"));
        assert_eq!(ImageDestination::file(odd).expect("a file").path().as_deref(), Some(odd));
    }
}
