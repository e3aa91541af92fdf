//! Journal of a job, with an entry for each change before it is made, and for each result.
//!
//! A journal is a file of lines that are only appended, and each line is on the disk before the work
//! continues. The last line has everything that is known. A line that was cut by a crash is ignored, since
//! its content can be looked up in the cloud.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use snapferry_base::clock::rfc3339;
use snapferry_base::job::JobId;
use snapferry_base::retry::Class;
use snapferry_engine::store::sync_folder;

use super::job::JobSpec;
use super::state::JobState;
use super::steps::Step;
use crate::queue::QueueError;

/// Version of the journal's form that this program writes. It reads no later one.
const SCHEMA: u32 = 1;
/// End of the journals' file names.
const SUFFIX: &str = ".jsonl";

/// Event in a job's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// A process took the job up.
    TakenUp {
        /// Server of that process, as far as it is known.
        host: String,
    },
    /// A step is about to change the cloud.
    Intent {
        step: Step,
        /// Name of the thing that the change makes.
        name: String,
    },
    /// A step is done.
    Done {
        step: Step,
        /// Duration of the step in milliseconds.
        took_ms: u64,
    },
    /// A step failed, and with it the job, for now.
    Failed { step: Step, reason: String },
    /// The job is done.
    Finished,
    /// The job was given up, and everything that it made was removed.
    Abandoned,
}

impl Event {
    /// Returns the state of the job in one word: the name of a step, or the outcome.
    #[must_use]
    pub fn at(&self) -> &'static str {
        match self {
            Self::Intent { step, .. } | Self::Done { step, .. } | Self::Failed { step, .. } => step.name(),
            Self::TakenUp { .. } => "taken-up",
            Self::Finished => "finished",
            Self::Abandoned => "abandoned",
        }
    }

    /// Returns the place of the step that this event completes, counted from 1.
    #[must_use]
    pub fn through(&self) -> Option<u32> {
        match self {
            Self::Done { step, .. } => Some(*step as u32 + 1),
            _ => None,
        }
    }
}

/// Line of the journal, after the first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Time of the event in UTC.
    pub at: String,
    #[serde(flatten)]
    pub event: Event,
    /// Knowledge of the job after the event.
    pub state: JobState,
}

impl Entry {
    /// Makes an entry with the time `now`.
    #[must_use]
    pub fn new(now: SystemTime, event: Event, state: &JobState) -> Self {
        Self { at: rfc3339(now), event, state: state.clone() }
    }
}

/// Reason why a journal can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The folder or a file in it can't be used.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// Operation that failed, such as `open`, `write` or `read`.
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The file is no journal of a form that this program knows.
    #[error("{} is no journal of this version of snapferry: {reason}", path.display())]
    Foreign {
        path: PathBuf,
        /// Difference that was found.
        reason: String,
    },
    /// The queue does not confirm the lease: it is lost, or its state has been unknown for too long. Another
    /// worker may have the job now, and must not be disturbed.
    #[error("the job is no longer ours to work on")]
    Lease(#[source] QueueError),
    /// Another process works on the job.
    #[error("job {id} is being worked on by another process ({} is locked)", path.display())]
    Busy {
        id: JobId,
        /// Path of the job's journal, which is locked.
        path: PathBuf,
    },
}

impl JournalError {
    /// Returns what the error means for another attempt.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Lease(_) => Class::LeaseLost,
            Self::Busy { .. } => Class::Transient,
            Self::File { .. } | Self::Foreign { .. } => Class::Permanent,
        }
    }
}

/// Store for a job's entries. A step continues once its entry is safe.
#[async_trait]
pub trait Journal: Send + Sync {
    /// Adds an entry, and returns once it is safe.
    async fn record(&self, entry: &Entry) -> Result<(), JournalError>;
}

/// First line of a journal file.
#[derive(Serialize, Deserialize)]
struct Header {
    schema: u32,
    job: JobSpec,
}

/// Content of a journal file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub job: JobSpec,
    pub entries: Vec<Entry>,
}

impl Read {
    /// Returns the last known state.
    #[must_use]
    pub fn state(&self) -> JobState {
        self.entries.last().map(|entry| entry.state.clone()).unwrap_or_default()
    }

    /// True if the job is finished or abandoned.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.entries.last().map(|entry| &entry.event), Some(Event::Finished | Event::Abandoned))
    }
}

/// Journals of one machine: a file for each job in a folder.
#[derive(Clone, Debug)]
pub struct JournalFolder {
    folder: PathBuf,
}

