//! The read side: opens an image that may come from anywhere, and says where each guest cluster's bytes lie.
//!
//! Nothing is trusted before it is checked: no table is read that does not lie within the file, no entry is kept that points outside it
//! or into the tables, and nothing is allocated from a count that the file's length does not bear out. A file that the image names is
//! never opened.

use std::borrow::Cow;
use std::error::Error;
use std::ops::Range;

use snapferry_base::limits::{OutOfMemory, room, zeros};
use snapferry_base::units::{ByteCount, ClusterBits, GuestOffset, HostOffset, MIB, SECTOR, to_u64, to_usize};

use crate::facts::HeaderFacts;
use crate::header::{Header, HeaderError};
use crate::l2::{EntryError, L1Entry};
use crate::mappings::{ClusterSet, Mappings};

/// What is read at first: of nearly every image the header, with all that it says, and often the L1 table.
const FIRST_READ: u64 = 256 << 10;
/// Tables that lie side by side are read together, so many bytes at a time.
const TABLE_READ: u64 = 4 * MIB;

/// The bytes of an image file by their place: a local file, an object in a bucket, memory.
pub trait ImageFile: Send + Sync {
    /// Where the bytes come from, for people.
    fn name(&self) -> &str;

    /// Bytes, exactly. They do not change while the image is read, or reads fail.
    fn size(&self) -> ByteCount;

    /// Fills `into` from `at`: all of it, or an error. Nothing past the end is asked for.
    ///
    /// # Errors
    /// Where the bytes can't be had, or are no longer those of the file that was opened.
    fn read_at(&self, at: HostOffset, into: &mut [u8]) -> Result<(), FileError>;
}

/// Bytes of an image file that can't be had.
#[derive(Debug, thiserror::Error)]
#[error("{name}: cannot read {len} bytes at byte {at}")]
pub struct FileError {
    /// The file.
    pub name: String,
    /// First byte asked for.
    pub at: HostOffset,
    /// Bytes asked for.
    pub len: u64,
    /// What whoever keeps the bytes says: a system's or a store's error.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

/// Why an image is not read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Its bytes can't be had.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its header breaks a rule.
    #[error("{name}")]
    Header {
        /// The image.
        name: String,
        /// Which rule.
        #[source]
        source: HeaderError,
    },
    /// The system refuses the memory that its tables take.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// The disk in it is larger than the caller takes.
    #[error("{name}: holds a disk of {size}; at most {most} are taken")]
    TooLarge {
        /// The image.
        name: String,
        /// The disk.
        size: ByteCount,
        /// The caller's limit.
        most: ByteCount,
    },
    /// An entry that no correct image has.
    #[error("{name}: the L1 entry for the disk's bytes from {guest} is wrong")]
    L1Entry {
        /// The image.
        name: String,
        /// The first byte of the disk that it stands for.
        guest: GuestOffset,
        /// What is wrong with it.
        #[source]
        source: PlaceError,
    },
    /// An entry that no correct image has.
    #[error("{name}: the L2 entry for the disk's bytes from {guest} is wrong")]
    L2Entry {
        /// The image.
        name: String,
        /// The first byte of the disk that it stands for.
        guest: GuestOffset,
        /// What is wrong with it.
        #[source]
        source: PlaceError,
    },
}

/// What can be wrong with a table's entry.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlaceError {
    /// The word itself.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// It points outside the file.
    #[error("it points to bytes {start} to {end}, the file has {file_len}")]
    PastEnd {
        /// First byte.
        start: HostOffset,
        /// One past the last.
        end: u64,
        /// The file.
        file_len: u64,
    },
    /// It points at tables.
    #[error("it points to byte {0}, where the image's own tables are")]
    Metadata(HostOffset),
    /// Two ranges of the disk share an L2 table.
    #[error("it leads to the L2 table at {0}, as another entry does")]
    SharedTable(HostOffset),
    /// Subclusters that are marked both ways, or where there can't be any.
    #[error("its subcluster bits {0:#018x} contradict the entry or each other")]
    Subclusters(u64),
}

/// What a reader puts up with.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest disk: a file of a few KiB can claim one of 2 EiB.
    pub largest_disk: ByteCount,
    /// What becomes of images that somebody marked as corrupt.
    pub marked_corrupt: Marked,
}

/// What becomes of an image that is marked as corrupt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Marked {
    /// It is refused.
    #[default]
    Refuse,
    /// It is read as far as its tables hold up: for `check`, and for who rescues what is left.
    Read,
}

