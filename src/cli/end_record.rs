//! Error at the end of a run as one line of a JSON log, or as one record of systemd's journal.

use snapferry_fleet::replicate::{JobError, Resumable};
use tracing::Level;

use super::error::CommandError;
use super::exit::Ending;
use super::json_log::Record;

/// Returns the job that an error has ended, if it was one.
fn job_of(error: &CommandError) -> Option<&JobError> {
    match error {
        CommandError::Job(error) => Some(error),
        CommandError::Recorded(error) => job_of(error),
        CommandError::During { source, .. } => job_of(source),
        _ => None,
    }
}

/// Returns the line of an error, with the same content as its text.
pub fn of(error: &CommandError, ending: &Ending) -> Record {
    let mut record = Record::new(Level::ERROR, &ending.message).with("exit_code", error.code() as u8);
    if !ending.hints.is_empty() {
        record = record.with("hint", ending.hints.join("\n"));
    }
    let job = job_of(error);
    // A job's line always has the list, since a job is expected to remove what it made.
    if job.is_some() || !ending.leftovers.is_empty() {
        record = record.with("left_behind", &ending.leftovers);
    }
    if let Some(job) = job {
        record = record.with("job", job.id).with("server", &job.server).with("step", job.step.name());
        if job.resumable == Resumable::Yes {
            record = record.with("next", format!("snapferry replicate --resume {}", job.id));
        }
    }
    record
}

/// Sends the error to the journal, with the fields of its job. Its text goes to stderr as well, for the user
/// at the terminal.
pub fn send_to_journal(error: &CommandError, ending: &Ending) {
    let job = job_of(error);
    let hint = (!ending.hints.is_empty()).then(|| ending.hints.join("\n"));
    tracing::error!(
        job = job.map(|job| job.id.to_string()),
        server = job.map(|job| job.server.as_str()),
        step = job.map(|job| job.step.name()),
        hint,
        exit_code = error.code() as u8,
        "{}",
        ending.message
    );
}
