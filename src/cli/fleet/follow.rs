//! `snapferry jobs logs` and `jobs watch`: events and jobs of the queue, printed as they change.

use std::io::{IsTerminal as _, Write as _, stdout};
use std::time::{Duration, SystemTime};

use serde_json::json;
use snapferry_base::cancel::Cancel;
use snapferry_base::clock::rfc3339;
use snapferry_base::job::JobId;
use snapferry_fleet::queue::{EVENTS_KEPT, JobState, Queue, QueueEvent};

use super::jobs::at;
use super::{Away, open};
use crate::cli::args::QueueArgs;
use crate::cli::duration::clock_face;
use crate::cli::error::{CommandError, CommandResult};
use crate::cli::exit::Code;
use crate::cli::log::Verbosity;
use crate::cli::printable::{self, Form, LONGEST_SHOWN, cut, fitted, padded, terminal_width};
use crate::cli::session::Session;
use crate::cli::signals::Unfinished;
use crate::cli::table::{Table, first_line};

/// Time between two looks at the queue.
const LOOK: Duration = Duration::from_secs(1);
/// Events that are read at each look. If more happen between two looks, the oldest are missed.
const BETWEEN: usize = 1000;
/// Running jobs that are shown at most: more than any fleet has.
const RUNNING: usize = 10_000;
/// Jobs of each other state that are shown at most.
const SHOWN: usize = 10;
/// Moves the cursor to the upper left corner and clears the screen below it (ECMA-48: CUP, ED).
const CLEARED: &str = "\x1b[H\x1b[J";

pub fn logs(
    job: Option<JobId>,
    follow: bool,
    as_json: bool,
    queue: &QueueArgs,
    session: &Session,
) -> CommandResult<Code> {
    poll_queue(queue, session, follow, async |queue, last: &mut Option<QueueEvent>| {
        let limit = if last.is_some() { BETWEEN } else { EVENTS_KEPT };
        let events = queue.events(limit).await?;
        // If the last event that was seen is not among them, all of them are new.
        let from = last
            .as_ref()
            .and_then(|last| events.iter().rposition(|event| event == last))
            .map_or(0, |at| at + 1);
        let mut out = printable::out_as(Form::of(as_json));
        for event in events[from..].iter().filter(|event| job.is_none_or(|id| id == event.id)) {
            if as_json {
                let line = json!({ "at": rfc3339(event.at), "job": event.id, "what": event.what, "details": event.details });
                writeln!(out, "{line}")?;
            } else {
                writeln!(
                    out,
                    "{}  {}  {} {}",
                    rfc3339(event.at),
                    event.id,
                    padded(&cut(&event.what, LONGEST_SHOWN), 10),
                    cut(first_line(&event.details), LONGEST_SHOWN)
                )?;
            }
        }
        drop(out);
        if events.is_empty() && !follow && !as_json && session.verbosity != Verbosity::Quiet {
            writeln!(printable::err(), "no events")?;
        }
        *last = events.last().cloned().or(last.take());
        Ok(())
    })
}

pub fn watch(queue: &QueueArgs, session: &Session) -> CommandResult<Code> {
    if !stdout().is_terminal() {
        return logs(None, true, false, queue, session);
    }
    poll_queue(queue, session, true, async |queue, _state: &mut ()| {
        let now = SystemTime::now();
        let counts = queue.counts().await?;
        let summary: Vec<String> =
            JobState::ALL.iter().map(|&state| format!("{} {state}", counts.of(state))).collect();
        let mut table = Table::new(&["job", "server", "region", "now", "for", "worker", "error"]);
        let running = queue.jobs(JobState::Running, RUNNING).await?;
        let others = queue.jobs_in(&[JobState::Ready, JobState::Delayed, JobState::Dead], SHOWN).await?;
        for job in running.into_iter().chain(others) {
            table.row(vec![
                job.id.to_string(),
                job.server.clone(),
                job.region.clone(),
                at(&job),
                clock_face(now.duration_since(job.changed_at).unwrap_or_default()),
                job.worker.unwrap_or_default(),
                job.error.unwrap_or_default(),
            ]);
        }
        stdout().write_all(CLEARED.as_bytes())?;
        let mut out = printable::out();
        let width = terminal_width();
        let summary = format!("{}   {}", rfc3339(now), summary.join(", "));
        writeln!(out, "{}\n", width.map_or(summary.as_str().into(), |width| fitted(&summary, width)))?;
        Ok(table.write(&mut out, width)?)
    })
}

/// Calls `work` once, or with `repeat` repeatedly until the user stops the command.
async fn poll<T: Default>(
    queue: &dyn Queue,
    repeat: bool,
    cancel: &Cancel,
    mut work: impl AsyncFnMut(&dyn Queue, &mut T) -> CommandResult<()>,
) -> CommandResult<Code> {
    let (mut state, mut outage) = (T::default(), Away::default());
    loop {
        match work(queue, &mut state).await {
            Ok(()) => outage.reset(),
            Err(CommandError::Queue(error)) if repeat && outage.should_retry(&error) => {}
            Err(error) => return Err(error),
        }
        if !repeat {
            return Ok(Code::Done);
        }
        tokio::select! {
            biased;
            _reason = cancel.cancelled() => return Ok(Code::Done),
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

fn poll_queue<T: Default>(
    args: &QueueArgs,
    session: &Session,
    repeat: bool,
    work: impl AsyncFnMut(&dyn Queue, &mut T) -> CommandResult<()>,
) -> CommandResult<Code> {
    let runtime = if repeat { session.start(Unfinished::Nothing)? } else { session.runtime()? };
    runtime.block_on(async {
        let queue = open(args, &session.environment).await?;
        poll(&queue, repeat, &session.cancel, work).await
    })
}
