//! Plan of a conversion, made before the first byte is read: sizes, counts, and the memory that the
//! conversion may take.

use std::num::NonZeroUsize;

use serde::Serialize;
use snapferry_base::limits::{Allowance, Demand};
use snapferry_base::units::{ByteCount, ClusterBits, KIB, MIB, to_u64, to_usize};
use snapferry_qcow2::header::Version;
use snapferry_qcow2::{Geometry, SEGMENT};

use super::ConvertError;
use super::planner::Limits;
use crate::compress::{Codec, Encoder, Level};
use crate::manifest::EncoderRecord;
use crate::pipeline::{MAX_IN_FLIGHT, MAX_THREADS, bounded};
use crate::store::Location;
use crate::store::{MAX_OBJECT, MAX_PART, MAX_PARTS, MIN_PART};

/// Size of one read, of one compression job and of the data under one hash. Measured: reads of 1 to 4 MiB are
/// equally fast, and smaller chunks make more jobs than they are worth.
pub const CHUNK: ByteCount = crate::hash::CHUNK;

/// Chunks in flight between the first read and the assembler, beyond those that readers and compressors hold.
/// The assembler may hold back the chunks of a whole segment until it knows where their raw clusters go.
const SLACK_CHUNKS: usize = 10;

/// Chunks of a segment.
const SEGMENT_CHUNKS: usize = 8;
const _: () = assert!(SEGMENT.0 == 8 * CHUNK.0, "a segment has this many chunks");

/// Default number of reads in flight. A cloud volume needs a queue; a local disk does not suffer from one.
const READERS: usize = 6;

/// Default number of parts uploaded at once. With 200 ms to the store, 8 carry three times as much as 2.
const CONNECTIONS: usize = 6;

/// Usual part size for S3: large enough that 10,000 parts make 312 GiB, small enough to hold several in
/// memory.
const BUCKET_PART: ByteCount = ByteCount(32 * MIB);

/// Unit of part sizes, which are all multiples of it; IBM COS recommends it.
const PART_STEP: u64 = 4 * MIB;

/// Smallest part size that a plan chooses to save memory: the least multiple of the step that every store
/// accepts.
const SMALLEST_PART: ByteCount = ByteCount(8 * MIB);

/// Threads besides compressors, readers and those that write a file: the runtime's two, the one that starts
/// reads, the assembler, the progress display, and room for a few that look up names.
const OTHER_THREADS: usize = 8;

/// Most parts that an image's upper bound is spread over, so that a tenth of the limit stays in reserve.
const PARTS_AIMED_AT: u64 = MAX_PARTS * 9 / 10;

/// Size of one write to a local file.
const FILE_PART: ByteCount = ByteCount(4 * MIB);

/// Number of concurrent writes to a local file.
const FILE_WRITERS: usize = 3;

/// Least bytes in every part of a file but the last. A file has no such limit, but shorter copies are not
/// worth a part of their own.
const LEAST_FILE_PART: ByteCount = ByteCount(MIB);

/// Bytes that one request copies inside a store: small enough that its answer comes within seconds. Three
/// stores copied 1 GiB in 3 to 7 seconds.
const COPY: ByteCount = ByteCount(128 * MIB);

/// Most bytes that one request copies, however large the parts are.
const MOST_COPIED: ByteCount = ByteCount(1024 * MIB);

/// Bytes of the base that are in memory while the holes of parts are filled, in two requests at most.
pub(super) const FETCH: ByteCount = ByteCount(4 * MIB);

/// Number of parts whose holes are filled at a time.
pub(super) const FETCHES: usize = 2;

/// Memory that the process takes before it holds a single chunk: code, runtime, TLS, HTTP buffers. Measured:
/// 23 MiB at most.
const BASE: u64 = 32 * MIB;

/// Hashing of the source's bytes while they are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hashing {
    /// BLAKE3 over each chunk and segment, kept in the manifest.
    #[default]
    Blake3,
    Off,
}

