//! Whether an image's tables are consistent: QEMU's own audit, figure by figure, and what that leaves out.
//!
//! Every reference in the image is counted and held against the counts that it stores. Unlike the reader, this does not stop at the first
//! wrong entry. Bodies are not looked at.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

use snapferry_base::cancel::Cancel;
use snapferry_base::limits::zeros;
use snapferry_base::units::{
    ClusterBits, GuestOffset, HostCluster, HostOffset, MIB, SECTOR, to_u64, to_usize,
};

use crate::bitmaps;
use crate::header::Version;
use crate::image::{Image, ImageError, ImageFile};
use crate::l2::{COMPRESSED, COPIED, OFFSET, READS_ZERO, compressed_offset_bits};
use crate::mappings::SUBCLUSTERS;
use crate::references::{Noted, References, Use};
use crate::snapshots::{self, Snapshot};

/// Findings that are kept in words; the rest is only counted.
pub const MOST_FINDINGS: usize = 1000;
/// Tables are read so many bytes at a time.
const TABLE_READ: u64 = 4 * MIB;
/// Bytes of refcount blocks that are kept at once.
const KEPT_BLOCKS: u64 = 32 * MIB;

/// Bits of an L1 entry that must be zero (specification, "L1 table entry").
const L1_RESERVED: u64 = !(COPIED | OFFSET);
/// Bits of a standard L2 entry that must be zero (specification, "Standard Cluster Descriptor").
const L2_RESERVED: u64 = !(COPIED | COMPRESSED | OFFSET | READS_ZERO);
/// Bits of a refcount table entry that must be zero.
const REFCOUNT_RESERVED: u64 = (1 << 9) - 1;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Nothing is wrong, but somebody may want to know.
    Note,
    /// Space is lost, data are not.
    Leak,
    /// The image is wrong, by QEMU's audit too.
    Corruption,
    /// The image is wrong, and QEMU's audit does not look at it.
    Hidden,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// In words, with the place.
    pub what: String,
    /// Of a host cluster that is not counted right, the numbers.
    pub miscount: Option<Miscount>,
}

/// A host cluster that is counted otherwise than it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miscount {
    /// Which.
    pub cluster: HostCluster,
    /// How often the image says that it is used.
    pub counted: u64,
    /// How often it is.
    pub used: u64,
}

/// What the audit found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Wrong by QEMU's rules.
    pub corruptions: u64,
    /// Host clusters that are counted more often than they are used.
    pub leaks: u64,
    /// Tables that could not be read.
    pub check_errors: u64,
    /// Wrong by our rules alone: uses that overlap, a mark of corruption.
    pub hidden: u64,
    /// Clusters of the disk.
    pub total_clusters: u64,
    /// Those that have bytes in the file.
    pub allocated_clusters: u64,
    /// Those of them that don't follow the one before in the file; compressed ones all count, as QEMU has it.
    pub fragmented_clusters: u64,
    /// Those of them that are compressed.
    pub compressed_clusters: u64,
    /// Where the last cluster that is used or counted ends.
    pub image_end: u64,
    /// Bytes of the file behind that.
    pub trailing: u64,
    /// The first of what was found, in words.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing is wrong. Notes are nothing wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0 && self.check_errors == 0 && self.hidden == 0
    }

    fn add(&mut self, severity: Severity, what: fmt::Arguments<'_>) {
        self.add_times(1, severity, what);
    }

    /// A cluster's counts differ.
    fn add_miscount(&mut self, miscount: Miscount, cluster: ClusterBits) {
        let Miscount { cluster: number, counted, used } = miscount;
        let severity = if counted < used { Severity::Corruption } else { Severity::Leak };
        let (before, at) = (self.findings.len(), number.offset(cluster));
        self.add(
            severity,
            format_args!("the host cluster at byte {at} is used {used} times and counted {counted} times"),
        );
        self.findings[before..].iter_mut().for_each(|finding| finding.miscount = Some(miscount));
    }

    /// What is found `times` times is told once.
    fn add_times(&mut self, times: u64, severity: Severity, what: fmt::Arguments<'_>) {
        match severity {
            Severity::Note => {}
            Severity::Leak => self.leaks += times,
            Severity::Corruption => self.corruptions += times,
            Severity::Hidden => self.hidden += times,
        }
        if self.findings.len() < MOST_FINDINGS {
            self.findings.push(Finding { severity, what: what.to_string(), miscount: None });
        }
    }
}

