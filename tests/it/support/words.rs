//! The commands of the program, as its own help lists them.

use super::{run, snapferry};

/// A command, and its help.
#[derive(Clone, Debug)]
pub struct Described {
    /// Words that name it: `["jobs", "list"]`; none for the program itself.
    pub words: Vec<String>,
    pub help: String,
}

impl Described {
    /// The command as a user types it, without the program's name.
    pub fn name(&self) -> String {
        self.words.join(" ")
    }

    /// Names of the commands below this one: they begin the lines that are indented by two blanks. Options
    /// and values begin with other characters there, and examples with the program's name.
    fn below(&self) -> Vec<String> {
        let lines = self.help.lines().skip_while(|line| !line.starts_with("Usage:"));
        let indented = lines.filter_map(|line| line.strip_prefix("  "));
        let names = indented.filter_map(|line| line.split(' ').next()).filter(|name| {
            name.starts_with(|c: char| c.is_ascii_lowercase())
                && name.chars().all(|c| c.is_ascii_lowercase() || c == '-')
        });
        names.filter(|name| !["help", "snapferry"].contains(name)).map(str::to_owned).collect()
    }

    /// True if the command has an option of this name. An option begins its line, which is indented by at
    /// most six blanks, and a text that only mentions it stands further to the right.
    pub fn has(&self, option: &str) -> bool {
        self.help.lines().any(|line| {
            let indent = line.len() - line.trim_start().len();
            let mut words = line.split([' ', ',', '=', '[']).filter(|word| !word.is_empty());
            (1..=6).contains(&indent)
                && line.trim_start().starts_with('-')
                && words.find(|word| word.starts_with("--")) == Some(option)
        })
    }

    /// True if the command does something itself, and is no mere group of others.
    pub fn acts(&self) -> bool {
        self.below().is_empty()
    }
}

fn describe(words: Vec<String>) -> Vec<Described> {
    let help = run(snapferry(words.iter().map(String::as_str).chain(["--help"])));
    let own = Described { words, help: help.out };
    let below: Vec<Described> = own
        .below()
        .into_iter()
        // The drop-in has QEMU's own help.
        .filter(|name| name != "qemu-img")
        .flat_map(|name| describe(own.words.iter().cloned().chain([name]).collect()))
        .collect();
    [own].into_iter().chain(below).collect()
}

/// All commands of the program but the drop-in for qemu-img.
pub fn all_commands() -> Vec<Described> {
    let all = describe(Vec::new());
    assert!(all.len() > 40, "{} commands were found", all.len());
    all
}
