//! Image as a source of disk bytes, so that it can be converted like a disk.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use snapferry_base::limits::{OutOfMemory, zeros};
use snapferry_base::units::{ByteCount, GuestCluster, GuestOffset, HostOffset, KIB, MIB, to_u64, to_usize};
use snapferry_qcow2::{Image, ImageError, ImageFile, Limits, Mappings, Stored};

use super::fill::fill;
use super::plan::extent;
use crate::compress::Decoder;
use crate::error::RestoreError;
use crate::source::aligned::BUFFER_ALIGNMENT;
use crate::source::{Extent, Source, SourceError};

/// Longest gap between two bodies, in bytes, that is fetched along with them.
const GAP: u64 = 64 * KIB;
/// Longest range of the file, in bytes, from which bodies are fetched together.
const FETCH: u64 = 4 * MIB;
/// Most memory that one read takes in bytes, beside the bytes that it fills: the bodies of a chunk that are
/// fetched together, a cluster and a decoder.
pub(crate) const READER: u64 = FETCH + 3 * MIB;
/// Longest range, in bytes, that is searched for the end of the data. Without a limit, each search in a full
/// disk would go through all of its tables.
const LOOKED_THROUGH: u64 = 64 * MIB;

/// Disk in an image. The thread that reads it decodes it.
pub struct ImageSource {
    file: Arc<dyn ImageFile>,
    image: Image,
    mappings: Mappings,
    /// Decoders that no read is using. In time there are as many as there are concurrent reads.
    idle: Mutex<Vec<Worker>>,
}

/// Decoder and buffers for one read.
struct Worker {
    decoder: Decoder,
    fetched: Vec<u8>,
    cluster: Vec<u8>,
}

/// Cluster that a read touches, and the range of the file that holds its body.
struct RequestedCluster {
    guest: GuestCluster,
    stored: Stored,
    body: Range<u64>,
}

impl ImageSource {
    /// Opens the image in `file` and loads its tables.
    ///
    /// # Errors
    /// If it can't be read, or is refused.
    pub fn open(file: Arc<dyn ImageFile>, limits: &Limits) -> Result<Self, ImageError> {
        let image = Image::open(&*file, limits)?;
        let mappings = image.load(&*file)?;
        Ok(Self { file, image, mappings, idle: Mutex::default() })
    }

    /// Returns the image with its header.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Returns the positions of the clusters in the file.
    #[must_use]
    pub fn mappings(&self) -> &Mappings {
        &self.mappings
    }

