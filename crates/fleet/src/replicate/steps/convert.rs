//! Step `convert`: the volume as an image in the bucket, read back and compared with the data that was read.
//! An object that an earlier run has sent is kept, once it is proved. What did not change since an earlier
//! image of the server is copied from that one inside the store.

use std::sync::Arc;

use snapferry_base::cancel::{Cancel, Reason};
use snapferry_base::retry::chain;
use snapferry_base::threads;
use snapferry_engine::convert::counters::Counters;
use snapferry_engine::convert::plan::{Options, Reuse};
use snapferry_engine::convert::{ConvertError, Target};
use snapferry_engine::image::check_manifest;
use snapferry_engine::manifest::Manifest;
use snapferry_engine::pipeline::PipelineError;
use snapferry_engine::store::ObjectMeta;
use snapferry_engine::store::Overwrite;
use snapferry_ibmcloud::vpc::model::ImageState;
use tokio::sync::oneshot;

use super::super::base::{self, NoBase, Origins};
use super::super::error::{Fault, Obstacle};
use super::super::job::Goal;
use super::super::saga::{Progress, Run};
use super::super::snapshot_hold;
use super::super::state::ObjectState;
use super::super::transfer::{self, Proof};
use super::{Step, import};

/// Largest manifest that is read, in bytes: the manifest of 250 GB has about 4 MiB.
const LARGEST_MANIFEST: u64 = 256 << 20;

/// Takes over the object of an earlier run, if there is a complete one. Returns true if there is.
pub(in super::super) async fn adopt(run: &mut Run<'_>) -> Result<bool, Fault> {
    let Some(manifest) = complete_manifest(run).await? else { return Ok(false) };
    // What the process that sent the image has recorded is more than the manifest shows.
    let recorded = run.state.object.clone().filter(|known| known.crc64 == manifest.image.crc64);
    let origins = recorded.map_or_else(
        || Origins::of_manifest(&manifest),
        |ObjectState { bytes_sent, base, full_because, .. }| Origins { bytes_sent, base, full_because },
    );
    let manifest = match manifest.image.sha256 {
        Some(_) => manifest,
        None => match prove(run, manifest).await {
            Ok(manifest) => manifest,
            Err(fault) if fault.is_of_a_wrong_image() => {
                // Nothing was imported from it, so the job makes another one.
                note_wrong(run, &fault);
                run.intend(Step::Convert, &run.names.key).await?;
                undo(run).await?;
                return Ok(false);
            }
            Err(fault) => return Err(fault),
        },
    };
    run.state.object = object(run, &manifest, origins);
    Ok(run.state.object.is_some())
}

/// True if the job's object is there and complete, as far as the manifest beside it shows.
pub(in super::super) async fn is_complete(run: &Run<'_>) -> Result<bool, Fault> {
    Ok(complete_manifest(run).await?.is_some())
}

/// Returns the manifest of the job's object, if both are there and belong together.
async fn complete_manifest(run: &Run<'_>) -> Result<Option<Manifest>, Fault> {
    let store = &run.context.store;
    let Some(meta) = store.head(&run.names.key).await? else { return Ok(None) };
    let manifest_key = run.names.key.manifest();
    let Some(size) =
        store.head(&manifest_key).await?.map(|found| found.size).filter(|&size| size <= LARGEST_MANIFEST)
    else {
        return Ok(None);
    };
    let manifest = Manifest::from_json(&store.get_range(&manifest_key, 0..size, None).await?);
    Ok(manifest.ok().filter(|manifest| is_of(manifest, &meta)))
}

/// True if the manifest belongs to this object, and describes a whole disk.
fn is_of(manifest: &Manifest, object: &ObjectMeta) -> bool {
    check_manifest(manifest).is_ok()
        && manifest.image.size.0 == object.size
        && object.crc64.is_none_or(|sum| sum == manifest.image.crc64)
}

fn object(run: &Run<'_>, manifest: &Manifest, origins: Origins) -> Option<ObjectState> {
    let Origins { bytes_sent, base, full_because } = origins;
    Some(ObjectState {
        key: run.names.key.clone(),
        url: run.context.store.url(&run.names.key),
        size: manifest.image.size,
        virtual_size: manifest.image.virtual_size,
        crc64: manifest.image.crc64,
        sha256: manifest.image.sha256.clone()?,
        bytes_sent,
        base,
        full_because,
    })
}