impl JournalFolder {
    /// Makes the folder's handle: `jobs` in `state`, which is usually `/var/lib/snapferry`.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self { folder: state.join("jobs") }
    }

    fn path(&self, id: JobId) -> PathBuf {
        self.folder.join(format!("{id}{SUFFIX}"))
    }

    /// Begins the journal of a job, or opens the existing one, for this process alone.
    ///
    /// # Errors
    /// [`JournalError::Busy`] if another process has it. Also if the folder can't be written, or the existing
    /// journal can't be read.
    pub fn open(&self, job: &JobSpec) -> Result<(FileJournal, Option<Read>), JournalError> {
        let path = self.path(job.id);
        let failed = |operation| {
            let path = path.clone();
            move |source| JournalError::File { operation, path, source }
        };
        fs::create_dir_all(&self.folder).map_err(failed("make the folder of"))?;
        let file =
            OpenOptions::new().read(true).append(true).create(true).open(&path).map_err(failed("open"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(JournalError::Busy { id: job.id, path }),
            Err(err) => return Err(failed("lock")(err.into())),
        }
        let before = fs::read_to_string(&path).map_err(failed("read"))?;
        let read = if before.lines().next().is_some_and(|line| before.len() > line.len()) {
            Some(parse(&path, &before)?)
        } else {
            None
        };
        let journal = FileJournal { path: path.clone(), file: Mutex::new(file) };
        match &read {
            // Without a line break, the next entry would continue the line that was cut.
            Some(_) if !before.ends_with('\n') => journal.append(b"\n")?,
            Some(_) => {}
            None => {
                // A crash may have cut the first line.
                journal.truncate()?;
                journal.write(&Header { schema: SCHEMA, job: job.clone() })?;
                sync_folder(&self.folder).map_err(failed("keep"))?;
            }
        }
        Ok((journal, read))
    }

    /// Reads a job's journal, if there is one.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn read(&self, id: JobId) -> Result<Option<Read>, JournalError> {
        let path = self.path(id);
        match fs::read_to_string(&path) {
            Ok(text) => parse(&path, &text).map(Some),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(JournalError::File { operation: "read", path, source }),
        }
    }

    /// Reads every journal in the folder, the oldest job first. A journal that can't be read is logged and
    /// left out.
    ///
    /// # Errors
    /// If the folder can't be listed. A missing folder counts as an empty one.
    pub fn all(&self) -> Result<Vec<Read>, JournalError> {
        let failed = |source| JournalError::File { operation: "list", path: self.folder.clone(), source };
        let entries = match fs::read_dir(&self.folder) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            listed => listed.map_err(failed)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).and_then(|id| id.parse().ok());
            let Some(id) = id else { continue };
            match self.read(id) {
                Ok(read) => found.extend(read),
                Err(err) => tracing::warn!("{}", snapferry_base::retry::chain(&err)),
            }
        }
        found.sort_by_key(|read| read.job.id);
        Ok(found)
    }

    /// True if a process of this machine works on the job now.
    #[must_use]
    pub fn is_busy(&self, id: JobId) -> bool {
        let Ok(file) = File::open(self.path(id)) else { return false };
        flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
    }

    /// Removes the journals of jobs that are over and began before `before`. Returns the number of removed
    /// journals.
    ///
    /// # Errors
    /// If the folder can't be listed, or a file can't be removed.
    pub fn forget(&self, before: SystemTime) -> Result<usize, JournalError> {
        let mut forgotten = 0;
        for read in self.all()?.into_iter().filter(|read| read.is_over() && read.job.id.time() < before) {
            let path = self.path(read.job.id);
            fs::remove_file(&path).map_err(|source| JournalError::File {
                operation: "remove",
                path,
                source,
            })?;
            forgotten += 1;
        }
        Ok(forgotten)
    }
}

fn parse(path: &Path, text: &str) -> Result<Read, JournalError> {
    let invalid = |reason: String| JournalError::Foreign { path: path.to_owned(), reason };
    let mut lines = text.lines();
    let header: Header =
        serde_json::from_str(lines.next().unwrap_or_default()).map_err(|err| invalid(err.to_string()))?;
    if header.schema > SCHEMA {
        return Err(invalid(format!("it has form {}, and {SCHEMA} is the latest known here", header.schema)));
    }
    // A line that was cut by a crash is ignored: a later entry has everything that is known.
    let entries = lines.filter_map(|line| serde_json::from_str(line).ok()).collect();
    Ok(Read { job: header.job, entries })
}

