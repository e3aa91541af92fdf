//! The version, short and long.

use crate::support::{run, snapferry};

#[test]
fn the_short_version_is_one_line() {
    let ended = run(snapferry(["-V"])).code(0);
    assert_eq!(ended.out, concat!("snapferry ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn the_long_version_names_the_build() {
    let ended = run(snapferry(["--version"])).code(0);
    let first = ended.out.lines().next();
    assert_eq!(first, Some(concat!("snapferry ", env!("CARGO_PKG_VERSION"))), "scripts read it");
    let ended = ended.says(&[
        "commit: ",
        "target: ",
        "features: ",
        "isa-l 2.",
        "libdeflate-sys 1.",
        "zstd-sys 2.",
        "rustls",
        "ring",
    ]);
    assert_eq!(run(snapferry(["version"])).out, ended.out);
}

#[test]
fn programs_get_the_version_as_json() {
    let version = run(snapferry(["version", "--json"])).json();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(version["tls"]["library"], "rustls");
    assert_eq!(version["tls"]["provider"], "ring");
    let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).unwrap();
    for (package, found) in [
        ("libdeflate-sys", &version["libraries"]["libdeflate"]),
        ("zstd-sys", &version["libraries"]["zstd"]),
        ("rustls", &version["tls"]["version"]),
        ("ring", &version["tls"]["provider_version"]),
    ] {
        let entry = format!("name = \"{package}\"\nversion = \"{}\"\n", found.as_str().unwrap());
        assert!(lock.contains(&entry), "{entry}");
    }
    let target = version["target"].as_str().unwrap();
    assert!(target.starts_with(std::env::consts::ARCH), "{target}");
}

#[test]
fn the_commit_is_that_of_the_repository() {
    let version = run(snapferry(["version", "--json"])).json();
    let git = std::process::Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "cat-file", "-t"])
        .arg(version["commit"].as_str().unwrap_or_default().trim_end_matches("-dirty"))
        .output();
    match git {
        // The program may have been built at an earlier commit than the tests.
        Ok(git) if version["commit"].is_string() => {
            assert_eq!(String::from_utf8_lossy(&git.stdout), "commit\n", "{version}");
        }
        _ => snapferry_testkit::skip::skip("there is no git repository"),
    }
}
