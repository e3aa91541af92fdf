//! The journal of ext4, replayed in memory: which blocks its transactions write, in the kernel's own three
//! passes (`fs/jbd2/recovery.c`): scan for the end, collect what is revoked, and apply the rest.
//!
//! The kernel and e2fsck don't agree on where a damaged journal ends. So this replay takes no damaged one,
//! and none that holds a commit beyond the end.

use std::collections::HashMap;
use std::ops::Range;

use crate::blocks::{Blocks, Copy, JBD2_MAGIC, State};
use crate::bytes::{be16, be32, be64, halves, le16, le32};
use crate::crc::{agrees, crc32c};
use crate::doubt::{Doubt, Stop, ensure};

/// Types of jbd2's own blocks.
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_V2: u32 = 4;
const REVOKE: u32 = 5;

/// Bits of the features `compat` and `incompat`.
const COMPAT_CHECKSUM: u32 = 1;
const INCOMPAT_REVOKE: u32 = 0x1;
const INCOMPAT_64BIT: u32 = 0x2;
const INCOMPAT_ASYNC_COMMIT: u32 = 0x4;
const INCOMPAT_CSUM_V2: u32 = 0x8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;

/// Flags of a tag.
const TAG_ESCAPED: u32 = 1;
const TAG_SAME_UUID: u32 = 2;
const TAG_LAST: u32 = 8;

/// Bytes of the header that each of jbd2's own blocks begins with: magic, type, transaction.
const HEADER: usize = 12;
/// Most blocks of a journal that is read: 4 GiB with blocks of 4 KiB. mke2fs makes at most 1 GiB by itself.
const MOST_BLOCKS: u64 = 1 << 20;
/// Most blocks that the transactions of a journal revoke: 2 million, in 32 MiB of memory.
const MOST_REVOKED: usize = 1 << 21;
/// Blocks in an area of fast commits whose journal gives no number (`JBD2_DEFAULT_FAST_COMMIT_BLOCKS`).
const DEFAULT_FAST_COMMIT_BLOCKS: u64 = 256;
/// Least blocks of a log (`JBD2_MIN_JOURNAL_BLOCKS`).
const LEAST_LOG: u64 = 1024;
/// Tag at the start of an area of fast commits in use (`EXT4_FC_TAG_HEAD`).
const FAST_COMMIT_HEAD: u16 = 9;
/// Blocks that the search for commits reads at once.
const READ_AT_ONCE: u64 = 256;

/// What a replay does, without doing it.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    /// Newest copy of each block that is written, sorted by block.
    pub(crate) overlay: Vec<Copy>,
    /// Every copy of any block in the journal, sorted by block: also revoked ones, and those of the
    /// transaction that was not committed.
    pub(crate) copies: Vec<Copy>,
    /// First and last transaction. `None` if there is nothing to replay.
    pub(crate) transactions: Option<(u32, u32)>,
}

/// Part of the journal that lies in one piece.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    /// Blocks of the journal.
    pub(crate) logical: Range<u64>,
    /// Block of the filesystem where the first one lies.
    pub(crate) physical: u64,
}

/// True if transaction `a` is `b` or a later one: numbers wrap around.
fn is_at_least(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) < 1 << 31
}

struct Journal<'a> {
    blocks: &'a Blocks<'a>,
    pieces: &'a [Piece],
    incompat: u32,
    /// Block numbers of the log, a ring.
    ring: Range<u64>,
    seed: u32,
}

/// One transaction in the log.
#[derive(Default)]
struct Transaction {
    tags: Vec<Tag>,
    revoked: Vec<u64>,
}

struct Tag {
    block: u64,
    /// Block of the journal with the copy.
    at: u64,
    escaped: bool,
    checksum: u32,
}

/// Reads the journal whose blocks lie in `pieces`. `flagged` reports whether the filesystem's superblock
/// demands a replay.
pub(crate) fn replay(blocks: &Blocks<'_>, pieces: &[Piece], flagged: bool) -> Result<Replay, Stop> {
    let mut journal = Journal { blocks, pieces, incompat: 0, ring: 0..0, seed: 0 };
    let superblock = journal.read(0)?;
    let start = journal.open(&superblock)?;
    let sequence = be32(&superblock, 0x18);
    if start == 0 {
        // Nothing to replay. Both the kernel and e2fsck then take the filesystem as it lies on the disk,
        // whether or not the superblock demands a replay: one that was mounted and never changed does.
        journal.refuse_fast_commits(&superblock, sequence)?;
        return Ok(Replay::default());
    }
    // The kernel empties a journal whose filesystem demands no replay; e2fsck asks what to do.
    ensure(flagged, || Doubt::Journal("is in use, but the superblock demands no replay"))?;
    ensure(journal.ring.contains(&start), || Doubt::Journal("begins outside of itself"))?;
    let (transactions, tail) = journal.scan(start, sequence)?;
    let count = u32::try_from(transactions.len()).unwrap_or(u32::MAX);
    let end = sequence.wrapping_add(count);
    journal.refuse_commits_beyond(end)?;
    journal.refuse_fast_commits(&superblock, end)?;
    journal.apply(sequence, &transactions, &tail)
}