    fn worker(&self) -> Result<Worker, OutOfMemory> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(worker) = idle {
            return Ok(worker);
        }
        let cluster = self.mappings.cluster();
        let decoder = Decoder::new(self.image.header().compression, cluster)?;
        Ok(Worker { decoder, fetched: Vec::new(), cluster: zeros("a cluster", cluster.size())? })
    }

    fn give_back(&self, worker: Worker) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
    }

    /// Returns the stored clusters of a range of the disk, in the order of the file.
    fn requested_clusters(&self, range: &Range<u64>) -> Vec<RequestedCluster> {
        let cluster = self.mappings.cluster();
        let clusters =
            GuestOffset(range.start).cluster(cluster)..GuestCluster(cluster.clusters_in(range.end));
        let file_len = self.file.size();
        let found = self.mappings.range(clusters);
        let mut requested: Vec<RequestedCluster> = found
            .map(|(guest, stored)| RequestedCluster {
                guest,
                stored,
                body: extent(&self.mappings, file_len, guest),
            })
            .collect();
        requested.sort_unstable_by_key(|requested| requested.body.start);
        requested
    }

    fn fill(&self, worker: &mut Worker, offset: GuestOffset, into: &mut [u8]) -> Result<(), SourceError> {
        let end = (offset.0 + to_u64(into.len())).min(self.size().0);
        into.fill(0);
        if end <= offset.0 {
            return Ok(());
        }
        let requested = self.requested_clusters(&(offset.0..end));
        let mut rest = &requested[..];
        while let Some(first) = rest.first() {
            let (start, mut end_of_fetch) = (first.body.start, first.body.end);
            let mut count = 1;
            // The first body is fetched whatever its length is.
            for next in &rest[1..] {
                let end = next.body.end.max(end_of_fetch);
                if next.body.start > end_of_fetch + GAP || end - start > FETCH {
                    break;
                }
                end_of_fetch = end;
                count += 1;
            }
            let (batch, later) = rest.split_at(count);
            self.fetch(worker, batch, offset, &mut into[..to_usize(end - offset.0)])?;
            rest = later;
        }
        Ok(())
    }

    /// Reads the bodies of `batch`, which are close to each other in the file, and decodes them into the
    /// bytes of the disk from `offset`.
    fn fetch(
        &self,
        worker: &mut Worker,
        batch: &[RequestedCluster],
        offset: GuestOffset,
        into: &mut [u8],
    ) -> Result<(), SourceError> {
        let cluster = self.mappings.cluster();
        let first = batch.iter().map(|requested| requested.body.start).min().unwrap_or(0);
        let end = batch.iter().map(|requested| requested.body.end).max().unwrap_or(first);
        let Worker { decoder, fetched, cluster: decoded } = worker;
        fetched.clear();
        let len = to_usize(end - first);
        fetched.try_reserve_exact(len).map_err(|_| OutOfMemory::of("stored clusters", to_u64(len)))?;
        fetched.resize(len, 0);
        let at = batch
            .iter()
            .map(|requested| requested.guest)
            .min()
            .map_or(offset, |guest| guest.offset(cluster))
            .max(offset);
        self.file.read_at(HostOffset(first), fetched).map_err(|error| self.error(at, error))?;
        for RequestedCluster { guest, stored, body } in batch {
            let bytes = &fetched[to_usize(body.start - first)..to_usize(body.end - first)];
            let start = guest.offset(cluster);
            // The part of the cluster that the caller requested.
            let from = offset.max(start).0;
            let to = (offset.0 + to_u64(into.len())).min(start.0 + cluster.size());
            let part = to_usize(from - start.0)..to_usize(to - start.0);
            let into = &mut into[to_usize(from - offset.0)..to_usize(to - offset.0)];
            fill(*stored, bytes, (part, cluster.len()), decoder, decoded, into).map_err(|source| {
                let host = HostOffset(body.start);
                let name = self.file.name().to_owned();
                self.error(start, RestoreError::Body { name, guest: start, host, source })
            })?;
        }
        Ok(())
    }

    fn error(
        &self,
        offset: GuestOffset,
        error: impl std::error::Error + Send + Sync + 'static,
    ) -> SourceError {
        SourceError::Read { path: self.file.name().to_owned(), offset, source: io::Error::other(error) }
    }
}

impl Source for ImageSource {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn size(&self) -> ByteCount {
        self.mappings.virtual_size()
    }

    /// Returns a size that suits whole clusters, which are cheapest. Reads at any offset work.
    fn alignment(&self) -> usize {
        self.mappings.cluster().len().min(BUFFER_ALIGNMENT)
    }

    fn read_at(&self, offset: GuestOffset, into: &mut [u8]) -> Result<(), SourceError> {
        let mut worker = self.worker()?;
        let filled = self.fill(&mut worker, offset, into);
        self.give_back(worker);
        filled
    }

    /// Reports zero clusters as holes. Data may go on after the end that is reported.
    fn extent_at(&self, from: GuestOffset) -> Result<Extent, SourceError> {
        let cluster = self.mappings.cluster();
        let size = self.size().0;
        let ends = |guest: u64| GuestOffset(GuestCluster(guest).offset(cluster).0.min(size));
        let mut expected = from.cluster(cluster).0;
        let mut stored =
            self.mappings.range(GuestCluster(expected)..GuestCluster(self.mappings.guest_clusters()));
        match stored.next() {
            None => return Ok(Extent::Hole { end: GuestOffset(size) }),
            Some((guest, _)) if guest.0 > expected => return Ok(Extent::Hole { end: ends(guest.0) }),
            Some(_) => expected += 1,
        }
        for (guest, _) in stored.take(to_usize(LOOKED_THROUGH >> cluster.bits()) - 1) {
            if guest.0 > expected {
                break;
            }
            expected += 1;
        }
        Ok(Extent::Data { end: ends(expected) })
    }

    fn settle(&self) -> Result<(), SourceError> {
        // Every read fails if the file is no longer the one that was opened.
        self.file.read_at(HostOffset(0), &mut [0; 4]).map_err(|error| self.error(GuestOffset(0), error))
    }
}

impl fmt::Debug for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageSource")
            .field("file", &self.file.name())
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}
