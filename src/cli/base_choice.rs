//! Choice of the older image from which a conversion takes what did not change.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use snapferry_base::clock::{Clock as _, SystemClock};
use snapferry_base::retry::{Class, chain};
use snapferry_engine::convert::ConvertError;
use snapferry_engine::convert::plan::Plan;
use snapferry_engine::image::base::{Base, BaseRequirements, NotUsable, RequiredProof};
use snapferry_engine::manifest::RefusedRecord;
use snapferry_engine::pipeline::PipelineError;
use snapferry_engine::store::{ObjectKey, ObjectStore, StoreError};
use tokio::runtime::Handle;

use super::config::{ImageDestination, default_key_prefix};
use super::error::{CommandResult, UsageError};

/// Number of images that are tried before all of the disk is sent.
const TRIED: usize = 3;

/// The user's choice of an older image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BaseChoice {
    /// All of the disk is compressed and sent.
    None,
    /// The image under the same key, or the newest one of the same device.
    Auto,
    /// The image with this key, or at this path.
    Image(String),
}

impl FromStr for BaseChoice {
    type Err = String;
    fn from_str(typed: &str) -> Result<Self, String> {
        Ok(match typed {
            "none" => Self::None,
            "auto" => Self::Auto,
            "" => return Err("give auto, none, or the key of an image".to_owned()),
            image => Self::Image(image.to_owned()),
        })
    }
}

/// Reason why a run uses no older image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unused {
    /// The reason in one word, for programs.
    pub word: &'static str,
    /// The reason for people; empty if the user wanted no base.
    pub reason: String,
}

/// Older image that was chosen, or the reason why there is none.
pub struct Chosen {
    pub base: Option<Arc<Base>>,
    pub unused: Option<Unused>,
    /// Refusal of the store that an older manifest records, so that the next manifest keeps it.
    pub refused: Option<RefusedRecord>,
}

/// What the choice depends on.
pub struct Choosing<'a> {
    pub choice: &'a BaseChoice,
    pub destination: &'a ImageDestination,
    pub device: &'a Path,
    pub host: &'a str,
    pub store: &'a dyn ObjectStore,
    pub plan: &'a Plan,
}

impl Choosing<'_> {
    /// Finds and checks the older image. Blocks.
    ///
    /// # Errors
    /// If the image that the user named does not exist, or the work was stopped.
    pub fn run(&self, runtime: &Handle) -> CommandResult<Chosen> {
        let (keys, named) = match self.choice {
            BaseChoice::None => return Ok(unused("not-asked", String::new())),
            BaseChoice::Auto => (runtime.block_on(self.candidates())?, false),
            BaseChoice::Image(name) => (vec![self.key_of(name)?], true),
        };
        let requirements = BaseRequirements {
            encoder: self.plan.encoder_record(),
            proof: RequiredProof::Made,
            now: SystemClock.now(),
        };
        let mut first = None;
        for key in keys {
            match runtime.block_on(Base::load(self.store, &key, &requirements)) {
                Ok(base) => return Ok(Chosen { base: Some(Arc::new(base)), unused: None, refused: None }),
                Err(NotUsable::Missing) if named => {
                    let url = self.store.url(&key);
                    return Err(UsageError(format!("the base {url} does not exist")).into());
                }
                Err(NotUsable::Store(error)) if error.class() == Class::Cancelled => return Err(stopped()),
                Err(why) => {
                    tracing::debug!(%key, "no base: {}", chain(&why));
                    // The newest image decides what is reported, and its refusal is kept.
                    first.get_or_insert((key, why));
                }
            }
        }
        let Some((key, why)) = first else {
            return Ok(unused("none", "there is no older image of this device".to_owned()));
        };
        let refused = match &why {
            NotUsable::Refused { what, at } => Some(RefusedRecord { what: what.clone(), at: at.clone() }),
            _ => None,
        };
        Ok(Chosen { refused, ..unused(why.word(), format!("{key}: {}", chain(&why))) })
    }

    /// Returns the keys of images that may be of the same disk, the likeliest first: the one that this run
    /// replaces, or the newest ones with default keys of this device.
    async fn candidates(&self) -> CommandResult<Vec<ObjectKey>> {
        let own = self.destination.key();
        let failed = |error: StoreError| match error.class() {
            Class::Cancelled => Err(stopped()),
            _ => {
                tracing::warn!("older images can't be looked for: {}", chain(&error));
                Ok(Vec::new())
            }
        };
        match self.store.head(own).await {
            Ok(Some(_)) => return Ok(vec![own.clone()]),
            Ok(None) => {}
            Err(error) => return failed(error),
        }
        let prefix = default_key_prefix(self.device, self.host);
        let mut keys: Vec<ObjectKey> = match self.store.list(&prefix).await {
            Ok(listed) => listed.into_iter().map(|object| object.key).collect(),
            Err(error) => return failed(error),
        };
        let is_default = |key: &ObjectKey| {
            let rest = key.as_str().strip_prefix(&prefix).and_then(|rest| rest.strip_suffix(".qcow2"));
            rest.is_some_and(|time| !time.is_empty() && time.bytes().all(|byte| byte.is_ascii_digit()))
        };
        keys.retain(is_default);
        // Their times sort as text.
        keys.sort_unstable_by(|one, other| other.cmp(one));
        keys.truncate(TRIED);
        Ok(keys)
    }

    /// Returns the key of the image that the user named: in the same bucket, or in the same folder.
    fn key_of(&self, name: &str) -> CommandResult<ObjectKey> {
        match self.destination {
            ImageDestination::Bucket { bucket, .. } => {
                let own_bucket = format!("s3://{bucket}/");
                let key = name.strip_prefix(&own_bucket).unwrap_or(name);
                if key.starts_with("s3://") {
                    return Err(UsageError(format!(
                        "the base must be in the bucket of the image: {name} is not in {bucket}"
                    ))
                    .into());
                }
                Ok(ObjectKey::of_image(key).map_err(|error| UsageError(error.to_string()))?)
            }
            ImageDestination::File { path, .. } => key_beside(path, Path::new(name)),
        }
    }
}

/// Returns the key of a file, which must be in the folder of the image.
fn key_beside(image: &Path, base: &Path) -> CommandResult<ObjectKey> {
    let folder = |path: &Path| {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        std::fs::canonicalize(parent.unwrap_or(Path::new("."))).ok()
    };
    let ImageDestination::File { path, key } = ImageDestination::file(base)? else {
        return Err(UsageError(format!("{} is no file", base.display())).into());
    };
    if !path.exists() {
        return Err(UsageError(format!("the base {} does not exist", base.display())).into());
    }
    if folder(&path) != folder(image) {
        return Err(UsageError(format!(
            "the base must be in the folder of the image: {} is in another one than {}",
            base.display(),
            image.display()
        ))
        .into());
    }
    Ok(key)
}

fn unused(word: &'static str, reason: String) -> Chosen {
    Chosen { base: None, unused: Some(Unused { word, reason }), refused: None }
}

fn stopped() -> super::error::CommandError {
    ConvertError::Pipeline(PipelineError::Interrupted).into()
}
