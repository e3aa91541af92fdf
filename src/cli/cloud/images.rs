//! `snapferry images`: lists, renames, tags, deletes and exports images.

use std::time::SystemTime;

use clap::{Args as Group, Subcommand};
use serde_json::{Value, json};
use snapferry_base::clock::{compact, rfc3339};
use snapferry_ibmcloud::vpc::model::{ExportFormat, Image, ImageState};
use snapferry_ibmcloud::vpc::{ExportPrototype, ImageFilter, Patience, ResourceName, Tag};

use super::{print_json, print_line, run as run_on_cloud};
use crate::cli::args::{ChangeArgs, CloudArgs, ConsentArgs, OutputArgs, RehearsalArgs};
use crate::cli::consent::{Consent, Unasked};
use crate::cli::error::CommandResult;
use crate::cli::exit::Code;
use crate::cli::rehearsal::would;
use crate::cli::session::Session;
use crate::cli::table::Table;
use crate::cli::values;

#[derive(Debug, Group)]
pub struct ImagesArgs {
    #[command(subcommand)]
    pub action: ImagesAction,
}

#[derive(Debug, Subcommand)]
pub enum ImagesAction {
    /// List the account's own images
    #[command(visible_alias = "ls")]
    List {
        /// Only in these states, e.g. available,failed
        #[arg(long, value_name = "STATE", value_delimiter = ',')]
        status: Vec<String>,

        #[command(flatten)]
        output: OutputArgs,

        #[command(flatten)]
        cloud: CloudArgs,
    },
    /// Rename an image
    Rename {
        /// The image, by name or id
        #[arg(value_name = "IMAGE")]
        image: String,

        /// New name of the image
        #[arg(value_name = "NAME")]
        name: ResourceName,

        #[command(flatten)]
        change: ChangeArgs,

        #[command(flatten)]
        cloud: CloudArgs,
    },
    /// Delete images; servers made from them keep running
    #[command(visible_aliases = ["rm", "remove"])]
    Delete {
        /// The images, by name or id
        #[arg(value_name = "IMAGE", required = true)]
        images: Vec<String>,

        #[command(flatten)]
        consent: ConsentArgs,

        #[command(flatten)]
        change: ChangeArgs,

        #[command(flatten)]
        cloud: CloudArgs,
    },
    /// Add tags to an image, or remove them; without tags, list those it has
    Tag {
        /// The image, by name or id
        #[arg(value_name = "IMAGE")]
        image: String,

        /// Tags to add or to remove
        #[arg(value_name = "TAG")]
        tags: Vec<Tag>,

        /// Remove these tags instead of adding them
        #[arg(long, requires = "tags")]
        remove: bool,

        #[command(flatten)]
        rehearsal: RehearsalArgs,

        #[command(flatten)]
        output: OutputArgs,

        #[command(flatten)]
        cloud: CloudArgs,
    },
    /// Export an image into a bucket
    Export {
        /// The image, by name or id
        #[arg(value_name = "IMAGE")]
        image: String,

        /// Bucket to export into
        #[arg(long, value_name = "NAME")]
        bucket: String,

        /// The job's name, and the object's [default: IMAGE-UTC]
        #[arg(long, value_name = "NAME")]
        name: Option<ResourceName>,

        /// Format of the object
        #[arg(long, default_value = "qcow2", value_name = "FORMAT", value_parser = values::formats())]
        format: ExportFormat,

        #[command(flatten)]
        change: ChangeArgs,

        #[command(flatten)]
        cloud: CloudArgs,
    },
}

pub fn run(args: &ImagesArgs, session: &Session) -> CommandResult<Code> {
    match &args.action {
        ImagesAction::List { status, output, cloud } => list(status, *output, cloud, session),
        ImagesAction::Rename { image, name, change, cloud } => rename(image, name, *change, cloud, session),
        ImagesAction::Delete { images, consent, change, cloud } => {
            delete(images, Consent::of(*consent, session)?, *change, cloud, session)
        }
        ImagesAction::Tag { image, tags, remove, rehearsal: RehearsalArgs { dry_run }, output, cloud } => {
            let change = if *remove { TagChange::Remove } else { TagChange::Add };
            tag(image, tags, change, *dry_run, *output, cloud, session)
        }
        ImagesAction::Export { image, bucket, name, format, change, cloud } => {
            export(image, bucket, name.as_ref(), *format, *change, cloud, session)
        }
    }
}

/// Returns an image as `--json` prints it.
fn to_json(image: &Image) -> Value {
    json!({
        "name": image.name,
        "id": image.id,
        "crn": image.crn,
        "status": image.status,
        "reasons": image.status_reasons.iter().map(|reason| reason.describe()).collect::<Vec<_>>(),
        "created_at": rfc3339(image.created_at),
        "disk_gb": image.minimum_provisioned_size,
        "file_gb": image.file.size,
        "sha256": image.sha256(),
        "operating_system": image.operating_system.as_ref().map(|os| &os.name),
    })
}

fn list(status: &[String], output: OutputArgs, cloud: &CloudArgs, session: &Session) -> CommandResult<Code> {
    let images = run_on_cloud(cloud, session, async |cloud| {
        let filter =
            ImageFilter { status: status.iter().map(|state| ImageState::from(state.clone())).collect() };
        Ok(cloud.client()?.images(&filter).await?)
    })?;
    if output.json {
        print_json(&images.iter().map(to_json).collect::<Vec<_>>())?;
        return Ok(Code::Done);
    }
    let mut table = Table::new(&["name", "id", "status", "created", "disk", "operating system", "why"]);
    for image in &images {
        table.row(vec![
            image.name.clone(),
            image.id.to_string(),
            image.status.to_string(),
            rfc3339(image.created_at),
            image.minimum_provisioned_size.map_or_else(String::new, |size| format!("{size} GB")),
            image.operating_system.as_ref().map_or_else(String::new, |os| os.name.clone()),
            image.status_reasons.iter().map(|reason| reason.describe()).collect::<Vec<_>>().join("; "),
        ]);
    }
    table.print("no images", session.verbosity)?;
    Ok(Code::Done)
}