/// Audits an image that was opened with its marks of corruption ignored. Memory: 4 bytes for each host cluster near one that is used,
/// and at most 32 MiB of the image's own counts.
///
/// # Errors
/// Where the file can't be read, or its table of snapshots or of bitmaps makes no sense; [`ImageError::Interrupted`] where the work is
/// cancelled.
pub fn check(file: &dyn ImageFile, image: &Image, cancel: &Cancel) -> Result<Report, ImageError> {
    let header = image.header();
    let cluster = header.cluster;
    let report = Report { total_clusters: cluster.clusters_in(image.virtual_size().0), ..Report::default() };
    let references = References::new(image.file_len().0, cluster);
    let mut audit = Audit { file, image, cluster, cancel, references, report };

    if image.facts().corrupt {
        audit.report.add(
            Severity::Hidden,
            format_args!("the image is marked as corrupt: somebody found it to be wrong"),
        );
    }
    if header.dirty {
        audit.report.add(
            Severity::Note,
            format_args!("the image was not closed by who wrote it last: its counts may be behind"),
        );
    }
    audit.count(HostOffset(0), cluster.size(), 1, Use::Header);
    let l1 = audit.l1_table(header.l1_table, header.l1_entries, Fragments::Count)?;
    let (found, table_len) = snapshots::list(file, header)?;
    for snapshot in &found {
        audit.snapshot(snapshot)?;
    }
    audit.count(header.snapshot_table, table_len, 1, Use::SnapshotTable);
    for (at, len) in bitmaps::places(file, image.facts())? {
        audit.count(at, len, 1, Use::Bitmap);
    }
    let refcount_table_len = u64::from(header.refcount_table_clusters) * cluster.size();
    audit.count(header.refcount_table, refcount_table_len, 1, Use::RefcountTable);
    let places = audit.refcount_blocks()?;
    let mut stored = Stored::new(file, places, header.refcount_order, cluster);
    let highest = audit.compare(&mut stored)?;
    audit.copied_flags(&l1, &mut stored)?;

    let Audit { mut report, .. } = audit;
    report.image_end = (highest + 1) * cluster.size();
    report.trailing = image.file_len().0.saturating_sub(report.image_end);
    if report.trailing > 0 {
        let (trailing, end) = (report.trailing, report.image_end);
        report.add(
            Severity::Note,
            format_args!("{trailing} bytes from byte {end} to the file's end are not used"),
        );
    }
    Ok(report)
}

/// Whether clusters are counted for the statistics: those of the active disk are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fragments {
    Count,
    Ignore,
}

/// The entries of one L2 table, one after the other.
struct Run {
    /// L1 entries that lead to the table.
    times: u64,
    fragments: Fragments,
    /// Where the cluster after the last one would lie.
    next: Option<u64>,
}

struct Audit<'a> {
    file: &'a dyn ImageFile,
    image: &'a Image,
    cluster: ClusterBits,
    cancel: &'a Cancel,
    references: References,
    report: Report,
}

/// An L2 table, and the L1 entries that lead to it: the first byte of the disk that each stands for, and its word.
struct L2Table<'a> {
    entries: &'a [(GuestOffset, u64)],
    words: &'a [u64],
}

