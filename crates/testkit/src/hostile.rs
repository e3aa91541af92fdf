//! Images that no correct program writes, each broken in one way, and the expected reaction of a reader.
//!
//! Every image begins as a good one: a disk of 4 MiB in clusters of 4 KiB, with compressed and raw bodies
//! under two L2 tables. The offsets of the tables come from its own header, so that each defect takes one
//! line: which word, and its new value.

use std::collections::BTreeMap;

use snapferry_base::units::{ByteCount, ClusterBits, KIB, MIB, to_u64, to_usize};
use snapferry_qcow2::{Codec, Geometry};

use super::images::{self, Body};

/// Size of the disk in almost every image.
pub const DISK: ByteCount = ByteCount(4 * MIB);
/// Cluster size of almost every image.
pub const CLUSTER: ClusterBits = ClusterBits::KIB4;
/// Cluster size in bytes.
const STEP: u64 = 4 * KIB;
/// Guest cluster under the second L2 table. The first table covers 512 clusters.
const SECOND_TABLE: u64 = 600;

/// Stage at which a reader must notice the defect at the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// On opening the image, from its header.
    Open,
    /// On loading the tables.
    Load,
    /// On decoding the bodies.
    Decode,
    /// Not while reading, since the content of the disk is right all the same; but `check` reports it.
    Check,
    /// At no stage: the image is unusual but allowed, and the disk is the same.
    Never,
}

/// One broken image.
#[derive(Clone, Debug)]
pub struct Hostile {
    /// Description of the defect.
    pub name: String,
    /// Bytes of the file.
    pub bytes: Vec<u8>,
    /// Content of the disk, as far as the image can be read.
    pub disk: Vec<u8>,
    pub stage: Stage,
    /// Part of the error message, including causes. Empty if any message will do, and for [`Stage::Check`]
    /// and [`Stage::Never`].
    pub message: &'static str,
}

/// A good image, and the offsets of its tables.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Bytes of the file.
    pub bytes: Vec<u8>,
    /// Content of the disk.
    pub disk: Vec<u8>,
    l1: u64,
    l2: [u64; 2],
    refcount_table: u64,
    refcount_block: u64,
}

