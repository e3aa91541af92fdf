//! What a conversion will do, decided before the first byte is read: sizes, counts, and the memory it may take.

use std::num::NonZeroUsize;

use serde::Serialize;
use snapferry_base::limits::{Allowance, Demand};
use snapferry_base::units::{ByteCount, ClusterBits, KIB, MIB, to_u64, to_usize};
use snapferry_qcow2::Geometry;
use snapferry_qcow2::header::Version;

use super::ConvertError;
use crate::compress::{Codec, Encoder, Level};
use crate::store::{MAX_OBJECT, MAX_PART, MAX_PARTS};

/// Bytes of one read, of one compression job and under one hash. Measured: 1 to 4 MiB read equally fast, and less makes more jobs than it
/// is worth.
pub const CHUNK: ByteCount = crate::hash::CHUNK;

/// Chunks in flight between the first read and the assembler, beyond those that readers and compressors hold. The
/// assembler may hold a whole segment's chunks back until it knows where their raw clusters go.
const SLACK_CHUNKS: usize = 10;

/// Reads in flight unless the user says otherwise. A cloud volume needs a queue; a local disk does not mind one.
const READERS: usize = 6;

/// Parts uploaded at once unless the user says otherwise: at 200 ms to the store, 8 carry three times what 2 do.
const CONNECTIONS: usize = 6;

/// S3's usual part: large enough that 10,000 make 312 GiB, small enough to hold several.
const BUCKET_PART: ByteCount = ByteCount(32 * MIB);

/// Part sizes are whole multiples of this; IBM COS recommends it.
const PART_STEP: u64 = 4 * MIB;

/// No part is made smaller than this to save memory: the least multiple of the step that every store takes.
const SMALLEST_PART: ByteCount = ByteCount(8 * MIB);

/// Threads beside compressors, readers and those that write a file: the runtime's two, the issuer, the assembler, what shows the progress, and room for a few
/// that look names up.
const OTHER_THREADS: usize = 8;

/// Parts that an image's upper bound is spread over at most, so that a tenth of the limit stays in reserve.
const PARTS_AIMED_AT: u64 = MAX_PARTS * 9 / 10;

/// Compression threads at most: past the cores of any machine they only cost memory.
const MOST_THREADS: usize = 512;

/// Reads or parts in flight at most.
const MOST_IN_FLIGHT: usize = 128;

/// One write to a local file.
const FILE_PART: ByteCount = ByteCount(4 * MIB);

/// Writes to a local file at once.
const FILE_WRITERS: usize = 3;

/// What the process takes before it holds a single chunk: code, runtime, TLS, HTTP buffers. Measured 23 MiB at most.
const BASE: u64 = 32 * MIB;

/// What kind of place the image goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A bucket of an object store.
    Bucket,
    /// A local file.
    File,
}

/// Whether the source's bytes are hashed while they pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hashing {
    /// BLAKE3 over each chunk and segment, kept in the manifest.
    #[default]
    Blake3,
    /// Not at all.
    Off,
}

/// What becomes of clusters that hold something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bodies {
    /// They are compressed, where that makes them smaller.
    #[default]
    Compressed,
    /// They are stored as they are: larger, and written at the speed of the disk.
    Raw,
}

/// What lies beside the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Beside {
    /// The manifest.
    #[default]
    Manifest,
    /// Nothing.
    Nothing,
}

/// What the user may choose. `None` leaves it to the plan.
#[derive(Clone, Debug)]
pub struct Options {
    /// The header's revision.
    pub version: Version,
    /// How bodies are compressed; the header says so whether or not there are such bodies.
    pub codec: Codec,
    /// Whether they are.
    pub bodies: Bodies,
    /// How hard.
    pub level: Level,
    /// qcow2's unit.
    pub cluster: ClusterBits,
    /// Compression threads; otherwise one a core.
    pub threads: Option<NonZeroUsize>,
    /// Bytes in each part but the last.
    pub part_size: Option<ByteCount>,
    /// Parts in flight at most.
    pub connections: Option<NonZeroUsize>,
    /// Reads in flight at most.
    pub readers: Option<NonZeroUsize>,
    /// Whether chunks are hashed.
    pub hashing: Hashing,
    /// Whether there is to be a manifest.
    pub beside: Beside,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            version: Version::V3,
            codec: Codec::Deflate,
            bodies: Bodies::Compressed,
            level: Level::Fast,
            cluster: ClusterBits::DEFAULT,
            threads: None,
            part_size: None,
            connections: None,
            readers: None,
            hashing: Hashing::Blake3,
            beside: Beside::Manifest,
        }
    }
}

