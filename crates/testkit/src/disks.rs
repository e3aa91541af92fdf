//! Generated disks for conversion tests: the same seed gives the same bytes on every machine, for ever.
//!
//! A disk is a sequence of runs. Each run is zeros, random bytes or text, made from the seed of the disk and
//! the number of the run. So a disk can be written without being held in memory, and its zeros need not be
//! written.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use snapferry_base::units::{ByteCount, KIB, MIB, to_u64, to_usize};

/// Kind of content of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only zeros.
    Zeros,
    /// Bytes that no codec makes shorter.
    Random,
    /// Words and lines, which deflate compresses to about a third.
    Text,
    /// Runs of all three, 512 bytes to 2 MiB long, in shares like those of a boot volume: half zeros, a tenth
    /// incompressible.
    Mixed,
    /// Text at one end, zeros elsewhere.
    Only {
        end: End,
        /// Length of the text in bytes.
        len: u64,
    },
}

/// One end of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The lowest offsets.
    First,
    /// The highest offsets.
    Last,
}

/// A disk that can be generated any number of times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    pub kind: Kind,
    /// Size of the disk: any number of bytes.
    pub size: ByteCount,
    /// Disks with different seeds have different bytes.
    pub seed: u64,
}

/// Content of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fill {
    Zeros,
    Random,
    Text,
}

impl Disk {
    /// Describes a disk, without generating it.
    #[must_use]
    pub fn new(kind: Kind, size: ByteCount, seed: u64) -> Self {
        Self { kind, size, seed }
    }

    /// Generates all bytes of the disk.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut disk = vec![0; to_usize(self.size.0)];
        self.each_chunk(|at, chunk| {
            let start = to_usize(at);
            disk[start..start + chunk.len()].copy_from_slice(chunk);
            Ok(())
        })
        .expect("memory takes every byte");
        disk
    }

    /// Writes the disk to a new file at `path`, with holes for the zeros.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let file = File::create(path)?;
        file.set_len(self.size.0)?;
        self.each_chunk(|at, chunk| file.write_all_at(chunk, at))
    }

    /// Calls `write` with all runs but the zeros, in order, in pieces of at most 1 MiB.
    fn each_chunk(&self, mut write: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut buffer = Vec::new();
        for (number, (range, fill)) in (0..).zip(self.runs()) {
            let mut generator = Vocabulary::new(self.seed, number);
            let mut at = range.start;
            while fill != Fill::Zeros && at < range.end {
                let len = to_usize((range.end - at).min(MIB));
                buffer.clear();
                match fill {
                    Fill::Random => generator.random(&mut buffer, len),
                    _ => generator.text(&mut buffer, len),
                }
                write(at, &buffer)?;
                at += to_u64(len);
            }
        }
        Ok(())
    }

    /// Returns the runs in order, without gaps.
    fn runs(&self) -> Vec<(Range<u64>, Fill)> {
        let size = self.size.0;
        match self.kind {
            Kind::Zeros => vec![(0..size, Fill::Zeros)],
            Kind::Random => vec![(0..size, Fill::Random)],
            Kind::Text => vec![(0..size, Fill::Text)],
            Kind::Only { end: End::First, len } => vec![(0..len.min(size), Fill::Text)],
            Kind::Only { end: End::Last, len } => vec![(size.saturating_sub(len)..size, Fill::Text)],
            Kind::Mixed => self.mixed_runs(),
        }
    }

    fn mixed_runs(&self) -> Vec<(Range<u64>, Fill)> {
        // A separate sequence, different from that of every run.
        let mut generator = Vocabulary::new(self.seed, u64::MAX);
        let mut runs = Vec::new();
        let mut at = 0;
        while at < self.size.0 {
            // Each power of two from 512 B to 1 MiB is equally likely, and the length is between that and its
            // double. Most runs are multiples of 4 KiB, as files are.
            let min_len = 512_u64 << (generator.next() % 12);
            let unit = if generator.next().is_multiple_of(8) { 1 } else { 4 * KIB };
            let len = (min_len + generator.next() % min_len).next_multiple_of(unit).min(self.size.0 - at);
            let fill = match generator.next() % 10 {
                0..5 => Fill::Zeros,
                5 => Fill::Random,
                _ => Fill::Text,
            };
            runs.push((at..at + len, fill));
            at += len;
        }
        runs
    }
}

/// Generator of an endless sequence of numbers: splitmix64 (Steele, Lea, Flood 2014). It is implemented here
/// so that no new version of a crate changes a disk.
struct Vocabulary(u64);