impl Expected {
    /// Builds the good image from which the broken ones are made.
    #[must_use]
    pub fn new(compression: Codec) -> Self {
        let mut disk = vec![0; to_usize(DISK.0)];
        let mut text = b"the quick brown fox jumps over the lazy dog 0123456789 ".iter().copied().cycle();
        for cluster in [0, 2, 3, SECOND_TABLE] {
            let at = to_usize(cluster * STEP);
            disk[at..at + to_usize(STEP)].fill_with(|| text.next().expect("it goes round"));
            disk[at] = u8::try_from(cluster % 251).expect("less than 256");
        }
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        disk[to_usize(STEP)..to_usize(2 * STEP)].fill_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[5]
        });
        let bodies = images::encode(&disk, CLUSTER, compression);
        assert!(matches!(bodies[&1], Body::Raw(_)) && matches!(bodies[&0], Body::Compressed(_)));
        Self::of(disk, compression, &bodies)
    }

    fn of(disk: Vec<u8>, compression: Codec, bodies: &BTreeMap<u64, Body>) -> Self {
        let geometry = Geometry::new(DISK, CLUSTER).expect("a disk that fits");
        let bytes = images::build(geometry, compression, bodies);
        let mut valid = Self { bytes, disk, l1: 0, l2: [0; 2], refcount_table: 0, refcount_block: 0 };
        valid.l1 = valid.word(40);
        valid.refcount_table = valid.word(48);
        valid.refcount_block = valid.word(valid.refcount_table);
        valid.l2 = [0, 1].map(|index| valid.word(valid.l1 + 8 * index) & OFFSET);
        valid
    }

    /// Builds the image with another compressed body for cluster 0.
    fn with_body(compression: Codec, body: Vec<u8>) -> Self {
        let valid = Self::new(compression);
        let mut bodies = images::encode(&valid.disk, CLUSTER, compression);
        bodies.insert(0, Body::Compressed(body));
        Self::of(valid.disk, compression, &bodies)
    }

    fn word(&self, at: u64) -> u64 {
        let at = to_usize(at);
        u64::from_be_bytes(self.bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    /// Returns the offset of a cluster's L2 entry in the file.
    fn entry(&self, cluster: u64) -> u64 {
        self.l2[to_usize(cluster / 512)] + cluster % 512 * 8
    }

    fn put(&self, at: u64, bytes: &[u8]) -> Self {
        let mut broken = self.clone();
        let at = to_usize(at);
        broken.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        broken
    }

    fn put32(&self, at: u64, word: u32) -> Self {
        self.put(at, &word.to_be_bytes())
    }

    fn put64(&self, at: u64, word: u64) -> Self {
        self.put(at, &word.to_be_bytes())
    }

    fn cut(&self, len: u64) -> Self {
        let mut broken = self.clone();
        broken.bytes.truncate(to_usize(len));
        broken
    }

    fn len(&self) -> u64 {
        to_u64(self.bytes.len())
    }
}

const OFFSET: u64 = (1 << 56) - (1 << 9);
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Width of the offset in a compressed entry, in bits, with clusters of 4 KiB (specification: 62 -
/// (cluster_bits - 8)).
const X: u32 = 58;

/// List of broken images during its construction.
struct List(Vec<Hostile>);

impl List {
    fn add(&mut self, name: impl Into<String>, image: &Expected, stage: Stage, message: &'static str) {
        self.0.push(Hostile {
            name: name.into(),
            bytes: image.bytes.clone(),
            disk: image.disk.clone(),
            stage,
            message,
        });
    }
}

/// Returns all broken images. Their names are unique.
#[must_use]
pub fn all() -> Vec<Hostile> {
    let valid = Expected::new(Codec::Deflate);
    let mut list = List(Vec::new());
    header(&valid, &mut list);
    tables(&valid, &mut list);
    features(&valid, &mut list);
    l1_entries(&valid, &mut list);
    standard_entries(&valid, &mut list);
    compressed_entries(&valid, &mut list);
    bodies(&mut list);
    refcounts(&valid, &mut list);
    subclusters(&valid, &mut list);
    truncated(&valid, &mut list);
    amplified(&valid, &mut list);
    list.0
}

fn header(valid: &Expected, list: &mut List) {
    for version in [0, 1, 4, u32::MAX] {
        list.add(format!("version {version}"), &valid.put32(4, version), Stage::Open, "version");
    }
    for bits in [0, 8, 22, 63, 64, u32::MAX] {
        list.add(format!("cluster_bits {bits}"), &valid.put32(20, bits), Stage::Open, "cluster_bits");
    }
    for len in [0, 72, 103, 108, 4104, 1 << 31, u32::MAX] {
        list.add(format!("header_length {len}"), &valid.put32(100, len), Stage::Open, "header_length");
    }
    for order in [7, 64, u32::MAX] {
        list.add(format!("refcount_order {order}"), &valid.put32(96, order), Stage::Open, "refcount_order");
    }
    for size in [(1 << 63) - 1, 0_u64.wrapping_sub(512), u64::MAX, 1 << 50, 8 * MIB] {
        list.add(
            format!("a size of {size} without the L1 table for it"),
            &valid.put64(24, size),
            Stage::Open,
            "L1 table has",
        );
    }
    list.add("no magic", &valid.put32(0, 0x5146_49fa), Stage::Open, "not a qcow2 image");
    list.add("a size that is no whole sector", &valid.put64(24, DISK.0 - 100), Stage::Never, "");
}

fn tables(valid: &Expected, list: &mut List) {
    for entries in [0, 1] {
        list.add(format!("l1_size {entries}"), &valid.put32(36, entries), Stage::Open, "L1 table has");
    }
    for entries in [(4 << 20) + 1, 1 << 31, u32::MAX] {
        list.add(format!("l1_size {entries}"), &valid.put32(36, entries), Stage::Open, "L1 table is");
    }
    list.add(
        "an L1 table past the file's end by its length",
        &valid.put32(36, 4096),
        Stage::Open,
        "L1 table ends at",
    );
    for (at, message) in [
        (0, "L1 table at 0"),
        (valid.l1 + 512, "L1 table at"),
        (1 << 63, "L1 table ends"),
        (u64::MAX - 4095, "L1 table ends"),
    ] {
        list.add(format!("an L1 table at {at:#x}"), &valid.put64(40, at), Stage::Open, message);
    }
    let end_of_file = valid.len().next_multiple_of(STEP);
    list.add("an L1 table at the file's end", &valid.put64(40, end_of_file), Stage::Open, "L1 table ends");
    list.add(
        "an L1 table on top of the refcount table",
        &valid.put64(40, valid.refcount_table),
        Stage::Open,
        "overlap",
    );
    let empty_between = valid.put32(56, 2).put64(64, valid.refcount_table + 1);
    list.add(
        "a refcount table into the L1 table, and no snapshots in between",
        &empty_between,
        Stage::Open,
        "overlap",
    );
    list.add("no refcount table", &valid.put32(56, 0), Stage::Open, "no refcount table");
    for clusters in [2049, 1 << 31, u32::MAX] {
        list.add(
            format!("a refcount table of {clusters} clusters"),
            &valid.put32(56, clusters),
            Stage::Open,
            "refcount table is",
        );
    }
    for (at, message) in [
        (0, "refcount table at 0"),
        (valid.refcount_table + 8, "refcount table at"),
        (end_of_file, "refcount table ends"),
        (1 << 62, "refcount table ends"),
    ] {
        list.add(format!("a refcount table at {at:#x}"), &valid.put64(48, at), Stage::Open, message);
    }
    for snapshots in [65_537, u32::MAX] {
        list.add(
            format!("{snapshots} snapshots"),
            &valid.put32(60, snapshots).put64(64, STEP),
            Stage::Open,
            "snapshots",
        );
    }
    list.add(
        "a snapshot table past the file's end",
        &valid.put32(60, 3).put64(64, end_of_file),
        Stage::Open,
        "snapshot table ends",
    );
    list.add(
        "a snapshot table between two clusters",
        &valid.put32(60, 3).put64(64, STEP + 8),
        Stage::Open,
        "snapshot table at",
    );
    list.add(
        "65,536 snapshots in a small file",
        &valid.put32(60, 65_536).put64(64, STEP),
        Stage::Open,
        "snapshot table ends",
    );
}

fn features(valid: &Expected, list: &mut List) {
    for (bit, message) in [(1, "corrupt"), (2, "another file"), (5, "not known"), (63, "not known")] {
        list.add(format!("incompatible bit {bit}"), &valid.put64(72, 1 << bit), Stage::Open, message);
    }
    list.add("extended L2 entries in small clusters", &valid.put64(72, 1 << 4), Stage::Open, "extended L2");
    list.add("the dirty bit", &valid.put64(72, 1), Stage::Never, "");
    list.add("a compression bit without a type", &valid.put64(72, 1 << 3), Stage::Open, "compression type 0");
    for kind in [1, 2, 255] {
        list.add(
            format!("compression type {kind} without its bit"),
            &valid.put(104, &[kind]),
            Stage::Open,
            "compression type",
        );
    }
    list.add(
        "compression type 2 with the bit",
        &valid.put64(72, 1 << 3).put(104, &[2]),
        Stage::Open,
        "compression type 2",
    );
    for name in [
        "/etc/passwd",
        "json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}",
        "nbd:127.0.0.1:10809",
        "self.qcow2",
    ] {
        let at = 1024;
        let len = u32::try_from(name.len()).expect("a short name");
        let broken = valid.put(at, name.as_bytes()).put64(8, at).put32(16, len);
        list.add(format!("backing file {name}"), &broken, Stage::Open, "backing file");
    }
    list.add("a backing file's place without a length", &valid.put64(8, 1024), Stage::Open, "backing file");
    list.add("a backing file's length without a place", &valid.put32(16, 10), Stage::Open, "backing file");
    list.add(
        "a backing file's name past the first cluster",
        &valid.put64(8, 1 << 40).put32(16, 1023),
        Stage::Open,
        "backing file",
    );
    for method in [1, 2, 77] {
        list.add(format!("crypt_method {method}"), &valid.put32(32, method), Stage::Open, "encrypted");
    }
    for (kind, len, message) in [
        (0x4441_5441, 11, "another file"),
        (0x0537_be77, 16, "encrypted"),
        (0x1234_5678, u32::MAX, "extension"),
        (0x1234_5678, 5000, "extension"),
        (0x6803_f857, 3977, "extension"),
    ] {
        list.add(
            format!("extension {kind:#x} of {len} bytes"),
            &valid.put32(112, kind).put32(116, len),
            Stage::Open,
            message,
        );
    }
    list.add(
        "an extension that nobody knows",
        &valid.put32(112, 0x1234_5678).put32(116, 8),
        Stage::Never,
        "",
    );
}

fn l1_entries(valid: &Expected, list: &mut List) {
    let second = valid.l1 + 8;
    let table = valid.l2[1];
    for (word, message) in [
        (COPIED | table | 1, "reserved bit"),
        (COPIED | table | 1 << 8, "reserved bit"),
        (COPIED | table | 1 << 56, "reserved bit"),
        (COPIED | table | 1 << 62, "reserved bit"),
        (COPIED | (table + 512), "between two clusters"),
        (COPIED | valid.len().next_multiple_of(STEP), "the file has"),
        (COPIED | 1 << 50, "the file has"),
        (COPIED, "no cluster of its own"),
        (COPIED | valid.l1, "own tables"),
        (COPIED | valid.refcount_table, "own tables"),
        (COPIED | valid.refcount_block, "own tables"),
        (valid.word(valid.l1), "another entry"),
    ] {
        list.add(format!("L1 entry {word:#x}"), &valid.put64(second, word), Stage::Load, message);
    }
    let with_longer_l1 = valid.put32(36, 3);
    list.add(
        "an L1 entry behind the disk's end",
        &with_longer_l1.put64(valid.l1 + 16, COPIED | valid.l2[0]),
        Stage::Check,
        "",
    );
    list.add("an L1 entry that is not marked as copied", &valid.put64(second, table), Stage::Check, "");
}

fn standard_entries(valid: &Expected, list: &mut List) {
    let entry = valid.entry(1);
    let host = valid.word(entry) & OFFSET;
    for (word, message) in [
        (COPIED | host | 2, "reserved bit"),
        (COPIED | host | 1 << 8, "reserved bit"),
        (COPIED | host | 1 << 56, "reserved bit"),
        (COPIED | host | 1 << 61, "reserved bit"),
        (COPIED | (host + 512), "between two clusters"),
        (COPIED, "no cluster of its own"),
        (COPIED | 1, "no cluster of its own"),
        (COPIED | valid.len().next_multiple_of(STEP), "the file has"),
        (COPIED | 1 << 55, "the file has"),
        (COPIED | valid.l1, "own tables"),
        (COPIED | valid.refcount_table, "own tables"),
        (COPIED | valid.refcount_block, "own tables"),
        (COPIED | valid.l2[0], "own tables"),
        (COPIED | valid.l2[1], "own tables"),
        (COPIED | valid.l2[1] | 1, "own tables"),
    ] {
        list.add(format!("L2 entry {word:#x}"), &valid.put64(entry, word), Stage::Load, message);
    }
    list.add("an L2 entry that is not marked as copied", &valid.put64(entry, host), Stage::Check, "");
    let version_2 = valid.put32(4, 2);
    list.add("version 2", &version_2, Stage::Never, "");
    for word in [1, COPIED | host | 1] {
        list.add(
            format!("version 2: L2 entry {word:#x}"),
            &version_2.put64(entry, word),
            Stage::Load,
            "reserved bit",
        );
    }
}

fn compressed_entries(valid: &Expected, list: &mut List) {
    let entry = valid.entry(0);
    let descriptor = valid.word(entry);
    let host = descriptor & ((1 << X) - 1) & OFFSET_ANY;
    let sectors = |count: u64| COMPRESSED | (count - 1) << X;
    let end = valid.len();
    for (word, message) in [
        (COPIED | descriptor, "no cluster of its own"),
        (sectors(1) | 100, "into the header"),
        (sectors(1) | (valid.l1 + 3), "own tables"),
        (sectors(1) | valid.refcount_table, "own tables"),
        (sectors(1) | (valid.refcount_block + 5), "own tables"),
        (sectors(1) | (valid.l2[1] + 77), "own tables"),
        (sectors(1) | end, "the file has"),
        (sectors(1) | 1 << 50, "the file has"),
        (sectors(1) | 1 << 57, "reserved bit"),
    ] {
        list.add(format!("compressed entry {word:#x}"), &valid.put64(entry, word), Stage::Load, message);
    }
    // The last two clusters of the file are tables. So an entry that reaches into them is noticed before one
    // that reaches past the end.
    list.add(
        "a compressed entry that reaches into the tables",
        &valid.put64(entry, sectors(16) | (valid.l2[0] - 512)),
        Stage::Load,
        "own tables",
    );
    list.add("a compressed entry of too few sectors", &many_sectors_cut(), Stage::Decode, "");
    list.add("a compressed entry one byte late", &valid.put64(entry, descriptor + 1), Stage::Decode, "");
    list.add(
        "a compressed entry that leads to a raw body",
        &valid.put64(entry, sectors(8) | valid.word(valid.entry(1)) & OFFSET),
        Stage::Decode,
        "",
    );
    list.add(
        "a compressed entry of too many sectors",
        &valid.put64(entry, sectors(2) | host),
        Stage::Never,
        "",
    );
}

const OFFSET_ANY: u64 = (1 << 56) - 1;

/// Builds an image with a body of several sectors whose entry covers only one.
fn many_sectors_cut() -> Expected {
    let mut valid = Expected::new(Codec::Deflate);
    let mut state = 1_u32;
    // Only 16 different letters, so that it compresses to about half: four of eight sectors and a bit.
    valid.disk[..to_usize(STEP)].fill_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        b'a' + (state.to_be_bytes()[0] >> 4)
    });
    let bodies = images::encode(&valid.disk, CLUSTER, Codec::Deflate);
    let valid = Expected::of(valid.disk, Codec::Deflate, &bodies);
    let entry = valid.entry(0);
    let host = valid.word(entry) & OFFSET_ANY;
    valid.put64(entry, COMPRESSED | host)
}

fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut deflate = libdeflater::Compressor::default();
    let mut body = vec![0; deflate.deflate_compress_bound(bytes.len())];
    let len = deflate.deflate_compress(bytes, &mut body).expect("the bound is enough");
    body.truncate(len);
    body
}

fn bodies(list: &mut List) {
    let long = vec![b'x'; to_usize(STEP) + 1];
    let short = vec![b'x'; to_usize(STEP) - 1];
    let half = vec![b'x'; to_usize(STEP) / 2];
    let deflate = [
        ("garbage", vec![0xff; 300]),
        ("one byte", vec![7]),
        ("a stream one byte long", deflated(&long)),
        ("a stream one byte short", deflated(&short)),
        ("a stream half as long", deflated(&half)),
        ("an empty stream", deflated(&[])),
        ("a stream of a type that is reserved", vec![0b111, 0, 0, 0]),
        ("a stored block whose length contradicts itself", vec![1, 0, 16, 0, 0]),
        ("a zlib header before the stream", [&[0x78, 0x9c][..], &deflated(&long[..to_usize(STEP)])].concat()),
        // A match with distance 1 and no byte before it: fixed codes, length code 257, distance code 0.
        ("a match before the first byte", vec![0b0000_0011, 0b0000_0010, 0, 0]),
    ];
    for (name, body) in deflate {
        list.add(format!("deflate: {name}"), &Expected::with_body(Codec::Deflate, body), Stage::Decode, "");
    }
    let frame = |bytes: &[u8]| zstd::bulk::compress(bytes, 3).expect("memory is enough");
    let mut cut = frame(&long[..to_usize(STEP)]);
    cut.truncate(cut.len() - 3);
    let skipped = [0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
    let zstd = [
        ("garbage", vec![0xff; 300]),
        ("one byte long", frame(&long)),
        ("one byte short", frame(&short)),
        // A reader continues with the bytes that follow in the last sector, which would be the next body
        // without these.
        ("an empty frame", [frame(&[]), vec![0xff; 600]].concat()),
        ("a frame without its end", cut),
        ("a window of 2 GiB", vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00]),
        ("a dictionary", vec![0x28, 0xb5, 0x2f, 0xfd, 0x23, 0x07, 0, 0, 0, 0, 0x10, 0, 0, 0x01, 0, 0]),
        // The frame declares 2^62 bytes.
        ("a size of 4 EiB", vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0x01, 0, 0]),
        ("nothing but a skippable frame", [&skipped[..], &[0xff; 600]].concat()),
        ("a skippable frame of 4 GiB", vec![0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4]),
    ];
    for (name, body) in zstd {
        list.add(format!("zstd: {name}"), &Expected::with_body(Codec::Zstd, body), Stage::Decode, "");
    }
    let disk = Expected::new(Codec::Zstd).disk;
    let (first, second) = disk[..to_usize(STEP)].split_at(1000);
    let several = [
        ("two frames", [frame(first), frame(second)].concat()),
        (
            "a skippable and an empty frame first",
            [&skipped[..], &frame(&[]), &frame(&disk[..to_usize(STEP)])].concat(),
        ),
        ("garbage behind the frame", [frame(&disk[..to_usize(STEP)]), vec![0xff; 100]].concat()),
    ];
    for (name, body) in several {
        list.add(format!("zstd: {name}"), &Expected::with_body(Codec::Zstd, body), Stage::Never, "");
    }
}

