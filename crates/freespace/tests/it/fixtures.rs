//! Snapshots of busy filesystems for machines without root. With those of ext4 is kept what e2fsprogs and the
//! kernel called free after their recovery, with the one of btrfs what was left out when all files were there
//! afterwards. A fixture holds the bytes that a probe reads, and no others.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use snapferry_freespace::{Disk, Evidence, Outcome, Probed, RangeSet, probe};

use crate::lab::FileDisk;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Disk of which some ranges are known, as `NAME.zst` holds it: its size, and then for each range the first
/// byte, the length, and the bytes. All numbers are 64-bit, with the lowest byte first.
pub(crate) struct Known {
    size: u64,
    ranges: Vec<(u64, Vec<u8>)>,
}

impl Known {
    fn read(path: &Path) -> Self {
        let packed = fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let bytes = zstd::stream::decode_all(packed).expect("zstd");
        let mut rest = &bytes[..];
        let number = |rest: &mut &[u8]| {
            let (front, back) = rest.split_first_chunk::<8>().expect("a number");
            *rest = back;
            u64::from_le_bytes(*front)
        };
        let size = number(&mut rest);
        let mut ranges = Vec::new();
        while !rest.is_empty() {
            let (start, length) = (number(&mut rest), number(&mut rest));
            let (own, more) = rest.split_at(usize::try_from(length).expect("small"));
            ranges.push((start, own.to_vec()));
            rest = more;
        }
        Self { size, ranges }
    }
}

impl Disk for Known {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let end = offset + u64::try_from(into.len()).expect("small");
        let index = self.ranges.partition_point(|(start, _)| *start <= offset) - 1;
        let (start, bytes) = &self.ranges[index];
        let from = usize::try_from(offset - start).expect("small");
        let until = usize::try_from(end - start).expect("small");
        into.copy_from_slice(bytes.get(from..until).expect("the fixture has what was read when it was made"));
        Ok(())
    }
}

/// Disk that notes what is read.
struct Noted<'a> {
    disk: &'a FileDisk,
    read: RefCell<Vec<Range<u64>>>,
}

impl Disk for Noted<'_> {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.read.borrow_mut().push(offset..offset + u64::try_from(into.len()).expect("small"));
        self.disk.read_at(offset, into)
    }
}

/// Writes a fixture of `image`; `free_after` has what each judge called free after its recovery.
pub(crate) fn write(to: &Path, name: &str, image: &Path, free_after: &[RangeSet]) {
    let disk = FileDisk::open(image);
    let noted = Noted { disk: &disk, read: RefCell::default() };
    let found = probe(&noted).expect("a readable image");
    let mut bytes = disk.size().to_le_bytes().to_vec();
    for range in RangeSet::union_of(noted.read.into_inner()).as_slice() {
        let length = range.end - range.start;
        let mut own = vec![0; usize::try_from(length).expect("small")];
        disk.read_at(range.start, &mut own).expect("read");
        bytes.extend_from_slice(&range.start.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&own);
    }
    fs::create_dir_all(to).expect("a folder");
    let packed = zstd::stream::encode_all(&bytes[..], 19).expect("zstd");
    fs::write(to.join(format!("{name}.zst")), packed).expect("written");
    let mut both = free_after[0].clone();
    for other in &free_after[1..] {
        let lost = both.without(other);
        both = both.without(&lost);
    }
    let mut text = format!("map {}\n", map(&found));
    for range in both.as_slice() {
        text.push_str(&format!("{} {}\n", range.start, range.end));
    }
    fs::write(to.join(format!("{name}.free")), text).expect("written");
}

fn map(found: &Probed) -> String {
    let numbers = found.free.as_slice().iter().flat_map(|range| [range.start, range.end]);
    blake3::hash(&numbers.flat_map(u64::to_le_bytes).collect::<Vec<u8>>()).to_hex().as_str().to_owned()
}

#[test]
fn no_fixture_loses_a_block() {
    let mut names: Vec<PathBuf> = fs::read_dir(folder())
        .expect("fixtures")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "zst"))
        .collect();
    names.sort();
    assert!(names.len() >= 6, "{names:?}");
    for path in names {
        let expected = fs::read_to_string(path.with_extension("free")).expect("its free ranges");
        let mut lines = expected.lines();
        let found = probe(&Known::read(&path)).expect("it is in memory");
        assert_eq!(lines.next(), Some(format!("map {}", map(&found)).as_str()), "{}", path.display());
        let parse = |word: Option<&str>| word.and_then(|word| word.parse().ok()).expect("a number");
        let ranges = lines.map(|line| {
            let mut words = line.split(' ');
            parse(words.next())..parse(words.next())
        });
        let after = RangeSet::union_of(ranges.collect());
        let [only] = &found.filesystems[..] else { panic!("{found:?}") };
        let Outcome::Skipped { free, evidence, .. } = &only.outcome else {
            panic!("{}: {only:?}", path.display())
        };
        let in_use = match evidence {
            Evidence::Ext4 { replayed, .. } => replayed.is_some(),
            Evidence::Btrfs { logged, .. } => *logged > 0,
            _ => false,
        };
        assert!(in_use && free.total() > 1 << 20, "{}: {evidence}", path.display());
        let lost = free.without(&after);
        assert!(lost.is_empty(), "{}: {:?}", path.display(), lost.as_slice());
    }
}
