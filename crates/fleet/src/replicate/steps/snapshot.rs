//! Steps `snapshot`, `stable` and `mark`: the snapshot is taken, waited for, and marked once the job is done.
//! A snapshot that existed before is left unchanged.

use snapferry_base::job::JobId;
use snapferry_ibmcloud::vpc::model::Snapshot;
use snapferry_ibmcloud::vpc::{Patience, SnapshotPrototype};

use super::super::error::Fault;
use super::super::job::{Origin, SnapshotFate};
use super::super::names::{self, has};
use super::super::saga::Run;
use super::super::snapshot_hold;
use super::super::snapshot_tags::{self, Destination, Holder};
use super::super::state::{DiskState, SnapshotState};
use super::Step;

/// Returns the job's snapshot, as the state knows it.
pub(super) fn of<'r>(run: &'r Run<'_>, step: Step) -> Result<&'r SnapshotState, Fault> {
    run.state.snapshot.as_ref().ok_or(Fault::OutOfTurn { step })
}

fn set_snapshot(run: &mut Run<'_>, snapshot: &Snapshot) {
    run.state.snapshot = Some(SnapshotState {
        id: snapshot.id.clone(),
        name: snapshot.name.clone(),
        taken_at: snapshot.captured_at,
    });
}

pub(super) async fn run(run: &mut Run<'_>) -> Result<String, Fault> {
    if let Some(existing) = run.found.snapshot.clone() {
        set_snapshot(run, &existing);
        return Ok(format!("{} as it is", existing.name));
    }
    let out_of_turn = || Fault::OutOfTurn { step: Step::Snapshot };
    let source = run.state.server.as_ref().ok_or_else(out_of_turn)?.boot_volume.clone();
    let resource_group = run.state.disk.as_ref().ok_or_else(out_of_turn)?.resource_group.clone();
    let mut tags = run.names.tags.clone();
    if run.job.snapshot_fate == SnapshotFate::Kept {
        tags.push(names::keep_tag()?);
    }
    tags.push(Destination::of_job(run.job, &run.names).tag()?);
    tags.push(snapshot_tags::rules_tag(&run.job.retention)?);
    tags.push(run.context.hold.tag()?);
    let prototype = SnapshotPrototype {
        name: run.names.run.clone(),
        source,
        tags,
        resource_group,
        clone_zones: Vec::new(),
    };
    run.intend(Step::Snapshot, &prototype.name).await?;
    let snapshot = run.context.home.create_snapshot(&prototype).await?;
    set_snapshot(run, &snapshot);
    run.context.hold.take(run.job.id, &snapshot, &run.context.home).await?;
    snapshot_hold::check_rivals(run).await?;
    Ok(format!("{} ({})", snapshot.name, snapshot.id))
}

pub(super) async fn stable(run: &mut Run<'_>) -> Result<String, Fault> {
    let id = of(run, Step::Stable)?.id.clone();
    let snapshot = run.context.home.snapshot_stable(&id, run.patience(Patience::SNAPSHOT)).await?;
    set_snapshot(run, &snapshot);
    // By now every list includes jobs that began at the same time as this one.
    snapshot_hold::check_rivals(run).await?;
    // The volume may have grown since the preflight; the snapshot's own size counts.
    let disk = run.state.disk.as_ref().ok_or(Fault::OutOfTurn { step: Step::Stable })?;
    run.state.disk = Some(DiskState {
        capacity: snapshot.minimum_capacity,
        generation: snapshot.storage_generation,
        ..disk.clone()
    });
    Ok(format!("{}, {} GB", snapshot.name, snapshot.minimum_capacity))
}

/// True if this job has made the snapshot.
fn is_own(job: JobId, snapshot: &Snapshot) -> bool {
    names::job_of(&snapshot.user_tags) == Some(job)
}

pub(super) async fn mark(run: &mut Run<'_>) -> Result<String, Fault> {
    let home = &run.context.home;
    let own = home.snapshot_by_name(run.names.run.as_str()).await?.filter(|found| is_own(run.job.id, found));
    let Some(own) = own.filter(|_| run.job.origin == Origin::Server) else {
        return Ok("no snapshot of its own".to_owned());
    };
    let done = names::done_tag()?;
    if !has(&own.user_tags, &done) {
        run.intend(Step::Mark, &own.name).await?;
        home.retag_snapshot(&own.id, Holder::is_tag, &[done]).await?;
        run.context.hold.end_checks();
    }
    Ok(format!("{} is marked as done", own.name))
}

pub(super) async fn undo(run: &mut Run<'_>) -> Result<(), Fault> {
    let home = &run.context.home;
    let mut own = match &run.state.snapshot {
        Some(known) => home.snapshot(&known.id).await?,
        None => None,
    };
    if own.is_none() {
        own = home.snapshot_by_name(run.names.run.as_str()).await?;
    }
    if let Some(own) = own.filter(|found| is_own(run.job.id, found)) {
        home.delete_snapshot(&own.id).await?;
        home.snapshot_gone(&own.id, run.patience(Patience::DELETION)).await?;
    }
    run.state.snapshot = None;
    Ok(())
}