fn refcounts(valid: &Expected, list: &mut List) {
    let first = valid.refcount_table;
    for word in [
        valid.refcount_block | 1,
        valid.refcount_block | 256,
        valid.refcount_block + 512,
        1 << 40,
        valid.l1,
        valid.refcount_table,
        0,
    ] {
        list.add(format!("refcount table entry {word:#x}"), &valid.put64(first, word), Stage::Check, "");
    }
    for (cluster, count) in [(0, 0), (0, 2), (3, 0), (3, 99), (5, 0xffff)] {
        let offset = valid.refcount_block + cluster * 2;
        let count = u16::to_be_bytes(count);
        list.add(
            format!("cluster {cluster} counted {count:?} times"),
            &valid.put(offset, &count),
            Stage::Check,
            "",
        );
    }
}

fn subclusters(valid: &Expected, list: &mut List) {
    // Subclusters need clusters of at least 16 KiB, so this is a separate image, with one L2 table.
    let cluster = ClusterBits::new(14).expect("a cluster size");
    let mut disk = vec![0; to_usize(DISK.0)];
    disk[..to_usize(4 * STEP)].copy_from_slice(&valid.disk[..to_usize(4 * STEP)]);
    let geometry = Geometry::new(DISK, cluster).expect("a disk that fits");
    let bytes = images::build(geometry, Codec::Deflate, &images::encode(&disk, cluster, Codec::Deflate));
    let base = Expected { bytes, disk, ..valid.clone() };
    let table = base.word(base.word(40)) & OFFSET;
    // One entry at the start of the table. Its bitmap takes the place of the second entry, which is empty.
    let extended = base.put64(72, 1 << 4);
    list.add("subclusters: none on a compressed entry", &extended, Stage::Never, "");
    list.add(
        "subclusters: some on a compressed entry",
        &extended.put64(table + 8, 1),
        Stage::Load,
        "subcluster",
    );
    list.add(
        "subclusters: zeros on a compressed entry",
        &extended.put64(table + 8, 1 << 32),
        Stage::Load,
        "subcluster",
    );
    list.add(
        "subclusters: allocated without a place",
        &extended.put64(table, 0).put64(table + 8, 1),
        Stage::Load,
        "subcluster",
    );
    let raw = extended.put64(table, COPIED | (base.len() - 3 * 4 * STEP));
    list.add("subclusters: both allocated and zero", &raw.put64(table + 8, 1 | 1 << 32), Stage::Load, "");
    list.add("subclusters: a zero flag in the entry", &extended.put64(table, 1), Stage::Load, "subcluster");
}

