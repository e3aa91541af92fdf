//! Choices that have names on command lines.

/// A name that none of the choices has.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{typed:?} is none of {choices}")]
pub struct UnknownNameError {
    /// Text as the user typed it.
    pub typed: String,
    /// Names of all choices.
    pub choices: &'static str,
}
