//! Writes every image that is broken on purpose into a folder: what the fuzz target `image` begins with.
//!
//! `hostile_images FOLDER`

use std::error::Error;
use std::path::PathBuf;

use snapferry_testkit::hostile;

/// Larger ones teach a fuzzer nothing that the others don't, and cost it time.
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
