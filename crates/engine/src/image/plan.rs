//! Plan of the fetches for an image, their sizes and the memory that they take, decided before the first body
//! is read.

use std::num::NonZeroUsize;
use std::ops::Range;

use snapferry_base::limits::{Allowance, Demand, try_with_capacity};
use snapferry_base::units::{
    ByteCount, ClusterBits, GuestCluster, GuestOffset, HostOffset, KIB, MIB, SECTOR, to_u64, to_usize,
};
use snapferry_qcow2::{Mappings, SEGMENT, Stored};

use crate::error::RestoreError;
use crate::hash::CHUNK;
use crate::pipeline::{MAX_IN_FLIGHT, MAX_THREADS, bounded};
use crate::store::Location;

/// Most bytes in one fetch: a segment stored without any gain from compression, plus a margin for the sector
/// in which it ends.
const LONGEST_BATCH: u64 = SEGMENT.0 + 256 * KIB;

/// Most bodies in one fetch. Bodies can be a few bytes short, and each takes 16 bytes of memory.
const MAX_BODIES: usize = 1 << 16;

/// Batches in memory beyond those that are being fetched: they are decoded meanwhile.
const BATCHES_DECODING: usize = 2;

/// Threads that take decoded chunks. A disk performs best with several writes in flight, or several reads if
/// it is compared.
pub(crate) const SINKS: usize = 3;

/// Memory of the process before it holds a single body: code, runtime, TLS, HTTP buffers.
pub(crate) const BASE: u64 = 32 * MIB;

/// Threads beside decoders, readers and sinks: two of the runtime, one for checksums, one that zeroes a
/// device, one that shows the progress, and room for a few that resolve host names.
const OTHER_THREADS: usize = 8;

/// Read parameters that suit one kind of location.
#[derive(Clone, Copy, Debug)]
struct ReadProfile {
    /// Number of fetches in flight.
    readers: usize,
    /// Batch length in bytes from which a batch ends at the end of the segment.
    target_batch: u64,
    /// Longest gap between two bodies, in bytes, that is fetched along with them.
    gap: u64,
    /// Bytes that the store client buffers for each fetch while it arrives.
    client_buffer: u64,
}

impl Location {
    fn read_profile(self) -> ReadProfile {
        match self {
            // With 200 ms of latency to the store and 6 MiB for each batch, 8 readers reach 240 MiB/s.
            Self::Bucket => ReadProfile {
                readers: 8,
                target_batch: 4 * MIB,
                gap: MIB,
                client_buffer: 2 * super::stored_image::LONGEST_RANGE,
            },
            Self::File => ReadProfile { readers: 4, target_batch: MIB, gap: 128 * KIB, client_buffer: 0 },
        }
    }

    /// Returns the number of concurrent requests for which a store should be set up.
    #[must_use]
    pub fn connections(self) -> usize {
        self.read_profile().readers
    }
}

/// Part of the file that is fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cover {
    /// The bytes that hold bodies.
    #[default]
    Bodies,
    /// All bytes in the order of the file, for checksums over it.
    WholeFile,
}

/// Choices of the user. The plan decides on each that is `None`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Decoding threads. By default there is one for each core.
    pub threads: Option<NonZeroUsize>,
    /// Number of fetches in flight.
    pub connections: Option<NonZeroUsize>,
    /// Part of the file to fetch.
    pub cover: Cover,
}

/// Cluster, and the file offset of its body. Nothing else is kept, because there is one for each cluster that
/// holds anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BodyPosition {
    pub host: HostOffset,
    pub guest: GuestCluster,
}

/// One fetch, and the bodies in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// Range of the file, in bytes.
    pub fetch: Range<u64>,
    /// Number of these bytes, from the first, that are in no later batch.
    pub own: u64,
    /// Bodies in the fetch, as indices into the positions of the plan.
    pub positions: Range<usize>,
}

impl Batch {
    /// Returns the bytes of one fetch.
    pub fn len(&self) -> usize {
        let len = self.fetch.end - self.fetch.start;
        to_usize(if self.positions.is_empty() { len.min(SEGMENT.0) } else { len })
    }