/// Journal in a file, which is locked until this value is dropped.
#[derive(Debug)]
pub struct FileJournal {
    path: PathBuf,
    file: Mutex<File>,
}

impl FileJournal {
    fn write(&self, line: &impl Serialize) -> Result<(), JournalError> {
        let mut bytes = serde_json::to_vec(line)
            .map_err(|err| JournalError::Foreign { path: self.path.clone(), reason: err.to_string() })?;
        bytes.push(b'\n');
        self.append(&bytes)
    }

    fn append(&self, bytes: &[u8]) -> Result<(), JournalError> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |source| JournalError::File { operation: "write", path: self.path.clone(), source };
        file.write_all(bytes).and_then(|()| file.sync_data()).map_err(failed)
    }

    fn truncate(&self) -> Result<(), JournalError> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.set_len(0).map_err(|source| JournalError::File {
            operation: "begin",
            path: self.path.clone(),
            source,
        })
    }
}

#[async_trait]
impl Journal for FileJournal {
    async fn record(&self, entry: &Entry) -> Result<(), JournalError> {
        // Blocks for one line and one flush, which is shorter than handing them to another thread and waiting
        // for it.
        self.write(entry)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::replicate::steps::Step;
    use crate::replicate::testing::job;

    fn entry(event: Event) -> Entry {
        let state = JobState { pruned: vec![format!("{event:?}")], ..JobState::default() };
        Entry::new(SystemTime::UNIX_EPOCH, event, &state)
    }

    /// The queue counts these places as progress.
    #[test]
    fn only_a_step_that_is_through_has_a_place() {
        let through = |step| Event::Done { step, took_ms: 0 }.through();
        let numbers: Vec<Option<u32>> = Step::ALL.into_iter().map(through).collect();
        assert_eq!(numbers, (1..=14).map(Some).collect::<Vec<_>>());
        let intent = Event::Intent { step: Step::Prune, name: String::new() };
        for event in [Event::TakenUp { host: String::new() }, intent, Event::Finished, Event::Abandoned] {
            assert_eq!(event.through(), None, "{event:?}");
        }
    }

    #[tokio::test]
    async fn what_was_recorded_is_read_and_a_cut_line_counts_for_nothing() {
        let temp = tempfile::tempdir().expect("a folder");
        let folder = JournalFolder::new(temp.path());
        let job = job("web01", 1);
        let intent = entry(Event::Intent { step: Step::Snapshot, name: "web01-1".to_owned() });
        {
            let (journal, before) = folder.open(&job).expect("a journal");
            assert_eq!(before, None);
            assert!(folder.is_busy(job.id));
            assert!(matches!(folder.open(&job), Err(JournalError::Busy { .. })));
            journal.record(&intent).await.expect("recorded");
        }
        assert!(!folder.is_busy(job.id));
        let path = folder.path(job.id);
        let text = fs::read_to_string(&path).expect("read");
        fs::write(&path, format!("{text}{{\"at\":\"2026")).expect("written");
        let (journal, before) = folder.open(&job).expect("a journal");
        let before = before.expect("it was there");
        assert_eq!((&before.entries, before.is_over()), (&vec![intent.clone()], false));
        let finished = entry(Event::Finished);
        journal.record(&finished).await.expect("recorded");
        let now = folder.read(job.id).expect("read").expect("there");
        assert_eq!((now.entries, now.job.clone()), (vec![intent, finished], job.clone()));
        drop(journal);
        assert_eq!(folder.forget(job.id.time()).expect("none is older"), 0);
        assert_eq!(folder.forget(job.id.time() + Duration::from_secs(1)).expect("one is over"), 1);
        assert_eq!(folder.all().expect("listed"), []);
    }

    #[test]
    fn a_crash_in_the_first_line_and_later_forms_are_told_apart() {
        let temp = tempfile::tempdir().expect("a folder");
        let folder = JournalFolder::new(temp.path());
        let job = job("web01", 1);
        drop(folder.open(&job).expect("a journal"));
        let path = folder.path(job.id);
        let text = fs::read_to_string(&path).expect("read");
        fs::write(&path, &text[..text.len() / 2]).expect("written");
        let (_journal, before) = folder.open(&job).expect("begun anew");
        assert_eq!(before, None);
        assert_eq!(fs::read_to_string(&path).expect("read"), text);
        fs::write(&path, text.replace("\"schema\":1", "\"schema\":2")).expect("written");
        assert!(matches!(folder.read(job.id), Err(JournalError::Foreign { .. })));
    }
}