fn truncated(valid: &Expected, list: &mut List) {
    for (len, message) in [
        (0, "ends inside"),
        (3, "ends inside"),
        (72, "ends inside"),
        (104, "ends inside"),
        (111, "ends inside"),
        (119, "ends"),
    ] {
        list.add(format!("cut to {len} bytes"), &valid.cut(len), Stage::Open, message);
    }
    for (position, len) in [
        ("behind the header", STEP),
        ("in the refcount table", valid.refcount_table + 100),
        ("in the L1 table", valid.l1 + 8),
        ("behind the head", valid.l1 + STEP),
    ] {
        let stage = if len > valid.l1 + 16 { Stage::Load } else { Stage::Open };
        list.add(format!("cut {position}"), &valid.cut(len), stage, "");
    }
    let raw = valid.word(valid.entry(1)) & OFFSET;
    list.add("cut in a raw body", &valid.cut(raw + 100), Stage::Load, "the file has");
    let last = raw_at_the_end(valid);
    list.add("a raw body at the end", &last, Stage::Never, "");
    for missing in [1, 100, 511] {
        list.add(
            format!("a raw body without its last {missing} bytes"),
            &last.cut(last.len() - missing),
            Stage::Load,
            "the file has",
        );
    }
    list.add("cut behind the bodies", &valid.cut(valid.l2[0]), Stage::Load, "the file has");
    list.add("cut in the second L2 table", &valid.cut(valid.l2[1] + 1000), Stage::Load, "the file has");
    list.add("cut behind the L2 tables", &valid.cut(valid.refcount_block), Stage::Check, "");
}