fn rename(
    named: &str,
    name: &ResourceName,
    change: ChangeArgs,
    cloud: &CloudArgs,
    session: &Session,
) -> CommandResult<Code> {
    run_on_cloud(cloud, session, async |cloud| {
        let client = cloud.client()?;
        let found = client.named_image(named).await?;
        if change.rehearsal.dry_run {
            return would(
                change.output.form(),
                format_args!("rename image {}  {} to {name}", found.name, found.id),
            );
        }
        let renamed = client.rename_image(&found.id, name).await?;
        if change.output.json {
            return print_json(&to_json(&renamed));
        }
        Ok(print_line(format_args!("{}  {}  was {}", renamed.name, renamed.id, found.name))?)
    })?;
    Ok(Code::Done)
}

fn delete(
    named: &[String],
    consent: Consent,
    change: ChangeArgs,
    cloud: &CloudArgs,
    session: &Session,
) -> CommandResult<Code> {
    run_on_cloud(cloud, session, async |cloud| {
        let client = cloud.client()?;
        // All images are looked up before the first is deleted, so that a mistyped name deletes nothing.
        let mut chosen = Vec::new();
        for named in named {
            chosen.push(client.named_image(named).await?);
        }
        if !change.rehearsal.dry_run && chosen.len() > 1 {
            let names: Vec<&str> = chosen.iter().map(|image| image.name.as_str()).collect();
            let (count, names) = (names.len(), names.join(", "));
            let what = format!("delete {count} images in {}: {names}", cloud.home);
            consent.ask(session, Unasked::GoOn, &what)?;
        }
        for found in &chosen {
            if change.rehearsal.dry_run {
                would(change.output.form(), format_args!("delete image {}  {}", found.name, found.id))?;
                continue;
            }
            client.delete_image(&found.id).await?;
            if !change.no_wait {
                client.image_gone(&found.id, Patience::DELETION).await?;
            }
            if !change.output.json {
                print_line(format_args!("deleted image {}  {}", found.name, found.id))?;
            }
        }
        if change.output.json && !change.rehearsal.dry_run {
            print_json(&chosen.iter().map(to_json).collect::<Vec<_>>())?;
        }
        Ok(())
    })?;
    Ok(Code::Done)
}

/// Change to the tags of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TagChange {
    Add,
    Remove,
}

fn tag(
    named: &str,
    tags: &[Tag],
    change: TagChange,
    dry_run: bool,
    output: OutputArgs,
    cloud: &CloudArgs,
    session: &Session,
) -> CommandResult<Code> {
    run_on_cloud(cloud, session, async |cloud| {
        let found = cloud.client()?.named_image(named).await?;
        let tagging = cloud.tagging()?;
        let names = tags.iter().map(Tag::as_str).collect::<Vec<_>>().join(", ");
        match change {
            _ if tags.is_empty() => {}
            TagChange::Add if dry_run => {
                return would(output.form(), format_args!("add {names} to image {}", found.name));
            }
            TagChange::Remove if dry_run => {
                return would(output.form(), format_args!("remove {names} from image {}", found.name));
            }
            TagChange::Add => tagging.attach(&found.crn, tags).await?,
            TagChange::Remove => tagging.detach(&found.crn, tags).await?,
        }
        let now = tagging.tags(&found.crn).await?;
        if output.json {
            return print_json(&json!({ "name": found.name, "id": found.id, "tags": now }));
        }
        Ok(print_line(format_args!(
            "{}  {}",
            found.name,
            if now.is_empty() { "no tags".to_owned() } else { now.join(", ") }
        ))?)
    })?;
    Ok(Code::Done)
}

fn export(
    named: &str,
    bucket: &str,
    name: Option<&ResourceName>,
    format: ExportFormat,
    change: ChangeArgs,
    cloud: &CloudArgs,
    session: &Session,
) -> CommandResult<Code> {
    run_on_cloud(cloud, session, async |cloud| {
        let client = cloud.client()?;
        let found = client.named_image(named).await?;
        let name = match name {
            Some(name) => name.clone(),
            None => ResourceName::suffixed(&found.name, &compact(SystemTime::now()))?,
        };
        if change.rehearsal.dry_run {
            return would(
                change.output.form(),
                format_args!("export image {}  {} into bucket {bucket} by job {name}", found.name, found.id),
            );
        }
        let prototype = ExportPrototype { name, bucket: bucket.to_owned(), format };
        let mut job = client.export_image(&found.id, &prototype).await?;
        if !change.no_wait {
            job = client.export_succeeded(&found.id, &job.id, Patience::EXPORT).await?;
        }
        let href = job.storage_href.as_deref().unwrap_or_default();
        if change.output.json {
            return print_json(&json!({
                "export_job": { "name": job.name, "id": job.id }, "status": job.status, "href": href,
                // Deprecated: elsewhere `job` is the id of a replication's job.
                "job": job.name, "id": job.id,
            }));
        }
        Ok(print_line(format_args!("{}  {}  {href}", job.name, job.status))?)
    })?;
    Ok(Code::Done)
}
