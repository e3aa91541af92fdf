//! Questions before a change that can't be undone.
//!
//! A command asks only if stdin and stderr are terminals: otherwise no user is there to answer. `--yes` and
//! SNAPFERRY_YES answer beforehand. Elsewhere a command goes on without asking, except if it could destroy
//! what the user has not named: then it is refused.

use std::io::{IsTerminal as _, Write as _, stdin};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read};
use snapferry_base::cancel::Cancel;

use super::args::ConsentArgs;
use super::error::{CommandResult, UsageError};
use super::printable;
use super::session::Session;

/// Environment variable that answers every question.
const VARIABLE: &str = "SNAPFERRY_YES";
/// Time between two looks whether the user has stopped the command instead of answering.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// Longest answer that is read, in bytes.
const LONGEST: usize = 1024;

/// Question that did not end in a Yes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoConsent {
    /// The user answered No, which is the default, or closed the terminal's input.
    #[error("not confirmed, nothing was changed")]
    No,
    /// The user stopped the command.
    #[error("interrupted, nothing was changed")]
    Interrupted,
}

/// Behaviour of a question where it can't be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unasked {
    /// The command does what it was called for.
    GoOn,
    /// The command is refused, because the user has not named what it destroys.
    Refuse,
}

/// Consent of the user, as far as it was given with the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consent {
    given: bool,
}

impl Consent {
    /// Reads the flag, and without it the environment variable.
    ///
    /// # Errors
    /// If the variable is neither a yes nor a no.
    pub fn of(args: ConsentArgs, session: &Session) -> Result<Self, UsageError> {
        let given = args.yes || answer_in(session.environment.get(VARIABLE))?;
        Ok(Self { given })
    }

    /// Asks the user, and returns once the answer is Yes. `what` is what would be done, to how much.
    ///
    /// # Errors
    /// If the answer is No, the user stops the command, or there is no terminal and the command is refused
    /// then.
    pub fn ask(self, session: &Session, unasked: Unasked, what: &str) -> CommandResult<()> {
        if !self.is_asked(session) {
            return self.require(session, unasked, what);
        }
        write!(printable::err(), "{what}? [y/N] ")?;
        let answer = read_line(&session.cancel)?;
        if answer.is_none() || session.cancel.is_cancelled() {
            writeln!(printable::err())?;
        }
        match answer {
            Some(answer) if is_yes(&answer) => Ok(()),
            _ if session.cancel.is_cancelled() => Err(NoConsent::Interrupted.into()),
            _ => Err(NoConsent::No.into()),
        }
    }

    /// True if the user has not consented, and there is a terminal to ask on.
    pub fn is_asked(self, session: &Session) -> bool {
        !self.given && stdin().is_terminal() && session.console.is_terminal()
    }

    /// Checks that the command need not be refused because the question can't be asked.
    ///
    /// # Errors
    /// If it is refused.
    pub fn require(self, session: &Session, unasked: Unasked, what: &str) -> CommandResult<()> {
        if self.given || unasked == Unasked::GoOn || self.is_asked(session) {
            return Ok(());
        }
        Err(UsageError(format!(
            "{what}? There is no terminal to ask on: give --yes, or look first with --dry-run"
        ))
        .into())
    }
}

/// Returns true if the variable's value is a yes.
fn answer_in(value: Option<&str>) -> Result<bool, UsageError> {
    match value {
        None => Ok(false),
        Some(value) => match value.to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" => Ok(true),
            "0" | "false" | "no" => Ok(false),
            _ => Err(UsageError(format!("{VARIABLE}={value}: give 1 (yes) or 0 (ask)"))),
        },
    }
}

fn is_yes(answer: &[u8]) -> bool {
    let answer = answer.trim_ascii();
    answer.eq_ignore_ascii_case(b"y") || answer.eq_ignore_ascii_case(b"yes")
}

/// Reads a line from stdin. Returns `None` at the end of the input, and once the user has stopped the
/// command: a read that blocks would not notice that.
fn read_line(cancel: &Cancel) -> std::io::Result<Option<Vec<u8>>> {
    let (stdin, mut line) = (stdin(), Vec::new());
    loop {
        if cancel.is_cancelled() {
            return Ok(None);
        }
        match poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&LOOK)) {
            Ok(0) | Err(Errno::INTR) => continue,
            ready => ready?,
        };
        let mut bytes = [0; 256];
        let count = match read(&stdin, &mut bytes) {
            Err(Errno::INTR) => continue,
            // The terminal is gone.
            Err(Errno::IO) => 0,
            count => count?,
        };
        line.extend_from_slice(&bytes[..count]);
        if count == 0 || line.contains(&b'\n') || line.len() >= LONGEST {
            return Ok((!line.is_empty()).then_some(line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_a_yes() {
        for yes in ["y\n", "Y\n", "yes\n", " YES \r\n"] {
            assert!(is_yes(yes.as_bytes()), "{yes:?}");
        }
        for no in ["", "\n", "n\n", "no\n", "yess\n", "y es\n", "ja\n", "1\n"] {
            assert!(!is_yes(no.as_bytes()), "{no:?}");
        }
    }

    #[test]
    fn the_variable_is_a_yes_a_no_or_an_error() {
        assert_eq!((answer_in(None).ok(), answer_in(Some("no")).ok()), (Some(false), Some(false)));
        assert_eq!((answer_in(Some("1")).ok(), answer_in(Some("Yes")).ok()), (Some(true), Some(true)));
        let error = answer_in(Some("ja")).expect_err("neither");
        assert_eq!(error.to_string(), "SNAPFERRY_YES=ja: give 1 (yes) or 0 (ask)");
    }
}