    /// Returns the single fetches: one for the whole batch, or several if it is a range without bodies.
    pub fn pieces(&self) -> impl Iterator<Item = Self> + '_ {
        let step = if self.positions.is_empty() { SEGMENT.0 } else { u64::MAX };
        let mut at = self.fetch.start;
        std::iter::from_fn(move || {
            let remaining = self.fetch.end.checked_sub(at).filter(|&remaining| remaining > 0)?;
            let fetch = at..at + remaining.min(step);
            at = fetch.end;
            let own = self.own.saturating_sub(fetch.start - self.fetch.start).min(fetch.end - fetch.start);
            Some(Self { fetch, own, positions: self.positions.clone() })
        })
    }
}

/// Decisions on how to read an image.
#[derive(Debug)]
pub struct Plan {
    pub(crate) positions: Vec<BodyPosition>,
    pub(crate) batches: Vec<Batch>,
    /// Number of decoding threads.
    pub threads: usize,
    /// Number of fetches in flight.
    pub readers: usize,
    cluster: ClusterBits,
    virtual_size: ByteCount,
    tables: ByteCount,
    client_buffer: u64,
    /// Bytes of the longest batch, which is the least size of a batch buffer.
    longest: u64,
}

impl Plan {
    /// Makes the plan for an image of `file_len` bytes at `location`, on a machine with `cores` cores.
    ///
    /// # Errors
    /// If an option is out of its range.
    pub fn new(
        mappings: &Mappings,
        file_len: ByteCount,
        location: Location,
        options: &Options,
        cores: NonZeroUsize,
    ) -> Result<Self, RestoreError> {
        let profile = location.read_profile();
        let threads = bounded("threads", options.threads.unwrap_or(cores).get(), MAX_THREADS)?;
        let readers = options.connections.map_or(profile.readers, NonZeroUsize::get);
        let readers = bounded("connections", readers, MAX_IN_FLIGHT)?;
        let mut positions: Vec<BodyPosition> =
            try_with_capacity("the places of all clusters", mappings.iter().count())?;
        positions.extend(mappings.iter().map(|(guest, stored)| BodyPosition { host: begin(stored), guest }));
        positions.sort_unstable();
        let extent = |position: &BodyPosition| extent(mappings, file_len, position.guest);
        let segment = |position: &BodyPosition| position.guest.offset(mappings.cluster()).0 / SEGMENT.0;
        let mut batches = Cutter { profile, cover: options.cover, batches: Vec::new(), open: None }
            .cut(&positions, extent, segment);
        match options.cover {
            Cover::Bodies => settle(&mut batches, &positions),
            Cover::WholeFile => batches = cover_all(batches, &positions, file_len.0),
        }
        let longest = batches.iter().map(Batch::len).max().map_or(0, to_u64);
        let (cluster, virtual_size, tables) =
            (mappings.cluster(), mappings.virtual_size(), mappings.memory());
        let client_buffer = profile.client_buffer;
        Ok(Self {
            positions,
            batches,
            threads,
            readers,
            cluster,
            virtual_size,
            tables,
            client_buffer,
            longest,
        })
    }

    /// Reduces the plan until it fits the limits of this process. Each step reduces what takes more memory:
    /// the decoders with their buffers, or the fetches. Choices of the user stay.
    ///
    /// # Errors
    /// With the limit that is exceeded, if nothing can be reduced any more.
    pub fn within(
        mut self,
        location: Location,
        options: &Options,
        allowance: &Allowance,
    ) -> Result<Self, RestoreError> {
        let is_remote = location == Location::Bucket;
        if is_remote && options.connections.is_none() {
            self.readers = allowance.connections(self.readers);
        }
        loop {
            let demand = Demand {
                memory: self.peak_memory(),
                threads: self.threads + self.readers + SINKS + OTHER_THREADS,
                files: if is_remote { self.readers } else { 0 },
            };
            if allowance.fit("reading this image", &demand).is_ok() {
                return Ok(self);
            }
            let fetch = to_u64(self.batch_len()) + self.client_buffer.min(2 * self.longest);
            let decoders = (options.threads.is_none() && self.threads > 1)
                .then(|| to_u64(self.threads) * (MIB + 2 * CHUNK.0));
            let fetches =
                (options.connections.is_none() && self.readers > 1).then(|| to_u64(self.readers) * fetch);
            if decoders.is_none() && fetches.is_none() {
                allowance.fit_without_reserve("reading this image", &demand)?;
                return Ok(self);
            }
            // `None` is less than any `Some`.
            if decoders >= fetches {
                self.threads -= self.threads.div_ceil(8);
            } else {
                self.readers -= 1;
            }
        }
    }