/// Storage of clusters that hold data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoreAs {
    /// Clusters are compressed if that makes them smaller.
    #[default]
    Compressed,
    /// Clusters are stored as they are: a larger image, written at the speed of the disk.
    Raw,
}

/// Object that is stored beside the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ManifestPolicy {
    #[default]
    Manifest,
    Nothing,
}

/// Use of an older image of the same disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reuse {
    /// All of the disk is compressed.
    #[default]
    Nothing,
    /// What did not change since the older image is taken from it.
    Unchanged,
}

/// Options that the user may set. `None` leaves the choice to the plan.
#[derive(Clone, Debug)]
pub struct Options {
    /// Version of the qcow2 header.
    pub version: Version,
    /// Compression format. The header names it even if no cluster is compressed.
    pub codec: Codec,
    pub store_as: StoreAs,
    pub level: Level,
    /// Size of a qcow2 cluster.
    pub cluster: ClusterBits,
    /// Number of compression threads; by default one per core.
    pub threads: Option<NonZeroUsize>,
    /// Bytes in each part but the last.
    pub part_size: Option<ByteCount>,
    /// Most parts in flight at a time.
    pub connections: Option<NonZeroUsize>,
    /// Most reads in flight at a time.
    pub readers: Option<NonZeroUsize>,
    pub hashing: Hashing,
    pub manifest_policy: ManifestPolicy,
    pub reuse: Reuse,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            version: Version::V3,
            codec: Codec::Deflate,
            store_as: StoreAs::Compressed,
            level: Level::Fast,
            cluster: ClusterBits::DEFAULT,
            threads: None,
            part_size: None,
            connections: None,
            readers: None,
            hashing: Hashing::Blake3,
            manifest_policy: ManifestPolicy::Manifest,
            reuse: Reuse::Nothing,
        }
    }
}

/// Settings of one conversion, all decided.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Sizes of the image and its tables.
    pub geometry: Geometry,
    /// Version of the qcow2 header.
    pub version: Version,
    pub codec: Codec,
    pub store_as: StoreAs,
    pub level: Level,
    pub hashing: Hashing,
    pub manifest_policy: ManifestPolicy,
    pub reuse: Reuse,
    /// Number of compression threads.
    pub threads: usize,
    /// Most reads in flight at a time.
    pub readers: usize,
    /// Most chunks whose bodies are in memory.
    pub chunks: usize,
    /// Bytes in each part but the last; with an older image, most bytes in a part that is sent.
    pub part_size: ByteCount,
    /// Most parts in flight at a time.
    pub connections: usize,
    /// Least bytes in every part but the last.
    least_part: ByteCount,
    /// Most parts.
    parts_limit: u64,
}

impl Plan {
    /// Makes the plan for a disk of `size` bytes on a machine with `cores` cores.
    ///
    /// # Errors
    /// If the format or the destination can't take an image of that size, or an option is out of its range.
    pub fn new(
        size: ByteCount,
        options: &Options,
        destination: Location,
        cores: NonZeroUsize,
    ) -> Result<Self, ConvertError> {
        if options.version == Version::V2 && options.codec != Codec::Deflate {
            return Err(ConvertError::Version2 { codec: options.codec });
        }
        let geometry = Geometry::new(size, options.cluster).map_err(ConvertError::Geometry)?;
        let bound = geometry.upper_bound();
        if destination == Location::Bucket && bound > MAX_OBJECT {
            return Err(ConvertError::TooLarge { size, bound, limit: MAX_OBJECT });
        }
        let threads = bounded("threads", options.threads.unwrap_or(cores).get(), MAX_THREADS)?;
        let readers =
            bounded("reads at once", options.readers.map_or(READERS, NonZeroUsize::get), MAX_IN_FLIGHT)?;
        // The head is sent last and whole, so it must fit into the first part.
        let head = ByteCount(geometry.head_len().next_multiple_of(PART_STEP));
        let (part, connections) = match destination {
            Location::Bucket => (
                BUCKET_PART.max(ByteCount((bound.0.div_ceil(PARTS_AIMED_AT)).next_multiple_of(PART_STEP))),
                CONNECTIONS,
            ),
            Location::File => (FILE_PART, FILE_WRITERS),
        };
        let (least_part, parts_limit) = match destination {
            Location::Bucket => (MIN_PART, MAX_PARTS),
            Location::File => (LEAST_FILE_PART, u64::from(u32::MAX)),
        };
        let part_size = match options.part_size {
            None => part.max(head),
            Some(requested) => check_part_size(requested, head, bound, destination)?,
        };
        let connections = bounded(
            "connections",
            options.connections.map_or(connections, NonZeroUsize::get),
            MAX_IN_FLIGHT,
        )?;
        let chunks = chunks(readers, threads);
        // The assembler holds a segment's bodies until all of them are there.
        assert!(chunks >= SEGMENT_CHUNKS, "{chunks} chunks do not hold a segment");
        Ok(Self {
            geometry,
            version: options.version,
            codec: options.codec,
            store_as: options.store_as,
            level: options.level,
            hashing: options.hashing,
            manifest_policy: options.manifest_policy,
            reuse: options.reuse,
            threads,
            readers,
            chunks,
            part_size,
            connections,
            least_part,
            parts_limit,
        })
    }