impl Default for Limits {
    /// 64 TiB: more than any cloud's volume.
    fn default() -> Self {
        Self { largest_disk: ByteCount(64 << 40), marked_corrupt: Marked::Refuse }
    }
}

/// An image whose header is good. Its tables are still to be loaded.
#[derive(Clone, Debug)]
pub struct Image {
    header: Header,
    facts: HeaderFacts,
    file_len: u64,
    /// The file's first bytes, kept so that what they hold is not asked for again.
    start: Vec<u8>,
}

impl Image {
    /// Reads the header, in one read where the header's extensions end within 256 KiB.
    ///
    /// # Errors
    /// Where the file can't be read, is no image, or is one that is refused.
    pub fn open(file: &dyn ImageFile, limits: &Limits) -> Result<Self, ImageError> {
        let image = Self::inspect(file)?;
        let corrupt = image.facts.corrupt && limits.marked_corrupt == Marked::Refuse;
        if let Some(source) = (HeaderFacts { corrupt, ..image.facts.clone() }).refusal() {
            return Err(ImageError::Header { name: file.name().to_owned(), source });
        }
        if image.header.virtual_size > limits.largest_disk {
            let (size, most) = (image.header.virtual_size, limits.largest_disk);
            return Err(ImageError::TooLarge { name: file.name().to_owned(), size, most });
        }
        Ok(image)
    }

    /// As [`Image::open`], also where the disk in it is not read: for who asks what the file is. Nothing that it names is opened.
    ///
    /// # Errors
    /// Where the file can't be read, or is no image.
    pub fn inspect(file: &dyn ImageFile) -> Result<Self, ImageError> {
        let size = file.size();
        let mut start = vec![0; to_usize(size.0.min(FIRST_READ))];
        file.read_at(HostOffset(0), &mut start)?;
        let facts = match HeaderFacts::parse(&start, size) {
            Err(HeaderError::Truncated { .. }) if size.0 > FIRST_READ => {
                let cluster = ClusterBits::new(ClusterBits::MAX).expect("the largest there is").size();
                let have = start.len();
                start.resize(to_usize(size.0.min(cluster)), 0);
                file.read_at(HostOffset(to_u64(have)), &mut start[have..])?;
                HeaderFacts::parse(&start, size)
            }
            parsed => parsed,
        };
        let facts = facts.map_err(|source| ImageError::Header { name: file.name().to_owned(), source })?;
        Ok(Self { header: facts.header, facts, file_len: size.0, start })
    }

    /// All that the header says.
    #[must_use]
    pub fn facts(&self) -> &HeaderFacts {
        &self.facts
    }

    /// What the header says.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes of the file.
    #[must_use]
    pub fn file_len(&self) -> ByteCount {
        ByteCount(self.file_len)
    }

    /// The disk's size as a guest sees it: QEMU rounds one that is no whole number of sectors down.
    #[must_use]
    pub fn virtual_size(&self) -> ByteCount {
        ByteCount(self.header.virtual_size.0 / SECTOR * SECTOR)
    }

