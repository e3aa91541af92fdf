//! `snapferry version`: the version, and what the program was built from.

use std::io::Write as _;

use clap::Args as Group;
use serde_json::json;

use super::exit::Code;
use super::print_json;
use super::printable;
use crate::cli::args::OutputArgs;
use crate::cli::error::CommandResult;

/// Version of the program.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Version of ISA-L, which is not in every build.
#[cfg(feature = "isal")]
const ISAL_VERSION: &str = snapferry_isal::VERSION;
#[cfg(not(feature = "isal"))]
const ISAL_VERSION: &str = "";
/// ISA-L, whose version is that of the library itself.
const ISAL: &str = "isa-l";
/// ISA-L, and the packages of the other codecs, each with its own version, which is not always that of the
/// library in it. A version is empty if the build had no lock file.
const LIBRARIES: [(&str, &str); 3] = [
    (ISAL, ISAL_VERSION),
    ("libdeflate-sys", env!("SNAPFERRY_BUILD_LIBDEFLATE")),
    ("zstd-sys", env!("SNAPFERRY_BUILD_ZSTD")),
];
/// Library that does TLS, and the provider of its cryptography.
const TLS: [(&str, &str); 2] =
    [("rustls", env!("SNAPFERRY_BUILD_RUSTLS")), ("ring", env!("SNAPFERRY_BUILD_RING"))];

#[derive(Debug, Group)]
#[command(after_help = "Examples:\n  snapferry version\n  snapferry version --json")]
pub struct VersionArgs {
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Returns the commit that the program was built from, with `-dirty` if the sources differed from it.
fn commit() -> Option<&'static str> {
    Some(env!("SNAPFERRY_BUILD_COMMIT")).filter(|commit| !commit.is_empty())
}

fn features() -> Vec<&'static str> {
    if cfg!(feature = "isal") { vec!["isal"] } else { Vec::new() }
}

fn named([name, version]: [&str; 2]) -> String {
    format!("{name} {}", if version.is_empty() { "of an unknown version" } else { version })
}

/// Returns what `--version` prints after the program's name: the version, and lines about the build.
pub fn long() -> String {
    let libraries: Vec<String> = LIBRARIES
        .into_iter()
        .filter(|&(name, _)| name != ISAL || cfg!(feature = "isal"))
        .map(|(name, version)| named([name, version]))
        .collect();
    let [tls, provider] = TLS.map(|(name, version)| named([name, version]));
    let features = match features().join(", ") {
        none if none.is_empty() => "none".to_owned(),
        some => some,
    };
    format!(
        "{VERSION}\ncommit:    {}\ntarget:    {}\nfeatures:  {features}\nlibraries: {}\nTLS:       {tls} with {provider}",
        commit().unwrap_or("unknown"),
        env!("SNAPFERRY_BUILD_TARGET"),
        libraries.join(", "),
    )
}

pub fn run(args: &VersionArgs) -> CommandResult<Code> {
    if !args.output.json {
        writeln!(printable::out(), "snapferry {}", long())?;
        return Ok(Code::Done);
    }
    let given = |version: &'static str| Some(version).filter(|version| !version.is_empty());
    let [isal, libdeflate, zstd] = LIBRARIES.map(|(_, version)| given(version));
    let [(tls, tls_version), (provider, provider_version)] = TLS;
    print_json(&json!({
        "version": VERSION,
        "commit": commit(),
        "target": env!("SNAPFERRY_BUILD_TARGET"),
        "features": features(),
        "libraries": { "isal": isal, "libdeflate": libdeflate, "zstd": zstd },
        "tls": {
            "library": tls,
            "version": given(tls_version),
            "provider": provider,
            "provider_version": given(provider_version),
        },
    }))?;
    Ok(Code::Done)
}
