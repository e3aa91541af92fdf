//! Step `prune`: removes the things of earlier runs that retention does not keep. The new image exists by
//! now, so a thing that can't be removed is a warning and does not fail the job.

use snapferry_base::retry::{Class, chain};

use super::super::error::Fault;
use super::super::holdings::{CloudStores, Holdings};
use super::super::saga::Run;
use super::Step;

pub(super) async fn run(run: &mut Run<'_>) -> Result<String, Fault> {
    let newest = run.state.image.as_ref().map(|image| &image.id);
    let stores = CloudStores::of_context(run.context);
    let holdings = match Holdings::of_job(run.job, run.context, newest).await {
        Ok(holdings) => holdings,
        Err(err) if err.class() == Class::Cancelled => return Err(err),
        Err(err) => {
            run.warn(format!("what there is to prune could not be listed: {}", chain(&err)));
            return Ok("nothing: it could not be listed".to_owned());
        }
    };
    if let Some(newer) = holdings.newer {
        return Ok(format!("nothing: what is kept is for {newer} to say, which is newer"));
    }
    let expired = holdings.beyond(&run.job.retention, run.context.clock.now());
    if !expired.is_empty() {
        run.intend(Step::Prune, expired.len()).await?;
    }
    let mut pruned = 0;
    for resource in &expired {
        match resource.remove(&stores).await {
            Ok(()) => {
                run.state.pruned.push(resource.to_string());
                pruned += 1;
            }
            Err(err) if err.class() == Class::Cancelled => return Err(err),
            Err(err) => run.warn(format!("{resource} is not pruned: {}", chain(&err))),
        }
    }
    Ok(match pruned {
        0 => "nothing".to_owned(),
        count => format!("{count}: {}", run.state.pruned.join(", ")),
    })
}
