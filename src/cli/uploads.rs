//! `snapferry uploads`: incomplete uploads, which cost money until the user removes them.

use std::io::Write as _;

use clap::{Args as Group, Subcommand};
use serde::Serialize;
use serde_json::json;
use snapferry_base::clock::rfc3339;
use snapferry_engine::store::{ObjectKey, ObjectStore, OpenUpload, Upload};

use super::config::{self, ImageDestination, StoreOptions};
use super::consent::{Consent, Unasked};
use super::error::UsageError;
use super::exit::Code;
use super::log::Verbosity;
use super::print_json;
use super::printable;
use super::rehearsal::would_with;
use super::signals::Unfinished;
use crate::cli::args::{BucketArgs, ConsentArgs, OutputArgs, RehearsalArgs};
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
    Abort(AbortArgs),
}

#[derive(Debug, Group)]
pub struct AbortArgs {
    /// Key of the upload
    #[arg(long, value_name = "KEY", required_unless_present = "all")]
    pub key: Option<String>,

    /// Id of the upload [default: every upload of the key]
    #[arg(long, value_name = "ID", requires = "key")]
    pub id: Option<String>,

    /// Every upload in the bucket; other programs' too, so without a terminal it takes --yes
    #[arg(long, conflicts_with = "key")]
    pub all: bool,

    #[command(flatten)]
    pub rehearsal: RehearsalArgs,

    #[command(flatten)]
    pub consent: ConsentArgs,

    #[command(flatten)]
    pub output: OutputArgs,

    // Last, because its heading in the help applies to all options that follow.
    #[command(flatten)]
    pub bucket: BucketArgs,
}

pub fn run(args: &UploadsArgs, session: &Session) -> CommandResult<Code> {
    let runtime = session.start(Unfinished::Nothing)?;
    runtime.block_on(async {
        match &args.action {
            UploadsAction::List { bucket, prefix, json } => list(bucket, prefix, *json, session).await,
            UploadsAction::Abort(args) => abort(args, session).await,
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
    if json {
        print_json(&found.iter().map(listed).collect::<Vec<_>>())?;
        return Ok(Code::Done);
    }
    if found.is_empty() && session.verbosity != Verbosity::Quiet {
        writeln!(printable::err(), "no incomplete uploads in {}", bucket.bucket)?;
    }
    let mut out = printable::out();
    for upload in &found {
        let Listed { key, id, started } = listed(upload);
        // The id is foreign text, which a terminal must not obey. Keys have no control characters.
        let id = id.escape_debug();
        writeln!(out, "{}  {key}  {id}", started.as_deref().unwrap_or("-"))?;
    }
    Ok(Code::Done)
}

fn listed(open: &OpenUpload) -> Listed<'_> {
    Listed { key: open.upload.key.as_str(), id: &open.upload.id, started: open.started.map(rfc3339) }
}

async fn abort(args: &AbortArgs, session: &Session) -> CommandResult<Code> {
    let AbortArgs { bucket, key, id, all, rehearsal, consent, output } = args;
    let consent = Consent::of(*consent, session)?;
    // Other programs may have uploads in the bucket, and be at work on them.
    let unasked = if *all { Unasked::Refuse } else { Unasked::GoOn };
    if !rehearsal.dry_run {
        let every = format!("abort every incomplete upload in {}", bucket.bucket);
        consent.require(session, unasked, &every)?;
    }
    let store = open(bucket, session)?;
    let key =
        key.as_deref().map(ObjectKey::new).transpose().map_err(|error| UsageError(error.to_string()))?;
    let chosen: Vec<Upload> = match (key, id) {
        (Some(key), Some(id)) => vec![Upload { key, id: id.clone() }],
        (key, _) => {
            let found = store.list_uploads(key.as_ref().map_or("", ObjectKey::as_str)).await?;
            // A prefix also finds longer keys.
            found
                .into_iter()
                .map(|open| open.upload)
                .filter(|upload| *all || key.as_ref() == Some(&upload.key))
                .collect()
        }
    };
    if chosen.is_empty() && session.verbosity != Verbosity::Quiet {
        writeln!(printable::err(), "no incomplete uploads to abort in {}", bucket.bucket)?;
    }
    if !rehearsal.dry_run && (chosen.len() > 1 || *all && !chosen.is_empty()) {
        for upload in &chosen {
            writeln!(printable::err(), "  {}  {}", upload.key, upload.id.escape_debug())?;
        }
        let plural = if chosen.len() == 1 { "" } else { "s" };
        let what = format!("abort {} incomplete upload{plural} in {}", chosen.len(), bucket.bucket);
        consent.ask(session, unasked, &what)?;
    }
    for upload in &chosen {
        let (key, id) = (upload.key.as_str(), &upload.id);
        if rehearsal.dry_run {
            let more = json!({ "key": key, "id": id });
            would_with(output.form(), format_args!("abort {key}  {}", id.escape_debug()), &more)?;
            continue;
        }
        store.abort(upload).await?;
        if output.json {
            print_json(&json!({ "key": key, "id": id, "aborted": true }))?;
        } else {
            writeln!(printable::out(), "aborted {key}  {}", id.escape_debug())?;
        }
    }
    Ok(Code::Done)
}
