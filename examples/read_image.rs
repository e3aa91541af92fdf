//! Reads a qcow2 image: its header, how much of the disk it stores, and the disk's first bytes.
//!
//! ```sh
//! cargo run --release --example read_image -- disk.qcow2
//! ```

#![allow(clippy::print_stdout)]

use std::env;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use snapferry_base::units::{ByteCount, GuestOffset, to_usize};
use snapferry_engine::image::{ImageSource, LocalImage};
use snapferry_engine::source::aligned::AlignedBuf;
use snapferry_engine::source::{Extent, Source as _};
use snapferry_qcow2::Limits;

/// Bytes of the disk that are read and printed: those with a PC's boot sector.
const FIRST: ByteCount = ByteCount(4096);

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args().nth(1).ok_or("usage: read_image IMAGE")?;
    let file = Arc::new(LocalImage::open(Path::new(&path))?);
    let disk = ImageSource::open(file, &Limits::default())?;
    let header = disk.image().header();
    println!("{path}: {}, clusters of {}, {}", disk.size(), header.cluster, header.compression);

    let (mut at, mut stored) = (0, 0);
    while at < disk.size().0 {
        let (end, is_data) = match disk.extent_at(GuestOffset(at))? {
            Extent::Data { end } => (end.0, true),
            Extent::Hole { end } => (end.0, false),
        };
        stored += if is_data { end - at } else { 0 };
        at = end;
    }
    println!("{} of the disk are stored, the rest is zeros", ByteCount(stored));

    let mut buffer = AlignedBuf::zeroed(to_usize(FIRST.0))?;
    disk.read_at(GuestOffset(0), &mut buffer)?;
    let boots = buffer.get(510..512) == Some(&[0x55, 0xaa]);
    println!("{}", if boots { "its first sector is a boot sector" } else { "no boot sector" });
    Ok(())
}