impl Audit<'_> {
    fn go_on(&self) -> Result<(), ImageError> {
        if self.cancel.is_cancelled() { Err(ImageError::Interrupted) } else { Ok(()) }
    }

    /// Counts `times` references to the same bytes.
    fn count(&mut self, at: HostOffset, len: u64, times: u64, used: Use) {
        match self.references.add(at, len, times, used) {
            Noted::Fine => {}
            Noted::PastEnd => {
                let what = used.name();
                self.report.add_times(
                    times,
                    Severity::Corruption,
                    format_args!(
                        "{what} of {len} bytes at byte {at} reaches past the file's end by a cluster or more"
                    ),
                );
            }
            Noted::Overlap(cluster, other) => {
                let (used, other, at) = (used.name(), other.name(), cluster.offset(self.cluster));
                self.report.add_times(
                    times,
                    Severity::Hidden,
                    format_args!("{used} and {other} share the host cluster at byte {at}"),
                );
            }
        }
    }

    /// Reads what lies within the file; the rest, as QEMU has it, is zeros.
    fn read(&self, at: HostOffset, len: u64) -> Result<Vec<u8>, ImageError> {
        let file_len = self.image.file_len().0;
        let there = len.min(file_len.saturating_sub(at.0));
        let mut bytes = zeros("a table of an image", there)?;
        if there > 0 {
            self.file.read_at(at, &mut bytes)?;
        }
        bytes.resize(to_usize(len), 0);
        Ok(bytes)
    }

    fn words(&self, at: HostOffset, len: u64) -> Result<Vec<u64>, ImageError> {
        Ok(self.read(at, len)?.as_chunks::<8>().0.iter().map(|raw| u64::from_be_bytes(*raw)).collect())
    }

    fn snapshot(&mut self, snapshot: &Snapshot) -> Result<(), ImageError> {
        let Snapshot { l1_table, l1_entries, id, .. } = snapshot;
        let len = u64::from(*l1_entries) * 8;
        let wrong = !l1_table.0.is_multiple_of(self.cluster.size()) || len > crate::header::MAX_L1;
        if wrong {
            self.report.add(
                Severity::Corruption,
                format_args!(
                    "snapshot {id:?}: no L1 table of {l1_entries} entries can be at byte {l1_table}"
                ),
            );
            return Ok(());
        }
        // A table that the file can't hold is not read: a count costs nothing to write.
        if l1_table.0.checked_add(len).is_none_or(|end| end > self.image.file_len().0) {
            self.count(*l1_table, len, 1, Use::L1Table);
            return Ok(());
        }
        self.l1_table(*l1_table, *l1_entries, Fragments::Ignore).map(drop)
    }

    /// Counts an L1 table, what it points at, and what that points at. Gives the table.
    fn l1_table(
        &mut self,
        at: HostOffset,
        entries: u32,
        fragments: Fragments,
    ) -> Result<Vec<u64>, ImageError> {
        let len = u64::from(entries) * 8;
        self.count(at, len, 1, Use::L1Table);
        let table = self.words(at, len)?;
        self.each_l2_table(&table, |audit, found| {
            found.entries.iter().for_each(|&(guest, entry)| audit.l1_entry(guest, entry));
            audit.l2_table(found, fragments);
            Ok(())
        })?;
        Ok(table)
    }

    /// Shows each L2 table that an L1 table leads to, in the order of the file. One that many entries lead to, of which an image of some
    /// MiB can have millions, is shown once.
    fn each_l2_table(
        &mut self,
        l1: &[u64],
        mut look: impl FnMut(&mut Self, &L2Table<'_>) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let cluster = self.cluster.size();
        let coverage = cluster / self.image.header().l2_entry_len() * cluster;
        let present = (0_u64..).zip(l1).filter(|(_, entry)| **entry != 0);
        let mut present: Vec<_> =
            present.map(|(index, entry)| (GuestOffset(index.saturating_mul(coverage)), *entry)).collect();
        present.sort_by_key(|(_, entry)| entry & OFFSET);
        let tables: Vec<_> = present.chunk_by(|one, next| one.1 & OFFSET == next.1 & OFFSET).collect();
        let place = |table: &[(GuestOffset, u64)]| table[0].1 & OFFSET;
        // Neighbours in the file are read together.
        let at_once = to_usize((TABLE_READ / cluster).max(1));
        for run in tables.chunk_by(|one, next| place(one) + cluster == place(next)) {
            for tables in run.chunks(at_once) {
                let words = self.words(HostOffset(place(tables[0])), to_u64(tables.len()) * cluster)?;
                for (entries, words) in tables.iter().zip(words.chunks(to_usize(cluster / 8))) {
                    self.go_on()?;
                    look(self, &L2Table { entries, words })?;
                }
            }
        }
        Ok(())
    }

    fn l1_entry(&mut self, guest: GuestOffset, entry: u64) {
        if entry & L1_RESERVED != 0 {
            self.report.add(
                Severity::Corruption,
                format_args!(
                    "the L1 entry for the disk's bytes from {guest}, {entry:#018x}, has a reserved bit set"
                ),
            );
        }
        let table = HostOffset(entry & OFFSET);
        self.count(table, self.cluster.size(), 1, Use::L2Table);
        if !table.0.is_multiple_of(self.cluster.size()) {
            self.report.add(
                Severity::Corruption,
                format_args!("the L2 table at byte {table} lies between two clusters"),
            );
        }
    }

    fn l2_table(&mut self, table: &L2Table<'_>, fragments: Fragments) {
        let step = to_usize(self.image.header().l2_entry_len() / 8);
        let first = table.entries[0].0;
        let mut run = Run { times: to_u64(table.entries.len()), fragments, next: None };
        for (index, entry) in (0_u64..).zip(table.words.chunks(step)) {
            if entry.iter().all(|word| *word == 0) {
                continue;
            }
            let guest = GuestOffset(first.0.saturating_add(index * self.cluster.size()));
            self.l2_entry(guest, entry[0], entry.get(1).copied(), &mut run);
        }
    }

    /// `bitmap` is there with extended L2 entries.
    fn l2_entry(&mut self, guest: GuestOffset, word: u64, bitmap: Option<u64>, run: &mut Run) {
        let cluster = self.cluster;
        let Run { times, fragments, next } = run;
        let times = *times;
        let report = &mut self.report;
        let mut wrong_as = |severity, what: &str| {
            let words = format_args!("the L2 entry for the disk's bytes from {guest}, {word:#018x}, {what}");
            report.add_times(times, severity, words);
        };
        if word & (COMPRESSED | READS_ZERO) == READS_ZERO && self.image.header().version == Version::V2 {
            // QEMU counts it as it counts others, and fails to read there.
            wrong_as(Severity::Hidden, "says zeros, which no entry of version 2 can");
        }
        let mut wrong = |what: &str| wrong_as(Severity::Corruption, what);
        if word & COMPRESSED != 0 {
            if word & COPIED != 0 {
                wrong("is compressed and marked as copied");
            }
            if bitmap.is_some_and(|bitmap| bitmap != 0) {
                // Nobody can tell what it means: its bytes count as unused.
                wrong("is compressed and has subclusters");
                return;
            }
            let (at, len) = compressed(word & !COPIED, cluster);
            if *fragments == Fragments::Count {
                report.allocated_clusters += times;
                report.compressed_clusters += times;
                report.fragmented_clusters += times;
            }
            self.count(at, len, times, Use::Compressed);
            return;
        }
        let host = word & OFFSET;
        let (allocated, zero) = bitmap.map_or((0, 0), |bitmap| (bitmap & u64::from(u32::MAX), bitmap >> 32));
        if host == 0 {
            if allocated != 0 {
                wrong("has subclusters and no place for them");
            }
            return;
        }
        if allocated & zero != 0 {
            wrong("has subclusters that are allocated and zero at once");
        }
        if word & L2_RESERVED != 0 || (bitmap.is_some() && word & READS_ZERO != 0) {
            wrong("has a reserved bit set");
        }
        if !host.is_multiple_of(cluster.size()) {
            wrong("points between two clusters");
        }
        if *fragments == Fragments::Count {
            // What lies past the disk's end need not be in the file, nor what follows the last subcluster that is.
            let disk_left = self.image.virtual_size().0.saturating_sub(guest.0);
            let subclusters = bitmap.map_or(SUBCLUSTERS, |_| u64::BITS - allocated.leading_zeros());
            let end =
                host + (cluster.size() / u64::from(SUBCLUSTERS) * u64::from(subclusters)).min(disk_left);
            let file_len = self.image.file_len().0;
            // A cluster that is wholly past the file's end QEMU counts; the rest of a cut one it reads as zeros.
            if word & READS_ZERO == 0 && host < file_len && end > file_len {
                wrong_as(Severity::Hidden, "leads to a cluster that the file ends within");
            }
            report.allocated_clusters += times;
            if next.is_some_and(|next| next != host) {
                report.fragmented_clusters += times;
            }
            *next = Some(host + cluster.size());
        }
        self.count(HostOffset(host), cluster.size(), times, Use::Raw);
    }

    /// Counts the refcount blocks, and gives the place of each that can be read, by its place in the table.
    fn refcount_blocks(&mut self) -> Result<Vec<(u64, Place)>, ImageError> {
        let header = self.image.header();
        let len = u64::from(header.refcount_table_clusters) * self.cluster.size();
        let table = self.words(header.refcount_table, len)?;
        let mut found = Vec::new();
        for (index, &entry) in (0_u64..).zip(&table) {
            let block = HostOffset(entry & !REFCOUNT_RESERVED);
            let wrong = if entry & REFCOUNT_RESERVED != 0 {
                Some("has a reserved bit set")
            } else if !block.0.is_multiple_of(self.cluster.size()) {
                Some("points between two clusters")
            } else if block.cluster(self.cluster).0 >= self.references.clusters() {
                Some("points outside the file")
            } else {
                None
            };
            if let Some(what) = wrong {
                let cause = format_args!("refcount table entry {index}, {entry:#018x}, {what}");
                self.report.add(Severity::Corruption, cause);
                // As QEMU has it: a block with a reserved bit is read, one between two clusters can't be, one outside the file is zeros.
                if !block.0.is_multiple_of(self.cluster.size()) {
                    found.push((index, Place::Unreadable));
                } else if block.0 < self.image.file_len().0 {
                    found.push((index, Place::At(block)));
                }
                continue;
            }
            if entry == 0 {
                continue;
            }
            self.count(block, self.cluster.size(), 1, Use::RefcountBlock);
            let used = self.references.count(block.cluster(self.cluster).0);
            if used != 1 {
                self.report.add(
                    Severity::Corruption,
                    format_args!("the refcount block at byte {block} is pointed at {used} times, not once"),
                );
            }
            found.push((index, Place::At(block)));
        }
        Ok(found)
    }

    /// Holds the stored counts against what was counted. Gives the last cluster that either speaks of, or 0.
    fn compare(&mut self, stored: &mut Stored<'_>) -> Result<u64, ImageError> {
        let Self { references, report, cancel, cluster: size, .. } = self;
        // A reference may lead to the cluster behind the file's last one.
        let clusters = references.clusters().max(references.highest().map_or(0, |cluster| cluster + 1));
        let (mut highest, mut unknown, mut compared) = (0, 0, 0);
        let mut note = |cluster: u64, stored: u64, used: u64| {
            if stored != 0 || used != 0 {
                highest = cluster;
            }
            if stored != used {
                report.add_miscount(Miscount { cluster: HostCluster(cluster), counted: stored, used }, *size);
            }
        };
        for number in 0..stored.places.len() {
            if cancel.is_cancelled() {
                return Err(ImageError::Interrupted);
            }
            let (index, place) = stored.places[number];
            let first = (index * stored.per_block).min(clusters);
            // What no block stands for is counted 0 times.
            references.counted(compared..first).for_each(|(cluster, used)| note(cluster, 0, used));
            compared = (first + stored.per_block).min(clusters);
            if first == compared {
                break;
            }
            let Place::At(at) = place else {
                unknown += compared - first;
                continue;
            };
            let order = stored.order;
            let block = stored.block(at)?;
            let mut used = references.counted(first..compared).peekable();
            for cluster in first..compared {
                let used = used.next_if(|(counted, _)| *counted == cluster).map_or(0, |(_, count)| count);
                note(cluster, block.count(to_usize(cluster - first), order), used);
            }
        }
        references.counted(compared..clusters).for_each(|(cluster, used)| note(cluster, 0, used));
        report.check_errors += unknown;
        Ok(highest)
    }

    /// Whether COPIED says of each table and raw cluster of the active disk that it is counted once.
    fn copied_flags(&mut self, l1: &[u64], stored: &mut Stored<'_>) -> Result<(), ImageError> {
        let step = to_usize(self.image.header().l2_entry_len() / 8);
        let cluster = self.cluster;
        let mut is_wrong = |word: u64| -> Result<bool, ImageError> {
            let count = stored.count_at(HostOffset(word & OFFSET))?;
            Ok(count.is_some_and(|count| (count == 1) != (word & COPIED != 0)))
        };
        self.each_l2_table(l1, |audit, table| {
            for &(guest, entry) in table.entries {
                if is_wrong(entry)? {
                    audit.report.add(
                        Severity::Corruption,
                        format_args!("the L1 entry for the disk's bytes from {guest}, {entry:#018x}, is wrong about being copied"),
                    );
                }
            }
            let (first, times) = (table.entries[0].0, to_u64(table.entries.len()));
            for (number, word) in (0_u64..).zip(table.words.chunks(step).map(|entry| entry[0])) {
                if word & COMPRESSED == 0 && word & OFFSET != 0 && is_wrong(word)? {
                    let guest = GuestOffset(first.0.saturating_add(number * cluster.size()));
                    audit.report.add_times(
                        times,
                        Severity::Corruption,
                        format_args!("the L2 entry for the disk's bytes from {guest}, {word:#018x}, is wrong about being copied"),
                    );
                }
            }
            Ok(())
        })
    }
}