/// A conversion, decided.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The image's sizes.
    pub geometry: Geometry,
    /// The header's revision.
    pub version: Version,
    /// How bodies are compressed.
    pub codec: Codec,
    /// Whether they are.
    pub bodies: Bodies,
    /// How hard.
    pub level: Level,
    /// Whether chunks are hashed.
    pub hashing: Hashing,
    /// Whether there is to be a manifest.
    pub beside: Beside,
    /// Compression threads.
    pub threads: usize,
    /// Reads in flight at most.
    pub readers: usize,
    /// Chunks in memory at most, each with room for its bodies.
    pub chunks: usize,
    /// Bytes in each part but the last.
    pub part_size: ByteCount,
    /// Parts in flight at most.
    pub connections: usize,
}

impl Plan {
    /// Decides for a disk of `size` bytes on a machine with `cores` cores.
    ///
    /// # Errors
    /// Where the format or the destination can't take an image of that size, or an option is out of its range.
    pub fn new(
        size: ByteCount,
        options: &Options,
        destination: Destination,
        cores: NonZeroUsize,
    ) -> Result<Self, ConvertError> {
        if options.version == Version::V2 && options.codec != Codec::Deflate {
            return Err(ConvertError::Version2 { codec: options.codec });
        }
        let geometry = Geometry::new(size, options.cluster).map_err(ConvertError::Geometry)?;
        let bound = geometry.upper_bound();
        if destination == Destination::Bucket && bound > MAX_OBJECT {
            return Err(ConvertError::TooLarge { size, bound, limit: MAX_OBJECT });
        }
        let threads = bounded("threads", options.threads.unwrap_or(cores).get(), MOST_THREADS)?;
        let readers =
            bounded("reads at once", options.readers.map_or(READERS, NonZeroUsize::get), MOST_IN_FLIGHT)?;
        // The head is sent last and whole, so that it must fit into the first part.
        let head = ByteCount(geometry.head_len().next_multiple_of(PART_STEP));
        let (part, connections) = match destination {
            Destination::Bucket => (
                BUCKET_PART.max(ByteCount((bound.0.div_ceil(PARTS_AIMED_AT)).next_multiple_of(PART_STEP))),
                CONNECTIONS,
            ),
            Destination::File => (FILE_PART, FILE_WRITERS),
        };
        let part_size = match options.part_size {
            None => part.max(head),
            Some(asked) => check_part_size(asked, head, bound, destination)?,
        };
        let connections = bounded(
            "connections",
            options.connections.map_or(connections, NonZeroUsize::get),
            MOST_IN_FLIGHT,
        )?;
        let chunks = chunks(readers, threads);
        Ok(Self {
            geometry,
            version: options.version,
            codec: options.codec,
            bodies: options.bodies,
            level: options.level,
            hashing: options.hashing,
            beside: options.beside,
            threads,
            readers,
            chunks,
            part_size,
            connections,
        })
    }

    /// The same conversion within the limits of this process: what takes most memory is made smaller, again and again, until all fits. That is the
    /// compressors with their buffers, the parts (smaller ones first, then fewer at once), or the reads. What the user chose stays.
    ///
    /// # Errors
    /// Where nothing is left to be made smaller, or the image could not be written at all: with the limit in the way.
    pub fn within(
        mut self,
        options: &Options,
        destination: Destination,
        allowance: &Allowance,
    ) -> Result<Self, ConvertError> {
        if destination == Destination::File {
            allowance.file("the image's head alone", ByteCount(self.geometry.head_len()))?;
        } else if options.connections.is_none() {
            self.connections = allowance.connections(self.connections);
        }
        while allowance.fit("this conversion", &self.demand(destination)).is_err() {
            if !self.shrink(options, destination) {
                allowance.bear("this conversion", &self.demand(destination))?;
                break;
            }
        }
        Ok(self)
    }

    /// What it takes at most of what may be limited.
    fn demand(&self, destination: Destination) -> Demand {
        let files = if destination == Destination::Bucket { self.connections } else { 0 };
        Demand {
            memory: self.peak_memory(),
            threads: self.threads + self.readers + self.connections + OTHER_THREADS,
            files,
        }
    }

