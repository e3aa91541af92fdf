//! Benchmarks of single parts: the zero test in comparison with memcpy, each codec, the layout, and the whole
//! pipeline without a disk or a network.
//!
//! `make bench-parts` runs them. The comparison with qemu-img on a real disk is `benches/compare.py`.
#![allow(missing_docs)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use snapferry_base::cancel::Cancel;
use snapferry_base::clock::SystemClock;
use snapferry_base::units::{ByteCount, ClusterBits, GIB, GuestCluster, MIB, to_u64, to_usize};
use snapferry_engine::compress::{Codec, Content, Encoder, Level, is_zero};
use snapferry_engine::convert::counters::Counters;
use snapferry_engine::convert::plan::Options;
use snapferry_engine::convert::{Conversion, Target, plan_for};
use snapferry_engine::source::{InUse, RawSource};
use snapferry_engine::store::Location;
use snapferry_engine::store::{ObjectKey, Overwrite};
use snapferry_qcow2::{Geometry, Layout};
use snapferry_testkit::disks::{Disk, Kind};
use snapferry_testkit::memory::MemoryStore;

/// Larger than the caches, so that the benchmark measures the memory.
const ZEROS: u64 = 256 * MIB;

fn zero_test(c: &mut Criterion) {
    // Written to, so that the kernel maps real memory instead of its shared zero page.
    let mut zeros = vec![1_u8; to_usize(ZEROS)];
    black_box(&mut zeros).fill(0);
    let mut copy = vec![1_u8; to_usize(ZEROS)];
    let mut group = c.benchmark_group("zero test");
    group.throughput(Throughput::Bytes(ZEROS)).sample_size(20);
    group.bench_function("is_zero", |b| b.iter(|| is_zero(black_box(&zeros))));
    group.bench_function("memcpy", |b| b.iter(|| copy.copy_from_slice(black_box(&zeros))));
    group.finish();
}

/// Returns 8 MiB of realistic disk content: this program itself, with code, tables and text.
fn sample() -> Vec<u8> {
    let own = std::env::current_exe().and_then(std::fs::read).expect("a program can read itself");
    own.iter().copied().cycle().take(to_usize(8 * MIB)).collect()
}

fn codecs(c: &mut Criterion) {
    let bytes = sample();
    let cluster = ClusterBits::DEFAULT;
    let mut out = vec![0; cluster.len()];
    let mut group = c.benchmark_group("codec");
    group.throughput(Throughput::Bytes(to_u64(bytes.len()))).sample_size(10);
    for codec in Codec::ALL {
        for level in [Level::Fast, Level::Balanced, Level::Small] {
            let mut encoder = Encoder::new(codec, level, cluster).expect("an encoder");
            group.bench_function(format!("{codec} {level}"), |b| {
                b.iter(|| {
                    bytes
                        .chunks_exact(cluster.len())
                        .map(|bytes| encoder.encode(bytes, &mut out).unwrap_or(0))
                        .sum::<usize>()
                });
            });
        }
    }
    group.finish();
}

/// What an encoder spares itself where nothing shrinks: the sample that shows it, beside the engines.
fn random_clusters(c: &mut Criterion) {
    let cluster = ClusterBits::DEFAULT;
    // Few enough for the cache: the converter has just hashed a cluster when it samples it.
    let mut bytes = vec![0; 2 * cluster.len()];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    let mut out = vec![0; cluster.len()];
    let mut group = c.benchmark_group("random clusters");
    group.throughput(Throughput::Bytes(to_u64(bytes.len()))).sample_size(20);
    group.bench_function("sample", |b| {
        b.iter(|| {
            let clusters = black_box(&bytes).chunks_exact(cluster.len());
            clusters.filter(|cluster| Content::of(cluster, true) == Content::Random).count()
        });
    });
    for codec in Codec::ALL {
        for level in [Level::Fast, Level::Balanced] {
            let mut encoder = Encoder::without_shortcut(codec, level, cluster).expect("an encoder");
            group.bench_function(format!("{codec} {level}"), |b| {
                b.iter(|| {
                    let clusters = bytes.chunks_exact(cluster.len());
                    clusters.filter_map(|bytes| encoder.encode(bytes, &mut out)).sum::<usize>()
                });
            });
        }
    }
    group.finish();
}

fn layout(c: &mut Criterion) {
    let geometry = Geometry::new(ByteCount(10 * GIB), ClusterBits::DEFAULT).expect("a geometry");
    let mut group = c.benchmark_group("layout");
    group.throughput(Throughput::Elements(geometry.guest_clusters())).sample_size(20);
    group.bench_function("10 GiB of compressed clusters, tables included", |b| {
        b.iter(|| {
            let mut layout = Layout::new(geometry, Codec::Deflate);
            for guest in 0..geometry.guest_clusters() {
                layout.place_compressed(GuestCluster(guest), 20_000 + to_usize(guest % 4_096));
                if (guest + 1).is_multiple_of(geometry.segment_clusters()) {
                    black_box(layout.pad_to_cluster());
                }
            }
            black_box(layout.pad_to_cluster());
            let image = layout.finish();
            image.tail.map(|table| table.len()).sum::<usize>() + image.head.len()
        });
    });
    group.finish();
}

fn pipeline(c: &mut Criterion) {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
    let path = folder.path().join("disk.raw");
    let size = 256 * MIB;
    Disk::new(Kind::Mixed, ByteCount(size), 1).write(&path).expect("a disk");
    let source = RawSource::open(&path, InUse::Refuse).expect("a source");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let options = Options::default();
    let plan = plan_for(&source, &options, Location::Bucket).expect("a plan");
    let mut group = c.benchmark_group("pipeline");
    group.throughput(Throughput::Bytes(size)).sample_size(10);
    group.bench_function("from memory to memory, deflate fast", |b| {
        b.iter_batched(
            || Target {
                store: Arc::new(MemoryStore::new("bench")),
                key: ObjectKey::new("disk.qcow2").expect("a key"),
                overwrite: Overwrite::Refuse,
            },
            |target| {
                let conversion = Conversion {
                    source: &source,
                    target,
                    plan: &plan,
                    host: "bench".to_owned(),
                    clock: &SystemClock,
                    cancel: Cancel::new(),
                    counters: Arc::new(Counters::default()),
                    base: None,
                    refused: None,
                };
                conversion.run(runtime.handle()).expect("converted").manifest.image.size
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, zero_test, codecs, random_clusters, layout, pipeline);
criterion_main!(benches);
