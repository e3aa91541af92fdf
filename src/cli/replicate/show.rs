//! Display of a job. On a terminal: a line for each step that is done, and below them the current wait or the
//! progress bar. Elsewhere: a line in the log at each change.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::ProgressBar;
use snapferry_fleet::replicate::{Progress, ProgressObserver, Step};
use snapferry_ibmcloud::vpc::Watch;

use crate::cli::duration::clock_face;
use crate::cli::log::Verbosity;
use crate::cli::printable::{LONGEST_SHOWN, cut, line};
use crate::cli::progress::{Console, Progress as Bar};

/// Shows a job until it is dropped.
pub struct Shown {
    console: Console,
    verbosity: Verbosity,
    now: Mutex<Now>,
}

#[derive(Default)]
struct Now {
    spinner: Option<ProgressBar>,
    bar: Option<Bar>,
}

impl Now {
    fn clear(&mut self) {
        self.bar = None;
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.now().clear();
    }
}

/// Returns a text for a step that has begun, while nothing more is known.
fn label(step: Step) -> &'static str {
    match step {
        Step::Resolve => "looking for the server",
        Step::Preflight => "looking for what is in the way",
        Step::Snapshot => "taking a snapshot",
        Step::Stable => "waiting for the snapshot",
        Step::Clone => "having the snapshot cloned",
        Step::Volume => "making a volume of it",
        Step::Attach => "attaching the volume",
        Step::Convert => "converting",
        Step::Release => "detaching and deleting the volume",
        Step::Import => "having the image imported",
        Step::Available => "waiting for the image",
        Step::Promote => "making it the latest",
        Step::Mark => "marking the snapshot as done",
        Step::Prune => "looking for what retention does not keep",
    }
}

impl Shown {
    pub fn new(console: &Console, verbosity: Verbosity) -> Self {
        Self { console: console.clone(), verbosity, now: Mutex::default() }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn on_terminal(&self) -> bool {
        self.console.is_terminal() && self.verbosity != Verbosity::Quiet
    }

    fn begin(&self, now: &mut Now, message: &str) {
        now.clear();
        if self.on_terminal() {
            now.spinner = self.console.spinner();
            if let Some(spinner) = &now.spinner {
                spinner.set_message(message.to_owned());
            }
        }
    }

    fn done(&self, now: &mut Now, step: Step, took: Duration, details: &str) {
        now.clear();
        if self.on_terminal() {
            let line = format!("  {:<10} {:>7}  {}\n", step.name(), clock_face(took), line(details));
            // If stderr is gone, nothing can be done about it.
            let _ = self.console.print(line.as_bytes());
        } else {
            // The log's spans name the job and the step.
            tracing::info!(seconds = took.as_secs(), "{} done: {details}", step.name());
        }
    }
}

impl ProgressObserver for Shown {
    fn on_progress(&self, progress: Progress<'_>) {
        let mut now = self.now();
        match progress {
            Progress::Begun(step) => self.begin(&mut now, label(step)),
            Progress::Done { step, took, summary } => self.done(&mut now, step, took, summary),
            Progress::Converting(counters, size) => {
                now.clear();
                now.bar = Some(Bar::show(&self.console, self.verbosity, counters, size));
            }
            Progress::ReadingBack(counters, size) => {
                now.clear();
                now.bar = Some(Bar::show(&self.console, self.verbosity, counters, size));
            }
            // The step's result shows the reason.
            Progress::SentInFull(_) => {}
            Progress::Still => now.clear(),
            Progress::CleaningUp => self.begin(&mut now, "cleaning up"),
        }
    }
}

impl Watch for Shown {
    fn waiting(&self, what: &str, state: &str, reasons: &[String]) {
        let reasons = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) };
        let now = self.now();
        match &now.spinner {
            Some(spinner) => spinner.set_message(
                cut(&format!("waiting for {what}: {state}{reasons}"), LONGEST_SHOWN).into_owned(),
            ),
            None => tracing::info!("waiting for {what}: {state}{reasons}"),
        }
    }
}
