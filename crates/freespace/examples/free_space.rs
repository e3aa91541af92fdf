//! Prints what the filesystems on a disk call free, for comparisons with other tools:
//! `cargo run -p snapferry-freespace --example free_space -- DISK`.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;

use snapferry_freespace::{Disk, Outcome, probe};

struct OnFile {
    file: File,
    size: u64,
}

impl Disk for OnFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("give a disk")?;
    let mut file = File::open(path)?;
    let size = file.seek(SeekFrom::End(0))?;
    let found = probe(&OnFile { file, size })?;
    let mut out = io::stdout().lock();
    for verdict in &found.filesystems {
        let (name, kind, length) = (&verdict.name, verdict.kind, verdict.length);
        match &verdict.outcome {
            Outcome::Skipped { uuid, free, evidence } => {
                let (free, ranges) = (free.total(), free.as_slice().len());
                writeln!(out, "{name} {kind} {uuid}: {free} of {length} free, {ranges} ranges; {evidence}")?;
            }
            Outcome::Whole { why } => writeln!(out, "{name} {kind}: {length} whole: {why}")?,
        }
    }
    Ok(())
}
