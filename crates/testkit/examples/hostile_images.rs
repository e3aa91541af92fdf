//! Writes every intentionally broken image into a folder, as the seed corpus of the fuzz target `image`.
//!
//! `hostile_images FOLDER`

use std::error::Error;
use std::path::PathBuf;

use snapferry_testkit::hostile;

/// Longest image that is written, in bytes. Larger ones cost a fuzzer time and cover nothing more.
const LONGEST: usize = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: hostile_images FOLDER")?);
    std::fs::create_dir_all(&folder)?;
    for (number, image) in
        hostile::all().into_iter().enumerate().filter(|(_, image)| image.bytes.len() <= LONGEST)
    {
        std::fs::write(folder.join(format!("hostile-{number:03}")), image.bytes)?;
    }
    Ok(())
}
