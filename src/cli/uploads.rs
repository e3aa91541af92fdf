//! `snapferry uploads`: incomplete uploads, which cost money until the user removes them.

use std::io::Write as _;

use clap::{Args as Group, Subcommand};
use serde::Serialize;
use snapferry_base::clock::rfc3339;
use snapferry_engine::store::{ObjectKey, ObjectStore, OpenUpload, Upload};

use super::config::{self, ImageDestination, StoreOptions};
use super::error::UsageError;
use super::exit::Code;
use super::print_json;
use super::printable;
use crate::cli::args::BucketArgs;
use crate::cli::error::CommandResult;
use crate::cli::session::Session;

#[derive(Serialize)]
struct Listed<'a> {
    key: &'a str,
    id: &'a str,
    started: Option<String>,
}

#[derive(Debug, Group)]
pub struct UploadsArgs {
    #[command(subcommand)]
    pub action: UploadsAction,
}

#[derive(Debug, Subcommand)]
pub enum UploadsAction {
    /// List incomplete uploads
    #[command(visible_alias = "ls")]
    List {
        /// Only keys with this prefix
        #[arg(long, default_value = "", value_name = "TEXT")]
        prefix: String,
        /// Print JSON on stdout
        #[arg(long)]
        json: bool,
        // Last, because its heading in the help applies to all options that follow.
        #[command(flatten)]
        bucket: BucketArgs,
    },
    /// Remove incomplete uploads and their parts
    #[command(visible_aliases = ["rm", "delete", "remove"])]
    Abort {
        /// Key of the upload
        #[arg(long, value_name = "KEY", required_unless_present = "all")]
        key: Option<String>,
        /// Id of the upload [default: every upload of the key]
        #[arg(long, value_name = "ID", requires = "key")]
        id: Option<String>,
        /// Every upload in the bucket
        #[arg(long, conflicts_with = "key")]
        all: bool,
        // Last, because its heading in the help applies to all options that follow.
        #[command(flatten)]
        bucket: BucketArgs,
    },
}

pub fn run(args: &UploadsArgs, session: &Session) -> CommandResult<Code> {
    let runtime = session.runtime()?;
    runtime.block_on(async {
        match &args.action {
            UploadsAction::List { bucket, prefix, json } => list(bucket, prefix, *json, session).await,
            UploadsAction::Abort { bucket, key, id, all } => {
                abort(bucket, key.as_deref(), id.as_deref(), *all, session).await
            }
        }
    })
}

fn open(bucket: &BucketArgs, session: &Session) -> CommandResult<std::sync::Arc<dyn ObjectStore>> {
    // Requests about the bucket don't use the key.
    let key = ObjectKey::new("uploads").map_err(|error| UsageError(error.to_string()))?;
    let destination = ImageDestination::Bucket { bucket: bucket.bucket.clone(), key };
    config::open_store(
        &destination,
        &bucket.store,
        &StoreOptions::plain(1, &session.cancel, &session.environment),
    )
}

async fn list(bucket: &BucketArgs, prefix: &str, json: bool, session: &Session) -> CommandResult<Code> {
    let found = open(bucket, session)?.list_uploads(prefix).await?;
    let mut out = printable::out();
    if json {
        print_json(&found.iter().map(listed).collect::<Vec<_>>())?;
    } else if found.is_empty() {
        writeln!(out, "no incomplete uploads in {}", bucket.bucket)?;
    } else {
        for upload in &found {
            let Listed { key, id, started } = listed(upload);
            // The id is foreign text, which a terminal must not obey. Keys have no control characters.
            let id = id.escape_debug();
            writeln!(out, "{}  {key}  {id}", started.as_deref().unwrap_or("-"))?;
        }
    }
    Ok(Code::Done)
}

fn listed(open: &OpenUpload) -> Listed<'_> {
    Listed { key: open.upload.key.as_str(), id: &open.upload.id, started: open.started.map(rfc3339) }
}

async fn abort(
    bucket: &BucketArgs,
    key: Option<&str>,
    id: Option<&str>,
    all: bool,
    session: &Session,
) -> CommandResult<Code> {
    let store = open(bucket, session)?;
    let key = key.map(ObjectKey::new).transpose().map_err(|error| UsageError(error.to_string()))?;
    let chosen: Vec<Upload> = match (key, id) {
        (Some(key), Some(id)) => vec![Upload { key, id: id.to_owned() }],
        (key, _) => {
            let found = store.list_uploads(key.as_ref().map_or("", ObjectKey::as_str)).await?;
            // A prefix also finds longer keys.
            found
                .into_iter()
                .map(|open| open.upload)
                .filter(|upload| all || key.as_ref() == Some(&upload.key))
                .collect()
        }
    };
    let mut out = printable::out();
    for upload in &chosen {
        store.abort(upload).await?;
        writeln!(out, "aborted {}  {}", upload.key, upload.id.escape_debug())?;
    }
    if chosen.is_empty() {
        writeln!(out, "no incomplete uploads to abort in {}", bucket.bucket)?;
    }
    Ok(Code::Done)
}
