//! The read side: opens an image from an untrusted source, and finds where the bytes of each guest cluster
//! are.
//!
//! All data are checked before they are used. A table is read only if it lies within the file. An entry is
//! kept only if it points into the file and not into a table. Memory for a count is allocated only if the
//! file is long enough for that count. A file that the image names is never opened.

use std::borrow::Cow;
use std::error::Error;
use std::ops::Range;

use snapferry_base::limits::{OutOfMemory, try_with_capacity, zeros};
use snapferry_base::units::{ByteCount, ClusterBits, GuestOffset, HostOffset, MIB, SECTOR, to_u64, to_usize};

use crate::header::{Header, HeaderError};
use crate::header_info::HeaderInfo;
use crate::l2::{EntryError, L1Entry};
use crate::mappings::{ClusterSet, Mappings};

/// Bytes of the first read. For nearly every image they contain the whole header, and often the L1 table.
const FIRST_READ: u64 = 256 << 10;
/// Bytes of one read of tables. Adjacent tables are read together.
const TABLE_READ: u64 = 4 * MIB;

/// Random access to the bytes of an image file: a local file, an object in a bucket, or memory.
pub trait ImageFile: Send + Sync {
    /// Returns the name of the source for messages, such as a path.
    fn name(&self) -> &str;

    /// Returns the exact size in bytes. If the file changes while the image is read, reads fail.
    fn size(&self) -> ByteCount;

    /// Fills all of `into` with the bytes from `at` on. The caller never reads past the end.
    ///
    /// # Errors
    /// If the bytes can't be read, or are no longer those of the file that was opened.
    fn read_at(&self, at: HostOffset, into: &mut [u8]) -> Result<(), FileError>;
}

/// Error of a failed read of an image file.
#[derive(Debug, thiserror::Error)]
#[error("{name}: cannot read {len} bytes at byte {at}")]
pub struct FileError {
    /// Name of the file or object.
    pub name: String,
    /// Offset of the first byte of the read.
    pub at: HostOffset,
    /// Length of the read in bytes.
    pub len: u64,
    /// Error of the source: of the system or of the object store.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

/// Reasons for which an image can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A read of the file failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The header, or the snapshot table or bitmap directory, breaks a rule.
    #[error("{name}")]
    Header {
        /// Name of the image.
        name: String,
        /// The rule that is broken.
        #[source]
        source: HeaderError,
    },
    /// The system refused the memory for the tables.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// The work was cancelled.
    #[error("interrupted")]
    Interrupted,
    /// The disk is larger than the caller's limit.
    #[error("{name}: holds a disk of {size}; at most {max} are taken")]
    TooLarge {
        /// Name of the image.
        name: String,
        /// Size of the disk.
        size: ByteCount,
        /// The caller's limit.
        max: ByteCount,
    },
    /// An L1 entry is invalid.
    #[error("{name}: the L1 entry for the disk's bytes from {guest} is wrong")]
    L1Entry {
        /// Name of the image.
        name: String,
        /// Offset of the first byte of the disk that the entry covers.
        guest: GuestOffset,
        /// The error in the entry.
        #[source]
        source: TableEntryError,
    },
    /// An L2 entry is invalid.
    #[error("{name}: the L2 entry for the disk's bytes from {guest} is wrong")]
    L2Entry {
        /// Name of the image.
        name: String,
        /// Offset of the first byte of the disk that the entry covers.
        guest: GuestOffset,
        /// The error in the entry.
        #[source]
        source: TableEntryError,
    },
}

/// Errors in an entry of an L1 or L2 table.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum TableEntryError {
    /// The word itself is invalid.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The entry points outside the file.
    #[error("it points to bytes {start} to {end}, the file has {file_len}")]
    PastEnd {
        /// Offset of the first byte that the entry points to.
        start: HostOffset,
        /// Offset after the last byte that it points to.
        end: u64,
        /// Length of the file in bytes.
        file_len: u64,
    },
    /// The entry points into the image's tables, at this offset.
    #[error("it points to byte {0}, where the image's own tables are")]
    Metadata(HostOffset),
    /// Another L1 entry points to the same L2 table, at this offset.
    #[error("it leads to the L2 table at {0}, as another entry does")]
    SharedTable(HostOffset),
    /// A subcluster has both bits set, or the entry can't have subclusters.
    #[error("its subcluster bits {0:#018x} contradict the entry or each other")]
    Subclusters(u64),
}