    /// Returns the number of clusters that are stored in the file.
    #[must_use]
    pub fn clusters(&self) -> u64 {
        to_u64(self.positions.len())
    }

    /// Returns the bytes of the file in the batches, each counted once.
    pub(crate) fn own_bytes(&self) -> u64 {
        self.batches.iter().map(|batch| batch.own).sum()
    }

    /// Returns the bytes of the disk in the stored clusters, at most the size of the disk: the last cluster
    /// may reach past its end.
    #[must_use]
    pub fn mapped(&self) -> ByteCount {
        ByteCount((self.clusters() * self.cluster.size()).min(self.virtual_size.0))
    }

    /// Returns the number of buffers for batches.
    pub(crate) fn batch_buffers(&self) -> usize {
        self.readers + BATCHES_DECODING
    }

    /// Returns the bytes in each batch buffer, a multiple of 4096 so that reads past the page cache are
    /// possible.
    pub(crate) fn batch_len(&self) -> usize {
        to_usize(self.longest.next_multiple_of(4096).max(4096))
    }

    /// Returns the number of buffers for decoded chunks: each decoder fills one while its next one is
    /// waiting, and each sink empties one.
    pub(crate) fn chunk_buffers(&self) -> usize {
        2 * self.threads + SINKS + 2
    }

    /// Returns the most memory that reading the image takes, in bytes:
    ///
    /// ```text
    ///   32 MiB                                     code, runtime, TLS
    /// + threads x 1 MiB                            decoders
    /// + (fetches + 2) x longest batch              fetched bytes, at most 16 MiB a batch
    /// + fetches x 16 MiB, from a bucket            arriving response bodies and their contiguous copies
    /// + (2 x threads + 5) x 2 MiB                  decoded chunks
    /// + 3 x 2 MiB                                  chunks of the disk to compare with
    /// + tables + 16 a cluster that holds anything  position of each body, twice while it is decoded
    /// + 80 a batch
    /// + 64 a chunk, 1000 a segment                 hashes, and the manifest to compare with
    /// ```
    #[must_use]
    pub fn peak_memory(&self) -> ByteCount {
        let decoders = to_u64(self.threads) * MIB;
        let batches = to_u64(self.batch_buffers() * self.batch_len());
        let client_buffer = to_u64(self.readers) * self.client_buffer.min(2 * self.longest);
        let chunks = to_u64(self.chunk_buffers() + SINKS) * CHUNK.0;
        let decoding = to_u64(self.batch_buffers() * MAX_BODIES.min(self.positions.len())) * 16;
        let positions = 16 * self.clusters() + decoding + 80 * to_u64(self.batches.len());
        let hashes =
            self.virtual_size.0.div_ceil(CHUNK.0) * 64 + self.virtual_size.0.div_ceil(SEGMENT.0) * 1000;
        ByteCount(BASE + decoders + batches + client_buffer + chunks + self.tables.0 + positions + hashes)
    }
}

fn begin(stored: Stored) -> HostOffset {
    match stored {
        Stored::Zero => HostOffset(0),
        Stored::Raw(at) | Stored::Subclusters(at, _) | Stored::Compressed { at, .. } => at,
    }
}

/// Returns the range of the file that holds the body of a cluster, and perhaps more: up to the end of its
/// last sector, as far as the file goes.
pub(crate) fn extent(mappings: &Mappings, file_len: ByteCount, guest: GuestCluster) -> Range<u64> {
    let cluster = mappings.cluster();
    let remaining = mappings.virtual_size().0.saturating_sub(guest.offset(cluster).0).min(cluster.size());
    match mappings.stored(guest) {
        Stored::Zero => 0..0,
        Stored::Raw(at) | Stored::Subclusters(at, _) => at.0..(at.0 + remaining).min(file_len.0).max(at.0),
        Stored::Compressed { at, len } => at.0..at.0 + len,
    }
}

