//! Text that must not be printed or logged.

use std::fmt;

/// A key, password or token. `Debug` and `Display` print asterisks. Only [`Secret::reveal`] returns the text;
/// it is called right before the text is sent.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`, without the white space that texts from files and environment variables often have at
    /// their ends.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.trim().to_owned())
    }

    /// Returns the secret text.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// True if the text is empty, as in a credentials file that the user has not filled in yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_way_of_printing_shows_the_text() {
        let secret = Secret::new(" hunter2\n");
        assert_eq!(secret.reveal(), "hunter2");
        for printed in [format!("{secret}"), format!("{secret:?}"), format!("{:#?}", Some(&secret))] {
            assert!(!printed.contains("hunter2"), "{printed}");
        }
    }
}
