//! An image's name: `web01.qcow2`, `s3://images/web01.qcow2`, or `--bucket images --key web01.qcow2`.

use crate::cli::error::CommandResult;
use crate::cli::args::{StoreArgs};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args as Group;
use snapferry_engine::image::plan::Origin;
use snapferry_engine::image::{LocalImage, StoredImage};
use snapferry_engine::store::{FolderStore, ObjectKey, ObjectStore};
use snapferry_qcow2::ImageFile;
use tokio::runtime::Runtime;

use super::config::{self, Place, Use};
use super::error::UsageError;
use super::session::Session;

/// Begins the name of an object.
const SCHEME: &str = "s3://";

/// Which image, for commands that read one.
#[derive(Debug, Group)]
pub struct ImageArgs {
    /// The image: a file, or s3://BUCKET/KEY
    #[arg(value_name = "IMAGE", required_unless_present = "bucket", conflicts_with_all = ["bucket", "key"])]
    pub image: Option<OsString>,

    /// The image is in this bucket
    #[arg(long, value_name = "NAME", requires = "key")]
    pub bucket: Option<String>,

    /// Its name there
    #[arg(long, value_name = "KEY", requires = "bucket")]
    pub key: Option<String>,

    #[command(flatten)]
    pub store: StoreArgs,
}

impl ImageArgs {
    /// What was named.
    ///
    /// # Errors
    /// Where no file and no object can have that name.
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

/// Where an image lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageName {
    /// A local file, or a block device.
    File(PathBuf),
    /// An object.
    Object {
        /// Its bucket.
        bucket: String,
        /// Its name there.
        key: ObjectKey,
    },
}

impl ImageName {
    /// As typed. Only what begins with `s3://` is an object; `./s3:/...` is a file all the same.
    ///
    /// # Errors
    /// Where it is neither a path nor an object's name.
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

    /// Where its bytes come from.
    pub fn origin(&self) -> Origin {
        match self {
            Self::File(_) => Origin::File,
            Self::Object { .. } => Origin::Bucket,
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

/// Where an image and what lies beside it are kept.
#[derive(Clone)]
pub struct Shelf {
    /// The bucket, or the folder.
    pub store: Arc<dyn ObjectStore>,
    /// The image's name in it.
    pub key: ObjectKey,
}

/// An image that can be read.
pub struct OpenImage {
    /// Its bytes.
    pub file: Arc<dyn ImageFile>,
    /// Its place, where something can lie beside it: for all but devices.
    pub shelf: Option<Shelf>,
}

/// Opens the file, or asks the store for the object, with at most `connections` requests to it at once.
///
/// # Errors
/// Where it is not there or can't be had, with the file's or the store's own error.
pub fn open(
    name: &ImageName,
    args: &StoreArgs,
    connections: usize,
    runtime: &Runtime,
    session: &Session,
) -> CommandResult<OpenImage> {
    match name {
        ImageName::File(path) => {
            Ok(OpenImage { file: Arc::new(LocalImage::open(path)?), shelf: folder_of(path) })
        }
        ImageName::Object { bucket, key } => {
            let place = Place::Bucket { bucket: bucket.clone(), key: key.clone() };
            let store = {
                // The HTTP client looks for the runtime that it is made in.
                let _inside = runtime.enter();
                config::open_store(&place, args, &Use::plain(connections, &session.cancel, &session.environment))?
            };
            let file = StoredImage::open(Arc::clone(&store), key.clone(), runtime.handle().clone())?;
            Ok(OpenImage { file: Arc::new(file), shelf: Some(Shelf { store, key: key.clone() }) })
        }
    }
}

/// A local file as something in its folder; nothing for what is no regular file.
pub fn folder_of(path: &Path) -> Option<Shelf> {
    if !path.metadata().is_ok_and(|found| found.is_file()) {
        return None;
    }
    let (store, key) = FolderStore::of(path)?;
    Some(Shelf { store: Arc::new(store), key })
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
        let shelf = folder_of(&path).expect("a folder");
        assert_eq!(
            shelf.store.url(&shelf.key.manifest()),
            folder.path().join("web01.qcow2.manifest").display().to_string()
        );
        assert!(folder_of(Path::new("/dev/null")).is_none());
    }
}
