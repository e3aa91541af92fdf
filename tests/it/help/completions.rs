//! Completions, as bash, zsh and fish ask for them.

use std::path::Path;
use std::process::{Command, Stdio};

use snapferry_fleet::queue::{Queue as _, Timing};
use snapferry_testkit::skip::has_oracle;

use crate::support::{Redis, SAFE, folder, job, program, run, snapferry};

/// Longest wait for a shell; after it, the test fails.
const PATIENCE: &str = "60";

/// Returns the script that the program prints for a shell.
fn script(shell: &str) -> String {
    let ended = run(snapferry(["completions", shell]));
    ended.expect(0, &[]);
    ended.out
}

/// A shell that finds the program, runs `code`, and ends in time.
fn shell(name: &str, options: &[&str], code: &str, variables: &[(&str, &str)]) -> Vec<String> {
    let here = Path::new(program()).parent().unwrap();
    let mut command = Command::new("timeout");
    command.arg(PATIENCE).arg(name).args(options).args(["-c", code]);
    command.env_clear().env("PATH", format!("{}:/usr/bin:/bin", here.display())).env("HOME", "/nonexistent");
    command.env("SNAPFERRY_CONFIG", "/dev/null").envs(variables.iter().copied()).stdin(Stdio::null());
    let ended = run(command);
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{}", ended.out);
    ended.out.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Returns what bash completes the last of these words to.
fn bash_with(words: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let last = words.len() - 1;
    let code = format!(
        "{}\nCOMP_WORDS=({}); COMP_CWORD={last}; COMP_TYPE=9; COMP_LINE='{}'; COMP_POINT=${{#COMP_LINE}}\n\
         _clap_complete_snapferry snapferry {} {}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script("bash"),
        quoted.join(" "),
        words.join(" "),
        quoted[last],
        quoted[last - 1],
    );
    shell("bash", &["--norc"], &code, variables)
}

fn bash(words: &[&str]) -> Vec<String> {
    bash_with(words, &[])
}

/// Returns the names that bash offers, without the options that may stand there too.
fn names_in_bash(words: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
    let mut found = bash_with(words, variables);
    found.retain(|word| !word.starts_with('-'));
    found
}

#[test]
fn bash_completes_the_values_of_an_option() {
    assert_eq!(bash(&["snapferry", "convert", "--codec", ""]), ["deflate", "zstd", "none"]);
    assert_eq!(bash(&["snapferry", "convert", "--level", "small"]), ["small", "smallest"]);
    assert_eq!(bash(&["snapferry", "restore", "--zero", ""]), ["discard", "write", "skip"]);
    assert_eq!(bash(&["snapferry", "jobs", "list", "--state", "d"]), ["delayed", "done", "dead"]);
    assert_eq!(bash(&["snapferry", "images", "export", "--format", ""]), ["qcow2", "vhd"]);
    assert_eq!(bash(&["snapferry", "--color", "a"]), ["auto", "always"]);
}

#[test]
fn bash_completes_options_that_take_other_values_too() {
    assert_eq!(bash(&["snapferry", "info", "--endpoint", "p"]), ["private", "public"]);
    assert_eq!(bash(&["snapferry", "replicate", "--keep-images", ""]), ["all"]);
}

#[test]
fn bash_completes_commands_and_options() {
    assert_eq!(bash(&["snapferry", "repl"]), ["replicate"]);
    assert_eq!(bash(&["snapferry", "jobs", "can"]), ["cancel"]);
    assert_eq!(bash(&["snapferry", "job", "can"]), ["cancel"], "an alias");
    assert!(bash(&["snapferry", "convert", "--cod"]).contains(&"--codec".to_owned()));
}

#[test]
fn bash_completes_files_and_folders() {
    let folder = folder();
    std::fs::write(folder.path().join("disk.raw"), b"").unwrap();
    std::fs::create_dir(folder.path().join("disks")).unwrap();
    let start = folder.path().join("dis").display().to_string();
    let (file, inner) = (format!("{start}k.raw"), format!("{start}ks/"));
    assert_eq!(bash(&["snapferry", "convert", "--device", &start]), [file.clone(), inner.clone()]);
    assert_eq!(bash(&["snapferry", "info", &start]), [file, inner.clone()]);
    assert_eq!(bash(&["snapferry", "man", "--to", &start]), [inner], "a folder alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn bash_completes_the_names_in_the_queue() {
    let Some(redis) = Redis::start(&SAFE).await else { return };
    let queue = redis.queue(Timing::default()).await;
    let (web, db) = (job("web01"), job("db01"));
    for job in [&web, &db] {
        queue.enqueue(job).await.unwrap();
    }
    queue.cancel(db.id).await.unwrap();
    let url = redis.url();
    let found = tokio::task::spawn_blocking(move || {
        let by_variable = |words: &[&str]| names_in_bash(words, &[("SNAPFERRY_REDIS", &url)]);
        [
            by_variable(&["snapferry", "jobs", "show", ""]).len().to_string(),
            by_variable(&["snapferry", "jobs", "cancel", ""]).join(" "),
            by_variable(&["snapferry", "jobs", "retry", ""]).join(" "),
            by_variable(&["snapferry", "enqueue", "w"]).join(" "),
            by_variable(&["snapferry", "status", ""]).join(" "),
            by_variable(&["snapferry", "plan", "d"]).join(" "),
            names_in_bash(&["snapferry", "status", "--redis", &url, "d"], &[]).join(" "),
        ]
    })
    .await
    .unwrap();
    let expected = ["2", &web.id.to_string(), &db.id.to_string(), "web01", "db01 web01", "db01", "db01"];
    assert_eq!(found, expected);
}

#[test]
fn a_queue_that_is_not_there_gives_no_names_and_no_message() {
    let url = format!("unix://{}", folder().path().join("nothing").display());
    let variables = [("SNAPFERRY_REDIS", url.as_str())];
    assert_eq!(names_in_bash(&["snapferry", "jobs", "show", ""], &variables), [] as [&str; 0]);
}

#[test]
fn a_queue_that_never_answers_gives_no_names() {
    // It accepts connections, and sends nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", silent.local_addr().unwrap());
    let variables = [("SNAPFERRY_REDIS", url.as_str())];
    assert_eq!(names_in_bash(&["snapferry", "jobs", "show", ""], &variables), [] as [&str; 0]);
}

#[test]
fn a_broken_configuration_gives_no_names_and_no_message() {
    let folder = folder();
    let file = folder.path().join("config.toml");
    std::fs::write(&file, "nonsense").unwrap();
    let variables = [("SNAPFERRY_CONFIG", file.to_str().unwrap())];
    assert_eq!(names_in_bash(&["snapferry", "jobs", "show", ""], &variables), [] as [&str; 0]);
    assert_eq!(bash_with(&["snapferry", "jobs", "sho"], &variables), ["show"]);
}

#[test]
fn fish_completes_values_with_their_descriptions() {
    if !has_oracle("fish") {
        return;
    }
    let folder = folder();
    let home = folder.path().to_str().unwrap();
    let fish = |line: &str| {
        let code = format!("{}\ncomplete -C '{line}'", script("fish"));
        shell("fish", &["--no-config"], &code, &[("HOME", home)])
    };
    assert_eq!(fish("snapferry convert --codec "), ["deflate", "zstd", "none"]);
    let commands = fish("snapferry repl");
    assert!(commands.len() == 1 && commands[0].starts_with("replicate\tReplicate a server"), "{commands:?}");
}

/// Returns what zsh shows after TAB in a line. The script is a function in `fpath`, as in a package.
fn zsh(line: &str, expected: &str) -> String {
    let folder = folder();
    std::fs::write(folder.path().join("_snapferry"), script("zsh")).unwrap();
    let code = format!(
        "zmodload zsh/zpty\n\
         zpty shell zsh -f -i\n\
         zpty -w shell \"fpath=({} \\$fpath); autoload -Uz compinit; compinit -u -D; PS1=; echo rea''dy\"\n\
         zpty -r shell answer '*ready*'\n\
         zpty -w -n shell $'{line}\\t\\t'\n\
         zpty -r shell answer '*{expected}*'\n\
         print -r -- \"$answer\"",
        folder.path().display(),
    );
    shell("zsh", &["-f"], &code, &[("TERM", "dumb"), ("HOME", folder.path().to_str().unwrap())]).join("\n")
}

#[test]
fn zsh_completes_values_at_the_first_tab() {
    if !has_oracle("zsh") {
        return;
    }
    assert!(zsh("snapferry convert --codec ", "deflate*none").contains("zstd"));
}
