//! Configuration files: where they are, and what they hold.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use snapferry_base::suggest::similar;

use super::{Origin, Values, names};
use crate::cli::environment::Environment;
use crate::cli::error::UsageError;

/// The system's configuration file.
pub const SYSTEM_FILE: &str = "/etc/snapferry/config.toml";
/// The user's configuration file, below the folder of the user's configurations.
const USER_FILE: &str = "snapferry/config.toml";
/// Keys under which a user would put a secret into the file.
const SECRETS: [&str; 6] = ["api_key", "apikey", "secret_access_key", "secret_key", "password", "token"];

/// Returns the path of the user's configuration file, by the XDG Base Directory Specification. A relative
/// path in `XDG_CONFIG_HOME` is ignored, as the specification demands. None for a user without a home.
pub fn user_file(environment: &Environment) -> Option<PathBuf> {
    let folder = environment.get("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = folder.or_else(|| Some(Path::new(environment.get("HOME")?).join(".config")))?;
    Some(folder.join(USER_FILE))
}

/// Finds the configuration file on a command line that was not parsed yet.
pub fn named(typed: &[OsString]) -> Option<PathBuf> {
    let mut args = typed.iter().skip(1).take_while(|arg| *arg != "--");
    while let Some(arg) = args.next() {
        if arg == "--config" {
            return args.next().map(PathBuf::from);
        }
        if let Some(path) = arg.to_str().and_then(|arg| arg.strip_prefix("--config=")) {
            return Some(path.into());
        }
    }
    None
}

/// Reads the values in a file.
///
/// # Errors
/// If the file can't be read, or is no configuration: with the line, and what is wrong there.
pub fn read(path: &Path) -> Result<Values, UsageError> {
    let at = |line: usize, message: String| UsageError(format!("{}:{line}: {message}", path.display()));
    let text = snapferry_base::user_file::read_text(path)
        .map_err(|err| UsageError(format!("cannot read the configuration {}: {err}", path.display())))?;
    let table: toml::Table = text.parse().map_err(|err: toml::de::Error| {
        let line = err.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        at(line, err.message().to_owned())
    })?;
    let mut values = Values::new();
    for (key, value) in table {
        let line = line_of(&text, &key);
        if SECRETS.contains(&key.as_str()) {
            return Err(at(
                line,
                format!("{key}: a secret does not belong into this file; name a file with it: api_key_file"),
            ));
        }
        let Some(name) = names().find(|&name| name == key) else {
            let suggestions = similar(&key, names());
            let advice = match &*suggestions {
                [] => format!("there are {}", names().collect::<Vec<_>>().join(", ")),
                suggestions => format!("was {} meant?", suggestions.join(" or ")),
            };
            return Err(at(line, format!("{key}: there is no such setting; {advice}")));
        };
        let value = match value {
            toml::Value::String(value) => value,
            toml::Value::Integer(value) => value.to_string(),
            toml::Value::Boolean(value) => value.to_string(),
            _ => return Err(at(line, format!("{key}: give a text or a number"))),
        };
        values.insert(name, (value, Origin::File(path.to_owned(), line)));
    }
    Ok(values)
}

/// Returns the number of the line that holds a key of the top level, or 1 if none is found.
fn line_of(text: &str, key: &str) -> usize {
    let holds = |line: &str| {
        line.trim_start().trim_start_matches(['"', '\'']).strip_prefix(key).is_some_and(|rest| {
            rest.trim_start_matches(['"', '\'']).trim_start().starts_with(['=', '.', ']'])
        })
    };
    text.lines().position(holds).map_or(1, |line| line + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::settings::Settings;

    fn user_file_of(variables: &[(&str, &str)]) -> Option<PathBuf> {
        user_file(&Environment::from_pairs(variables))
    }

    #[test]
    fn the_users_file_is_where_xdg_puts_it() {
        let home = ("HOME", "/home/ann");
        assert_eq!(user_file_of(&[home]), Some("/home/ann/.config/snapferry/config.toml".into()));
        assert_eq!(user_file_of(&[home, ("XDG_CONFIG_HOME", "/c")]), Some("/c/snapferry/config.toml".into()));
    }

    #[test]
    fn a_relative_folder_is_ignored() {
        let relative = ("XDG_CONFIG_HOME", "c");
        assert_eq!(
            user_file_of(&[("HOME", "/home/ann"), relative]),
            Some("/home/ann/.config/snapferry/config.toml".into())
        );
    }

    #[test]
    fn a_service_without_a_home_has_no_file_of_its_own() {
        assert_eq!(user_file_of(&[]), None);
    }

    /// Reads a system's and a user's file, and returns a setting's value and its origin's file.
    fn layered(system: &str, user: &str, name: &str) -> Option<(String, String)> {
        let folder = tempfile::tempdir().expect("a folder");
        let files = [("system", system), ("user", user)].map(|(name, text)| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        });
        let settings = Settings::of_files(files.to_vec(), &Environment::default()).expect("configurations");
        let (value, origin) = settings.values.get(name)?.clone();
        let Origin::File(path, line) = origin else { panic!("{origin:?}") };
        Some((value, format!("{}:{line}", path.file_name()?.to_string_lossy())))
    }

    #[test]
    fn the_users_file_replaces_the_systems_key_by_key() {
        let (system, user) = ("bucket = \"a\"\nlevel = \"small\"\n", "\nbucket = \"b\"\n");
        assert_eq!(layered(system, user, "bucket"), Some(("b".into(), "user:2".into())));
        assert_eq!(layered(system, user, "level"), Some(("small".into(), "system:2".into())));
    }

    #[test]
    fn the_users_identity_replaces_the_systems_of_another_kind() {
        let (system, user) = ("trusted_profile = \"default\"\n", "api_key_file = \"mine\"\n");
        assert_eq!(layered(system, user, "trusted_profile"), None);
        assert_eq!(layered(system, user, "api_key_file"), Some(("mine".into(), "user:1".into())));
    }
}