    /// Reads the L1 table and every L2 table, and checks each entry.
    ///
    /// # Errors
    /// Where the file can't be read, or an entry is one that no correct image has.
    pub fn load(&self, file: &dyn ImageFile) -> Result<Mappings, ImageError> {
        let cluster = self.header.cluster;
        let l1 = self.read_l1(file)?;
        let mut metadata = ClusterSet::new(self.file_len, cluster);
        self.fixed_tables().into_iter().for_each(|table| metadata.insert(table));
        self.refcount_blocks(file)?
            .into_iter()
            .for_each(|block| metadata.insert(block.0..block.0 + cluster.size()));
        let coverage = self.l2_coverage();
        let wrong_l1 = |index: usize, source| ImageError::L1Entry {
            name: file.name().to_owned(),
            guest: GuestOffset(to_u64(index) * coverage),
            source,
        };
        let mut places = Vec::new();
        for (index, entry) in l1.iter().enumerate() {
            let Some((table, _)) = entry.decode(cluster).map_err(|err| wrong_l1(index, err.into()))? else {
                continue;
            };
            let range = table.0..table.0 + cluster.size();
            if range.end > self.file_len {
                let source = PlaceError::PastEnd { start: table, end: range.end, file_len: self.file_len };
                return Err(wrong_l1(index, source));
            }
            if metadata.touches(&range) {
                return Err(wrong_l1(index, PlaceError::Metadata(table)));
            }
            places.push((table, index));
        }
        places.sort_unstable();
        if let Some(twice) = places.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(wrong_l1(twice[1].1, PlaceError::SharedTable(twice[1].0)));
        }
        places.iter().for_each(|&(table, _)| metadata.insert(table.0..table.0 + cluster.size()));
        let mut tables = room("the tables of an image", l1.len())?;
        tables.resize(l1.len(), None);
        self.read_tables(file, &places, &mut tables)?;
        Mappings::checked(self.header, self.file_len, tables, file.name(), &metadata)
    }

    /// The refcount blocks that lie where they can. What else is wrong with the table is for `check` to say: reading needs no counts, but
    /// no body may be where they are.
    fn refcount_blocks(&self, file: &dyn ImageFile) -> Result<Vec<HostOffset>, ImageError> {
        let cluster = self.header.cluster;
        let len = u64::from(self.header.refcount_table_clusters) * cluster.size();
        let table = self.table_bytes(file, self.header.refcount_table, len)?;
        let entries = table.as_chunks::<8>().0.iter().map(|raw| u64::from_be_bytes(*raw));
        let lies_well = |at: &u64| {
            *at > 0 && at.is_multiple_of(cluster.size()) && self.file_len.checked_sub(*at).is_some()
        };
        Ok(entries.filter(lies_well).map(HostOffset).collect())
    }

    /// A table that lies within the file: from what was read at first, or from the file.
    pub(super) fn table_bytes(
        &self,
        file: &dyn ImageFile,
        at: HostOffset,
        len: u64,
    ) -> Result<Cow<'_, [u8]>, ImageError> {
        let range = to_usize(at.0)..to_usize(at.0 + len);
        if let Some(bytes) = self.start.get(range) {
            return Ok(Cow::Borrowed(bytes));
        }
        let mut bytes = zeros("a table of an image", len)?;
        file.read_at(at, &mut bytes)?;
        Ok(Cow::Owned(bytes))
    }

    /// Bytes of the disk that one L2 table stands for.
    fn l2_coverage(&self) -> u64 {
        let cluster = self.header.cluster.size();
        cluster / self.header.l2_entry_len() * cluster
    }

    /// The active L1 table, as many entries as the disk needs: what is behind them may be a saved machine's memory, which no guest reads.
    ///
    /// # Errors
    /// Where the file can't be read.
    pub fn read_l1(&self, file: &dyn ImageFile) -> Result<Vec<L1Entry>, ImageError> {
        let needed = self.header.virtual_size.0.div_ceil(self.l2_coverage());
        let bytes = self.table_bytes(file, self.header.l1_table, needed * 8)?;
        let words = bytes.as_chunks::<8>().0;
        let mut entries = room("the L1 table of an image", words.len())?;
        entries.extend(words.iter().map(|raw| L1Entry(u64::from_be_bytes(*raw))));
        Ok(entries)
    }

    /// The tables whose places the header gives, as ranges of bytes.
    fn fixed_tables(&self) -> Vec<Range<u64>> {
        let header = &self.header;
        let table = |at: HostOffset, len: u64| at.0..at.0 + len;
        vec![
            table(HostOffset(0), header.cluster.size()),
            table(header.l1_table, u64::from(header.l1_entries) * 8),
            table(header.refcount_table, u64::from(header.refcount_table_clusters) * header.cluster.size()),
        ]
    }

    /// Reads the L2 tables at `places`, sorted by their place in the file: neighbours together.
    fn read_tables(
        &self,
        file: &dyn ImageFile,
        places: &[(HostOffset, usize)],
        into: &mut [Option<Box<[u64]>>],
    ) -> Result<(), ImageError> {
        let cluster = self.header.cluster.size();
        let at_once = to_usize((TABLE_READ / cluster).max(1));
        let mut bytes = Vec::new();
        for run in places.chunk_by(|one, next| one.0.0 + cluster == next.0.0) {
            for tables in run.chunks(at_once) {
                bytes.resize(tables.len() * to_usize(cluster), 0);
                file.read_at(tables[0].0, &mut bytes)?;
                for (table, &(_, index)) in bytes.chunks(to_usize(cluster)).zip(tables) {
                    let words = table.as_chunks::<8>().0;
                    let mut entries = room("the tables of an image", words.len())?;
                    entries.extend(words.iter().map(|raw| u64::from_be_bytes(*raw)));
                    into[index] = Some(entries.into_boxed_slice());
                }
            }
        }
        Ok(())
    }
}
