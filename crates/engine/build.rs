//! Passes on the version of libdeflate, which its library has no function for: the manifest names it, because
//! another version may give other bytes.
#![allow(clippy::print_stdout, reason = "cargo reads the output of a build script")]

use std::path::PathBuf;

fn main() -> Result<(), String> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=DEP_LIBDEFLATE_INCLUDE");
    let folder = std::env::var_os("DEP_LIBDEFLATE_INCLUDE")
        .ok_or("libdeflate-sys gave no folder of headers: it must build libdeflate, not link the system's")?;
    let header = PathBuf::from(folder).join("libdeflate.h");
    let text = std::fs::read_to_string(&header).map_err(|err| format!("{}: {err}", header.display()))?;
    let version = text
        .split_once("#define LIBDEFLATE_VERSION_STRING")
        .and_then(|(_, rest)| rest.split('"').nth(1))
        .ok_or_else(|| format!("{}: no LIBDEFLATE_VERSION_STRING", header.display()))?;
    println!("cargo:rustc-env=SNAPFERRY_LIBDEFLATE_VERSION={version}");
    Ok(())
}
