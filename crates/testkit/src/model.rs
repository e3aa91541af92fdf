//! A slow and plain reader of the converter's images, written from the specification alone. It shares no
//! constant and no line with the writing side, so both would have to be wrong in the same way.
//!
//! It accepts only the part of the format that the converter writes. Anything else is a [`Fault`].

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;

/// Description, for a person, of an error in an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault(pub String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

macro_rules! ensure {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            return Err(Fault(format!($($message)*)));
        }
    };
}

/// Stored content of a guest cluster that is present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored<'a> {
    /// The cluster is stored uncompressed.
    Raw {
        /// Offset in the file.
        at: u64,
        /// Bytes of the whole cluster.
        bytes: &'a [u8],
    },
    /// The cluster is stored compressed.
    Compressed {
        /// Offset in the file.
        at: u64,
        /// Bytes from there to the end of the last sector in the entry: the body, and any bytes that follow
        /// it.
        bytes: &'a [u8],
    },
}

/// An image whose metadata were read and audited.
#[derive(Debug)]
pub struct Model<'a> {
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Size of a cluster in bytes.
    pub cluster_size: u64,
    /// True if compressed clusters are zstd frames, false if they are raw deflate streams.
    pub zstd: bool,
    /// All guest clusters that are present, by number.
    pub stored: BTreeMap<u64, Stored<'a>>,
}

impl<'a> Model<'a> {
    /// Reads and audits all metadata of `image`, which is the whole file. The refcount of each host cluster
    /// must be the number of entries that touch it, COPIED must be set as required, tables must not overlap
    /// anything, and the file must end with a whole cluster.
    ///
    /// # Errors
    /// If the image is not valid, with the first error found.
    pub fn read(image: &'a [u8]) -> Result<Self, Fault> {
        let file = File(image);
        ensure!(file.u32(0)? == 0x5146_49fb, "no magic");
        ensure!(file.u32(4)? == 3, "version {}", file.u32(4)?);
        ensure!(file.u64(8)? == 0 && file.u32(16)? == 0, "a backing file");
        let cluster_bits = file.u32(20)?;
        ensure!((9..=21).contains(&cluster_bits), "cluster_bits {cluster_bits}");
        let cluster_size = 1_u64 << cluster_bits;
        ensure!(file.len().is_multiple_of(cluster_size), "{} bytes are not whole clusters", file.len());
        let virtual_size = file.u64(24)?;
        ensure!(virtual_size.is_multiple_of(512) && virtual_size > 0, "virtual size {virtual_size}");
        ensure!(file.u32(32)? == 0, "encrypted");
        ensure!(file.u32(60)? == 0 && file.u64(64)? == 0, "snapshots");
        let zstd = match (file.u64(72)?, file.u8(104)?) {
            (0, 0) => false,
            (8, 1) => true,
            (bits, kind) => {
                return Err(Fault(format!("incompatible bits {bits:#x} with compression type {kind}")));
            }
        };
        ensure!(file.u64(80)? == 0 && file.u64(88)? == 0, "compatible or autoclear bits");
        ensure!(file.u32(96)? == 4, "refcount_order {}", file.u32(96)?);
        ensure!(file.u32(100)? == 112, "header_length {}", file.u32(100)?);
        ensure!(
            file.bytes(105, cluster_size - 105)?.iter().all(|&byte| byte == 0),
            "bytes behind the header in its cluster"
        );

        let mut audit = Audit::new(file, cluster_size);
        audit.sole(0, cluster_size, "header")?;
        let stored = audit.walk_l1(virtual_size, cluster_bits)?;
        audit.compare_refcounts()?;
        Ok(Self { virtual_size, cluster_size, zstd, stored })
    }

    /// Returns all bytes of one guest cluster, including those past the end of the disk.
    ///
    /// # Errors
    /// If a body does not decode to exactly one cluster.
    pub fn cluster(&self, guest: u64) -> Result<Vec<u8>, Fault> {
        let len = usize::try_from(self.cluster_size).expect("2 MiB at most");
        match self.stored.get(&guest) {
            None => Ok(vec![0; len]),
            Some(Stored::Raw { bytes, .. }) => Ok(bytes.to_vec()),
            Some(Stored::Compressed { bytes, .. }) => {
                let decoded = if self.zstd { unzstd(bytes, len) } else { inflate(bytes, len) };
                let decoded =
                    decoded.map_err(|Fault(message)| Fault(format!("guest cluster {guest}: {message}")))?;
                ensure!(decoded.len() == len, "guest cluster {guest} decodes to {} bytes", decoded.len());
                Ok(decoded)
            }
        }
    }