    /// Makes what takes most memory a little smaller; `false` where nothing can be.
    fn shrink(&mut self, options: &Options, destination: Destination) -> bool {
        let chunk = 2 * CHUNK.0;
        let encoder = Encoder::memory(self.codec, self.level, self.geometry.cluster()).0;
        let smaller_part = self.smaller_part(options, destination);
        let may_send_less = options.connections.is_none() && self.connections > 1;
        let shares = [
            (
                options.threads.is_none() && self.threads > 1,
                to_u64(self.threads) * (encoder + 2 * chunk),
                Share::Compressors,
            ),
            (
                smaller_part.is_some() || may_send_less,
                to_u64(self.part_buffers()) * self.part_size.0,
                Share::Parts,
            ),
            (options.readers.is_none() && self.readers > 1, to_u64(self.readers) * chunk, Share::Reads),
        ];
        let largest =
            shares.into_iter().filter(|(can_shrink, ..)| *can_shrink).max_by_key(|(_, bytes, _)| *bytes);
        let Some((_, _, share)) = largest else { return false };
        match (share, smaller_part) {
            (Share::Compressors, _) => self.threads -= self.threads.div_ceil(8),
            (Share::Parts, Some(smaller)) => self.part_size = smaller,
            (Share::Parts, None) => self.connections -= 1,
            (Share::Reads, _) => self.readers -= 1,
        }
        self.chunks = chunks(self.readers, self.threads);
        true
    }

    /// Half of a bucket's part, or the least that holds the head, is not too small for a store, and does not make too many of them.
    fn smaller_part(&self, options: &Options, destination: Destination) -> Option<ByteCount> {
        let least =
            self.upper_bound().0.div_ceil(PARTS_AIMED_AT).max(self.geometry.head_len()).max(SMALLEST_PART.0);
        let smaller = ByteCount((self.part_size.0 / 2).max(least).next_multiple_of(PART_STEP));
        let is_ours = destination == Destination::Bucket && options.part_size.is_none();
        (is_ours && smaller < self.part_size).then_some(smaller)
    }

    /// Part buffers: one being filled, the first one held back for the head, the others on their way.
    #[must_use]
    pub fn part_buffers(&self) -> usize {
        self.connections + 2
    }

    /// The most bytes that the image can have.
    #[must_use]
    pub fn upper_bound(&self) -> ByteCount {
        self.geometry.upper_bound()
    }

    /// The most parts that the image can have.
    #[must_use]
    pub fn most_parts(&self) -> u64 {
        self.upper_bound().0.div_ceil(self.part_size.0)
    }

    /// The most memory that the conversion takes, in bytes:
    ///
    /// ```text
    ///   32 MiB                              code, runtime, TLS
    /// + threads x encoder                   its tables
    /// + chunks x 2 x 2 MiB                  what was read, and its bodies
    /// + (connections + 2) x part size       parts filling, held back, in flight
    /// + 8 a guest, 2 a host cluster         L2 tables and refcounts, for a disk that is full
    /// + segments x 400                      the manifest, while it is written
    /// + readers x 64 KiB                    their stacks
    /// ```
    #[must_use]
    pub fn peak_memory(&self) -> ByteCount {
        let cluster = self.geometry.cluster();
        let encoders = to_u64(self.threads) * Encoder::memory(self.codec, self.level, cluster).0;
        let chunks = to_u64(self.chunks) * 2 * CHUNK.0;
        let parts = to_u64(self.part_buffers()) * self.part_size.0;
        let tables = self.geometry.tables_bound().0;
        let segments = self.geometry.segments() * 400;
        ByteCount(BASE + encoders + chunks + parts + tables + segments + 64 * KIB * to_u64(self.readers))
    }

    /// `deflate`, `zstd`, or `none`.
    #[must_use]
    pub fn codec_name(&self) -> &'static str {
        match self.bodies {
            Bodies::Compressed => self.codec.name(),
            Bodies::Raw => "none",
        }
    }

    /// The library that compresses, and its level; `none` where nobody does.
    #[must_use]
    pub fn encoder(&self) -> String {
        match self.bodies {
            Bodies::Compressed => Encoder::describe(self.codec, self.level),
            Bodies::Raw => "none".to_owned(),
        }
    }

    /// The plan as `--dry-run --json` prints it.
    #[must_use]
    pub fn summary(&self) -> PlanSummary {
        PlanSummary {
            virtual_size: self.geometry.virtual_size(),
            cluster_size: ByteCount(self.geometry.cluster().size()),
            codec: self.codec_name(),
            level: self.level.name(),
            encoder: self.encoder(),
            threads: self.threads,
            readers: self.readers,
            part_size: self.part_size,
            connections: self.connections,
            most_parts: self.most_parts(),
            largest_image: self.upper_bound(),
            peak_memory: self.peak_memory(),
        }
    }

    /// Bytes in a part, for buffers.
    #[must_use]
    pub fn part_len(&self) -> usize {
        to_usize(self.part_size.0)
    }
}

