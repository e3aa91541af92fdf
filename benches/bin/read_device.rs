//! Measures the speed of the reader alone: reads a whole device or file and discards the bytes.
//!
//! `read_device PATH [pread|uring] [DEPTH] [CHUNK_MIB]` prints `{"seconds", "cpu_seconds", "bytes", ...}`.
//! `pread` is the reader of the product, with one thread for each concurrent read. `uring` does the same
//! reads in one thread through io_uring; it is kept for the comparison in `benches/README.md`.
#![allow(unsafe_code, clippy::print_stdout)]

use std::error::Error;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use io_uring::{IoUring, opcode, types};
use rustix::fs::{Mode, OFlags};
use snapferry_base::units::{GuestOffset, MIB, to_u64, to_usize};
use snapferry_engine::source::aligned::AlignedBuf;
use snapferry_engine::source::{InUse, RawSource, Source};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: read_device PATH [pread|uring] [DEPTH] [CHUNK_MIB]")?;
    let engine = args.next().unwrap_or("pread".into());
    let depth: usize = args.next().as_deref().unwrap_or("6").parse()?;
    let chunk = to_usize(args.next().as_deref().unwrap_or("2").parse::<u64>()? * MIB);
    let source = RawSource::open(Path::new(&path), InUse::Read)?;
    let size = source.size().0;
    let before = cpu_seconds()?;
    let begun = Instant::now();
    match engine.as_str() {
        "pread" => by_threads(&source, depth, chunk)?,
        "uring" => by_ring(&path, size, depth, chunk)?,
        other => return Err(format!("{other} is neither pread nor uring").into()),
    }
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = cpu_seconds()? - before;
    println!(
        r#"{{"engine":"{engine}","depth":{depth},"chunk":{chunk},"bytes":{size},"seconds":{seconds:.3},"cpu_seconds":{cpu:.3}}}"#
    );
    Ok(())
}

fn by_threads(source: &RawSource, depth: usize, chunk: usize) -> Result<(), Box<dyn Error>> {
    let next = AtomicU64::new(0);
    let size = source.size().0;
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..depth)
            .map(|_| {
                scope.spawn(|| {
                    let mut buf = AlignedBuf::zeroed(chunk)?;
                    loop {
                        let at = next.fetch_add(to_u64(chunk), Ordering::Relaxed);
                        if at >= size {
                            return Ok(());
                        }
                        source.read_at(GuestOffset(at), &mut buf)?;
                    }
                })
            })
            .collect();
        readers.into_iter().try_for_each(|reader| reader.join().expect("a reader does not panic"))
    })
    .map_err(|error: snapferry_engine::source::SourceError| error.into())
}

fn by_ring(path: &str, size: u64, depth: usize, chunk: usize) -> Result<(), Box<dyn Error>> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECT, Mode::empty())?;
    // Before the ring, so that they are dropped after it: a read may be under way when this function returns
    // early.
    let mut buffers: Vec<AlignedBuf> =
        (0..depth).map(|_| AlignedBuf::zeroed(chunk)).collect::<Result<_, _>>()?;
    let mut ring = IoUring::new(u32::try_from(depth)?)?;
    let (mut next, mut flying) = (0, 0);
    let mut free: Vec<usize> = (0..depth).collect();
    while next < size || flying > 0 {
        while next < size
            && let Some(slot) = free.pop()
        {
            let len = u32::try_from(to_u64(chunk).min(size - next))?;
            let read =
                opcode::Read::new(types::Fd(file.as_raw_fd()), buffers[slot].as_mut_ptr(), len).offset(next);
            // SAFETY: the buffer belongs to this slot alone until its completion is seen, and outlives the
            // ring.
            unsafe { ring.submission().push(&read.build().user_data(to_u64(slot)))? };
            next += u64::from(len);
            flying += 1;
        }
        ring.submit_and_wait(1)?;
        for done in ring.completion() {
            if done.result() <= 0 {
                return Err(format!("a read ended with {}", done.result()).into());
            }
            free.push(to_usize(done.user_data()));
            flying -= 1;
        }
    }
    Ok(())
}

/// Returns the user and system time of this process. It includes io_uring's kernel threads as far as the
/// kernel charges them to the process.
fn cpu_seconds() -> Result<f64, Box<dyn Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, rest) = stat.rsplit_once(')').ok_or("/proc/self/stat has no command")?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut ticks =
        || -> Result<f64, Box<dyn Error>> { Ok(fields.next().ok_or("/proc/self/stat is short")?.parse()?) };
    // USER_HZ is 100 on every Linux that snapferry supports.
    Ok((ticks()? + ticks()?) / 100.0)
}
