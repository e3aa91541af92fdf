//! Output of foreign text: names from the queue, images, stores and the cloud may hold any character.
//!
//! A terminal obeys control characters, and marks of direction change the order of the text that it shows. So
//! everything that is printed goes through [`out`] or [`out_as`], or one of the functions here: a character
//! that a terminal would obey is shown as `\u{1b}`, like Rust's own escapes. An attacker who chooses a name
//! can then neither change the screen nor add a line to it. The drop-in `qemu-img` prints as QEMU does, which
//! shows such bytes as they are.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, StderrLock, StdoutLock, Write, stderr, stdout};

use console::Term;
use unicode_width::UnicodeWidthStr as _;

/// Most characters that one value is shown with: an S3 key in full, and no more.
pub const LONGEST_SHOWN: usize = 1024;
/// Mark in place of the rest of a longer value.
const ELLIPSIS: char = '…';

/// True if a terminal obeys a character, shows its neighbours in another order because of it, or shows
/// nothing at all for it.
fn affects_terminal(c: char) -> bool {
    c.is_control()
        // Unicode's line and paragraph separators, its marks of direction (UAX #9), and characters without a
        // shape.
        || matches!(c,
            '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

fn escaped(text: &str, is_kept: impl Fn(char) -> bool, escape: impl Fn(char, &mut String)) -> Cow<'_, str> {
    let must_escape = |c: char| affects_terminal(c) && !is_kept(c);
    if !text.contains(must_escape) {
        return Cow::Borrowed(text);
    }
    let mut output = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if must_escape(c) { escape(c, &mut output) } else { output.push(c) }
    }
    Cow::Owned(output)
}

fn escape_rust(c: char, to: &mut String) {
    to.extend(c.escape_debug());
    // Rust takes some characters for printable although a terminal obeys them.
    if to.ends_with(c) {
        to.pop();
        to.extend(c.escape_unicode());
    }
}

/// Escapes text, so that it stays on one line.
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false, escape_rust)
}

/// Escapes text of several lines; the line breaks must come from the caller.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c == '\n', escape_rust)
}

/// Escapes text on one line, after cutting it to `max_chars` characters.
pub fn cut(text: &str, max_chars: usize) -> Cow<'_, str> {
    match text.char_indices().nth(max_chars) {
        None => line(text),
        Some(_) => {
            let kept: String = text.chars().take(max_chars.saturating_sub(1)).chain([ELLIPSIS]).collect();
            Cow::Owned(line(&kept).into_owned())
        }
    }
}

/// Escapes JSON: characters that a terminal would obey become JSON's own escapes, which are the same value to
/// any reader. Such characters stand in strings alone, and those that JSON forbids there are escaped already.
fn json(text: &str) -> Cow<'_, str> {
    let is_layout = |c| matches!(c, '\n' | '\r' | '\t');
    escaped(text, is_layout, |c, to| {
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing to a string can't fail.
            let _ = write!(to, "\\u{unit:04x}");
        }
    })
}

/// Returns the number of columns that a text takes on a terminal.
pub fn columns(text: &str) -> usize {
    text.width()
}

/// Returns a text of at most `most` columns: the text itself, or as much of it as fits before an ellipsis.
pub fn fitted(text: &str, most: usize) -> Cow<'_, str> {
    if columns(text) <= most {
        return Cow::Borrowed(text);
    }
    let Some(room) = most.checked_sub(1) else { return Cow::Borrowed("") };
    // The width of a sequence such as an emoji's is not the sum of its characters' widths.
    let fits = |end: &usize| columns(&text[..*end]) <= room;
    let end = text.char_indices().map(|(at, _)| at).take_while(fits).last().unwrap_or(0);
    Cow::Owned(format!("{}{ELLIPSIS}", &text[..end]))
}

/// Returns the width of the terminal that stdout is, in columns. None if it is no terminal, or the terminal
/// does not report its size.
pub fn terminal_width() -> Option<usize> {
    Term::stdout().size_checked().map(|(_rows, columns)| usize::from(columns))
}