/// Limits on images that a reader accepts.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Size of the largest disk. A limit is needed because a file of a few KiB can claim a disk of 2 EiB.
    pub largest_disk: ByteCount,
    /// Treatment of images that are marked as corrupt.
    pub marked_corrupt: CorruptPolicy,
}

/// Treatment of an image that is marked as corrupt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CorruptPolicy {
    /// Opening the image fails.
    #[default]
    Refuse,
    /// The image is read as far as its tables are valid: for `check`, and to rescue data.
    Read,
}

impl Default for Limits {
    /// Returns limits with 64 TiB for the largest disk, which is more than any cloud's volume.
    fn default() -> Self {
        Self { largest_disk: ByteCount(64 << 40), marked_corrupt: CorruptPolicy::Refuse }
    }
}

/// An image with a valid header. Its tables are not loaded yet.
#[derive(Clone, Debug)]
pub struct Image {
    header: Header,
    header_info: HeaderInfo,
    file_len: u64,
    /// The file's first bytes, kept so that tables within them are not read again.
    start: Vec<u8>,
}

impl Image {
    /// Reads the header, in one read if the header's extensions end within 256 KiB.
    ///
    /// # Errors
    /// If the file can't be read, is no image, or is an image that is refused.
    pub fn open(file: &dyn ImageFile, limits: &Limits) -> Result<Self, ImageError> {
        let image = Self::inspect(file)?;
        let corrupt = image.header_info.corrupt && limits.marked_corrupt == CorruptPolicy::Refuse;
        if let Some(source) = (HeaderInfo { corrupt, ..image.header_info.clone() }).refusal() {
            return Err(ImageError::Header { name: file.name().to_owned(), source });
        }
        if image.header.virtual_size > limits.largest_disk {
            let (size, max) = (image.header.virtual_size, limits.largest_disk);
            return Err(ImageError::TooLarge { name: file.name().to_owned(), size, max });
        }
        Ok(image)
    }

    /// Reads the header like [`Image::open`], but also accepts an image whose disk can't be read: for
    /// commands that only describe the file. No file that the header names is opened.
    ///
    /// # Errors
    /// If the file can't be read, or is no image.
    pub fn inspect(file: &dyn ImageFile) -> Result<Self, ImageError> {
        let size = file.size();
        let mut start = vec![0; to_usize(size.0.min(FIRST_READ))];
        file.read_at(HostOffset(0), &mut start)?;
        let header_info = match HeaderInfo::parse(&start, size) {
            Err(HeaderError::Truncated { .. }) if size.0 > FIRST_READ => {
                let cluster = ClusterBits::new(ClusterBits::MAX).expect("the largest there is").size();
                let read_len = start.len();
                start.resize(to_usize(size.0.min(cluster)), 0);
                file.read_at(HostOffset(to_u64(read_len)), &mut start[read_len..])?;
                HeaderInfo::parse(&start, size)
            }
            parsed => parsed,
        };
        let header_info =
            header_info.map_err(|source| ImageError::Header { name: file.name().to_owned(), source })?;
        Ok(Self { header: header_info.header, header_info, file_len: size.0, start })
    }

    /// Returns all information in the header.
    #[must_use]
    pub fn header_info(&self) -> &HeaderInfo {
        &self.header_info
    }

    /// Returns the header fields that reading needs.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Returns the length of the file.
    #[must_use]
    pub fn file_len(&self) -> ByteCount {
        ByteCount(self.file_len)
    }

    /// Returns the disk's size as the guest sees it. QEMU rounds it down to whole sectors.
    #[must_use]
    pub fn virtual_size(&self) -> ByteCount {
        ByteCount(self.header.virtual_size.0 / SECTOR * SECTOR)
    }

