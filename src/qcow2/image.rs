//! The read side: opens an image that may come from anywhere, and says where each guest cluster's bytes lie.
//!
//! Nothing is trusted before it is checked: no table is read that does not lie within the file, no entry is kept that points outside it
//! or into the tables, and nothing is allocated from a count that the file's length does not bear out. A file that the image names is
//! never opened.

use std::borrow::Cow;
use std::error::Error;
use std::ops::Range;

use crate::qcow2::facts::HeaderFacts;
use crate::qcow2::header::{Header, HeaderError};
use crate::qcow2::l2::{EntryError, L1Entry, L2Entry, Mapping};
use crate::units::{ByteCount, ClusterBits, GuestCluster, GuestOffset, HostCluster, HostOffset, MIB, SECTOR, to_u64, to_usize};

/// What is read at first: of nearly every image the header, with all that it says, and often the L1 table.
const FIRST_READ: u64 = 256 << 10;
/// Tables that lie side by side are read together, so many bytes at a time.
const TABLE_READ: u64 = 4 * MIB;
/// Subclusters of a cluster with extended L2 entries (specification, "Extended L2 Entries").
pub const SUBCLUSTERS: u32 = 32;

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

    /// The file's first bytes, at least its first cluster where that is no longer than 256 KiB.
    #[must_use]
    pub fn start(&self) -> &[u8] {
        &self.start
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
        self.refcount_blocks(file)?.into_iter().for_each(|block| metadata.insert(block.0..block.0 + cluster.size()));
        let coverage = cluster.size() / self.header.l2_entry_len() * cluster.size();
        let wrong_l1 = |index: usize, source| ImageError::L1Entry {
            name: file.name().to_owned(),
            guest: GuestOffset(to_u64(index) * coverage),
            source,
        };
        let mut places = Vec::new();
        for (index, entry) in l1.iter().enumerate() {
            let Some((table, _)) = entry.decode(cluster).map_err(|err| wrong_l1(index, err.into()))? else { continue };
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
        let mut tables = vec![None; l1.len()];
        self.read_tables(file, &places, &mut tables)?;
        let mappings = Mappings { header: self.header, file_len: self.file_len, tables };
        mappings.validate(file.name(), &metadata)?;
        Ok(mappings)
    }

    /// The refcount blocks that lie where they can. What else is wrong with the table is for `check` to say: reading needs no counts, but
    /// no body may be where they are.
    fn refcount_blocks(&self, file: &dyn ImageFile) -> Result<Vec<HostOffset>, ImageError> {
        let cluster = self.header.cluster;
        let len = u64::from(self.header.refcount_table_clusters) * cluster.size();
        let table = self.table_bytes(file, self.header.refcount_table, len)?;
        let entries = table.as_chunks::<8>().0.iter().map(|raw| u64::from_be_bytes(*raw));
        let lies_well = |at: &u64| *at > 0 && at.is_multiple_of(cluster.size()) && self.file_len.checked_sub(*at).is_some();
        Ok(entries.filter(lies_well).map(HostOffset).collect())
    }

    /// A table that lies within the file: from what was read at first, or from the file.
    pub(super) fn table_bytes(&self, file: &dyn ImageFile, at: HostOffset, len: u64) -> Result<Cow<'_, [u8]>, ImageError> {
        let range = to_usize(at.0)..to_usize(at.0 + len);
        if let Some(bytes) = self.start.get(range) {
            return Ok(Cow::Borrowed(bytes));
        }
        let mut bytes = vec![0; to_usize(len)];
        file.read_at(at, &mut bytes)?;
        Ok(Cow::Owned(bytes))
    }

    /// The active L1 table, as many entries as the disk needs.
    ///
    /// # Errors
    /// Where the file can't be read.
    pub fn read_l1(&self, file: &dyn ImageFile) -> Result<Vec<L1Entry>, ImageError> {
        let bytes = self.table_bytes(file, self.header.l1_table, u64::from(self.header.l1_entries) * 8)?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|raw| L1Entry(u64::from_be_bytes(*raw))).collect())
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
                    let words = table.as_chunks::<8>().0.iter().map(|raw| u64::from_be_bytes(*raw)).collect();
                    into[index] = Some(words);
                }
            }
        }
        Ok(())
    }
}

/// Where the bytes of one guest cluster lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Nowhere: it reads as zeros.
    Zero,
    /// As they are, from here. The file may end before the cluster does where the disk does.
    Raw(HostOffset),
    /// As they are, but only those subclusters whose bit is set, the first one's lowest; the others read as zeros.
    Subclusters(HostOffset, u32),
    /// Compressed.
    Compressed {
        /// First byte.
        at: HostOffset,
        /// Bytes up to the end of the last sector that the entry speaks of, or of the file; the body itself may be shorter.
        len: u64,
    },
}

/// The states of a cluster's subclusters: the second word of an extended L2 entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subclusters(u64);