/// Returns the ranges of the disk whose clusters are not stored, in order, each as long as possible.
pub(crate) fn unmapped(mappings: &Mappings) -> impl Iterator<Item = Range<u64>> + '_ {
    let cluster = mappings.cluster();
    let size = mappings.virtual_size().0;
    let mut at = 0;
    let mut clusters =
        mappings.iter().map(move |(guest, _)| guest.offset(cluster)).chain([GuestOffset(size)]);
    std::iter::from_fn(move || {
        loop {
            let next = clusters.next()?.0.min(size);
            let gap = at..next;
            at = next + cluster.size();
            if !gap.is_empty() {
                return Some(gap);
            }
        }
    })
}

/// Divides bodies, sorted by their offset in the file, into batches.
struct Cutter {
    profile: ReadProfile,
    cover: Cover,
    batches: Vec<Batch>,
    open: Option<Batch>,
}

impl Cutter {
    fn cut(
        mut self,
        positions: &[BodyPosition],
        extent: impl Fn(&BodyPosition) -> Range<u64>,
        segment: impl Fn(&BodyPosition) -> u64,
    ) -> Vec<Batch> {
        let mut index = 0;
        for run in positions.chunk_by(|one, next| segment(one) == segment(next)) {
            let end = run.iter().map(|position| extent(position).end).max().unwrap_or(0);
            if self
                .open
                .as_ref()
                .is_some_and(|open| self.ends_before(open, run[0], end, run.len(), &positions[..index]))
            {
                self.close();
            }
            for position in run {
                let bytes = extent(position);
                if self.open.as_ref().is_some_and(|open| !self.fits(open, &bytes, 1)) {
                    self.close();
                }
                let open =
                    self.open.get_or_insert(Batch { fetch: bytes.clone(), own: 0, positions: index..index });
                open.fetch.end = open.fetch.end.max(bytes.end);
                index += 1;
                open.positions.end = index;
            }
        }
        self.close();
        self.batches
    }

    /// True if the bodies of the next segment begin a batch of their own.
    fn ends_before(
        &self,
        open: &Batch,
        next: BodyPosition,
        end: u64,
        count: usize,
        before: &[BodyPosition],
    ) -> bool {
        // A body that several clusters share is fetched once.
        let shared = before.last().is_some_and(|last| last.host == next.host);
        let is_long_enough = open.fetch.end - open.fetch.start >= self.profile.target_batch;
        (is_long_enough && !shared) || !self.fits(open, &(next.host.0..end), count)
    }

    fn fits(&self, open: &Batch, bytes: &Range<u64>, count: usize) -> bool {
        let gap = match self.cover {
            Cover::Bodies => self.profile.gap,
            Cover::WholeFile => LONGEST_BATCH,
        };
        let end = bytes.end.max(open.fetch.end);
        end - open.fetch.start <= LONGEST_BATCH
            && bytes.start.saturating_sub(open.fetch.end) <= gap
            && open.positions.len() + count <= MAX_BODIES
    }

    fn close(&mut self) {
        self.batches.extend(self.open.take());
    }
}

/// Ends each batch where the next one begins, so that no byte is fetched twice: the part of a body's last
/// sector that belongs to the next body is cut off. Only bodies that really overlap are fetched twice; apart
/// from shared bodies, no writer makes such bodies.
fn settle(batches: &mut [Batch], positions: &[BodyPosition]) {
    for index in 0..batches.len() {
        let next =
            batches.get(index + 1).map(|next| (next.fetch.start, positions[next.positions.start].host));
        let batch = &mut batches[index];
        if let Some((start, host)) = next {
            let last = positions[batch.positions.end - 1].host;
            if host > last && batch.fetch.end > start && batch.fetch.end - start < SECTOR {
                batch.fetch.end = start;
            }
        }
        let end = next.map_or(batch.fetch.end, |(start, _)| batch.fetch.end.min(start));
        batch.own = end - batch.fetch.start;
    }
}

