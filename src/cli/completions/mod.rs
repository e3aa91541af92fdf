//! `snapferry completions`, and the answers to the shells that use its scripts.
//!
//! A script calls the program at each press of TAB, with the shell's name in [`VARIABLE`] and the words of
//! the line after `--`. So a shell knows every option and value that this program has, and names that only
//! the fleet's queue or this machine's journals know.

use std::ffi::OsString;
use std::io::{Write as _, stdout};

use clap::Args as Group;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::Shells;

use super::command::definition;
use super::exit::Code;
use crate::cli::error::CommandResult;

pub mod names;

/// Environment variable with the name of the shell that asks for completions.
pub const VARIABLE: &str = "SNAPFERRY_COMPLETE";
/// Lines at the end of zsh's script. If zsh loads it as a function from `fpath`, its first call is already a
/// request for completions.
const ZSH_AUTOLOADED: &str = r#"
if [[ "${funcstack[1]}" == _snapferry ]]; then
    _clap_dynamic_completer_snapferry "$@"
fi
"#;

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry completions bash > /etc/bash_completion.d/snapferry\n  snapferry completions fish > ~/.config/fish/completions/snapferry.fish"
)]
pub struct CompletionsArgs {
    /// Shell to generate completions for
    #[arg(value_name = "bash|zsh|fish", hide_possible_values = true)]
    pub shell: clap_complete::Shell,
}

/// Prints the script that makes a shell ask this program for completions.
pub fn run(args: &CompletionsArgs) -> CommandResult<Code> {
    stdout().lock().write_all(&script(&args.shell.to_string())?)?;
    Ok(Code::Done)
}

/// Returns the script for a shell.
fn script(shell: &str) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    if let Some(shell) = Shells::builtins().completer(shell) {
        shell.write_registration(VARIABLE, "snapferry", "snapferry", "snapferry", &mut text)?;
    }
    if shell == "zsh" {
        text.extend_from_slice(ZSH_AUTOLOADED.as_bytes());
    }
    Ok(text)
}

/// Answers a shell that asks for completions; returns false if none does. Nothing is printed on stderr,
/// because it would appear in the middle of the user's line.
pub fn answer(typed: &[OsString]) -> bool {
    let Some(shell) = std::env::var_os(VARIABLE) else { return false };
    let shells = Shells::builtins();
    let Some(shell) = shell.to_str().and_then(|name| shells.completer(name)) else { return false };
    let Some(words) = words(typed) else { return false };
    let mut text = Vec::new();
    let folder = std::env::current_dir().ok();
    if shell.write_complete(&mut definition(), words, folder.as_deref(), &mut text).is_ok() {
        // A shell that does not read the answer needs none.
        let _ = stdout().lock().write_all(&text);
    }
    true
}

/// Returns the words of the line that a shell is about to complete, or `None` on an ordinary command line.
fn words(typed: &[OsString]) -> Option<Vec<OsString>> {
    let after = typed.iter().position(|word| word == "--")? + 1;
    Some(typed[after..].to_vec())
}

/// Returns candidates for an option that also takes other values.
pub fn known(values: &[&'static str]) -> Vec<CompletionCandidate> {
    values.iter().map(|&value| CompletionCandidate::new(value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shell_has_a_script_that_calls_the_program() {
        for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
            let text = String::from_utf8(script(shell).expect("a script")).expect("UTF-8");
            assert!(text.contains(VARIABLE) && text.contains("snapferry"), "{shell}: {text}");
        }
    }

    #[test]
    fn words_are_those_after_the_dashes() {
        let typed: Vec<OsString> = ["snapferry", "--", "snapferry", "jobs", ""].map(OsString::from).to_vec();
        assert_eq!(words(&typed), Some(["snapferry", "jobs", ""].map(OsString::from).to_vec()));
        assert_eq!(words(&typed[..1]), None);
    }
}