/// Moves the raw body to the end of the file.
fn raw_at_the_end(valid: &Expected) -> Expected {
    let host = valid.word(valid.entry(1)) & OFFSET;
    let last = valid.len().next_multiple_of(STEP);
    let count = |host: u64| valid.refcount_block + host / STEP * 2;
    let mut moved =
        valid.put64(valid.entry(1), COPIED | last).put(count(host), &[0, 0]).put(count(last), &[0, 1]);
    moved.bytes.resize(to_usize(last), 0);
    moved.bytes.extend_from_slice(&valid.bytes[to_usize(host)..to_usize(host + STEP)]);
    moved
}

fn amplified(valid: &Expected, list: &mut List) {
    // Every cluster under the first table refers to the same body. This is allowed, but the refcount must
    // match.
    let descriptor = valid.word(valid.entry(0));
    let mut shared = valid.clone();
    for cluster in 0..512 {
        shared = shared.put64(shared.entry(cluster), descriptor);
    }
    let body = shared.disk[..to_usize(STEP)].to_vec();
    shared.disk[..to_usize(512 * STEP)]
        .chunks_mut(to_usize(STEP))
        .for_each(|cluster| cluster.copy_from_slice(&body));
    list.add("one body in 512 places", &shared, Stage::Check, "");
    // A disk of 128 TiB in a few MiB. A cluster has 2 MiB, so an L2 table covers 512 GiB, and every L1 entry
    // refers to the same table.
    let mut bomb = valid.bytes[..to_usize(STEP)].to_vec();
    bomb[20..24].copy_from_slice(&21_u32.to_be_bytes());
    bomb[24..32].copy_from_slice(&(128_u64 << 40).to_be_bytes());
    bomb[36..40].copy_from_slice(&256_u32.to_be_bytes());
    bomb[40..48].copy_from_slice(&(2 * MIB).to_be_bytes());
    bomb[48..56].copy_from_slice(&(4 * MIB).to_be_bytes());
    bomb[56..60].copy_from_slice(&1_u32.to_be_bytes());
    bomb.resize(to_usize(8 * MIB), 0);
    for entry in bomb[to_usize(2 * MIB)..].chunks_mut(8).take(256) {
        entry.copy_from_slice(&(COPIED | (6 * MIB)).to_be_bytes());
    }
    let bomb = Expected { bytes: bomb, ..valid.clone() };
    list.add("a disk of 128 TiB", &bomb, Stage::Open, "at most");
    list.add(
        "a disk of 32 TiB under one table",
        &bomb.put64(24, 32 << 40).put32(36, 64),
        Stage::Load,
        "another entry",
    );
    // The same refcount block is referred to 1000 times, and covers 2 TiB each time.
    let mut counted = bomb.put64(24, 32 << 40).put32(36, 64);
    counted.bytes.resize(to_usize(10 * MIB), 0);
    for entry in counted.bytes[to_usize(4 * MIB)..].chunks_mut(8).take(1000) {
        entry.copy_from_slice(&(8 * MIB).to_be_bytes());
    }
    list.add("a refcount table of one block 1000 times", &counted, Stage::Load, "another entry");
}