/// Returns the width of the terminal that stderr is, as [`terminal_width`] does.
pub fn error_width() -> Option<usize> {
    Term::stderr().size_checked().map(|(_rows, columns)| usize::from(columns))
}

/// Pads a text with blanks on the right, up to `width` columns.
pub fn padded(text: &str, width: usize) -> String {
    let mut padded = text.to_owned();
    padded.extend(std::iter::repeat_n(' ', width.saturating_sub(columns(text))));
    padded
}

/// Returns stdout for text: every character that a terminal would obey is escaped, except line breaks and
/// tabs.
pub fn out() -> Shown<StdoutLock<'static>> {
    Shown { to: stdout().lock(), form: Form::Text }
}

/// Returns stdout for text or JSON, each with its own escapes.
pub fn out_as(form: Form) -> Shown<StdoutLock<'static>> {
    Shown { to: stdout().lock(), form }
}

/// Returns stderr for text, escaped as by [`out`].
pub fn err() -> Shown<StderrLock<'static>> {
    Shown { to: stderr().lock(), form: Form::Text }
}

/// Form of output, which decides how it is escaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Text,
    Json,
}

impl Form {
    /// Returns the form that `--json` selects.
    pub fn of(json: bool) -> Self {
        if json { Self::Json } else { Self::Text }
    }
}

/// Writer that escapes every character that a terminal would obey.
pub struct Shown<W> {
    pub to: W,
    pub form: Form,
}

impl<W: Write> Write for Shown<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A formatted text arrives in whole characters, so invalid UTF-8 is not half a character.
        let text = String::from_utf8_lossy(bytes);
        let output = match self.form {
            Form::Text => escaped(&text, |c| matches!(c, '\n' | '\t'), escape_rust),
            Form::Json => json(&text),
        };
        self.to.write_all(output.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "x\u{1b}]0;pwned\u{7}\u{9b}2J\r\n\u{202e}gnp.exe\u{2028}y";

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        let expected = r"x\u{1b}]0;pwned\u{7}\u{9b}2J\r\n\u{202e}gnp.exe\u{2028}y";
        assert_eq!(line(HOSTILE), expected);
        assert_eq!(lines("a\nb\u{1b}"), "a\nb\\u{1b}");
        let mut written = Vec::new();
        Shown { to: &mut written, form: Form::Text }.write_all(HOSTILE.as_bytes()).expect("written");
        assert_eq!(written, expected.replace(r"\n", "\n").as_bytes());
        for c in (0..=0x10ffff).filter_map(char::from_u32) {
            let one = c.to_string();
            assert!(!line(&one).contains(affects_terminal), "{c:?}");
        }
    }

    #[test]
    fn names_of_any_script_stay_as_they_are() {
        for name in ["web01", "Datenbank-süd", "サーバー", "сервер", "👩‍💻", r"C:\disks"] {
            assert!(matches!(line(name), Cow::Borrowed(same) if same == name));
        }
    }

    #[test]
    fn json_stays_the_same_value() {
        let value = serde_json::json!({ "name": HOSTILE, "tag": "\u{e0041}" });
        for text in [value.to_string(), serde_json::to_string_pretty(&value).expect("JSON")] {
            let output = json(&text);
            assert!(!output.contains(|c| affects_terminal(c) && c != '\n'), "{output}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&output).expect("JSON"), value);
        }
    }

    #[test]
    fn what_is_too_long_is_cut_by_characters_and_by_columns() {
        assert_eq!((cut("süden", 5), cut("süden", 4)), ("süden".into(), "süd…".into()));
        assert_eq!(cut("\u{1b}\u{1b}", 2), r"\u{1b}\u{1b}");
        assert_eq!((columns("サーバー"), padded("サー", 6).as_str()), (8, "サー  "));
        assert_eq!(padded(&"a".repeat(70_000), 3).len(), 70_000);
        assert_eq!((fitted("süden", 5), fitted("süden", 4)), ("süden".into(), "süd…".into()));
        // Half a character of two columns is none.
        assert_eq!([4, 3, 2, 1, 0].map(|most| fitted("サーバ", most)), ["サ…", "サ…", "…", "…", ""]);
    }
}
