//! Audit of an image's tables: all checks of QEMU's audit with the same figures, and additional ones.
//!
//! The audit counts every reference in the image and compares the result with the stored refcounts. Unlike
//! the reader, it does not stop at the first invalid entry. It does not read bodies.

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
use crate::references::{ClusterUse, Noted, References};
use crate::snapshots::{self, Snapshot};

/// Largest number of findings that are kept as text. Further ones are only counted.
pub const MAX_FINDINGS: usize = 1000;
/// Bytes of one read of tables.
const TABLE_READ: u64 = 4 * MIB;
/// Largest size of the refcount blocks that are kept in memory, in bytes.
const BLOCK_CACHE_SIZE: u64 = 32 * MIB;

/// Bits of an L1 entry that must be zero (specification, "L1 table entry").
const L1_RESERVED: u64 = !(COPIED | OFFSET);
/// Bits of a standard L2 entry that must be zero (specification, "Standard Cluster Descriptor").
const L2_RESERVED: u64 = !(COPIED | COMPRESSED | OFFSET | READS_ZERO);
/// Bits of a refcount table entry that must be zero.
const REFCOUNT_RESERVED: u64 = (1 << 9) - 1;

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Not an error, but information for the user.
    Note,
    /// Space is wasted; no data are lost.
    Leak,
    /// The image is damaged, and QEMU's audit reports it too.
    Corruption,
    /// The image is damaged, but QEMU's audit does not check this.
    Hidden,
}

/// A single result of the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Severity of the finding.
    pub severity: Severity,
    /// Description for the user, with the location.
    pub message: String,
    /// The numbers, if the refcount of a host cluster is wrong.
    pub miscount: Option<Miscount>,
}

/// A host cluster whose stored refcount differs from its number of references.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miscount {
    /// Number of the host cluster.
    pub cluster: HostCluster,
    /// Refcount stored in the image.
    pub counted: u64,
    /// Number of references found.
    pub used: u64,
}

/// Results of the audit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Number of errors by QEMU's rules.
    pub corruptions: u64,
    /// Number of host clusters whose refcount is higher than their number of references.
    pub leaks: u64,
    /// Number of host clusters whose refcount could not be read.
    pub check_errors: u64,
    /// Number of errors that QEMU's audit does not check: overlapping uses of a cluster, a mark of
    /// corruption, and the like.
    pub hidden: u64,
    /// Number of clusters of the disk.
    pub total_clusters: u64,
    /// Number of clusters of the disk that have bytes in the file.
    pub allocated_clusters: u64,
    /// Number of allocated clusters that don't follow the previous one in the file. As in QEMU, every
    /// compressed cluster counts.
    pub fragmented_clusters: u64,
    /// Number of allocated clusters that are compressed.
    pub compressed_clusters: u64,
    /// Offset of the end of the last cluster that has a reference or a refcount.
    pub image_end: u64,
    /// Number of bytes of the file after `image_end`.
    pub trailing: u64,
    /// The first [`MAX_FINDINGS`] findings.
    pub findings: Vec<Finding>,
}

impl Report {
    /// True if there are no errors. Notes are not errors.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0 && self.check_errors == 0 && self.hidden == 0
    }

    fn add(&mut self, severity: Severity, message: fmt::Arguments<'_>) {
        self.add_times(1, severity, message);
    }

    /// Adds a finding about a wrong refcount.
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

    /// Adds one finding for an error that occurs `times` times.
    fn add_times(&mut self, times: u64, severity: Severity, message: fmt::Arguments<'_>) {
        match severity {
            Severity::Note => {}
            Severity::Leak => self.leaks += times,
            Severity::Corruption => self.corruptions += times,
            Severity::Hidden => self.hidden += times,
        }
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding { severity, message: message.to_string(), miscount: None });
        }
    }
}

