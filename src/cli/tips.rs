//! Tips of clap's errors that are left out, because they would lead the user astray.

use clap::error::{ContextKind, ContextValue};

/// Removes the tip to type `--` before an option that the command does not have: the option would then be
/// taken for a server, an image or a file.
pub fn without_those_that_mislead(mut error: clap::Error) -> clap::Error {
    let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg) else { return error };
    let as_value = format!("-- {option}");
    if let Some(ContextValue::StyledStrs(tips)) = error.get(ContextKind::Suggested) {
        let kept: Vec<_> = tips.iter().filter(|tip| !tip.to_string().contains(&as_value)).cloned().collect();
        error.remove(ContextKind::Suggested);
        if !kept.is_empty() {
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(kept));
        }
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::command::definition;

    fn refused(line: &str) -> String {
        let error = definition().try_get_matches_from(line.split(' ')).expect_err("refused");
        without_those_that_mislead(error).to_string()
    }

    #[test]
    fn an_unknown_option_is_not_offered_as_a_value() {
        let plain = definition().try_get_matches_from(["snapferry", "jobs", "show", "--frobnicate"]);
        assert!(plain.expect_err("refused").to_string().contains("'-- --frobnicate'"), "clap has the tip");
        let error = refused("snapferry jobs show --frobnicate");
        assert!(error.contains("unexpected argument '--frobnicate'") && !error.contains("'-- "), "{error}");
    }

    #[test]
    fn a_similar_option_is_offered() {
        assert!(refused("snapferry info a --jsn").contains("a similar argument exists: '--json'"));
    }

    #[test]
    fn a_similar_command_is_offered() {
        assert!(refused("snapferry imags").contains("'image'"), "{}", refused("snapferry imags"));
        assert!(refused("snapferry jobs lst").contains("'list'"));
    }
}