impl Vocabulary {
    fn new(seed: u64, stream: u64) -> Self {
        let mut generator = Self(seed ^ stream.wrapping_mul(0xa076_1d64_78bd_642f));
        // After the first step, the sequences of neighbouring seeds and streams differ completely.
        generator.0 = generator.next();
        generator
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn random(&mut self, into: &mut Vec<u8>, len: usize) {
        while into.len() < len {
            into.extend(self.next().to_le_bytes());
        }
        into.truncate(len);
    }

    /// Appends lines of words, with frequent words short and a number from time to time, like a log or a
    /// source file.
    fn text(&mut self, into: &mut Vec<u8>, len: usize) {
        while into.len() < len {
            let roll = self.next();
            // The product of two random numbers: low ranks are frequent, as in a natural language.
            let rank = ((roll & 0x3ff) * ((roll >> 10) & 0x3ff)) >> 10;
            match roll >> 60 {
                0 => into.extend(format!("{:x}", (roll >> 20) & 0xff_ffff).into_bytes()),
                _ => {
                    // The syllables of a word follow from its rank, so the same rank always gives the same
                    // word.
                    let mut letters = rank + 1;
                    while letters > 0 {
                        into.extend(SYLLABLES[to_usize(letters % 16)]);
                        letters /= 16;
                    }
                }
            }
            into.push(if (roll >> 56) & 0xf == 0 { b'\n' } else { b' ' });
        }
        into.truncate(len);
    }
}

const SYLLABLES: [&[u8]; 16] = [
    b"the", b"in", b"er", b"con", b"at", b"re", b"st", b"ion", b"_", b"al", b"de", b"to", b"or", b"self.",
    b"en", b"ch",
];

#[cfg(test)]
mod tests {
    use snapferry_engine::hash::Crc64;

    use super::*;

    fn compressed_share(bytes: &[u8]) -> f64 {
        let mut encoder = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
        let mut out = vec![0; encoder.deflate_compress_bound(bytes.len())];
        let len = encoder.deflate_compress(bytes, &mut out).expect("the bound is enough");
        f64::from(u32::try_from(len).expect("small")) / f64::from(u32::try_from(bytes.len()).expect("small"))
    }

    #[test]
    fn the_same_seed_is_the_same_disk_for_ever() {
        let sum = |kind, seed| Crc64::of(&Disk::new(kind, ByteCount(3_000_001), seed).to_vec()).to_string();
        assert_eq!(sum(Kind::Mixed, 7), "66EBtgMkCIg=");
        assert_eq!(sum(Kind::Text, 7), "+Sw9X81sU2s=");
        assert_eq!(sum(Kind::Random, 7), "0NmeqoYRN1I=");
        assert_ne!(sum(Kind::Mixed, 7), sum(Kind::Mixed, 8));
    }

    #[test]
    fn each_kind_compresses_as_its_name_says() {
        let disk = |kind| Disk::new(kind, ByteCount(MIB), 1).to_vec();
        assert!(disk(Kind::Zeros).iter().all(|&byte| byte == 0));
        assert!(compressed_share(&disk(Kind::Random)) > 0.999);
        let text = compressed_share(&disk(Kind::Text));
        assert!((0.25..0.42).contains(&text), "text: {text}");
    }

    #[test]
    fn mixed_disks_have_all_three_in_realistic_shares() {
        let disk = Disk::new(Kind::Mixed, ByteCount(64 * MIB), 3).to_vec();
        let zeros = disk.chunks(65_536).filter(|cluster| cluster.iter().all(|&byte| byte == 0)).count();
        assert!((200..700).contains(&zeros), "{zeros} of 1024 clusters are zero");
        let share = compressed_share(&disk[..to_usize(16 * MIB)]);
        assert!((0.1..0.5).contains(&share), "compressed to {share}");
    }

    #[test]
    fn the_ends_are_where_they_should_be() {
        let size = ByteCount(10_000);
        let first = Disk::new(Kind::Only { end: End::First, len: 10 }, size, 1).to_vec();
        let last = Disk::new(Kind::Only { end: End::Last, len: 10 }, size, 1).to_vec();
        assert!(first[..10].iter().all(|&byte| byte > 0) && first[10..].iter().all(|&byte| byte == 0));
        assert!(last[9_990..].iter().all(|&byte| byte > 0) && last[..9_990].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_file_holds_the_same_bytes_and_no_zeros() {
        use std::os::unix::fs::MetadataExt as _;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("disk");
        let disk = Disk::new(Kind::Mixed, ByteCount(5_000_123), 11);
        disk.write(&path).expect("a file");
        assert!(std::fs::read(&path).expect("the file") == disk.to_vec(), "file and memory differ");
        Disk::new(Kind::Zeros, ByteCount(MIB << 10), 0).write(&path).expect("a file");
        assert_eq!(std::fs::metadata(&path).expect("the file").blocks(), 0);
    }
}