/// What can be made smaller.
#[derive(Clone, Copy)]
enum Share {
    Compressors,
    Parts,
    Reads,
}

/// Chunks in memory: each compressor works on one and finds the next one waiting.
fn chunks(readers: usize, threads: usize) -> usize {
    readers + 2 * threads + SLACK_CHUNKS
}

fn bounded(what: &'static str, asked: usize, most: usize) -> Result<usize, ConvertError> {
    if asked > most { Err(ConvertError::TooMany { what, asked, most }) } else { Ok(asked) }
}

fn check_part_size(
    asked: ByteCount,
    head: ByteCount,
    bound: ByteCount,
    destination: Destination,
) -> Result<ByteCount, ConvertError> {
    let refuse = |why: String| Err(ConvertError::PartSize { asked, why });
    if !asked.0.is_multiple_of(PART_STEP) || asked.0 == 0 {
        return refuse(format!("it must be a multiple of {}", ByteCount(PART_STEP)));
    }
    if asked < head {
        return refuse(format!("the image's head, which goes into one part, takes {head}"));
    }
    if destination == Destination::Bucket {
        // The least multiple of the step that is no smaller than S3's least part is 8 MiB.
        if asked < crate::store::MIN_PART {
            return refuse(format!("stores take parts of at least {}", crate::store::MIN_PART));
        }
        if asked > MAX_PART {
            return refuse(format!("stores take parts of at most {MAX_PART}"));
        }
        if bound.0.div_ceil(asked.0) > MAX_PARTS {
            let least = ByteCount(bound.0.div_ceil(MAX_PARTS).next_multiple_of(PART_STEP));
            return refuse(format!(
                "an image of up to {bound} would need more than {MAX_PARTS} parts; give at least {least}"
            ));
        }
    }
    Ok(asked)
}

/// A plan's numbers, for people and `--json`. Sizes in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct PlanSummary {
    /// The disk's size as the guest sees it.
    pub virtual_size: ByteCount,
    /// qcow2's unit.
    pub cluster_size: ByteCount,
    /// `deflate`, `zstd` or `none`.
    pub codec: &'static str,
    /// `fast` to `smallest`.
    pub level: &'static str,
    /// The library and its level.
    pub encoder: String,
    /// Compression threads.
    pub threads: usize,
    /// Reads in flight at most.
    pub readers: usize,
    /// Each part but the last.
    pub part_size: ByteCount,
    /// Parts in flight at most.
    pub connections: usize,
    /// Parts at most.
    pub most_parts: u64,
    /// The image at most.
    pub largest_image: ByteCount,
    /// Memory at most.
    pub peak_memory: ByteCount,
}

#[cfg(test)]
mod tests {
    use snapferry_base::units::GIB;

    use super::*;

    const CORES: NonZeroUsize = NonZeroUsize::new(2).expect("two");

    fn plan(size: u64, options: &Options, destination: Destination) -> Result<Plan, ConvertError> {
        Plan::new(ByteCount(size), options, destination, CORES)
    }

    #[test]
    fn parts_stay_under_the_limit_at_every_size_a_store_takes() {
        for size in [512, GIB, 100 * GIB, 250 * GIB, 1024 * GIB, 9_000_000_000_000] {
            let plan = plan(size, &Options::default(), Destination::Bucket).expect("a plan");
            assert!(plan.most_parts() <= PARTS_AIMED_AT, "{size}: {} parts", plan.most_parts());
            assert_eq!(plan.part_size.0 % PART_STEP, 0);
            assert!(plan.part_size.0 >= plan.geometry.head_len());
        }
        let error = plan(10_000_000_000_000, &Options::default(), Destination::Bucket)
            .expect_err("over 10 TB with its tables");
        assert!(matches!(error, ConvertError::TooLarge { .. }), "{error}");
        plan(10_000_000_000_000, &Options::default(), Destination::File).expect("a file has no such limit");
    }

    #[test]
    fn memory_is_within_what_is_promised_for_two_cores() {
        for size in [GIB, 64 * GIB, 250 * GIB] {
            let bucket = plan(size, &Options::default(), Destination::Bucket).expect("a plan").peak_memory();
            let file = plan(size, &Options::default(), Destination::File).expect("a plan").peak_memory();
            assert!(bucket <= ByteCount(512 * MIB), "{bucket} for a bucket");
            assert!(file <= ByteCount(256 * MIB), "{file} for a file");
        }
    }

    /// Parts of 32 MiB, six at once, 128 compressors: 1.1 GiB.
    fn large(options: &Options) -> Plan {
        let cores = NonZeroUsize::new(128).expect("not zero");
        Plan::new(ByteCount(100 * GIB), options, Destination::Bucket, cores).expect("a plan")
    }

