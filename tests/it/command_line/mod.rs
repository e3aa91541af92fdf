//! The command line as a whole: what all commands have in common.
//!
//! | file | requirement that it checks |
//! |---|---|
//! | `errors` | one look of every error; errors as JSON |
//! | `lists` | an empty list is told |
//! | `options` | every command has the options that all have |
//! | `questions` | questions before what can't be undone, and their answers |
//! | `rehearsals` | `--dry-run` changes nothing |
//! | `snapshots` | texts for people, compared with files |
//! | `widths` | tables and progress fit the terminal |

mod errors;
mod lists;
mod options;
mod questions;
mod rehearsals;
mod snapshots;
mod widths;
