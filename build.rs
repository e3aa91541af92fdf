//! Passes on what `snapferry version` prints and only the build knows: the commit, the target, and the
//! versions of the libraries that are built in.
//!
//! All of it is the same for each build of a commit for a target: no time, no path, no name of a machine.
#![allow(clippy::print_stdout, reason = "cargo reads the output of a build script")]

use std::path::Path;
use std::process::Command;

/// Packages whose version is passed on, with the name of the variable that holds it.
const LIBRARIES: [(&str, &str); 4] = [
    ("libdeflate-sys", "SNAPFERRY_BUILD_LIBDEFLATE"),
    ("zstd-sys", "SNAPFERRY_BUILD_ZSTD"),
    ("rustls", "SNAPFERRY_BUILD_RUSTLS"),
    ("ring", "SNAPFERRY_BUILD_RING"),
];
/// Sources of the program. A change in one of them may be a change against the commit.
const SOURCES: [&str; 8] = [
    "src",
    "crates/base",
    "crates/engine",
    "crates/fleet",
    "crates/ibmcloud",
    "crates/isal",
    "crates/qcow2",
    "crates/s3",
];
/// Characters of a commit that are shown: enough to be unique in any repository.
const SHOWN: usize = 12;

fn main() {
    for path in ["build.rs", "Cargo.lock"].iter().chain(&SOURCES) {
        println!("cargo:rerun-if-changed={path}");
    }
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let root = Path::new(&root);
    let commit = commit_of_package(root).or_else(|| commit_of_repository(root));
    println!("cargo:rustc-env=SNAPFERRY_BUILD_COMMIT={}", commit.unwrap_or_default());
    println!("cargo:rustc-env=SNAPFERRY_BUILD_TARGET={}", std::env::var("TARGET").unwrap_or_default());
    let lock = std::fs::read_to_string(root.join("Cargo.lock")).unwrap_or_default();
    for (package, variable) in LIBRARIES {
        println!("cargo:rustc-env={variable}={}", version(&lock, package).unwrap_or_default());
    }
}

/// Returns the commit that cargo has written into a package.
fn commit_of_package(root: &Path) -> Option<String> {
    let text = std::fs::read_to_string(root.join(".cargo_vcs_info.json")).ok()?;
    let commit = text.split_once("\"sha1\"")?.1.split('"').nth(1)?;
    Some(commit.chars().take(SHOWN).collect())
}

/// Returns the commit of the repository, with `-dirty` if a file differs from it. The repository must be that
/// of the program: a package may have been unpacked inside of another one.
fn commit_of_repository(root: &Path) -> Option<String> {
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != root.canonicalize().ok()? {
        return None;
    }
    // Each commit and each checkout changes one of them.
    for name in ["HEAD", "logs/HEAD"] {
        println!("cargo:rerun-if-changed={}", git(&["rev-parse", "--git-path", name])?);
    }
    let commit = git(&["rev-parse", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    let mark = if changed.is_empty() { "" } else { "-dirty" };
    Some(format!("{}{mark}", commit.get(..SHOWN)?))
}

/// Returns the version of a package in a lock file.
fn version(lock: &str, package: &str) -> Option<String> {
    let (_, rest) = lock.split_once(&format!("name = \"{package}\"\nversion = \""))?;
    Some(rest.split('"').next()?.to_owned())
}