/// Where the bytes of a subcluster lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the cluster's own place.
    Data,
    /// Nowhere: it was made zero.
    Zero,
    /// Nowhere: it was never written.
    Nowhere,
}

impl Subclusters {
    /// Of subcluster `number`, 0 to 31.
    #[must_use]
    pub fn place(self, number: u32) -> Place {
        let bit = |bit: u32| self.0 >> bit & 1 == 1;
        match (bit(number), bit(number + SUBCLUSTERS)) {
            (true, _) => Place::Data,
            (false, true) => Place::Zero,
            (false, false) => Place::Nowhere,
        }
    }
}

/// Where the bytes of every guest cluster lie: the image's L2 tables, checked. Takes 8 bytes a cluster of the disk's mapped ranges.
#[derive(Clone, Debug)]
pub struct Mappings {
    header: Header,
    file_len: u64,
    /// By L1 index, the words of the L2 table.
    tables: Vec<Option<Box<[u64]>>>,
}

impl Mappings {
    /// The cluster size.
    #[must_use]
    pub fn cluster(&self) -> ClusterBits {
        self.header.cluster
    }

    /// The disk's size as a guest sees it: whole sectors.
    #[must_use]
    pub fn virtual_size(&self) -> ByteCount {
        ByteCount(self.header.virtual_size.0 / SECTOR * SECTOR)
    }

    /// Clusters of the disk, the last one perhaps partly past its end.
    #[must_use]
    pub fn guest_clusters(&self) -> u64 {
        self.cluster().clusters_in(self.header.virtual_size.0)
    }

    /// Bytes of memory that the tables take.
    #[must_use]
    pub fn memory(&self) -> ByteCount {
        let words: usize = self.tables.iter().flatten().map(|table| table.len()).sum();
        ByteCount(to_u64(words) * 8)
    }

    /// Where a cluster's bytes lie.
    #[must_use]
    pub fn stored(&self, guest: GuestCluster) -> Stored {
        let per_table = self.entries_per_table();
        match self.tables.get(to_usize(guest.0 / per_table)) {
            Some(Some(table)) => self.stored_in(table, to_usize(guest.0 % per_table)),
            _ => Stored::Zero,
        }
    }

    /// What the entry itself says of a cluster.
    ///
    /// # Panics
    /// Never: entries are checked when they are loaded.
    #[must_use]
    pub fn mapping(&self, guest: GuestCluster) -> Mapping {
        let per_table = self.entries_per_table();
        match self.tables.get(to_usize(guest.0 / per_table)) {
            Some(Some(table)) => {
                L2Entry(table[to_usize(guest.0 % per_table) * self.words()]).decode(self.cluster()).expect(CHECKED)
            }
            _ => Mapping::Unallocated,
        }
    }

    /// The states of a cluster's subclusters, where it is not compressed and the image has such.
    #[must_use]
    pub fn subclusters(&self, guest: GuestCluster) -> Option<Subclusters> {
        if !self.header.extended_l2 {
            return None;
        }
        let per_table = self.entries_per_table();
        Some(match self.tables.get(to_usize(guest.0 / per_table)) {
            Some(Some(table)) => Subclusters(table[to_usize(guest.0 % per_table) * 2 + 1]),
            _ => Subclusters(0),
        })
    }