/// What a compressed entry points at: first byte, and bytes up to the end of its last sector.
fn compressed(word: u64, cluster: ClusterBits) -> (HostOffset, u64) {
    // Unlike the reader's decoding this takes any word.
    let bits = compressed_offset_bits(cluster);
    let descriptor = word & !COMPRESSED;
    let at = descriptor & ((1 << bits) - 1);
    (HostOffset(at), ((descriptor >> bits) + 1) * SECTOR - at % SECTOR)
}

/// Where a refcount block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    At(HostOffset),
    Unreadable,
}

/// The image's own counts, read block by block as they are asked for.
struct Stored<'a> {
    file: &'a dyn ImageFile,
    cluster: ClusterBits,
    order: u32,
    per_block: u64,
    /// Where each block is, by its place in the table.
    places: Vec<(u64, Place)>,
    /// Some of the blocks: all of them can be more than memory holds, for a small file can have any number.
    kept: HashMap<HostOffset, Block>,
}

/// One refcount block, as it is in the file.
struct Block(Vec<u8>);

impl Block {
    /// Count number `index`, `2^order` bits wide: below a byte from the lowest bit on (specification, "Refcount block entry").
    fn count(&self, index: usize, order: u32) -> u64 {
        let bytes = &self.0;
        let be = |len: usize| {
            bytes[index * len..(index + 1) * len].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
        };
        match order {
            0..=2 => {
                let (per_byte, width) = (8 >> order, 1_u32 << order);
                let shift = u32::try_from(index % per_byte).expect("less than 8") * width;
                u64::from(bytes[index / per_byte] >> shift) & ((1 << width) - 1)
            }
            3 => be(1),
            4 => be(2),
            5 => be(4),
            _ => be(8),
        }
    }
}