    /// Returns all bytes of the disk.
    ///
    /// # Errors
    /// If a cluster can't be decoded, as in [`Model::cluster`], or if the last one is not zero past the end
    /// of the disk.
    pub fn disk(&self) -> Result<Vec<u8>, Fault> {
        let mut disk = Vec::new();
        for guest in 0..self.virtual_size.div_ceil(self.cluster_size) {
            disk.extend(self.cluster(guest)?);
        }
        let len = usize::try_from(self.virtual_size).expect("a disk that fits the memory");
        ensure!(
            disk[len..].iter().all(|&byte| byte == 0),
            "the last cluster is not zero behind the disk's end"
        );
        disk.truncate(len);
        Ok(disk)
    }
}

fn inflate(body: &[u8], len: usize) -> Result<Vec<u8>, Fault> {
    let mut out = vec![0; len + 1];
    let written = libdeflater::Decompressor::new()
        .deflate_decompress(body, &mut out)
        .map_err(|err| Fault(format!("deflate: {err}")))?;
    out.truncate(written);
    Ok(out)
}

fn unzstd(body: &[u8], len: usize) -> Result<Vec<u8>, Fault> {
    let frame =
        zstd::stream::read::Decoder::new(body).map_err(|err| Fault(format!("zstd: {err}")))?.single_frame();
    let mut out = Vec::new();
    let max = u64::try_from(len).expect("2 MiB at most") + 1;
    frame.take(max).read_to_end(&mut out).map_err(|err| Fault(format!("zstd: {err}")))?;
    Ok(out)
}

/// Bytes of the image, with big-endian fields.
#[derive(Clone, Copy)]
struct File<'a>(&'a [u8]);

impl<'a> File<'a> {
    fn len(&self) -> u64 {
        u64::try_from(self.0.len()).expect("a slice")
    }

    fn bytes(&self, at: u64, len: u64) -> Result<&'a [u8], Fault> {
        let range =
            usize::try_from(at).ok().zip(at.checked_add(len).and_then(|end| usize::try_from(end).ok()));
        range
            .and_then(|(start, end)| self.0.get(start..end))
            .ok_or_else(|| Fault(format!("{len} bytes at {at} are past the file's {}", self.len())))
    }

    fn u8(&self, at: u64) -> Result<u8, Fault> {
        Ok(self.bytes(at, 1)?[0])
    }

    fn u32(&self, at: u64) -> Result<u32, Fault> {
        Ok(self.bytes(at, 4)?.iter().fold(0, |word, &byte| word << 8 | u32::from(byte)))
    }

    fn u64(&self, at: u64) -> Result<u64, Fault> {
        Ok(self.bytes(at, 8)?.iter().fold(0, |word, &byte| word << 8 | u64::from(byte)))
    }
}

/// Number of references to each host cluster, counted during the walk.
struct Audit<'a> {
    file: File<'a>,
    cluster_size: u64,
    /// Number of references to each host cluster, and the name of its sole owner, if it has one.
    reference_counts: Vec<(u64, Option<&'static str>)>,
}

impl<'a> Audit<'a> {
    fn new(file: File<'a>, cluster_size: u64) -> Self {
        let clusters = usize::try_from(file.len() / cluster_size).expect("a slice");
        Self { file, cluster_size, reference_counts: vec![(0, None); clusters] }
    }

    /// Adds one reference to every cluster that `len` bytes at `at` touch.
    fn touch(&mut self, at: u64, len: u64, owner: Option<&'static str>) -> Result<(), Fault> {
        let last = at.checked_add(len - 1).ok_or_else(|| Fault(format!("{at} + {len} overflows")))?;
        for cluster in at / self.cluster_size..=last / self.cluster_size {
            let entry =
                usize::try_from(cluster).ok().and_then(|cluster| self.reference_counts.get_mut(cluster));
            let Some((references, sole)) = entry else {
                return Err(Fault(format!(
                    "host cluster {cluster} is past the file's {}",
                    self.reference_counts.len()
                )));
            };
            *references += 1;
            let claimed = owner.or(*sole);
            if let (Some(claimed), 2..) = (claimed, *references) {
                return Err(Fault(format!("host cluster {cluster} is {claimed}, and something else")));
            }
            *sole = claimed;
        }
        Ok(())
    }

    /// Adds a reference to clusters that nothing else may refer to.
    fn sole(&mut self, at: u64, len: u64, owner: &'static str) -> Result<(), Fault> {
        ensure!(at.is_multiple_of(self.cluster_size), "{owner} at {at} is not at a cluster");
        self.touch(at, len, Some(owner))
    }