    /// Fits the plan into the limits of this process: shrinks the largest consumer of memory, again and
    /// again, until everything fits. The consumers are the compressors with their buffers, the parts (first
    /// smaller ones, then fewer at once), and the reads. Values that the user chose stay.
    ///
    /// # Errors
    /// If nothing is left to shrink, or the image could not be written at all. The error names the limit.
    pub fn within(
        mut self,
        options: &Options,
        destination: Location,
        allowance: &Allowance,
    ) -> Result<Self, ConvertError> {
        if destination == Location::File {
            allowance.file("the image's head alone", ByteCount(self.geometry.head_len()))?;
        } else if options.connections.is_none() {
            self.connections = allowance.connections(self.connections);
        }
        while allowance.fit("this conversion", &self.demand(destination)).is_err() {
            if !self.shrink(options, destination) {
                allowance.fit_without_reserve("this conversion", &self.demand(destination))?;
                break;
            }
        }
        Ok(self)
    }

    /// Returns the most that the conversion takes of each limited resource.
    fn demand(&self, destination: Location) -> Demand {
        let files = if destination == Location::Bucket { self.connections } else { 0 };
        Demand {
            memory: self.peak_memory(),
            threads: self.threads + self.readers + self.connections + OTHER_THREADS,
            files,
        }
    }

    /// Shrinks the largest consumer of memory a little. Returns false if nothing can shrink.
    fn shrink(&mut self, options: &Options, destination: Location) -> bool {
        let chunk = 2 * CHUNK.0;
        let encoder = Encoder::memory(self.codec, self.level, self.geometry.cluster()).0;
        let smaller_part = self.smaller_part(options, destination);
        let may_send_less = options.connections.is_none() && self.connections > 1;
        let shares = [
            (
                options.threads.is_none() && self.threads > 1,
                to_u64(self.threads) * (encoder + 2 * chunk),
                Shrinkable::Compressors,
            ),
            (
                smaller_part.is_some() || may_send_less,
                to_u64(self.part_buffers()) * self.part_size.0,
                Shrinkable::Parts,
            ),
            (options.readers.is_none() && self.readers > 1, to_u64(self.readers) * chunk, Shrinkable::Reads),
        ];
        let largest =
            shares.into_iter().filter(|(can_shrink, ..)| *can_shrink).max_by_key(|(_, bytes, _)| *bytes);
        let Some((_, _, share)) = largest else { return false };
        match (share, smaller_part) {
            (Shrinkable::Compressors, _) => self.threads -= self.threads.div_ceil(8),
            (Shrinkable::Parts, Some(smaller)) => self.part_size = smaller,
            (Shrinkable::Parts, None) => self.connections -= 1,
            (Shrinkable::Reads, _) => self.readers -= 1,
        }
        self.chunks = chunks(self.readers, self.threads);
        true
    }

