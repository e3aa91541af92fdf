//! Colours: one choice for help, messages, log lines and the progress bar.

use std::ffi::OsString;
use std::io::{IsTerminal as _, stderr, stdout};

use clap::{ColorChoice, ValueEnum};

use super::environment::Environment;

/// The user's choice, by `--color`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ColourChoice {
    /// On a terminal, unless the environment forbids it
    #[default]
    Auto,
    Always,
    Never,
}

impl ColourChoice {
    /// Finds the choice on a command line that was not parsed yet. A value that is none is left to the
    /// parser, which refuses it.
    pub fn of_command_line(typed: &[OsString]) -> Self {
        let mut words = typed.iter().skip(1).take_while(|word| *word != "--");
        let mut choice = Self::default();
        while let Some(word) = words.next() {
            let value = match word.to_str() {
                Some("--color") => words.next().and_then(|word| word.to_str()),
                Some(word) => word.strip_prefix("--color="),
                None => None,
            };
            choice = value.and_then(|value| Self::from_str(value, false).ok()).unwrap_or(choice);
        }
        choice
    }

    /// Makes the choice that of everything that prints. clap decides by the same variables if the choice is
    /// [`ColourChoice::Auto`].
    pub fn apply(self, environment: &Environment) {
        console::set_colors_enabled(self.is_on(environment, stdout().is_terminal()));
        console::set_colors_enabled_stderr(self.is_on(environment, stderr().is_terminal()));
    }

    /// Returns whether output is coloured: by the choice, then by `NO_COLOR` (<https://no-color.org>), then
    /// by `CLICOLOR_FORCE` and `CLICOLOR` (<https://bixense.com/clicolors>), and otherwise on a terminal that
    /// knows colours.
    fn is_on(self, environment: &Environment, terminal: bool) -> bool {
        let is_set = |name| environment.get(name).is_some_and(|value| value != "0");
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto if environment.get("NO_COLOR").is_some() => false,
            Self::Auto if is_set("CLICOLOR_FORCE") => true,
            Self::Auto if environment.get("CLICOLOR") == Some("0") => false,
            Self::Auto => terminal && environment.get("TERM").is_some_and(|term| term != "dumb"),
        }
    }
}

impl From<ColourChoice> for ColorChoice {
    fn from(choice: ColourChoice) -> Self {
        match choice {
            ColourChoice::Auto => Self::Auto,
            ColourChoice::Always => Self::Always,
            ColourChoice::Never => Self::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_on(choice: ColourChoice, variables: &[(&str, &str)], terminal: bool) -> bool {
        let term = [("TERM", "xterm")];
        choice.is_on(&Environment::from_pairs(&[&term, variables].concat()), terminal)
    }

    #[test]
    fn a_terminal_has_colours_and_a_file_has_none() {
        assert!(is_on(ColourChoice::Auto, &[], true));
        assert!(!is_on(ColourChoice::Auto, &[], false));
    }

    #[test]
    fn the_environment_forbids_colours() {
        assert!(!is_on(ColourChoice::Auto, &[("NO_COLOR", "1")], true));
        assert!(!is_on(ColourChoice::Auto, &[("CLICOLOR", "0")], true));
        assert!(!is_on(ColourChoice::Auto, &[("TERM", "dumb")], true));
        assert!(is_on(ColourChoice::Auto, &[("NO_COLOR", "")], true), "an empty variable forbids nothing");
    }

    #[test]
    fn the_environment_forces_colours_unless_it_forbids_them() {
        assert!(is_on(ColourChoice::Auto, &[("CLICOLOR_FORCE", "1")], false));
        assert!(!is_on(ColourChoice::Auto, &[("CLICOLOR_FORCE", "0")], false));
        assert!(!is_on(ColourChoice::Auto, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], true));
    }

    #[test]
    fn the_option_beats_the_environment() {
        assert!(is_on(ColourChoice::Always, &[("NO_COLOR", "1")], false));
        assert!(!is_on(ColourChoice::Never, &[("CLICOLOR_FORCE", "1")], true));
    }

    #[test]
    fn the_option_is_found_anywhere_before_the_dashes() {
        let of = |line: &str| {
            ColourChoice::of_command_line(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
        };
        assert_eq!(of("snapferry --color never info --json"), ColourChoice::Never);
        assert_eq!(of("snapferry info --color=always"), ColourChoice::Always);
        assert_eq!(of("snapferry info -- --color=always"), ColourChoice::Auto);
        assert_eq!(of("snapferry info --color blue"), ColourChoice::Auto);
        assert_eq!(of("snapferry info --color"), ColourChoice::Auto);
    }
}
