//! The same disk, options and encoder give the same bytes: for any threads, queue depths, destination and
//! CPU.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use snapferry_base::units::{ByteCount, ClusterBits, MIB, to_u64};
use snapferry_engine::compress::{Codec, Level};
use snapferry_engine::convert::plan::Options;
use snapferry_engine::source::{InUse, RawSource};
use snapferry_engine::store::Location;
use snapferry_engine::store::ObjectStore;
use snapferry_testkit::disks::{Disk, Kind};
use snapferry_testkit::memory::MemoryStore;
use snapferry_testkit::skip::has_oracle;

use crate::support::{convert, convert_disk, convert_file, convert_into_file, folder, key, run, runtime};

fn count(number: usize) -> Option<std::num::NonZeroUsize> {
    std::num::NonZeroUsize::new(number)
}

/// Converts into an object store, and returns the object's bytes.
fn stored(raw: &Path, options: &Options) -> Vec<u8> {
    let store: Arc<dyn ObjectStore> = Arc::new(MemoryStore::new("images"));
    let source = RawSource::open(raw, InUse::Refuse).expect("a source");
    let size = convert(&source, &store, Location::Bucket, options).expect("an image").manifest.image.size;
    runtime().block_on(store.get_range(&key(), 0..size.0, None)).expect("the image").into()
}

#[test]
fn threads_queues_parts_and_destinations_leave_no_trace() {
    let folder = folder();
    let raw = folder.path().join("disk.raw");
    Disk::new(Kind::Mixed, ByteCount(37 * MIB + 77), 21).write(&raw).expect("a disk");
    for codec in Codec::ALL {
        let options = |threads, readers, connections, part: u64| Options {
            codec,
            threads: count(threads),
            readers: count(readers),
            connections: count(connections),
            part_size: Some(ByteCount(part * MIB)),
            ..Options::default()
        };
        let first = convert_file(&raw, &options(1, 1, 1, 4));
        for (threads, readers, connections, part) in [(2, 6, 3, 4), (8, 2, 1, 8), (8, 16, 8, 4)] {
            let other = convert_file(&raw, &options(threads, readers, connections, part));
            assert!(first.image == other.image, "{codec} on {threads} threads, {readers} readers");
            assert_eq!(first.manifest.segments, other.manifest.segments);
        }
        for (threads, part) in [(1, 8), (2, 32), (8, 12)] {
            assert!(
                first.image == stored(&raw, &options(threads, 6, 4, part)),
                "{codec} in parts of {part} MiB"
            );
        }
    }
}

#[test]
fn holes_and_zeros_that_were_written_make_the_same_image() {
    let home = folder();
    let disk = Disk::new(Kind::Mixed, ByteCount(20 * MIB), 22);
    let written = home.path().join("written.raw");
    std::fs::write(&written, disk.to_vec()).expect("a disk without holes");
    let dense = convert_file(&written, &Options::default());
    let sparse = convert_disk(&disk, &Options::default());
    assert!(dense.image == sparse.image);
    assert_eq!(dense.manifest.segments, sparse.manifest.segments);
}

/// Runs the program under QEMU's user mode emulation, on the oldest CPU that is supported (x86-64-v2), on one
/// with AVX2, and where ISA-L has code for it on one with AVX alone.
#[test]
fn every_cpu_makes_the_same_image() {
    if !has_oracle("qemu-x86_64") {
        return;
    }
    let home = folder();
    let raw = home.path().join("disk.raw");
    Disk::new(Kind::Mixed, ByteCount(4 * MIB), 23).write(&raw).expect("a disk");
    for codec in Codec::ALL {
        for level in [Level::Fast, Level::Balanced, Level::Small] {
            let native = convert_file(&raw, &Options { codec, level, ..Options::default() });
            let avx = ((codec, level) == (Codec::Deflate, Level::Fast)).then_some("IvyBridge");
            for cpu in ["Haswell", "Nehalem"].into_iter().chain(avx) {
                let image = home.path().join("image.qcow2");
                let ours = convert_into_file(
                    &raw,
                    &image,
                    &["--force", "--threads", "2", "--codec", codec.name(), "--level", level.name()],
                );
                let mut emulated = Command::new("qemu-x86_64");
                emulated.args(["-cpu", cpu]).arg(ours.get_program()).args(ours.get_args());
                let ended = run(emulated);
                assert_eq!(ended.code, Some(0), "{codec} {level} on {cpu}: {}", ended.err);
                assert!(
                    std::fs::read(&image).expect("the image") == native.image,
                    "{codec} {level} on {cpu}"
                );
            }
        }
    }
}

fn golden(codec: Codec, level: Level) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{codec}-{level}.qcow2"))
}

/// `tests/golden/README.md` has the recipe, and the rules for changing these images.
#[test]
fn images_are_those_of_the_first_release() {
    let disk = Disk::new(Kind::Mixed, ByteCount(200_001), 1962);
    let bless = std::env::var_os("SNAPFERRY_BLESS").is_some();
    for codec in Codec::ALL {
        for level in Level::ALL {
            if (codec, level) == (Codec::Deflate, Level::Fast) && !cfg!(feature = "isal") {
                continue;
            }
            let made = convert_disk(
                &disk,
                &Options { codec, level, cluster: ClusterBits::KIB4, ..Options::default() },
            );
            let segment = &made.manifest.segments[0];
            // A smaller image would be no useful example.
            assert!(
                segment.length > 16_000 && to_u64(made.image.len()) < disk.size.0,
                "{} bytes",
                made.image.len()
            );
            let path = golden(codec, level);
            if bless {
                std::fs::write(&path, &made.image).expect("the golden image");
            }
            let golden = std::fs::read(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
            assert!(made.image == golden, "{} is not what is made now", path.display());
        }
    }
}
