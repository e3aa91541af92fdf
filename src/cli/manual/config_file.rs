//! The page `snapferry-config.toml(5)`, made from the table of settings.

use std::io;

use clap::{Arg, Command};
use clap_mangen::roff::{Roff, bold, roman};

use super::CONFIG_PAGE;
use super::page::{entry, source};
use crate::cli::settings::{SYSTEM_FILE, names, variable_of};

/// Commands whose help describes a setting best: a worker writes to the bucket, and knows both regions.
const FIRST: [&str; 3] = ["worker", "replicate", "convert"];

/// Example of a file.
const EXAMPLE: &str = "trusted_profile = \"default\"
bucket = \"images-us-east\"
region = \"us-east\"
recovery_region = \"us-east\"
redis = \"rediss://10.240.0.4:6380\"";

/// Flag that a setting stands for, and the commands that have it.
struct Flag<'a> {
    arg: &'a Arg,
    commands: Vec<String>,
}

/// Returns the page in roff. `command` must be the whole command line, built.
pub fn page(command: &Command) -> io::Result<Vec<u8>> {
    let mut roff = Roff::new();
    roff.control("TH", [CONFIG_PAGE, "5", "", source().as_str(), "File Formats"]);
    roff.control("SH", ["NAME"]);
    roff.text([roman(format!("{CONFIG_PAGE} - settings of snapferry(1)"))]);
    roff.control("SH", ["DESCRIPTION"]);
    for paragraph in [
        "The file is in the format TOML: one setting a line, a name and a text or a number. A name that is no \
         setting is refused, and so is a secret: the file names the files that hold secrets.",
        "A flag on the command line beats the environment variable of the setting, which beats the user's file, \
         which beats the system's file, which beats the default. The two files are merged, setting by setting. \
         A file that --config or SNAPFERRY_CONFIG names replaces both.",
        "An API key or a trusted profile replaces other credentials that were given with less authority.",
    ] {
        roff.control("PP", []);
        roff.text([roman(paragraph)]);
    }
    roff.control("SH", ["SETTINGS"]);
    for name in names() {
        let Some(flag) = flag(command, name) else { continue };
        describe(&mut roff, name, &flag);
    }
    roff.control("SH", ["EXAMPLES"]);
    roff.control("nf", []);
    for line in EXAMPLE.lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff.control("SH", ["FILES"]);
    entry(&mut roff, SYSTEM_FILE, "The system's file.");
    entry(
        &mut roff,
        "~/.config/snapferry/config.toml",
        "The user's file; in $XDG_CONFIG_HOME if that is set.",
    );
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman("snapferry(1), snapferry-config-show(1), which prints every setting with its origin")]);
    let mut text = Vec::new();
    roff.to_writer(&mut text)?;
    Ok(text)
}

fn describe(roff: &mut Roff, name: &str, flag: &Flag<'_>) {
    roff.control("TP", []);
    roff.text([bold(name)]);
    let help = flag.arg.get_help().map(ToString::to_string).unwrap_or_default();
    let default = flag.arg.get_default_values().first().map(|value| value.to_string_lossy());
    let default = default.filter(|value| !value.is_empty());
    let default = default.map(|value| format!(" [default: {value}]")).unwrap_or_default();
    roff.text([roman(format!("{help}{default}"))]);
    roff.control("RS", []);
    let option = flag.arg.get_long().unwrap_or(name);
    let variable = variable_of(&flag.commands[0], name).unwrap_or_default();
    roff.text([roman(format!("Option --{option}, variable {variable}."))]);
    // The names of some commands say little alone: `add` of schedules.
    roff.text([roman(format!("Commands: {}.", flag.commands.join(", ")))]);
    roff.control("RE", []);
}

/// Finds the flag of a setting, and the commands that it is for.
fn flag<'a>(command: &'a Command, name: &str) -> Option<Flag<'a>> {
    let mut found = Vec::new();
    collect(command, name, &mut found);
    let best = FIRST.iter().find_map(|first| found.iter().find(|(command, _)| command.get_name() == *first));
    let arg = best.or(found.first())?.1;
    let commands = found.iter().map(|(command, _)| {
        let full = command.get_bin_name().unwrap_or_else(|| command.get_name());
        full.strip_prefix("snapferry ").unwrap_or(full).to_owned()
    });
    Some(Flag { arg, commands: commands.collect() })
}

/// Collects the commands that a setting is for, each with its flag.
fn collect<'a>(command: &'a Command, name: &str, found: &mut Vec<(&'a Command, &'a Arg)>) {
    if variable_of(command.get_name(), name).is_some() {
        found.extend(command.get_arguments().find(|arg| arg.get_id() == name).map(|arg| (command, arg)));
    }
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        collect(below, name, found);
    }
}
