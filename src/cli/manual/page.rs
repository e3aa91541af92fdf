//! The page of a command.

use std::io;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::prose::Prose;
use super::{CONFIG_PAGE, name, tables};
use crate::cli::command::GROUPS;
use crate::cli::settings::{SYSTEM_FILE, variable_of};

/// Title of the manual that the pages belong to.
const MANUAL: &str = "snapferry Manual";

/// Returns the page of a command in roff.
pub fn page(command: &Command) -> io::Result<Vec<u8>> {
    // A page's name is one word; its synopsis shows what the user types.
    let man = Man::new(command.clone().name(name(command))).section("1").manual(MANUAL).source(source());
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if is_whole(command) {
        groups(command).to_writer(&mut text)?;
    } else if command.get_subcommands().any(|below| below.get_name() != "help") {
        man.render_subcommands_section(&mut text)?;
    }
    let mut rest = Roff::new();
    notes_and_examples(&mut rest, command);
    exit_status(&mut rest, command);
    environment(&mut rest, command);
    files(&mut rest, command);
    see_also(&mut rest, command);
    rest.to_writer(&mut text)?;
    Ok(text)
}

/// Returns the program's name and version, for the foot of a page.
pub fn source() -> String {
    format!("snapferry {}", env!("CARGO_PKG_VERSION"))
}

/// True for the page of the program as a whole.
fn is_whole(command: &Command) -> bool {
    name(command) == "snapferry"
}

/// Adds a term and its description.
pub fn entry(roff: &mut Roff, term: &str, about: &str) {
    roff.control("TP", []);
    roff.text([bold(term)]);
    roff.text([roman(about)]);
}

/// Returns the lists of commands, one for each group.
fn groups(command: &Command) -> Roff {
    let mut roff = Roff::new();
    for (group, names) in GROUPS {
        roff.control("SH", [format!("COMMANDS: {}", group.to_uppercase()).as_str()]);
        for below in names.iter().filter_map(|name| command.find_subcommand(name)) {
            let about = below.get_about().map(ToString::to_string).unwrap_or_default();
            entry(&mut roff, &format!("{}(1)", name(below)), &about);
        }
    }
    roff
}

/// Adds the text below a command's help: its examples, and notes.
fn notes_and_examples(roff: &mut Roff, command: &Command) {
    let prose = Prose::of(command);
    if !prose.notes.is_empty() {
        roff.control("SH", ["NOTES"]);
        roff.text([roman(prose.notes)]);
    }
    if !prose.examples.is_empty() {
        roff.control("SH", ["EXAMPLES"]);
        roff.control("nf", []);
        for line in prose.examples {
            roff.text([roman(line)]);
        }
        roff.control("fi", []);
    }
}

fn exit_status(roff: &mut Roff, command: &Command) {
    roff.control("SH", ["EXIT STATUS"]);
    if command.get_name() == "qemu-img" {
        roff.text([roman("As QEMU's tool: 0, or 1 after an error; check and compare have further codes.")]);
        return;
    }
    for (code, meaning) in tables::EXIT_CODES {
        entry(roff, &(code as u8).to_string(), meaning);
    }
    roff.control("PP", []);
    roff.text([roman("A later version may add codes; a program should take an unknown one for a failure.")]);
}

fn environment(roff: &mut Roff, command: &Command) {
    roff.control("SH", ["ENVIRONMENT"]);
    let has = |id: &str| command.get_arguments().any(|arg| arg.get_id() == id);
    for arg in command.get_arguments() {
        let variable = variable_of(command.get_name(), arg.get_id().as_str());
        if let (Some(variable), Some(flag)) = (variable, arg.get_long()) {
            entry(roff, &variable, &format!("Used if --{flag} is not given."));
        }
    }
    for variable in &tables::VARIABLES {
        let concerns = variable.flag.is_none_or(has);
        if concerns || is_whole(command) {
            entry(roff, variable.name, variable.about);
        }
    }
    if is_whole(command) {
        roff.control("PP", []);
        let rest = format!("Each setting has a variable too: {CONFIG_PAGE}(5) lists them.");
        roff.text([roman(rest)]);
    }
}

fn files(roff: &mut Roff, command: &Command) {
    roff.control("SH", ["FILES"]);
    let has = |id: &str| command.get_arguments().any(|arg| arg.get_id() == id);
    entry(roff, SYSTEM_FILE, &format!("Settings of the system; see {CONFIG_PAGE}(5)."));
    entry(
        roff,
        "~/.config/snapferry/config.toml",
        "Settings of the user, which replace those of the system; in $XDG_CONFIG_HOME if that is set.",
    );
    for file in &tables::FILES {
        if has(file.flag) || is_whole(command) {
            entry(roff, file.path, file.about);
        }
    }
}

fn see_also(roff: &mut Roff, command: &Command) {
    let name = name(command);
    let above = name.rsplit_once('-').map_or("", |(above, _)| above);
    let mut pages = vec!["snapferry".to_owned()];
    // The page of `snapferry jobs` is above that of `snapferry jobs list`.
    let is_nested = command.get_bin_name().is_some_and(|name| name.split(' ').count() > 2);
    pages.extend(is_nested.then(|| above.to_owned()));
    pages.retain(|page| *page != name);
    let mut all: Vec<String> = pages.iter().map(|page| format!("{page}(1)")).collect();
    all.push(format!("{CONFIG_PAGE}(5)"));
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(all.join(", "))]);
}