impl<'a> Stored<'a> {
    fn new(file: &'a dyn ImageFile, places: Vec<(u64, Place)>, order: u32, cluster: ClusterBits) -> Self {
        Self { file, cluster, order, per_block: (cluster.size() * 8) >> order, places, kept: HashMap::new() }
    }

    fn block(&mut self, at: HostOffset) -> Result<&Block, ImageError> {
        if !self.kept.contains_key(&at) && to_u64(self.kept.len()) * self.cluster.size() >= KEPT_BLOCKS {
            self.kept.clear();
        }
        match self.kept.entry(at) {
            Entry::Occupied(kept) => Ok(kept.into_mut()),
            Entry::Vacant(place) => {
                // The file may end within its last cluster.
                let there = self.cluster.size().min(self.file.size().0.saturating_sub(at.0));
                let mut bytes = zeros("a table of an image", there)?;
                self.file.read_at(at, &mut bytes)?;
                bytes.resize(self.cluster.len(), 0);
                Ok(place.insert(Block(bytes)))
            }
        }
    }

    /// How often the image counts the cluster at a place, if that can be known.
    fn count_at(&mut self, at: HostOffset) -> Result<Option<u64>, ImageError> {
        let HostCluster(number) = at.cluster(self.cluster);
        let Ok(found) = self.places.binary_search_by_key(&(number / self.per_block), |(index, _)| *index)
        else {
            return Ok(Some(0));
        };
        let Place::At(block) = self.places[found].1 else { return Ok(None) };
        let (index, order) = (to_usize(number % self.per_block), self.order);
        Ok(Some(self.block(block)?.count(index, order)))
    }
}
