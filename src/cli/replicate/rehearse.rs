//! Rehearsals of `replicate --resume` and `replicate --abandon`, from the journals of this machine.

use serde_json::json;
use snapferry_fleet::replicate::journal::Read;
use snapferry_fleet::replicate::{JobSpec, JobState, Origin};

use crate::cli::error::CommandResult;
use crate::cli::exit::Code;
use crate::cli::printable::Form;
use crate::cli::rehearsal::would_with;

/// Prints which jobs would be resumed.
pub fn resume(chosen: &[JobSpec], form: Form) -> CommandResult<Code> {
    for JobSpec { id, server, to, .. } in chosen {
        let what = format_args!("go on with job {id}, {server} into {to}");
        would_with(form, what, &json!({ "job": id, "server": server, "region": to }))?;
    }
    if chosen.is_empty() {
        would_with(form, format_args!("resume nothing"), &json!({ "job": null }))?;
    }
    Ok(Code::Done)
}

/// Prints what would be removed if the job were given up.
pub fn abandon(read: &Read, form: Form) -> CommandResult<Code> {
    let (made, job) = (made_by(read), &read.job);
    let more = json!({ "job": job.id, "server": job.server, "region": job.to, "made": made });
    would_with(form, format_args!("{}", abandoning(job, &made)), &more)?;
    Ok(Code::Done)
}

/// Describes what giving up a job does.
pub fn abandoning(job: &JobSpec, made: &[String]) -> String {
    let list = if made.is_empty() { "nothing that is known here".to_owned() } else { made.join(", ") };
    format!("give up job {}, {} into {}, and remove {list}", job.id, job.server, job.to)
}

/// Describes what a job has made and not removed yet, as far as its journal on this machine shows it.
pub fn made_by(read: &Read) -> Vec<String> {
    let JobState { snapshot, clone_zone, volume, attachment, object, image, .. } = read.state();
    // A snapshot that the user named is left as it is.
    let own_snapshot = snapshot.filter(|_| read.job.origin == Origin::Server);
    let all = [
        image.map(|image| format!("image {}", image.name)),
        object.map(|object| format!("object {}", object.url)),
        attachment.map(|attachment| format!("attachment {}", attachment.id)),
        volume.map(|volume| format!("volume {}", volume.id)),
        clone_zone.map(|zone| format!("the clone in {zone}")),
        own_snapshot.map(|snapshot| format!("snapshot {}", snapshot.name)),
    ];
    all.into_iter().flatten().collect()
}
