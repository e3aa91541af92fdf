//! An image as a source: what converts disks converts images too.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use snapferry_base::limits::{OutOfMemory, zeros};
use snapferry_base::units::{ByteCount, GuestCluster, GuestOffset, HostOffset, KIB, MIB, to_u64, to_usize};
use snapferry_qcow2::mappings::SUBCLUSTERS;
use snapferry_qcow2::{Image, ImageError, ImageFile, Limits, Mappings, Stored};

use super::plan::extent;
use crate::compress::Decoder;
use crate::error::RestoreError;
use crate::source::aligned::BUFFER_ALIGNMENT;
use crate::source::{Extent, Source, SourceError};

/// A longer stretch between two bodies is not fetched along with them.
const GAP: u64 = 64 * KIB;
/// Bodies are fetched together as long as they lie within so many bytes.
const FETCH: u64 = 4 * MIB;
/// What one read takes at most, beside the bytes that it is for: the bodies of a chunk that are fetched together, a cluster and a decoder.
pub(crate) const READER: u64 = FETCH + 3 * MIB;
/// Nobody looks farther than this for the end of the data: of a full disk, each question would go through all of its tables.
const LOOKED_THROUGH: u64 = 64 * MIB;

/// The disk in an image, decoded as it is read, by whoever reads it.
pub struct ImageSource {
    file: Arc<dyn ImageFile>,
    image: Image,
    mappings: Mappings,
    /// Decoders that nobody uses just now: there come to be as many as there are reads at once.
    idle: Mutex<Vec<Worker>>,
}

/// What one read needs.
struct Worker {
    decoder: Decoder,
    fetched: Vec<u8>,
    cluster: Vec<u8>,
}

/// One cluster that a read touches, and the bytes of the file that hold its body.
struct Wanted {
    guest: GuestCluster,
    stored: Stored,
    body: Range<u64>,
}

impl ImageSource {
    /// Opens the image in `file` and loads its tables.
    ///
    /// # Errors
    /// Where it can't be read, or is refused.
    pub fn open(file: Arc<dyn ImageFile>, limits: &Limits) -> Result<Self, ImageError> {
        let image = Image::open(&*file, limits)?;
        let mappings = image.load(&*file)?;
        Ok(Self { file, image, mappings, idle: Mutex::default() })
    }

    /// What its header says.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Where each cluster's bytes lie.
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

    /// The stored clusters of a range of the disk, in the order of the file.
    fn wanted(&self, range: &Range<u64>) -> Vec<Wanted> {
        let cluster = self.mappings.cluster();
        let clusters =
            GuestOffset(range.start).cluster(cluster)..GuestCluster(cluster.clusters_in(range.end));
        let file_len = self.file.size();
        let found = self.mappings.range(clusters);
        let mut wanted: Vec<Wanted> = found
            .map(|(guest, stored)| Wanted { guest, stored, body: extent(&self.mappings, file_len, guest) })
            .collect();
        wanted.sort_unstable_by_key(|wanted| wanted.body.start);
        wanted
    }

    fn fill(&self, worker: &mut Worker, offset: GuestOffset, into: &mut [u8]) -> Result<(), SourceError> {
        let end = (offset.0 + to_u64(into.len())).min(self.size().0);
        into.fill(0);
        if end <= offset.0 {
            return Ok(());
        }
        let wanted = self.wanted(&(offset.0..end));
        let mut rest = &wanted[..];
        while let Some(first) = rest.first() {
            let (start, mut end_of_fetch) = (first.body.start, first.body.end);
            let mut count = 1;
            // The first one is fetched whatever its length.
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

    /// Reads the bodies of `batch`, which lie close to each other, and decodes them into the disk's bytes from `offset`.
    fn fetch(
        &self,
        worker: &mut Worker,
        batch: &[Wanted],
        offset: GuestOffset,
        into: &mut [u8],
    ) -> Result<(), SourceError> {
        let cluster = self.mappings.cluster();
        let first = batch.iter().map(|wanted| wanted.body.start).min().unwrap_or(0);
        let end = batch.iter().map(|wanted| wanted.body.end).max().unwrap_or(first);
        let Worker { decoder, fetched, cluster: decoded } = worker;
        fetched.clear();
        let len = to_usize(end - first);
        fetched.try_reserve_exact(len).map_err(|_| OutOfMemory::of("stored clusters", to_u64(len)))?;
        fetched.resize(len, 0);
        let at = batch
            .iter()
            .map(|wanted| wanted.guest)
            .min()
            .map_or(offset, |guest| guest.offset(cluster))
            .max(offset);
        self.file.read_at(HostOffset(first), fetched).map_err(|error| self.error(at, error))?;
        for Wanted { guest, stored, body } in batch {
            let bytes = &fetched[to_usize(body.start - first)..to_usize(body.end - first)];
            let start = guest.offset(cluster);
            // What of the cluster was asked for.
            let from = offset.max(start).0;
            let to = (offset.0 + to_u64(into.len())).min(start.0 + cluster.size());
            let ours = to_usize(from - start.0)..to_usize(to - start.0);
            let into = &mut into[to_usize(from - offset.0)..to_usize(to - offset.0)];
            match *stored {
                Stored::Zero => {}
                Stored::Compressed { at: host, .. } => {
                    let damaged = |source| {
                        let name = self.file.name().to_owned();
                        self.error(start, RestoreError::Body { name, guest: start, host, source })
                    };
                    if into.len() == cluster.len() {
                        decoder.decode(bytes, into).map_err(damaged)?;
                    } else {
                        decoder.decode(bytes, decoded).map_err(damaged)?;
                        into.copy_from_slice(&decoded[ours]);
                    }
                }
                Stored::Raw(_) => copy(bytes, ours, into),
                Stored::Subclusters(_, stored) => {
                    let len = cluster.len() / to_usize(u64::from(SUBCLUSTERS));
                    for bit in (0..SUBCLUSTERS).filter(|bit| stored >> bit & 1 == 1) {
                        let at = to_usize(u64::from(bit)) * len;
                        let both = ours.start.max(at)..ours.end.min(at + len);
                        if !both.is_empty() {
                            let place = both.start - ours.start..both.end - ours.start;
                            copy(bytes, both, &mut into[place]);
                        }
                    }
                }
            }
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

/// Copies a part of a cluster, of which the file may hold only the beginning: the disk ends there.
fn copy(stored: &[u8], part: Range<usize>, into: &mut [u8]) {
    let there = part.start.min(stored.len())..part.end.min(stored.len());
    into[..there.len()].copy_from_slice(&stored[there]);
}

impl Source for ImageSource {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn size(&self) -> ByteCount {
        self.mappings.virtual_size()
    }

    /// Any offset can be read; whole clusters are cheapest.
    fn alignment(&self) -> usize {
        self.mappings.cluster().len().min(BUFFER_ALIGNMENT)
    }

    fn read_at(&self, offset: GuestOffset, into: &mut [u8]) -> Result<(), SourceError> {
        let mut worker = self.worker()?;
        let filled = self.fill(&mut worker, offset, into);
        self.give_back(worker);
        filled
    }

    /// Zero clusters are holes. Data may go on behind the end that is told.
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
        // A file that is no longer the one that was opened fails every read.
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
