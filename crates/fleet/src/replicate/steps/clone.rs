//! Step `clone`: a clone of the snapshot in this server's zone, if the user wants one. A volume that is made
//! from it is at full speed at once.

use snapferry_ibmcloud::vpc::Patience;

use super::super::error::Fault;
use super::super::job::Restore;
use super::super::names;
use super::super::saga::Run;
use super::Step;
use super::snapshot;

pub(super) async fn run(run: &mut Run<'_>) -> Result<String, Fault> {
    let (id, zone) = (snapshot::of(run, Step::Clone)?.id.clone(), run.context.own.zone.clone());
    let home = &run.context.home;
    if !home.clones(&id).await?.iter().any(|clone| clone.zone.name == zone) {
        run.state.clone_zone = Some(zone.clone());
        run.intend(Step::Clone, &zone).await?;
        home.create_clone(&id, &zone).await?;
    }
    home.clone_available(&id, &zone, run.patience(Patience::CLONE)).await?;
    Ok(format!("in {zone}"))
}

/// Deletes the clones that this job has made: all clones of its own snapshot, but of a snapshot that existed
/// before the job only the clone in its state.
pub(super) async fn undo(run: &mut Run<'_>) -> Result<(), Fault> {
    // A job that is resumed here may have been begun with a clone.
    if run.job.restore == Restore::Plain && !run.resumed {
        return Ok(());
    }
    let home = &run.context.home;
    let found = match &run.state.snapshot {
        Some(known) => home.snapshot(&known.id).await?,
        None => home.snapshot_by_name(run.names.run.as_str()).await?,
    };
    let Some(snapshot) = found else { return Ok(()) };
    let own = names::job_of(&snapshot.user_tags) == Some(run.job.id);
    let clones = match home.clones(&snapshot.id).await {
        // The snapshot is gone by now, and its clones with it.
        Err(err) if err.is_not_found() => Vec::new(),
        listed => listed?,
    };
    for clone in clones {
        if own || run.state.clone_zone.as_deref() == Some(clone.zone.name.as_str()) {
            home.delete_clone(&snapshot.id, &clone.zone.name).await?;
        }
    }
    run.state.clone_zone = None;
    Ok(())
}