    /// Returns a smaller part size for a bucket: half of the present one, or the least that holds the head,
    /// is not too small for a store, and does not make too many parts. Returns `None` if there is none, or if
    /// the user chose the size.
    fn smaller_part(&self, options: &Options, destination: Location) -> Option<ByteCount> {
        let least =
            self.upper_bound().0.div_ceil(PARTS_AIMED_AT).max(self.geometry.head_len()).max(SMALLEST_PART.0);
        let smaller = ByteCount((self.part_size.0 / 2).max(least).next_multiple_of(PART_STEP));
        let is_ours = destination == Location::Bucket && options.part_size.is_none();
        (is_ours && smaller < self.part_size).then_some(smaller)
    }

    /// Returns the number of part buffers: one being filled, the first one held back for the head, the others
    /// in flight.
    #[must_use]
    pub fn part_buffers(&self) -> usize {
        self.connections + 2
    }

    /// Returns the number of buffers for chunks as they are read. With an older image, the judge holds those
    /// of a segment until it has compared their hashes.
    #[must_use]
    pub fn chunk_buffers(&self) -> usize {
        match self.reuse {
            Reuse::Nothing => self.chunks,
            Reuse::Unchanged => self.chunks + SEGMENT_CHUNKS,
        }
    }

    /// Returns the limits of the image's parts.
    pub(super) fn part_limits(&self) -> Limits {
        let part = self.part_size.0;
        let copy = part.saturating_mul(4).clamp(COPY.0, MOST_COPIED.0);
        Limits { part, least: self.least_part.0.min(part), copy, most: self.parts_limit }
    }

    /// Returns the largest possible size of the image.
    #[must_use]
    pub fn upper_bound(&self) -> ByteCount {
        self.geometry.upper_bound()
    }

    /// Returns the largest possible number of parts of the image.
    #[must_use]
    pub fn most_parts(&self) -> u64 {
        self.upper_bound().0.div_ceil(self.part_size.0)
    }

    /// Returns the most memory that the conversion takes, in bytes:
    ///
    /// ```text
    ///   32 MiB                              code, runtime, TLS
    /// + threads x encoder                   encoder tables
    /// + chunks x 2 x 2 MiB                  chunks as read, and their bodies
    /// + (connections + 2) x part size       parts filling, held back, in flight
    /// + 8 a guest, 2 a host cluster         L2 tables and refcounts, for a disk that is full
    /// + segments x 400                      the manifest, while it is written
    /// + readers x 64 KiB                    stacks
    /// ```
    ///
    /// With an older image also:
    ///
    /// ```text
    ///   8 x 2 MiB                           chunks whose hashes are compared
    /// + 2 x 4 MiB                           bytes of the older image for holes
    /// + 8 a guest cluster, segments x 400   its tables and manifest
    /// ```
    #[must_use]
    pub fn peak_memory(&self) -> ByteCount {
        let cluster = self.geometry.cluster();
        let encoders = to_u64(self.threads) * Encoder::memory(self.codec, self.level, cluster).0;
        let chunks = to_u64(self.chunks) * 2 * CHUNK.0;
        let parts = to_u64(self.part_buffers()) * self.part_size.0;
        let tables = self.geometry.tables_bound().0;
        let segments = self.geometry.segments() * 400;
        let older = match self.reuse {
            Reuse::Nothing => 0,
            Reuse::Unchanged => {
                let judged = to_u64(SEGMENT_CHUNKS) * CHUNK.0;
                let fetched = to_u64(FETCHES) * FETCH.0;
                judged + fetched + 8 * self.geometry.guest_clusters() + segments
            }
        };
        let stacks = 64 * KIB * to_u64(self.readers);
        ByteCount(BASE + encoders + chunks + parts + tables + segments + stacks + older)
    }