    /// Every cluster of the disk whose bytes lie anywhere, in the order of the disk.
    pub fn iter(&self) -> impl Iterator<Item = (GuestCluster, Stored)> + '_ {
        self.range(GuestCluster(0)..GuestCluster(self.guest_clusters()))
    }

    /// Those of `range`, in the order of the disk.
    pub fn range(&self, range: Range<GuestCluster>) -> impl Iterator<Item = (GuestCluster, Stored)> + '_ {
        let per_table = self.entries_per_table();
        let end = range.end.0.min(self.guest_clusters());
        let tables = range.start.0 / per_table..end.div_ceil(per_table);
        tables.filter_map(move |index| self.tables.get(to_usize(index))?.as_deref().map(|table| (index, table))).flat_map(
            move |(index, table)| {
                let first = index * per_table;
                (range.start.0.max(first)..end.min(first + per_table)).filter_map(move |guest| {
                    let stored = self.stored_in(table, to_usize(guest - first));
                    (stored != Stored::Zero).then_some((GuestCluster(guest), stored))
                })
            },
        )
    }

    fn words(&self) -> usize {
        to_usize(self.header.l2_entry_len() / 8)
    }

    fn entries_per_table(&self) -> u64 {
        self.cluster().size() / self.header.l2_entry_len()
    }

    fn stored_in(&self, table: &[u64], index: usize) -> Stored {
        let word = table[index * self.words()];
        let entry = L2Entry(word).decode(self.cluster()).expect(CHECKED);
        match entry {
            Mapping::Unallocated | Mapping::Zero { .. } => Stored::Zero,
            Mapping::Raw { host, .. } if self.header.extended_l2 => match allocated(table[index * 2 + 1]) {
                0 => Stored::Zero,
                u32::MAX => Stored::Raw(host),
                some => Stored::Subclusters(host, some),
            },
            Mapping::Raw { host, .. } => Stored::Raw(host),
            Mapping::Compressed { host, sectors } => {
                let end = (host.0 / SECTOR + sectors) * SECTOR;
                Stored::Compressed { at: host, len: end.min(self.file_len) - host.0 }
            }
        }
    }

    fn validate(&self, name: &str, metadata: &ClusterSet) -> Result<(), ImageError> {
        let per_table = self.entries_per_table();
        for (index, table) in (0_u64..).zip(&self.tables) {
            let Some(table) = table else { continue };
            for (entry, words) in (index * per_table..).zip(table.chunks(self.words())) {
                if words[0] == 0 && words.get(1).is_none_or(|bits| *bits == 0) {
                    continue;
                }
                self.check_entry(entry, words, metadata).map_err(|source| {
                    let guest = GuestOffset(entry.saturating_mul(self.cluster().size()));
                    ImageError::L2Entry { name: name.to_owned(), guest, source }
                })?;
            }
        }
        Ok(())
    }

    /// Whether one entry is what a correct image has, and lies within the file. `entry` is the guest cluster's number.
    fn check_entry(&self, entry: u64, words: &[u64], metadata: &ClusterSet) -> Result<(), PlaceError> {
        let cluster = self.cluster();
        let file_len = self.file_len;
        let mapping = L2Entry(words[0]).decode(cluster)?;
        if let Some(&bits) = words.get(1) {
            let (on, zero) = (allocated(bits), u32::try_from(bits >> 32).expect("the upper half"));
            let wrong = match mapping {
                Mapping::Compressed { .. } => bits != 0,
                Mapping::Raw { .. } => on & zero != 0,
                Mapping::Unallocated => on != 0,
                // "Bit 0 ... must be 0 with extended L2 entries": zeros are said by the bitmap there.
                Mapping::Zero { .. } => true,
            };
            if wrong {
                return Err(PlaceError::Subclusters(bits));
            }
        }
        let (start, end) = match mapping {
            Mapping::Unallocated | Mapping::Zero { reserved: None } => return Ok(()),
            // Nothing is read there, but it may not be where tables are.
            Mapping::Zero { reserved: Some((host, _)) } => (host, host.0),
            Mapping::Raw { host, .. } => {
                // What lies past the disk's end need not be in the file, nor what follows the last subcluster that is.
                let disk_left = self.header.virtual_size.0.saturating_sub(entry.saturating_mul(cluster.size()));
                let used =
                    words.get(1).map_or(u64::from(SUBCLUSTERS), |bits| u64::from(u32::BITS - allocated(*bits).leading_zeros()));
                (host, host.0 + (cluster.size() / u64::from(SUBCLUSTERS) * used).min(disk_left))
            }
            Mapping::Compressed { host, sectors } => (host, (host.0 / SECTOR + sectors) * SECTOR),
        };
        // The last sector need not be whole: only a body's own bytes are ever written.
        if (start.0 >= file_len && end > start.0) || end > file_len.next_multiple_of(SECTOR) {
            return Err(PlaceError::PastEnd { start, end, file_len });
        }
        if metadata.touches(&(start.0..end.max(start.0 + 1))) {
            return Err(PlaceError::Metadata(start));
        }
        Ok(())
    }
}

const CHECKED: &str = "entries are checked when they are loaded";

/// The subclusters whose bytes are in the file.
fn allocated(bits: u64) -> u32 {
    u32::try_from(bits & u64::from(u32::MAX)).expect("the lower half")
}

/// A set of host clusters: a bit for each of the file.
#[derive(Debug)]
pub(super) struct ClusterSet {
    cluster: ClusterBits,
    bits: Vec<u64>,
}

impl ClusterSet {
    pub(super) fn new(file_len: u64, cluster: ClusterBits) -> Self {
        Self { cluster, bits: vec![0; to_usize(cluster.clusters_in(file_len).div_ceil(64))] }
    }

    /// Adds the clusters that a range of bytes touches, as far as they lie within the file.
    pub(super) fn insert(&mut self, bytes: Range<u64>) {
        for HostCluster(cluster) in self.clusters(&bytes) {
            if let Some(word) = self.bits.get_mut(to_usize(cluster / 64)) {
                *word |= 1 << (cluster % 64);
            }
        }
    }

    /// Whether a range of bytes touches one of the set.
    pub(super) fn touches(&self, bytes: &Range<u64>) -> bool {
        self.clusters(bytes)
            .any(|HostCluster(cluster)| self.bits.get(to_usize(cluster / 64)).is_some_and(|word| word >> (cluster % 64) & 1 == 1))
    }

    fn clusters(&self, bytes: &Range<u64>) -> impl Iterator<Item = HostCluster> + use<> {
        let bits = self.cluster.bits();
        let end = if bytes.is_empty() { bytes.start >> bits } else { ((bytes.end - 1) >> bits) + 1 };
        (bytes.start >> bits..end).map(HostCluster)
    }
}