/// Audits an image that was opened with [`CorruptPolicy::Read`](crate::CorruptPolicy::Read). Memory: 4 bytes
/// for each host cluster near one that has a reference, and at most 32 MiB for the image's refcounts.
///
/// # Errors
/// If the file can't be read, or its snapshot table or bitmap directory is invalid;
/// [`ImageError::Interrupted`] if the work is cancelled.
pub fn check(file: &dyn ImageFile, image: &Image, cancel: &Cancel) -> Result<Report, ImageError> {
    let header = image.header();
    let cluster = header.cluster;
    let report = Report { total_clusters: cluster.clusters_in(image.virtual_size().0), ..Report::default() };
    let references = References::new(image.file_len().0, cluster);
    let mut audit = Audit { file, image, cluster, cancel, references, report };

    if image.header_info().corrupt {
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
    audit.count(HostOffset(0), cluster.size(), 1, ClusterUse::Header);
    let l1 = audit.l1_table(header.l1_table, header.l1_entries, Fragments::Count)?;
    let (found, table_len) = snapshots::list(file, header)?;
    for snapshot in &found {
        audit.snapshot(snapshot)?;
    }
    audit.count(header.snapshot_table, table_len, 1, ClusterUse::SnapshotTable);
    for (at, len) in bitmaps::ranges(file, image.header_info())? {
        audit.count(at, len, 1, ClusterUse::Bitmap);
    }
    let refcount_table_len = u64::from(header.refcount_table_clusters) * cluster.size();
    audit.count(header.refcount_table, refcount_table_len, 1, ClusterUse::RefcountTable);
    let locations = audit.refcount_blocks()?;
    let mut stored = Stored::new(file, locations, header.refcount_order, cluster);
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

/// Inclusion of clusters in the statistics: only those of the active disk are counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fragments {
    Count,
    Ignore,
}

/// State of the audit of one L2 table, whose entries are read in order.
struct Run {
    /// Number of L1 entries that point to the table.
    times: u64,
    fragments: Fragments,
    /// Offset at which the next cluster would begin if the file is not fragmented.
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

/// An L2 table, and the L1 entries that point to it: for each one the first byte of the disk that it covers,
/// and its word.
struct L2Table<'a> {
    entries: &'a [(GuestOffset, u64)],
    words: &'a [u64],
}

impl Audit<'_> {
    fn check_cancelled(&self) -> Result<(), ImageError> {
        if self.cancel.is_cancelled() { Err(ImageError::Interrupted) } else { Ok(()) }
    }

    /// Counts `times` references to the same bytes.
    fn count(&mut self, at: HostOffset, len: u64, times: u64, used: ClusterUse) {
        match self.references.add(at, len, times, used) {
            Noted::Fine => {}
            Noted::PastEnd => {
                let subject = used.name();
                self.report.add_times(
                    times,
                    Severity::Corruption,
                    format_args!(
                        "{subject} of {len} bytes at byte {at} reaches past the file's end by a cluster or more"
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

    /// Reads the bytes that lie within the file. As in QEMU, the others are zeros.
    fn read(&self, at: HostOffset, len: u64) -> Result<Vec<u8>, ImageError> {
        let file_len = self.image.file_len().0;
        let len_in_file = len.min(file_len.saturating_sub(at.0));
        let mut bytes = zeros("a table of an image", len_in_file)?;
        if len_in_file > 0 {
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
        // A table longer than the file is not read, because an image can claim any number of entries.
        if l1_table.0.checked_add(len).is_none_or(|end| end > self.image.file_len().0) {
            self.count(*l1_table, len, 1, ClusterUse::L1Table);
            return Ok(());
        }
        self.l1_table(*l1_table, *l1_entries, Fragments::Ignore).map(drop)
    }

    /// Counts the references to an L1 table, to its L2 tables, and to their clusters. Returns the L1 table.
    fn l1_table(
        &mut self,
        at: HostOffset,
        entries: u32,
        fragments: Fragments,
    ) -> Result<Vec<u64>, ImageError> {
        let len = u64::from(entries) * 8;
        self.count(at, len, 1, ClusterUse::L1Table);
        let table = self.words(at, len)?;
        self.each_l2_table(&table, |audit, found| {
            found.entries.iter().for_each(|&(guest, entry)| audit.l1_entry(guest, entry));
            audit.l2_table(found, fragments);
            Ok(())
        })?;
        Ok(table)
    }

    /// Calls `visit` for each L2 table of an L1 table, in the order of the file. A table with several entries
    /// is visited once; an image of some MiB can have millions of entries for the same table.
    fn each_l2_table(
        &mut self,
        l1: &[u64],
        mut visit: impl FnMut(&mut Self, &L2Table<'_>) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let cluster = self.cluster.size();
        let coverage = cluster / self.image.header().l2_entry_len() * cluster;
        let present = (0_u64..).zip(l1).filter(|(_, entry)| **entry != 0);
        let mut present: Vec<_> =
            present.map(|(index, entry)| (GuestOffset(index.saturating_mul(coverage)), *entry)).collect();
        present.sort_by_key(|(_, entry)| entry & OFFSET);
        let tables: Vec<_> = present.chunk_by(|one, next| one.1 & OFFSET == next.1 & OFFSET).collect();
        let table_offset = |table: &[(GuestOffset, u64)]| table[0].1 & OFFSET;
        // Adjacent tables are read together.
        let tables_per_read = to_usize((TABLE_READ / cluster).max(1));
        for run in tables.chunk_by(|one, next| table_offset(one) + cluster == table_offset(next)) {
            for tables in run.chunks(tables_per_read) {
                let words =
                    self.words(HostOffset(table_offset(tables[0])), to_u64(tables.len()) * cluster)?;
                for (entries, words) in tables.iter().zip(words.chunks(to_usize(cluster / 8))) {
                    self.check_cancelled()?;
                    visit(self, &L2Table { entries, words })?;
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
        self.count(table, self.cluster.size(), 1, ClusterUse::L2Table);
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

    /// Audits one L2 entry. `bitmap` is its second word if the image has extended L2 entries.
    fn l2_entry(&mut self, guest: GuestOffset, word: u64, bitmap: Option<u64>, run: &mut Run) {
        let cluster = self.cluster;
        let Run { times, fragments, next } = run;
        let times = *times;
        let report = &mut self.report;
        let mut wrong_as = |severity, problem: &str| {
            let message =
                format_args!("the L2 entry for the disk's bytes from {guest}, {word:#018x}, {problem}");
            report.add_times(times, severity, message);
        };
        if word & (COMPRESSED | READS_ZERO) == READS_ZERO && self.image.header().version == Version::V2 {
            // QEMU counts the entry like others, but fails to read the cluster.
            wrong_as(Severity::Hidden, "says zeros, which no entry of version 2 can");
        }
        let mut wrong = |problem: &str| wrong_as(Severity::Corruption, problem);
        if word & COMPRESSED != 0 {
            if word & COPIED != 0 {
                wrong("is compressed and marked as copied");
            }
            if bitmap.is_some_and(|bitmap| bitmap != 0) {
                // The meaning of such an entry is unclear, so its bytes count as unused.
                wrong("is compressed and has subclusters");
                return;
            }
            let (at, len) = compressed(word & !COPIED, cluster);
            if *fragments == Fragments::Count {
                report.allocated_clusters += times;
                report.compressed_clusters += times;
                report.fragmented_clusters += times;
            }
            self.count(at, len, times, ClusterUse::Compressed);
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
            // The file need not contain the bytes past the disk's end, nor those after the last allocated
            // subcluster.
            let disk_remaining = self.image.virtual_size().0.saturating_sub(guest.0);
            let subclusters = bitmap.map_or(SUBCLUSTERS, |_| u64::BITS - allocated.leading_zeros());
            let end =
                host + (cluster.size() / u64::from(SUBCLUSTERS) * u64::from(subclusters)).min(disk_remaining);
            let file_len = self.image.file_len().0;
            // QEMU counts a cluster that is wholly past the end of the file. If the file ends within a
            // cluster, QEMU reads the rest as zeros.
            if word & READS_ZERO == 0 && host < file_len && end > file_len {
                wrong_as(Severity::Hidden, "leads to a cluster that the file ends within");
            }
            report.allocated_clusters += times;
            if next.is_some_and(|next| next != host) {
                report.fragmented_clusters += times;
            }
            *next = Some(host + cluster.size());
        }
        self.count(HostOffset(host), cluster.size(), times, ClusterUse::Raw);
    }

    /// Counts the refcount blocks. Returns each block's index in the refcount table and its location; blocks
    /// outside the file are left out.
    fn refcount_blocks(&mut self) -> Result<Vec<(u64, BlockLocation)>, ImageError> {
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
            if let Some(problem) = wrong {
                let message = format_args!("refcount table entry {index}, {entry:#018x}, {problem}");
                self.report.add(Severity::Corruption, message);
                // As in QEMU: a block with a reserved bit is read, an unaligned one can't be read, and one
                // outside the file counts as zeros.
                if !block.0.is_multiple_of(self.cluster.size()) {
                    found.push((index, BlockLocation::Unreadable));
                } else if block.0 < self.image.file_len().0 {
                    found.push((index, BlockLocation::At(block)));
                }
                continue;
            }
            if entry == 0 {
                continue;
            }
            self.count(block, self.cluster.size(), 1, ClusterUse::RefcountBlock);
            let used = self.references.count(block.cluster(self.cluster).0);
            if used != 1 {
                self.report.add(
                    Severity::Corruption,
                    format_args!("the refcount block at byte {block} is pointed at {used} times, not once"),
                );
            }
            found.push((index, BlockLocation::At(block)));
        }
        Ok(found)
    }

    /// Compares the stored refcounts with the counted references. Returns the last cluster that has either,
    /// or 0.
    fn compare(&mut self, stored: &mut Stored<'_>) -> Result<u64, ImageError> {
        let Self { references, report, cancel, cluster: size, .. } = self;
        // A reference may point to the cluster after the last one of the file.
        let clusters = references.clusters().max(references.highest().map_or(0, |cluster| cluster + 1));
        let (mut highest, mut unknown, mut compared) = (0, 0, 0);
        let mut compare_cluster = |cluster: u64, stored: u64, used: u64| {
            if stored != 0 || used != 0 {
                highest = cluster;
            }
            if stored != used {
                report.add_miscount(Miscount { cluster: HostCluster(cluster), counted: stored, used }, *size);
            }
        };
        for number in 0..stored.locations.len() {
            if cancel.is_cancelled() {
                return Err(ImageError::Interrupted);
            }
            let (index, location) = stored.locations[number];
            let first = (index * stored.per_block).min(clusters);
            // A cluster without a refcount block has the refcount 0.
            references.counted(compared..first).for_each(|(cluster, used)| compare_cluster(cluster, 0, used));
            compared = (first + stored.per_block).min(clusters);
            if first == compared {
                break;
            }
            let BlockLocation::At(at) = location else {
                unknown += compared - first;
                continue;
            };
            let order = stored.order;
            let block = stored.block(at)?;
            let mut used = references.counted(first..compared).peekable();
            for cluster in first..compared {
                let used = used.next_if(|(counted, _)| *counted == cluster).map_or(0, |(_, count)| count);
                compare_cluster(cluster, block.count(to_usize(cluster - first), order), used);
            }
        }
        references.counted(compared..clusters).for_each(|(cluster, used)| compare_cluster(cluster, 0, used));
        report.check_errors += unknown;
        Ok(highest)
    }

    /// Checks that COPIED is set on the entries of tables and raw clusters of the active disk with refcount
    /// 1, and only on those.
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

/// Decodes a compressed entry: returns the offset of the first byte, and the number of bytes up to the end of
/// the last sector.
fn compressed(word: u64, cluster: ClusterBits) -> (HostOffset, u64) {
    // Unlike the reader's decoding, this accepts any word.
    let bits = compressed_offset_bits(cluster);
    let descriptor = word & !COMPRESSED;
    let at = descriptor & ((1 << bits) - 1);
    (HostOffset(at), ((descriptor >> bits) + 1) * SECTOR - at % SECTOR)
}

/// Location of a refcount block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlockLocation {
    At(HostOffset),
    Unreadable,
}

/// The refcounts stored in the image. Blocks are read on demand.
struct Stored<'a> {
    file: &'a dyn ImageFile,
    cluster: ClusterBits,
    order: u32,
    per_block: u64,
    /// Location of each block, by its index in the refcount table.
    locations: Vec<(u64, BlockLocation)>,
    /// Some of the blocks. Not all of them are kept, because even a small file can have any number of them.
    cache: HashMap<HostOffset, Block>,
}

/// A refcount block, as in the file.
struct Block(Vec<u8>);

impl Block {
    /// Returns count number `index`, which is `2^order` bits wide. Counts smaller than a byte begin at the
    /// lowest bit (specification, "Refcount block entry").
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
    fn new(
        file: &'a dyn ImageFile,
        locations: Vec<(u64, BlockLocation)>,
        order: u32,
        cluster: ClusterBits,
    ) -> Self {
        Self {
            file,
            cluster,
            order,
            per_block: (cluster.size() * 8) >> order,
            locations,
            cache: HashMap::new(),
        }
    }

    fn block(&mut self, at: HostOffset) -> Result<&Block, ImageError> {
        if !self.cache.contains_key(&at) && to_u64(self.cache.len()) * self.cluster.size() >= BLOCK_CACHE_SIZE
        {
            self.cache.clear();
        }
        match self.cache.entry(at) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                // The file may end within its last cluster.
                let len_in_file = self.cluster.size().min(self.file.size().0.saturating_sub(at.0));
                let mut bytes = zeros("a table of an image", len_in_file)?;
                self.file.read_at(at, &mut bytes)?;
                bytes.resize(self.cluster.len(), 0);
                Ok(entry.insert(Block(bytes)))
            }
        }
    }

    /// Returns the stored refcount of the cluster at an offset, or `None` if its block can't be read.
    fn count_at(&mut self, at: HostOffset) -> Result<Option<u64>, ImageError> {
        let HostCluster(number) = at.cluster(self.cluster);
        let Ok(found) = self.locations.binary_search_by_key(&(number / self.per_block), |(index, _)| *index)
        else {
            return Ok(Some(0));
        };
        let BlockLocation::At(block) = self.locations[found].1 else { return Ok(None) };
        let (index, order) = (to_usize(number % self.per_block), self.order);
        Ok(Some(self.block(block)?.count(index, order)))
    }
}