    /// Reads the L1 table and every L2 table, and checks each entry.
    ///
    /// # Errors
    /// If the file can't be read, or an entry is invalid.
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
        let mut table_offsets = Vec::new();
        for (index, entry) in l1.iter().enumerate() {
            let Some((table, _)) = entry.decode(cluster).map_err(|err| wrong_l1(index, err.into()))? else {
                continue;
            };
            let range = table.0..table.0 + cluster.size();
            if range.end > self.file_len {
                let source =
                    TableEntryError::PastEnd { start: table, end: range.end, file_len: self.file_len };
                return Err(wrong_l1(index, source));
            }
            if metadata.touches(&range) {
                return Err(wrong_l1(index, TableEntryError::Metadata(table)));
            }
            table_offsets.push((table, index));
        }
        table_offsets.sort_unstable();
        if let Some(duplicate) = table_offsets.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(wrong_l1(duplicate[1].1, TableEntryError::SharedTable(duplicate[1].0)));
        }
        table_offsets.iter().for_each(|&(table, _)| metadata.insert(table.0..table.0 + cluster.size()));
        let mut tables = try_with_capacity("the tables of an image", l1.len())?;
        tables.resize(l1.len(), None);
        self.read_tables(file, &table_offsets, &mut tables)?;
        Mappings::checked(self.header, self.file_len, tables, file.name(), &metadata)
    }

    /// Returns the offsets of the refcount blocks, without those that are invalid. Other errors in the
    /// refcount table are reported by `check` only: reading needs no refcounts, but a body must not overlap
    /// these blocks.
    fn refcount_blocks(&self, file: &dyn ImageFile) -> Result<Vec<HostOffset>, ImageError> {
        let cluster = self.header.cluster;
        let len = u64::from(self.header.refcount_table_clusters) * cluster.size();
        let table = self.table_bytes(file, self.header.refcount_table, len)?;
        let entries = table.as_chunks::<8>().0.iter().map(|raw| u64::from_be_bytes(*raw));
        let is_valid = |at: &u64| {
            *at > 0 && at.is_multiple_of(cluster.size()) && self.file_len.checked_sub(*at).is_some()
        };
        Ok(entries.filter(is_valid).map(HostOffset).collect())
    }

    /// Returns the bytes of a table within the file, from those read at first if possible.
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

    /// Returns the number of bytes of the disk that one L2 table covers.
    fn l2_coverage(&self) -> u64 {
        let cluster = self.header.cluster.size();
        cluster / self.header.l2_entry_len() * cluster
    }

    /// Reads the active L1 table, as many entries as the disk needs. Entries after these may belong to the
    /// saved memory of a virtual machine, which is no part of the disk.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn read_l1(&self, file: &dyn ImageFile) -> Result<Vec<L1Entry>, ImageError> {
        let needed = self.header.virtual_size.0.div_ceil(self.l2_coverage());
        let bytes = self.table_bytes(file, self.header.l1_table, needed * 8)?;
        let words = bytes.as_chunks::<8>().0;
        let mut entries = try_with_capacity("the L1 table of an image", words.len())?;
        entries.extend(words.iter().map(|raw| L1Entry(u64::from_be_bytes(*raw))));
        Ok(entries)
    }

    /// Returns the byte ranges of the header and of the tables that it points to.
    fn fixed_tables(&self) -> Vec<Range<u64>> {
        let header = &self.header;
        let table = |at: HostOffset, len: u64| at.0..at.0 + len;
        vec![
            table(HostOffset(0), header.cluster.size()),
            table(header.l1_table, u64::from(header.l1_entries) * 8),
            table(header.refcount_table, u64::from(header.refcount_table_clusters) * header.cluster.size()),
        ]
    }

    /// Reads the L2 tables at `table_offsets`, which are sorted by offset. Adjacent tables are read together.
    fn read_tables(
        &self,
        file: &dyn ImageFile,
        table_offsets: &[(HostOffset, usize)],
        into: &mut [Option<Box<[u64]>>],
    ) -> Result<(), ImageError> {
        let cluster = self.header.cluster.size();
        let tables_per_read = to_usize((TABLE_READ / cluster).max(1));
        let mut bytes = Vec::new();
        for run in table_offsets.chunk_by(|one, next| one.0.0 + cluster == next.0.0) {
            for tables in run.chunks(tables_per_read) {
                bytes.resize(tables.len() * to_usize(cluster), 0);
                file.read_at(tables[0].0, &mut bytes)?;
                for (table, &(_, index)) in bytes.chunks(to_usize(cluster)).zip(tables) {
                    let words = table.as_chunks::<8>().0;
                    let mut entries = try_with_capacity("the tables of an image", words.len())?;
                    entries.extend(words.iter().map(|raw| u64::from_be_bytes(*raw)));
                    into[index] = Some(entries.into_boxed_slice());
                }
            }
        }
        Ok(())
    }
}
