//! What was changed: a line of JSON for each mutation, in a file and in memory.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::route::RegionOperation;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deed {
    /// When, UTC.
    pub at: String,
    /// The client's X-Request-Id.
    pub request_id: String,
    /// In which region; empty for what has none.
    pub region: String,
    /// What was asked for.
    pub operation: RegionOperation,
    /// What it was about, where it was done.
    pub id: Option<String>,
    /// Its name, where the request gave one.
    pub name: Option<String>,
    /// The answer's status, as it was before a script changed it.
    pub status: u16,
}

/// All changes so far.
#[derive(Debug)]
pub(super) struct History {
    file: File,
    deeds: Vec<Deed>,
}

impl History {
    /// Goes on with what the file has.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let before = match std::fs::read_to_string(path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => String::new(),
            read => read?,
        };
        // The last line may be cut where the process was killed.
        let deeds = before.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        if !before.is_empty() && !before.ends_with('\n') {
            file.write_all(b"\n")?;
        }
        Ok(Self { file, deeds })
    }

    pub(super) fn add(&mut self, deed: Deed) -> io::Result<()> {
        let mut line = serde_json::to_vec(&deed)?;
        line.push(b'\n');
        self.deeds.push(deed);
        self.file.write_all(&line)
    }

    pub(super) fn deeds(&self) -> &[Deed] {
        &self.deeds
    }
}
