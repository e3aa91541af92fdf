//! Notes and examples of a command, taken from the text below its help.

use clap::Command;

/// Start of the examples in a command's help.
const EXAMPLES: &str = "Examples:\n";

/// Text below a command's help, in its two parts.
pub struct Prose {
    /// Everything but the examples; empty if there is no more.
    pub notes: String,
    /// Command lines, one each, without their indent.
    pub examples: Vec<String>,
}

impl Prose {
    /// Splits the text below the help of a command.
    pub fn of(command: &Command) -> Self {
        let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let (before, examples) = text.split_once(EXAMPLES).unwrap_or((&text, ""));
        let (examples, after) = examples.split_once("\n\n").unwrap_or((examples, ""));
        let notes = [before, after].map(str::trim).join(" ").trim().to_owned();
        Self { notes, examples: examples.lines().map(|line| line.trim().to_owned()).collect() }
    }
}
