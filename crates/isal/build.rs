//! Assembles ISA-L's files with nasm.
#![allow(clippy::print_stdout, reason = "cargo reads the output of a build script")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Sources, which include the other files of the folder.
const SOURCES: [&str; 4] =
    ["igzip_icf_body_h1_gr_bt.asm", "igzip_icf_finish.asm", "encode_df_04.asm", "encode_df_06.asm"];
/// Folder of the sources, in the package.
const FOLDER: &str = "asm";
/// Put before each name of a function, so that another ISA-L in the same program is no conflict.
const PREFIX: &str = "snapferry_";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={FOLDER}");
    println!("cargo:rerun-if-env-changed=NASM");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("x86_64") {
        return;
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    let mut archive = cc::Build::new();
    for source in SOURCES {
        let object = out.join(Path::new(source).with_extension("o"));
        assemble(source, &object);
        archive.object(object);
    }
    archive.compile("snapferry_isal");
}

/// Assembles one source. nasm runs in the folder of the sources, so that the object has no absolute path.
fn assemble(source: &str, object: &Path) {
    let nasm = std::env::var_os("NASM").unwrap_or_else(|| "nasm".into());
    let ended = Command::new(&nasm)
        .current_dir(FOLDER)
        .args(["-f", "elf64", "--prefix", PREFIX, "-DPIC", "-DHAVE_AS_KNOWS_AVX512"])
        .args(["-DAS_FEATURE_LEVEL=10", source, "-o"])
        .arg(object)
        .output();
    let reason = match ended {
        Ok(ended) if ended.status.success() => return,
        Ok(ended) => format!("{}: {}", ended.status, String::from_utf8_lossy(&ended.stderr).trim()),
        Err(err) => err.to_string(),
    };
    panic!(
        "{source} can't be assembled by {}: {reason}. Install nasm 2.14 or later (Debian, Ubuntu: apt-get install \
         nasm), or build with --no-default-features, without ISA-L",
        nasm.display()
    );
}