    fn walk_l1(&mut self, virtual_size: u64, cluster_bits: u32) -> Result<BTreeMap<u64, Stored<'a>>, Fault> {
        let per_table = self.cluster_size / 8;
        let guest_clusters = virtual_size.div_ceil(self.cluster_size);
        let l1_size = u64::from(self.file.u32(36)?);
        ensure!(
            l1_size == guest_clusters.div_ceil(per_table),
            "{l1_size} L1 entries for {guest_clusters} clusters"
        );
        ensure!(l1_size * 8 <= 32 << 20, "an L1 table of {l1_size} entries");
        let l1 = self.file.u64(40)?;
        self.sole(l1, l1_size * 8, "the L1 table")?;
        let mut stored = BTreeMap::new();
        for index in 0..l1_size {
            let entry = self.file.u64(l1 + index * 8)?;
            if entry == 0 {
                continue;
            }
            ensure!(entry >> 63 == 1, "L1 entry {index} lacks COPIED: {entry:#x}");
            let table = entry & !(1 << 63);
            ensure!(
                table >> 56 == 0 && table.is_multiple_of(512),
                "L1 entry {index} has reserved bits: {entry:#x}"
            );
            self.sole(table, self.cluster_size, "an L2 table")?;
            let before = stored.len();
            for entry_index in 0..per_table {
                let entry = self.file.u64(table + entry_index * 8)?;
                if entry != 0 {
                    let guest = index * per_table + entry_index;
                    ensure!(
                        guest < guest_clusters,
                        "guest cluster {guest} past the disk's {guest_clusters} is mapped"
                    );
                    stored.insert(guest, self.l2_entry(entry, cluster_bits)?);
                }
            }
            ensure!(stored.len() > before, "the L2 table of L1 entry {index} maps nothing");
        }
        Ok(stored)
    }

    fn l2_entry(&mut self, entry: u64, cluster_bits: u32) -> Result<Stored<'a>, Fault> {
        match entry >> 62 {
            // COPIED is set, and the cluster is not compressed.
            0b10 => {
                let at = entry & !(0b11 << 62);
                ensure!(at >> 56 == 0 && at.is_multiple_of(512), "reserved bits in {entry:#x}");
                self.sole(at, self.cluster_size, "a raw cluster")?;
                Ok(Stored::Raw { at, bytes: self.file.bytes(at, self.cluster_size)? })
            }
            // The cluster is compressed.
            0b01 => {
                let offset_width = 62 - (cluster_bits - 8);
                let descriptor = entry & !(0b11 << 62);
                let at = descriptor % (1 << offset_width);
                let additional_sectors = descriptor >> offset_width;
                ensure!(at >> 56 == 0, "reserved bits in {entry:#x}");
                ensure!(at >= self.cluster_size, "a body in the header: {entry:#x}");
                let end = (at / 512 + additional_sectors + 1) * 512;
                ensure!(
                    end - at < self.cluster_size + 512,
                    "{} bytes for a body shorter than a cluster",
                    end - at
                );
                self.touch(at, end - at, None)?;
                Ok(Stored::Compressed { at, bytes: self.file.bytes(at, end - at)? })
            }
            _ => Err(Fault(format!("an L2 entry that we don't write: {entry:#x}"))),
        }
    }

    fn compare_refcounts(mut self) -> Result<(), Fault> {
        let table = self.file.u64(48)?;
        let table_len = u64::from(self.file.u32(56)?) * self.cluster_size;
        ensure!(table_len > 0 && table_len <= 8 << 20, "a refcount table of {table_len} bytes");
        self.sole(table, table_len, "the refcount table")?;
        let mut blocks = Vec::new();
        for index in 0..table_len / 8 {
            let block = self.file.u64(table + index * 8)?;
            if block != 0 {
                self.sole(block, self.cluster_size, "a refcount block")?;
            }
            blocks.push(block);
        }
        let per_block = self.cluster_size / 2;
        for (index, block) in (0_u64..).zip(blocks) {
            for count_index in 0..per_block {
                let cluster = index * per_block + count_index;
                let references = usize::try_from(cluster)
                    .ok()
                    .and_then(|cluster| self.reference_counts.get(cluster))
                    .map_or(0, |&(count, _)| count);
                if block == 0 {
                    ensure!(
                        references == 0,
                        "host cluster {cluster} has {references} references, and no refcount block"
                    );
                    // Clusters past the end of the file need no block, and there may be very many of them.
                    if cluster * self.cluster_size >= self.file.len() {
                        break;
                    }
                    continue;
                }
                let bytes = self.file.bytes(block + count_index * 2, 2)?;
                let count = u64::from(bytes[0]) << 8 | u64::from(bytes[1]);
                ensure!(
                    count == references,
                    "host cluster {cluster}: refcount {count}, {references} references"
                );
            }
        }
        let counted = table_len / 8 * per_block * self.cluster_size;
        ensure!(self.file.len() <= counted, "the refcount table ends before the file");
        Ok(())
    }
}