/// Adds the bytes before, between and after the bodies.
fn cover_all(mut batches: Vec<Batch>, positions: &[BodyPosition], file_len: u64) -> Vec<Batch> {
    settle(&mut batches, positions);
    let mut all: Vec<Batch> = Vec::with_capacity(batches.len() + 2);
    let mut at = 0;
    for batch in batches.into_iter().map(Some).chain([None]) {
        let next = batch.as_ref().map_or(file_len, |batch| batch.fetch.start);
        // A gap joins the batch before it, if there is room.
        if let Some(last) = all.last_mut()
            && next > at
            && next - last.fetch.start <= LONGEST_BATCH
        {
            last.fetch.end = last.fetch.end.max(next);
            last.own = next - last.fetch.start;
            at = next;
        }
        if at < next {
            // The gap may have any length, because a file can claim any size at no cost. It is fetched in
            // pieces.
            let none = batch.as_ref().map_or(positions.len(), |batch| batch.positions.start);
            all.push(Batch { fetch: at..next, own: next - at, positions: none..none });
            at = next;
        }
        if let Some(batch) = batch {
            at = batch.fetch.start + batch.own;
            all.push(batch);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_fits_its_control_group_and_what_the_user_chose_stays() {
        let plan = || Plan {
            positions: Vec::new(),
            batches: Vec::new(),
            threads: 128,
            readers: 8,
            cluster: ClusterBits::DEFAULT,
            virtual_size: ByteCount(MIB),
            tables: ByteCount(0),
            client_buffer: 16 * MIB,
            longest: LONGEST_BATCH,
        };
        let group = |mib: u64| Allowance { memory: Some(ByteCount(mib * MIB)), ..Allowance::default() };
        let options = Options::default();
        assert!(plan().peak_memory() > ByteCount(800 * MIB));
        assert_eq!(
            plan().within(Location::Bucket, &options, &Allowance::default()).expect("no limit").threads,
            128
        );
        for mib in [512, 256, 192] {
            let fitted = plan().within(Location::Bucket, &options, &group(mib)).expect("it fits");
            assert!(fitted.peak_memory().0 <= mib * MIB / 4 * 3, "{fitted:?}");
        }
        let chosen = Options { threads: NonZeroUsize::new(128), ..options };
        let refused = plan().within(Location::Bucket, &chosen, &group(512)).expect_err("128 take more");
        assert!(refused.to_string().contains("memory.max"), "{refused}");
        let few = Allowance { open_files: Some(27), ..Allowance::default() };
        assert_eq!(plan().within(Location::Bucket, &options, &few).expect("fewer connections").readers, 3);
    }

    fn position(host: u64, guest: u64) -> BodyPosition {
        BodyPosition { host: HostOffset(host), guest: GuestCluster(guest) }
    }

    /// Divides bodies of 64 KiB clusters, given as (host, guest cluster, length), into the batches of a local
    /// file.
    fn cut(bodies: &[(u64, u64, u64)], cover: Cover, file_len: u64) -> Vec<Batch> {
        let mut bodies = bodies.to_vec();
        bodies.sort_unstable();
        let positions: Vec<BodyPosition> =
            bodies.iter().map(|&(host, guest, _)| position(host, guest)).collect();
        let extent = |position: &BodyPosition| {
            let found =
                bodies.iter().find(|(host, guest, _)| (*host, *guest) == (position.host.0, position.guest.0));
            let (host, _, len) = found.expect("one of them");
            *host..(host + len).next_multiple_of(SECTOR).min(file_len)
        };
        let cutter =
            Cutter { profile: Location::File.read_profile(), cover, batches: Vec::new(), open: None };
        let mut batches = cutter.cut(&positions, extent, |position| position.guest.0 / 256);
        match cover {
            Cover::Bodies => settle(&mut batches, &positions),
            Cover::WholeFile => batches = cover_all(batches, &positions, file_len),
        }
        assert_eq!(
            batches.iter().map(|batch| batch.positions.len()).sum::<usize>(),
            bodies.len(),
            "each body is in one batch"
        );
        let batches: Vec<Batch> = batches.iter().flat_map(Batch::pieces).collect();
        for batch in &batches {
            assert!(to_u64(batch.len()) <= LONGEST_BATCH && batch.own <= to_u64(batch.len()), "{batch:?}");
            for &(host, _, len) in &bodies[batch.positions.clone()] {
                assert!(
                    batch.fetch.start <= host && host + len <= batch.fetch.end,
                    "{host} and {len} are not in {batch:?}"
                );
            }
        }
        batches
    }

    /// True if the own bytes of the batches are those from `start` to `end`, each once.
    fn cover(batches: &[Batch], start: u64, end: u64) -> bool {
        let reached =
            batches.iter().try_fold(start, |at, batch| (batch.fetch.start == at).then_some(at + batch.own));
        reached == Some(end)
    }

    #[test]
    fn packed_bodies_are_fetched_by_segments_and_each_byte_once() {
        // 40,001 bytes each, in four segments: 10 MB in each segment.
        let bodies: Vec<_> = (0..1024).map(|guest| (65536 + guest * 40_001, guest, 40_001)).collect();
        let end = 65536 + 1024 * 40_001;
        let batches = cut(&bodies, Cover::Bodies, end);
        assert_eq!(batches.len(), 4);
        assert!(cover(&batches, 65536, end), "{batches:?}");
        assert!(batches.iter().all(|batch| batch.own == to_u64(batch.len())));
    }

    #[test]
    fn small_segments_are_fetched_together_and_large_gaps_not_at_all() {
        let mut bodies: Vec<_> = (0..64).map(|segment| (65536 + segment * 100, segment * 256, 100)).collect();
        bodies.push((10 * MIB, 64 * 256, 65536));
        let batches = cut(&bodies, Cover::Bodies, 20 * MIB);
        assert_eq!(
            batches.iter().map(|batch| batch.fetch.clone()).collect::<Vec<_>>(),
            [65536..(65536_u64 + 6400).next_multiple_of(SECTOR), 10 * MIB..10 * MIB + 65536]
        );
        let batches = cut(&bodies, Cover::WholeFile, 20 * MIB);
        assert!(cover(&batches, 0, 20 * MIB), "{batches:?}");
    }

    #[test]
    fn all_of_a_file_is_covered_once_whatever_lies_in_it() {
        for len in [1, 511, 5000, 65_535] {
            let bodies: Vec<_> = (0..700)
                .map(|number| (MIB + number * 70_000 + number % 7, number * 37 % 1024, len))
                .collect();
            for file_len in [MIB + 700 * 70_000, 200 * MIB] {
                let batches = cut(&bodies, Cover::WholeFile, file_len);
                assert!(cover(&batches, 0, file_len), "{len} of {file_len}");
            }
        }
        assert!(cover(&cut(&[], Cover::WholeFile, 40 * MIB), 0, 40 * MIB));
        assert!(cut(&[], Cover::Bodies, 40 * MIB).is_empty());
        // A file can claim any length at no cost, so the plan for it must cost nothing either.
        assert_eq!(cover_all(Vec::new(), &[], 1 << 50).len(), 1);
    }

    #[test]
    fn a_body_that_many_clusters_share_is_never_cut() {
        let bodies: Vec<_> = (0..200_000).map(|guest| (MIB, guest, 60)).collect();
        let positions = bodies.len();
        let batches = {
            let list: Vec<BodyPosition> =
                bodies.iter().map(|&(host, guest, _)| position(host, guest)).collect();
            let cutter = Cutter {
                profile: Location::File.read_profile(),
                cover: Cover::Bodies,
                batches: Vec::new(),
                open: None,
            };
            let mut batches = cutter.cut(&list, |_| MIB..MIB + SECTOR, |position| position.guest.0 / 256);
            settle(&mut batches, &list);
            batches
        };
        assert_eq!(batches.iter().map(|batch| batch.positions.len()).sum::<usize>(), positions);
        assert!(
            batches
                .iter()
                .all(|batch| batch.fetch == (MIB..MIB + SECTOR) && batch.positions.len() <= MAX_BODIES)
        );
        assert_eq!(batches.iter().map(|batch| batch.own).sum::<u64>(), SECTOR, "its bytes count once");
    }
}