impl Journal<'_> {
    /// Returns the filesystem's block that holds a block of the journal.
    fn place(&self, block: u64) -> Result<u64, Stop> {
        let index = self.pieces.partition_point(|piece| piece.logical.end <= block);
        match self.pieces.get(index) {
            Some(piece) if piece.logical.contains(&block) => {
                Ok(piece.physical + (block - piece.logical.start))
            }
            _ => Err(Doubt::Journal("has a hole").into()),
        }
    }

    fn read(&self, block: u64) -> Result<Vec<u8>, Stop> {
        self.blocks.read(self.place(block)?, State::OnDisk)
    }

    fn next(&self, block: u64) -> u64 {
        if block + 1 < self.ring.end { block + 1 } else { self.ring.start }
    }

    fn has(&self, feature: u32) -> bool {
        self.incompat & feature != 0
    }

    fn checksummed(&self) -> bool {
        self.has(INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3)
    }

    /// Checks the superblock, and returns the block where the log begins: 0 if the journal is empty.
    fn open(&mut self, superblock: &[u8]) -> Result<u64, Stop> {
        ensure(superblock.starts_with(&JBD2_MAGIC) && be32(superblock, 4) == SUPERBLOCK_V2, || {
            Doubt::Journal("has no superblock of version 2")
        })?;
        let size = usize::try_from(be32(superblock, 0x0c)).unwrap_or(0);
        ensure(size == self.blocks.size(), || Doubt::Journal("has blocks of another size"))?;
        ensure(be32(superblock, 0x20) == 0, || Doubt::Journal("has recorded an error"))?;
        ensure(be32(superblock, 0x24) & COMPAT_CHECKSUM == 0, || {
            Doubt::Journal("has checksums of version 1")
        })?;
        let known = INCOMPAT_REVOKE
            | INCOMPAT_64BIT
            | INCOMPAT_ASYNC_COMMIT
            | INCOMPAT_CSUM_V2
            | INCOMPAT_CSUM_V3
            | INCOMPAT_FAST_COMMIT;
        let (compat, incompat) = (be32(superblock, 0x24) & !COMPAT_CHECKSUM, be32(superblock, 0x28));
        let unknown = compat | incompat & !known | be32(superblock, 0x2c);
        ensure(unknown == 0, || Doubt::JournalFeatures(unknown))?;
        self.incompat = incompat;
        ensure(!self.has(INCOMPAT_ASYNC_COMMIT), || Doubt::AsyncCommit)?;
        ensure(!(self.has(INCOMPAT_CSUM_V2) && self.has(INCOMPAT_CSUM_V3)), || {
            Doubt::Journal("has checksums of two versions")
        })?;
        if self.checksummed() {
            let mut summed = superblock[..1024].to_vec();
            summed[0xfc..0x100].fill(0);
            let good = superblock[0x50] == 4 && agrees(crc32c(u32::MAX, &summed), be32(superblock, 0xfc));
            ensure(good, || Doubt::Journal("has a damaged superblock"))?;
        }
        self.seed = crc32c(u32::MAX, &superblock[0x30..0x40]);
        let (length, first) = (u64::from(be32(superblock, 0x10)), u64::from(be32(superblock, 0x14)));
        let fast = if self.has(INCOMPAT_FAST_COMMIT) { fast_commit_blocks(superblock) } else { 0 };
        let own = self.pieces.last().map_or(0, |piece| piece.logical.end);
        ensure(length <= own && length <= MOST_BLOCKS, || Doubt::Journal("is longer than its file"))?;
        let end = length.checked_sub(fast).filter(|end| *end >= first + LEAST_LOG.min(length / 2));
        let end = end.filter(|_| first > 0).ok_or(Doubt::Journal("has an unusual layout"))?;
        ensure(fast == 0 || end >= LEAST_LOG, || Doubt::Journal("has an unusual layout"))?;
        self.ring = first..end;
        Ok(u64::from(be32(superblock, 0x1c)))
    }

    /// First pass: reads transactions from block `start` until one is not committed. Returns all committed
    /// ones, and what is there of the next.
    fn scan(&self, start: u64, sequence: u32) -> Result<(Vec<Transaction>, Transaction), Stop> {
        let length = self.ring.end - self.ring.start;
        let (mut done, mut open) = (Vec::new(), Transaction::default());
        let (mut at, mut passed, mut tid) = (start, 0, sequence);
        let mut revoked = 0;
        loop {
            let block = self.read(at)?;
            if !block.starts_with(&JBD2_MAGIC) || be32(&block, 8) != tid {
                return Ok((done, open));
            }
            let mut taken = 1;
            match be32(&block, 4) {
                DESCRIPTOR => {
                    self.check_tail(&block, tid)?;
                    let before = open.tags.len();
                    at = self.tags(&block, at, &mut open.tags);
                    taken += u64::try_from(open.tags.len() - before).unwrap_or(u64::MAX);
                }
                REVOKE => {
                    self.check_tail(&block, tid)?;
                    let before = open.revoked.len();
                    self.revoked(&block, tid, &mut open.revoked)?;
                    revoked += open.revoked.len() - before;
                    ensure(revoked <= MOST_REVOKED, || Doubt::Journal("revokes too many blocks"))?;
                    at = self.next(at);
                }
                COMMIT => {
                    self.check_commit(&block, tid)?;
                    done.push(std::mem::take(&mut open));
                    tid = tid.wrapping_add(1);
                    at = self.next(at);
                }
                _ => return Err(damaged(tid, "a block of an unknown type").into()),
            }
            passed += taken;
            ensure(passed <= length, || Doubt::Journal("goes round more than once"))?;
        }
    }

    /// Adds the tags of a descriptor in block `at` of the journal, and returns the block behind the copies
    /// that it describes.
    fn tags(&self, block: &[u8], at: u64, to: &mut Vec<Tag>) -> u64 {
        let wide = self.has(INCOMPAT_64BIT);
        let size = match () {
            () if self.has(INCOMPAT_CSUM_V3) => 16,
            () => 8 + if wide { 4 } else { 0 } + if self.has(INCOMPAT_CSUM_V2) { 2 } else { 0 },
        };
        let end = block.len() - if self.checksummed() { 4 } else { 0 };
        let (mut offset, mut copy) = (HEADER, self.next(at));
        while offset + size <= end {
            let low = be32(block, offset);
            let (flags, high_at, checksum) = if self.has(INCOMPAT_CSUM_V3) {
                (be32(block, offset + 4), offset + 8, be32(block, offset + 12))
            } else {
                (u32::from(be16(block, offset + 6)), offset + 8, u32::from(be16(block, offset + 4)))
            };
            let high = if wide { be32(block, high_at) } else { 0 };
            to.push(Tag { block: halves(low, high), at: copy, escaped: flags & TAG_ESCAPED != 0, checksum });
            copy = self.next(copy);
            offset += size + if flags & TAG_SAME_UUID == 0 { 16 } else { 0 };
            if flags & TAG_LAST != 0 {
                break;
            }
        }
        copy
    }

    fn revoked(&self, block: &[u8], tid: u32, to: &mut Vec<u64>) -> Result<(), Stop> {
        let used = usize::try_from(be32(block, HEADER)).unwrap_or(usize::MAX);
        let end = block.len() - if self.checksummed() { 4 } else { 0 };
        ensure((HEADER + 4..=end).contains(&used), || {
            damaged(tid, "the length of a list of revoked blocks")
        })?;
        let list = &block[HEADER + 4..used];
        if self.has(INCOMPAT_64BIT) {
            to.extend(list.chunks_exact(8).map(|entry| be64(entry, 0)));
        } else {
            to.extend(list.chunks_exact(4).map(|entry| u64::from(be32(entry, 0))));
        }
        Ok(())
    }

    /// Checks the checksum in the last bytes of a descriptor or a list of revoked blocks.
    fn check_tail(&self, block: &[u8], tid: u32) -> Result<(), Stop> {
        let (body, tail) = block.split_at(block.len() - 4);
        let good = !self.checksummed() || agrees(crc32c(crc32c(self.seed, body), &[0; 4]), be32(tail, 0));
        ensure(good, || damaged(tid, "the checksum of a descriptor"))
    }

    fn check_commit(&self, block: &[u8], tid: u32) -> Result<(), Stop> {
        let mut summed = block.to_vec();
        summed[0x10..0x14].fill(0);
        let good = !self.checksummed() || agrees(crc32c(self.seed, &summed), be32(block, 0x10));
        ensure(good, || damaged(tid, "the checksum of its commit"))
    }

    /// Searches the whole ring for commits of transactions from `end` on. If there are any, the log did not
    /// end where the scan did, but was damaged there.
    fn refuse_commits_beyond(&self, end: u32) -> Result<(), Stop> {
        for piece in self.pieces {
            let within = piece.logical.start.max(self.ring.start)..piece.logical.end.min(self.ring.end);
            let mut at = within.start;
            while at < within.end {
                let until = within.end.min(at + READ_AT_ONCE);
                let physical = piece.physical + (at - piece.logical.start);
                let run = self.blocks.read_run(physical..physical + (until - at), State::OnDisk)?;
                for block in run.chunks_exact(self.blocks.size()) {
                    let beyond = be32(block, 8);
                    let is_commit = block.starts_with(&JBD2_MAGIC) && be32(block, 4) == COMMIT;
                    ensure(!(is_commit && is_at_least(beyond, end)), || Doubt::CommitBeyondEnd {
                        end,
                        beyond,
                    })?;
                }
                at = until;
            }
        }
        Ok(())
    }

    /// Refuses records of fast commits that a driver would replay behind transaction `end`.
    fn refuse_fast_commits(&self, superblock: &[u8], end: u32) -> Result<(), Stop> {
        if !self.has(INCOMPAT_FAST_COMMIT) {
            return Ok(());
        }
        // The block behind the log is left out: `j_fc_first` is `j_last` + 1.
        let block = self.read(self.ring.end + 1)?;
        let in_use = le16(&block, 0) == FAST_COMMIT_HEAD && is_at_least(le32(&block, 8), end);
        debug_assert!(fast_commit_blocks(superblock) > 0);
        ensure(!in_use, || Doubt::FastCommit)
    }

    /// Second and third pass: finds what each transaction writes and no later one revokes.
    fn apply(&self, first: u32, transactions: &[Transaction], tail: &Transaction) -> Result<Replay, Stop> {
        let mut revoked_at: HashMap<u64, usize> = HashMap::new();
        for (index, transaction) in transactions.iter().enumerate() {
            for block in &transaction.revoked {
                revoked_at.insert(*block, index);
            }
        }
        let mut newest: HashMap<u64, Copy> = HashMap::new();
        let mut copies = Vec::new();
        let mut tid = first;
        for (index, transaction) in transactions.iter().enumerate() {
            for tag in &transaction.tags {
                let copy = self.copy(tag)?;
                self.check_copy(tag, copy, tid)?;
                copies.push(copy);
                if revoked_at.get(&tag.block).is_none_or(|revoked| *revoked < index) {
                    newest.insert(tag.block, copy);
                }
            }
            tid = tid.wrapping_add(1);
        }
        for tag in &tail.tags {
            copies.push(self.copy(tag)?);
        }
        copies.sort_by_key(|copy| copy.of);
        let mut overlay: Vec<Copy> = newest.into_values().collect();
        overlay.sort_unstable_by_key(|copy| copy.of);
        let replayed = (!transactions.is_empty()).then(|| (first, tid.wrapping_sub(1)));
        Ok(Replay { overlay, copies, transactions: replayed })
    }

    fn copy(&self, tag: &Tag) -> Result<Copy, Stop> {
        Ok(Copy { of: tag.block, at: self.place(tag.at)?, escaped: tag.escaped })
    }

    /// Checks a copy as it lies in the journal, with the zeros in place of a magic number.
    fn check_copy(&self, tag: &Tag, copy: Copy, tid: u32) -> Result<(), Stop> {
        if !self.checksummed() {
            return Ok(());
        }
        let block = self.blocks.read(copy.at, State::OnDisk)?;
        let sum = crc32c(crc32c(self.seed, &tid.to_be_bytes()), &block);
        let sum = if self.has(INCOMPAT_CSUM_V3) { sum } else { sum & 0xffff };
        ensure(agrees(sum, tag.checksum), || damaged(tid, "the checksum of a block"))
    }
}

fn fast_commit_blocks(superblock: &[u8]) -> u64 {
    match u64::from(be32(superblock, 0x54)) {
        0 => DEFAULT_FAST_COMMIT_BLOCKS,
        blocks => blocks,
    }
}

fn damaged(tid: u32, what: &'static str) -> Doubt {
    Doubt::Transaction { tid, what }
}