pub(super) async fn run(run: &mut Run<'_>) -> Result<String, Fault> {
    let device =
        run.state.attachment.as_ref().ok_or(Fault::OutOfTurn { step: Step::Convert })?.device.clone();
    check_not_imported(run).await?;
    // Checked again here, because the conversion takes long.
    snapshot_hold::check_rivals(run).await?;
    let encoding = run.job.encoding;
    let reuse = if base::is_wanted(run) { Reuse::Unchanged } else { Reuse::Nothing };
    let options = Options { codec: encoding.codec, level: encoding.level, reuse, ..Options::default() };
    let (size, plan) = transfer::plan(&device, &options)?;
    let base::Chosen { base, refused } = base::choose(run, &plan).await?;
    // The entry has the base, which nothing has used so far.
    run.intend(Step::Convert, &run.names.key).await?;
    abort_uploads(run).await?;
    let (base, no_base) = match base {
        Ok(base) => (Some(base), None),
        Err(why) => (None, Some(why)),
    };
    let counters: Arc<Counters> = Arc::default();
    let job = transfer::Send {
        device,
        target: target(run),
        plan,
        base,
        refused,
        host: run.context.own.name.clone(),
        clock: Arc::clone(&run.context.clock),
        counters: Arc::clone(&counters),
        runtime: run.context.runtime.clone(),
    };
    run.report_progress(Progress::Converting(counters, size));
    let converted = on_a_thread(run, move |cancel| job.run(cancel)).await;
    run.report_progress(Progress::Still);
    let converted = converted.inspect_err(|fault| note_wrong(run, fault))?;
    let no_base = match (&converted.given_up, &run.state.base) {
        (Some(why), Some(base)) => {
            let reason = format!("{}: {}", base.key, chain(&**why));
            run.warn(format!("the base was given up, and all of the disk was sent: {reason}"));
            Some(NoBase { word: why.word(), reason })
        }
        _ => no_base,
    };
    let origins = Origins::of_conversion(&converted, no_base.as_ref());
    if let Some(word) = &origins.full_because {
        run.report_progress(Progress::SentInFull(word));
    }
    let manifest = prove(run, converted.manifest).await.inspect_err(|fault| note_wrong(run, fault))?;
    let description = origins.description(no_base.as_ref());
    run.state.object = object(run, &manifest, origins);
    let image = &manifest.image;
    Ok(format!(
        "{}, {} of a disk of {}, verified{description}",
        run.context.store.url(&run.names.key),
        image.size,
        image.virtual_size
    ))
}

/// Notes that the job's image was wrong: then the next attempt takes nothing from an earlier image, because
/// that one may be the reason.
fn note_wrong(run: &mut Run<'_>, fault: &Fault) {
    if !fault.is_of_a_wrong_image() || run.state.full {
        return;
    }
    run.state.full = true;
    if let Some(base) = &run.state.base {
        let url = run.context.store.url(&base.key);
        run.warn(format!(
            "the image is wrong, and parts of it are from {url}: the next attempt sends all of the disk, and `snapferry verify` shows if {} is damaged",
            base.key
        ));
    }
}

/// Refuses to overwrite an object that an image was made from: a user who checks the image against the object
/// would find another disk.
async fn check_not_imported(run: &Run<'_>) -> Result<(), Fault> {
    if !run.resumed || run.job.goal == Goal::Object {
        return Ok(());
    }
    match import::own(run).await? {
        Some(image)
            if !matches!(image.status, ImageState::Failed | ImageState::Unusable | ImageState::Deleting) =>
        {
            let url = run.context.store.url(&run.names.key);
            Err(Obstacle::Message(format!(
                "image {} ({}) was made from {url} already, and what is there now is not whole: `snapferry replicate --abandon {}` gives \
                 the job up, and a new one makes a new image",
                image.name, image.id, run.job.id
            ))
            .into())
        }
        _ => Ok(()),
    }
}

fn target(run: &Run<'_>) -> Target {
    // The key is this job's alone, so any object there is from an earlier run, and could not be proved.
    Target {
        store: Arc::clone(&run.context.store),
        key: run.names.key.clone(),
        overwrite: Overwrite::Replace,
    }
}

/// Reads the image back, and notes in its manifest that it is good, with its SHA-256.
async fn prove(run: &Run<'_>, manifest: Manifest) -> Result<Manifest, Fault> {
    let proof = Proof {
        target: target(run),
        manifest,
        clock: Arc::clone(&run.context.clock),
        counters: Arc::default(),
        runtime: run.context.runtime.clone(),
    };
    run.report_progress(Progress::ReadingBack(
        Arc::clone(&proof.counters),
        proof.manifest.image.virtual_size,
    ));
    let proved = on_a_thread(run, move |cancel| proof.run(cancel)).await;
    run.report_progress(Progress::Still);
    proved
}

/// Runs blocking work on its own thread. The work gets its own [`Cancel`], because it also ends itself with
/// it. A cancellation of the job is passed on.
async fn on_a_thread<T: std::marker::Send + 'static>(
    run: &Run<'_>,
    work: impl FnOnce(Cancel) -> Result<T, Fault> + std::marker::Send + 'static,
) -> Result<T, Fault> {
    let (cancel, own) = (run.context.cancel.clone(), Cancel::new());
    let work_cancel = own.clone();
    let (sender, mut receiver) = oneshot::channel();
    // Not one of the runtime's threads: the work waits for requests that those threads run.
    let thread = threads::spawn("carry a disk", move || {
        // The receiver waits for the result even if the job is cancelled.
        let _ = sender.send(work(own));
    })
    .map_err(|refused| Fault::Convert(ConvertError::Pipeline(PipelineError::Threads(refused))))?;
    let done = tokio::select! {
        done = &mut receiver => done,
        _reason = cancel.cancelled() => {
            work_cancel.cancel(Reason::Requested);
            receiver.await
        }
    };
    // The thread has nothing left to do, whether the work finished or died.
    let _ = thread.join();
    done.unwrap_or(Err(Fault::Died))
}

async fn abort_uploads(run: &Run<'_>) -> Result<(), Fault> {
    for open in run.context.store.list_uploads(run.names.key.as_str()).await? {
        if open.upload.key == run.names.key {
            run.context.store.abort(&open.upload).await?;
        }
    }
    Ok(())
}

pub(super) async fn undo(run: &mut Run<'_>) -> Result<(), Fault> {
    abort_uploads(run).await?;
    run.context.store.delete(&run.names.key).await?;
    run.context.store.delete(&run.names.key.manifest()).await?;
    run.state.object = None;
    Ok(())
}
