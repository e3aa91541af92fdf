//! Options as getopt_long(3) reads them, because QEMU's callers write them so: `-cpW`, `-Oqcow2`, `-O qcow2`,
//! `--output=json`, `--output json`, long names cut short, and options anywhere between the names of files.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

/// Value that follows an option: none or one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    Nothing,
    Value,
}

/// Option that a subcommand knows.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    pub short: Option<u8>,
    pub long: Option<&'static str>,
    pub takes: Takes,
}

/// Returns an option without a value, with a letter and perhaps a name.
pub const fn flag(short: u8, long: Option<&'static str>) -> Known {
    Known { short: Some(short), long, takes: Takes::Nothing }
}

/// Returns an option with a value, with a letter and perhaps a name.
pub const fn value(short: u8, long: Option<&'static str>) -> Known {
    Known { short: Some(short), long, takes: Takes::Value }
}

/// Returns an option that has a name only.
pub const fn long(long: &'static str, takes: Takes) -> Known {
    Known { short: None, long: Some(long), takes }
}

/// Parsed arguments, in order. Each option is kept under its name, or under its letter if it has no name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Typed {
    pub options: Vec<(String, OsString)>,
    pub operands: Vec<OsString>,
}

impl Typed {
    /// Returns the last value of an option.
    pub fn last(&self, name: &str) -> Option<&OsStr> {
        self.options.iter().rev().find(|(found, _)| found == name).map(|(_, value)| value.as_os_str())
    }

    /// Returns all values of an option, in order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a OsStr> + 'a {
        self.options.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_os_str())
    }

    pub fn has(&self, name: &str) -> bool {
        self.last(name).is_some()
    }

    /// Returns the first of these options that was given.
    pub fn first_of(&self, names: &[&'static str]) -> Option<&'static str> {
        self.options.iter().find_map(|(found, _)| names.iter().copied().find(|name| name == found))
    }
}

/// Returns the name that an option is kept under.
fn key_of(known: &Known) -> String {
    match (known.long, known.short) {
        (Some(long), _) => long.to_owned(),
        (None, Some(short)) => char::from(short).to_string(),
        (None, None) => String::new(),
    }
}

/// Parses `args`. Errors have the wording of getopt.
pub fn parse(args: &[OsString], known: &[Known]) -> Result<Typed, String> {
    let mut typed = Typed::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let bytes = arg.as_bytes();
        if bytes == b"--" {
            typed.operands.extend(args.by_ref().cloned());
        } else if let Some(rest) = bytes.strip_prefix(b"--") {
            let (name, inline) = match rest.iter().position(|&byte| byte == b'=') {
                Some(at) => (&rest[..at], Some(OsString::from_vec(rest[at + 1..].to_vec()))),
                None => (rest, None),
            };
            let name = String::from_utf8_lossy(name);
            let option = find_long(&name, known)?;
            let value = match (option.takes, inline) {
                (Takes::Nothing, None) => OsString::new(),
                (Takes::Nothing, Some(_)) => {
                    return Err(format!("option '--{name}' doesn't allow an argument"));
                }
                (Takes::Value, Some(value)) => value,
                (Takes::Value, None) => {
                    args.next().cloned().ok_or_else(|| format!("option '--{name}' requires an argument"))?
                }
            };
            typed.options.push((key_of(option), value));
        } else if bytes.len() > 1 && bytes[0] == b'-' {
            let mut rest = &bytes[1..];
            while let Some((&letter, after)) = rest.split_first() {
                let shown = char::from(letter);
                let option = known.iter().find(|option| option.short == Some(letter));
                let option = option.ok_or_else(|| format!("invalid option -- '{shown}'"))?;
                rest = after;
                let value = match option.takes {
                    Takes::Nothing => OsString::new(),
                    Takes::Value if !after.is_empty() => {
                        OsString::from_vec(std::mem::take(&mut rest).to_vec())
                    }
                    Takes::Value => args
                        .next()
                        .cloned()
                        .ok_or_else(|| format!("option requires an argument -- '{shown}'"))?,
                };
                typed.options.push((key_of(option), value));
            }
        } else {
            typed.operands.push(arg.clone());
        }
    }
    Ok(typed)
}

/// Returns the option of that name, or the only one whose name begins so.
fn find_long<'a>(name: &str, known: &'a [Known]) -> Result<&'a Known, String> {
    let exact = known.iter().find(|option| option.long == Some(name));
    if let Some(option) = exact {
        return Ok(option);
    }
    let mut begins = known.iter().filter(|option| option.long.is_some_and(|long| long.starts_with(name)));
    match (begins.next(), begins.next()) {
        (Some(option), None) => Ok(option),
        (Some(_), Some(_)) => Err(format!("option '--{name}' is ambiguous")),
        (None, _) => Err(format!("unrecognized option '--{name}'")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [Known; 6] = [
        flag(b'c', None),
        flag(b'p', None),
        value(b'O', None),
        value(b'f', Some("format")),
        long("output", Takes::Value),
        long("outlast", Takes::Nothing),
    ];

    fn read(args: &[&str]) -> Result<Typed, String> {
        parse(&args.iter().map(OsString::from).collect::<Vec<_>>(), &KNOWN)
    }

    #[test]
    fn every_way_of_writing_an_option_means_the_same() {
        let expected = read(&["-c", "-p", "-O", "qcow2", "a", "b"]).expect("read");
        for args in [
            &["-cp", "-O", "qcow2", "a", "b"][..],
            &["-cpO", "qcow2", "a", "b"],
            &["-cpOqcow2", "a", "b"],
            &["a", "-cp", "b", "-O", "qcow2"],
            &["-cp", "-Oqcow2", "--", "a", "b"],
        ] {
            assert_eq!(read(args), Ok(expected.clone()), "{args:?}");
        }
        let json = read(&["--output=json"]).expect("read");
        assert_eq!(read(&["--output", "json"]), Ok(json.clone()));
        assert_eq!(read(&["--outp", "json"]), Ok(json));
        assert_eq!(
            read(&["--format=raw", "-fqcow2"]).expect("read").last("format"),
            Some(OsStr::new("qcow2"))
        );
        assert_eq!(read(&["--", "-c"]).expect("read").operands, ["-c"]);
        assert_eq!(read(&["-"]).expect("read").operands, ["-"]);
    }

    #[test]
    fn mistakes_are_told_in_getopts_words() {
        for (args, words) in [
            (&["-Z"][..], "invalid option -- 'Z'"),
            (&["-cZ"], "invalid option -- 'Z'"),
            (&["-O"], "option requires an argument -- 'O'"),
            (&["--output"], "option '--output' requires an argument"),
            (&["--out"], "option '--out' is ambiguous"),
            (&["--outlast=1"], "option '--outlast' doesn't allow an argument"),
            (&["--frob"], "unrecognized option '--frob'"),
        ] {
            assert_eq!(read(args), Err(words.to_owned()), "{args:?}");
        }
    }
}