    fn group(memory: u64) -> Allowance {
        Allowance { memory: Some(ByteCount(memory)), ..Allowance::default() }
    }

    #[test]
    fn a_plan_fits_its_control_group_and_shrinks_no_further_than_it_must() {
        let options = Options::default();
        let free = large(&options);
        assert!(free.peak_memory() > ByteCount(GIB));
        let unlimited =
            free.clone().within(&options, Destination::Bucket, &Allowance::default()).expect("no limit");
        assert_eq!(
            (unlimited.threads, unlimited.part_size, unlimited.connections),
            (128, BUCKET_PART, CONNECTIONS)
        );
        let mut before = free.threads;
        assert!(
            free.clone().within(&options, Destination::Bucket, &group(150 * MIB)).is_ok(),
            "the least there is, with nothing to spare"
        );
        for mib in [1024, 512, 256, 192] {
            let plan =
                free.clone().within(&options, Destination::Bucket, &group(mib * MIB)).expect("it fits");
            let most = mib * MIB / 4 * 3;
            assert!(plan.peak_memory().0 <= most, "{} of {mib} MiB", plan.peak_memory());
            assert!(mib < 512 || plan.peak_memory().0 > most / 4 * 3, "{} of {mib} MiB", plan.peak_memory());
            assert!(plan.threads < before && plan.chunks == chunks(plan.readers, plan.threads), "{plan:?}");
            assert!(
                plan.part_size.0.is_multiple_of(PART_STEP) && plan.most_parts() <= PARTS_AIMED_AT,
                "{plan:?}"
            );
            before = plan.threads;
        }
        let refused =
            free.within(&options, Destination::Bucket, &group(100 * MIB)).expect_err("nothing is so small");
        assert!(
            refused
                .to_string()
                .contains("limited to 100 MiB (memory.max), and this conversion needs at least"),
            "{refused}"
        );
    }

    #[test]
    fn what_the_user_chose_stays_or_is_refused_by_the_limits_name() {
        let options = Options { threads: NonZeroUsize::new(24), ..Options::default() };
        let plan = large(&options)
            .within(&options, Destination::Bucket, &group(512 * MIB))
            .expect("parts get smaller");
        assert_eq!(plan.threads, 24);
        assert!(plan.part_size < BUCKET_PART);
        let options = Options { threads: NonZeroUsize::new(128), ..Options::default() };
        let refused = large(&options)
            .within(&options, Destination::Bucket, &group(512 * MIB))
            .expect_err("128 threads take more");
        assert!(matches!(refused, ConvertError::TooTight(_)), "{refused}");
    }

    #[test]
    fn connections_follow_the_files_that_may_be_open_and_a_file_its_own_limit() {
        let options = Options::default();
        let few = Allowance { open_files: Some(26), ..Allowance::default() };
        assert_eq!(
            large(&options).within(&options, Destination::Bucket, &few).expect("two connections").connections,
            2
        );
        let asked = Options { connections: NonZeroUsize::new(6), ..Options::default() };
        let refused =
            large(&asked).within(&asked, Destination::Bucket, &few).expect_err("six were asked for");
        assert!(refused.to_string().contains("ulimit -n"), "{refused}");
        let short = Allowance { file_size: Some(ByteCount(100 * KIB)), ..Allowance::default() };
        let file = plan(GIB, &options, Destination::File).expect("a plan");
        let refused = file.within(&options, Destination::File, &short).expect_err("three clusters at least");
        assert!(refused.to_string().contains("ulimit -f"), "{refused}");
    }

    #[test]
    fn a_slip_of_the_finger_starts_no_army_of_threads() {
        let options = Options { threads: NonZeroUsize::new(200_000), ..Options::default() };
        let error = plan(GIB, &options, Destination::File).expect_err("refused");
        assert!(error.to_string().contains("200000 threads are too many: give at most 512"), "{error}");
    }

    #[test]
    fn a_part_size_that_cannot_work_is_refused_with_one_that_can() {
        let asked = |size: u64| Options { part_size: Some(ByteCount(size)), ..Options::default() };
        let refusal =
            |size: u64| plan(1024 * GIB, &asked(size), Destination::Bucket).expect_err("refused").to_string();
        assert!(refusal(5 * MIB).contains("multiple of 4 MiB"));
        assert!(refusal(4 * MIB).contains("at least 5 MiB"));
        assert!(refusal(8 * MIB).contains("give at least"));
        assert!(refusal(6 << 30).contains("at most 5 GiB"));
    }
}