    /// Returns `deflate`, `zstd`, or `none` if clusters are stored raw.
    #[must_use]
    pub fn codec_name(&self) -> &'static str {
        match self.store_as {
            StoreAs::Compressed => self.codec.name(),
            StoreAs::Raw => "none",
        }
    }

    /// Returns the compression library and its level, or `none` if clusters are stored raw.
    #[must_use]
    pub fn encoder(&self) -> String {
        match self.store_as {
            StoreAs::Compressed => Encoder::describe(self.codec, self.level),
            StoreAs::Raw => "none".to_owned(),
        }
    }

    /// Returns all that decides on the bytes of a segment, as the manifest records it.
    #[must_use]
    pub fn encoder_record(&self) -> EncoderRecord {
        EncoderRecord {
            codec: self.codec_name().to_owned(),
            level: self.level.name().to_owned(),
            library: self.encoder(),
            target: Some(std::env::consts::ARCH.to_owned()),
            layout: Some(snapferry_qcow2::layout::VERSION),
            cluster_size: ByteCount(self.geometry.cluster().size()),
            segment_size: self.geometry.segment_size(),
            chunk_size: CHUNK,
        }
    }

    /// Returns the plan as `--dry-run --json` prints it.
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

    /// Returns the number of bytes in a part, for buffers.
    #[must_use]
    pub fn part_len(&self) -> usize {
        to_usize(self.part_size.0)
    }
}

/// Consumer of memory that can shrink.
#[derive(Clone, Copy)]
enum Shrinkable {
    Compressors,
    Parts,
    Reads,
}

/// Returns the number of chunks in memory: each compressor works on one and finds the next one waiting.
fn chunks(readers: usize, threads: usize) -> usize {
    readers + 2 * threads + SLACK_CHUNKS
}

fn check_part_size(
    requested: ByteCount,
    head: ByteCount,
    bound: ByteCount,
    destination: Location,
) -> Result<ByteCount, ConvertError> {
    let refuse = |reason: String| Err(ConvertError::PartSize { requested, reason });
    if !requested.0.is_multiple_of(PART_STEP) || requested.0 == 0 {
        return refuse(format!("it must be a multiple of {}", ByteCount(PART_STEP)));
    }
    if requested < head {
        return refuse(format!("the image's head, which goes into one part, takes {head}"));
    }
    if destination == Location::Bucket {
        // The least multiple of the step that is no smaller than S3's least part is 8 MiB.
        if requested < crate::store::MIN_PART {
            return refuse(format!("stores take parts of at least {}", crate::store::MIN_PART));
        }
        if requested > MAX_PART {
            return refuse(format!("stores take parts of at most {MAX_PART}"));
        }
        if bound.0.div_ceil(requested.0) > MAX_PARTS {
            let least = ByteCount(bound.0.div_ceil(MAX_PARTS).next_multiple_of(PART_STEP));
            return refuse(format!(
                "an image of up to {bound} would need more than {MAX_PARTS} parts; give at least {least}"
            ));
        }
    }
    Ok(requested)
}

/// Figures of a plan, for people and for `--json`. Sizes in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct PlanSummary {
    /// Size of the disk as the guest sees it.
    pub virtual_size: ByteCount,
    /// Size of a qcow2 cluster.
    pub cluster_size: ByteCount,
    /// `deflate`, `zstd` or `none`.
    pub codec: &'static str,
    /// `fast`, `balanced`, `small` or `smallest`.
    pub level: &'static str,
    /// Compression library and its level.
    pub encoder: String,
    /// Number of compression threads.
    pub threads: usize,
    /// Most reads in flight at a time.
    pub readers: usize,
    /// Size of each part but the last.
    pub part_size: ByteCount,
    /// Most parts in flight at a time.
    pub connections: usize,
    /// Largest possible number of parts.
    pub most_parts: u64,
    /// Largest possible size of the image.
    pub largest_image: ByteCount,
    /// Most memory that the conversion takes.
    pub peak_memory: ByteCount,
}

#[cfg(test)]
mod tests;
