//! History of all changes: one line of JSON for each, in a file and in memory.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::route::RegionOperation;

/// One request for a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Time of the request, UTC, as `2026-01-02T03:04:05.006Z`.
    pub at: String,
    /// X-Request-Id header of the request; empty if it had none.
    pub request_id: String,
    /// Region of the request; empty for a service that has none.
    pub region: String,
    pub operation: RegionOperation,
    /// Id of the resource that was created or changed, if the request succeeded.
    pub id: Option<String>,
    /// Name in the request's body, if there is one.
    pub name: Option<String>,
    /// HTTP status of the response, before a fault script changed it.
    pub status: u16,
}

/// All changes up to now.
#[derive(Debug)]
pub(super) struct History {
    file: File,
    entries: Vec<HistoryEntry>,
}

impl History {
    /// Opens the file, and reads the changes in it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let content = match std::fs::read_to_string(path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => String::new(),
            read => read?,
        };
        // The last line may be incomplete if the process was killed.
        let entries = content.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        if !content.is_empty() && !content.ends_with('\n') {
            file.write_all(b"\n")?;
        }
        Ok(Self { file, entries })
    }

    pub(super) fn add(&mut self, entry: HistoryEntry) -> io::Result<()> {
        let mut line = serde_json::to_vec(&entry)?;
        line.push(b'\n');
        self.entries.push(entry);
        self.file.write_all(&line)
    }

    pub(super) fn entries(&self) -> &[HistoryEntry] {
        &self.entries
    }
}
