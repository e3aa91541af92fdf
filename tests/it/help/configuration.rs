//! The user's own configuration file, and the order of files.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{folder, run, snapferry};

/// A user's folder with a configuration in `~/.config`.
fn home_with(text: &str) -> (TempDir, PathBuf) {
    let home = folder();
    let file = home.path().join(".config/snapferry/config.toml");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, text).unwrap();
    (home, file)
}

fn show(home: &Path) -> Command {
    let mut command = snapferry(["config", "show", "--json"]);
    command.env("HOME", home);
    command
}

/// Returns the value of a setting and its origin.
fn setting(command: Command, name: &str) -> (Value, String) {
    let shown = run(command).json();
    let found = shown.as_array().unwrap().iter().find(|shown| shown["name"] == name).unwrap().clone();
    (found["value"].clone(), found["origin"].as_str().unwrap().to_owned())
}

#[test]
fn the_users_file_is_read_and_named() {
    let (home, file) = home_with("\nbucket = \"mine\"\n");
    let expected = ("mine".into(), format!("{}:2", file.display()));
    assert_eq!(setting(show(home.path()), "bucket"), expected);
    let mut text = snapferry(["config", "show"]);
    text.env("HOME", home.path());
    let ended = run(text);
    assert!(
        ended.out.starts_with("file: ") && ended.out.contains(&format!("file: {}\n", file.display())),
        "{ended:?}"
    );
}

#[test]
fn the_users_folder_of_configurations_is_obeyed() {
    let (home, _) = home_with("bucket = \"mine\"\n");
    let other = folder();
    std::fs::create_dir(other.path().join("snapferry")).unwrap();
    std::fs::write(other.path().join("snapferry/config.toml"), "bucket = \"other\"\n").unwrap();
    let mut command = show(home.path());
    command.env("XDG_CONFIG_HOME", other.path());
    assert_eq!(setting(command, "bucket").0, "other");
}

#[test]
fn a_variable_beats_the_users_file() {
    let (home, _) = home_with("bucket = \"mine\"\n");
    let mut command = show(home.path());
    command.env("SNAPFERRY_BUCKET", "now");
    assert_eq!(setting(command, "bucket"), ("now".into(), "environment SNAPFERRY_BUCKET".into()));
}

#[test]
fn a_named_file_replaces_the_users() {
    let (home, _) = home_with("bucket = \"mine\"\nlevel = \"small\"\n");
    let named = home.path().join("named.toml");
    std::fs::write(&named, "bucket = \"named\"\n").unwrap();
    let with = |name| {
        let mut command = show(home.path());
        command.arg("--config").arg(&named);
        setting(command, name)
    };
    assert_eq!(with("bucket").0, "named");
    assert_eq!(with("level"), ("fast".into(), "default".into()));
}

#[test]
fn a_mistake_in_the_users_file_is_named() {
    let (home, file) = home_with("\nbukket = \"mine\"\n");
    run(show(home.path())).expect(2, &[&format!("{}:2: bukket", file.display()), "was bucket meant?"]);
}

#[test]
fn without_any_file_both_places_are_named() {
    let home = folder();
    let mut command = snapferry(["config", "show"]);
    command.env("HOME", home.path());
    let ended = run(command);
    if !Path::new("/etc/snapferry/config.toml").exists() {
        let file = home.path().join(".config/snapferry/config.toml");
        let none =
            format!("file: none (neither /etc/snapferry/config.toml nor {} is there)\n", file.display());
        assert!(ended.out.starts_with(&none), "{ended:?}");
    }
}
