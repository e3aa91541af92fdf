//! An image's name: `web01.qcow2`, `s3://images/web01.qcow2`, or `--bucket images --key web01.qcow2`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args as Group, ValueHint};
use snapferry_engine::image::{LocalImage, StoredImage};
use snapferry_engine::store::Location;
use snapferry_engine::store::{FolderStore, ObjectKey, ObjectStore};
use snapferry_qcow2::ImageFile;
use tokio::runtime::Runtime;

use super::config::{self, ImageDestination, StoreOptions};
use super::error::UsageError;
use super::session::Session;
use crate::cli::args::StoreArgs;
use crate::cli::error::CommandResult;

/// Prefix of the name of an object.
const SCHEME: &str = "s3://";

/// Image that a command reads.
#[derive(Debug, Group)]
pub struct ImageArgs {
    /// The image: a file, or s3://BUCKET/KEY
    #[arg(value_name = "IMAGE", required_unless_present = "bucket", conflicts_with_all = ["bucket", "key"],
        value_hint = ValueHint::AnyPath)]
    pub image: Option<OsString>,

    /// Bucket that holds the image
    #[arg(long, value_name = "NAME", requires = "key")]
    pub bucket: Option<String>,

    /// Key of the image in the bucket
    #[arg(long, value_name = "KEY", requires = "bucket")]
    pub key: Option<String>,

    #[command(flatten)]
    pub store: StoreArgs,
}

impl ImageArgs {
    /// Returns the image that the arguments name.
    ///
    /// # Errors
    /// If no file and no object can have that name.
    pub fn name(&self) -> Result<ImageName, UsageError> {
        match (&self.image, &self.bucket, &self.key) {
            (Some(image), _, _) => ImageName::parse(image),
            (None, Some(bucket), Some(key)) => ImageName::object(bucket, key),
            (None, _, _) => {
                Err(UsageError("which image? Give a file, s3://BUCKET/KEY, or --bucket and --key".into()))
            }
        }
    }
}

/// Place of an image: a file or an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageName {
    /// Local file, or block device.
    File(PathBuf),
    Object {
        bucket: String,
        key: ObjectKey,
    },
}

impl ImageName {
    /// Parses a name as typed. Only a name that begins with `s3://` is an object; `./s3:/...` is a file all
    /// the same.
    ///
    /// # Errors
    /// If it is neither a path nor an object's name.
    pub fn parse(typed: &OsStr) -> Result<Self, UsageError> {
        if typed.is_empty() {
            return Err(UsageError("an image's name can't be empty".into()));
        }
        if typed == "-" {
            return Err(UsageError(
                "an image is read at any offset, which a pipe does not have: give a file, or s3://BUCKET/KEY"
                    .into(),
            ));
        }
        let Some(rest) = typed.to_str().and_then(|text| text.strip_prefix(SCHEME)) else {
            return Ok(Self::File(PathBuf::from(typed)));
        };
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() || key.is_empty() {
            return Err(UsageError(format!("{SCHEME}{rest} does not name an object: write s3://BUCKET/KEY")));
        }
        Self::object(bucket, key)
    }

    /// Returns the location that the image's bytes come from.
    pub fn location(&self) -> Location {
        match self {
            Self::File(_) => Location::File,
            Self::Object { .. } => Location::Bucket,
        }
    }

    fn object(bucket: &str, key: &str) -> Result<Self, UsageError> {
        let key = ObjectKey::new(key).map_err(|error| UsageError(error.to_string()))?;
        Ok(Self::Object { bucket: bucket.to_owned(), key })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Object { bucket, key } => write!(f, "{SCHEME}{bucket}/{key}"),
        }
    }
}

/// Object in a store, or file in its folder.
#[derive(Clone)]
pub struct ObjectRef {
    /// Store that is the bucket or the folder.
    pub store: Arc<dyn ObjectStore>,
    pub key: ObjectKey,
}

/// Image that is open for reading.
pub struct OpenImage {
    pub file: Arc<dyn ImageFile>,
    /// The image in its store, to find files beside it; none for a device.
    pub object: Option<ObjectRef>,
}

/// Opens the file, or the object with at most `connections` requests at once.
///
/// # Errors
/// If the image does not exist or can't be read, with the error of the file or the store.
pub fn open(
    name: &ImageName,
    args: &StoreArgs,
    connections: usize,
    runtime: &Runtime,
    session: &Session,
) -> CommandResult<OpenImage> {
    match name {
        ImageName::File(path) => {
            Ok(OpenImage { file: Arc::new(LocalImage::open(path)?), object: folder_of(path) })
        }
        ImageName::Object { bucket, key } => {
            let destination = ImageDestination::Bucket { bucket: bucket.clone(), key: key.clone() };
            let store = {
                // The HTTP client must be created inside the runtime that it uses.
                let _inside = runtime.enter();
                config::open_store(
                    &destination,
                    args,
                    &StoreOptions::plain(connections, &session.cancel, &session.environment),
                )?
            };
            let file = StoredImage::open(Arc::clone(&store), key.clone(), runtime.handle().clone())?;
            Ok(OpenImage { file: Arc::new(file), object: Some(ObjectRef { store, key: key.clone() }) })
        }
    }
}

/// Returns a local file as an object of its folder, or none if it is no regular file.
pub fn folder_of(path: &Path) -> Option<ObjectRef> {
    if !path.metadata().is_ok_and(|found| found.is_file()) {
        return None;
    }
    let (store, key) = FolderStore::of(path)?;
    Some(ObjectRef { store: Arc::new(store), key })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_told_from_files_by_their_scheme() {
        let parse = |typed: &str| ImageName::parse(OsStr::new(typed)).map_err(|error| error.to_string());
        let object = |bucket: &str, key: &str| ImageName::Object {
            bucket: bucket.into(),
            key: ObjectKey::new(key).expect("a key"),
        };
        assert_eq!(parse("s3://images/a/web01.qcow2"), Ok(object("images", "a/web01.qcow2")));
        assert_eq!(parse("./s3:/x"), Ok(ImageName::File("./s3:/x".into())));
        assert_eq!(parse("json:{}"), Ok(ImageName::File("json:{}".into())));
        for typed in ["s3://", "s3://images", "s3://images/", "s3:///key"] {
            assert!(parse(typed).expect_err("no object").contains("s3://BUCKET/KEY"), "{typed}");
        }
        assert!(parse("s3://images/a//b").expect_err("no key").contains("empty"));
        assert!(parse("-").expect_err("a pipe").contains("pipe") && parse("").is_err());
    }

    #[test]
    fn a_local_image_has_its_folder_beside_it_and_a_device_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("web01.qcow2");
        std::fs::write(&path, b"x").expect("written");
        let object = folder_of(&path).expect("a folder");
        assert_eq!(
            object.store.url(&object.key.manifest()),
            folder.path().join("web01.qcow2.manifest").display().to_string()
        );
        assert!(folder_of(Path::new("/dev/null")).is_none());
    }
}
