//! Commands, flags and links in the documents exist, and so do the pages of the book that they make.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use snapferry_testkit::skip::has_oracle;

use crate::support::{program, snapferry_sim};

/// Programs whose commands the documents show.
const PROGRAMS: [&str; 2] = ["snapferry", "snapferry-sim"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Collects the files below a folder that end in `.md`.
fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), found);
        } else if entry.path().extension().is_some_and(|extension| extension == "md") {
            found.push(entry.path());
        }
    }
}

/// The documents at the root, those in docs and those in other folders, with their text.
fn documents() -> Vec<(PathBuf, String)> {
    let mut found: Vec<PathBuf> =
        ["README.md", "DESIGN.md", "CONTRIBUTING.md", "SECURITY.md", "crates/README.md"]
            .iter()
            .map(|name| root().join(name))
            .collect();
    for folder in ["docs", "systemd", "benches", "terraform"] {
        collect(&root().join(folder), &mut found);
    }
    found.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// Calls of the programs in `sh` blocks, without the parts of the line before and after the call.
fn calls(text: &str) -> Vec<Vec<String>> {
    let (mut inside, mut found) = (false, Vec::new());
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with("```") {
            inside = line == "```sh";
            continue;
        }
        let call = line.strip_prefix("sudo ").unwrap_or(line);
        let is_ours = PROGRAMS.iter().any(|program| call.split(' ').next() == Some(program));
        if inside && is_ours {
            let ends = [" #", " |", " &&", " >", ";"];
            let end = ends.iter().filter_map(|end| call.find(end)).min().unwrap_or(call.len());
            found.push(call[..end].split_whitespace().map(str::to_owned).collect());
        }
    }
    found
}

/// Returns the help of a command, and runs each command only once.
fn help(args: &[String], cache: &mut BTreeMap<Vec<String>, Option<String>>) -> Result<String, String> {
    let cached = cache.entry(args.to_vec()).or_insert_with(|| {
        let program = match args[0].as_str() {
            "snapferry" => Command::new(program()),
            _ => snapferry_sim(),
        };
        let output = { program }.args(&args[1..]).arg("--help").env_clear().output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    });
    cached.clone().ok_or_else(|| format!("`{} --help` fails", args.join(" ")))
}

/// Returns the error in a call, or `None` if the call is right.
fn error_in(args: &[String], cache: &mut BTreeMap<Vec<String>, Option<String>>) -> Option<String> {
    check_call(args, cache).err()
}

fn check_call(args: &[String], cache: &mut BTreeMap<Vec<String>, Option<String>>) -> Result<(), String> {
    if args[1] == "qemu-img" {
        // Its options are QEMU's, and other tests compare them with QEMU.
        return Ok(());
    }
    let mut commands: Vec<String> = vec![args[0].clone()];
    let mut text = help(&commands, cache)?;
    for word in &args[1..] {
        // The commands are listed before the options: in groups, or in one list.
        let mut listed = text.lines().take_while(|line| *line != "Options:");
        let is_command =
            listed.any(|line| line.starts_with(&format!("  {word} ")) || line == format!("  {word}"));
        if !is_command {
            break;
        }
        commands.push(word.clone());
        text = help(&commands, cache)?;
    }
    if commands.len() == 1 && !args[1].starts_with('-') {
        return Err(format!("there is no command {:?}", args[1]));
    }
    let flags =
        args.iter().filter(|word| word.starts_with("--")).map(|word| word.split('=').next().unwrap_or(word));
    let is_there = |flag: &str| {
        text.split(|letter: char| !(letter.is_alphanumeric() || letter == '-')).any(|word| word == flag)
    };
    match flags.into_iter().find(|flag| !is_there(flag)) {
        Some(flag) => Err(format!("`{}` has no {flag}", commands.join(" "))),
        None => Ok(()),
    }
}

#[test]
fn every_command_in_the_documents_exists_with_its_flags() {
    let (mut cache, mut faults, mut tried) = (BTreeMap::new(), Vec::new(), 0);
    for (path, text) in documents() {
        for call in calls(&text) {
            tried += 1;
            faults.extend(
                error_in(&call, &mut cache)
                    .map(|fault| format!("{}: {}: {fault}", path.display(), call.join(" "))),
            );
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    assert!(tried > 50, "{tried} commands were found");
    let call = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<String>>();
    assert!(error_in(&call("snapferry replicat web01"), &mut cache).is_some());
    assert!(error_in(&call("snapferry jobs list --stat dead"), &mut cache).is_some());
    assert!(error_in(&call("snapferry jobs list --state dead"), &mut cache).is_none());
    cache.insert(call("snapferry jobs list"), None);
    assert!(
        error_in(&call("snapferry jobs list --state dead"), &mut cache).is_some(),
        "a help that fails is no help"
    );
}

/// Anchors of the headings: lower case, spaces as dashes, otherwise only letters, digits, `-` and `_`.
fn anchors(text: &str) -> Vec<String> {
    let headings = text
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| line.trim_start_matches('#').trim().to_lowercase());
    headings
        .map(|heading| {
            heading
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

/// True if the target of a link in a document exists.
fn leads(from: &Path, target: &str) -> bool {
    let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
    let path = if file.is_empty() { from.to_owned() } else { from.parent().unwrap().join(file) };
    match anchor {
        None => path.exists(),
        Some(anchor) => {
            std::fs::read_to_string(path).is_ok_and(|text| anchors(&text).iter().any(|known| known == anchor))
        }
    }
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let mut dead = Vec::new();
    for (path, text) in documents() {
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap();
            if !target.contains("://") && !leads(&path, target) {
                dead.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(dead.is_empty(), "{dead:#?}");
    assert!(
        !leads(&root().join("README.md"), "docs/nothing.md") && !leads(&root().join("README.md"), "#nothing")
    );
}

/// Targets of the links in a text.
fn targets(text: &str) -> Vec<&str> {
    let found = text.match_indices("](").filter_map(|(at, _)| text[at + 2..].split(')').next());
    found.collect()
}

#[test]
fn the_book_has_each_page_once() {
    let docs = root().join("docs");
    let book = std::fs::read_to_string(root().join("book.toml")).unwrap();
    assert!(book.contains("src = \"docs\"") && !docs.join("book.toml").exists(), "{book}");
    let summary = std::fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let mut named: Vec<PathBuf> = targets(&summary).into_iter().map(|target| docs.join(target)).collect();
    let mut pages = Vec::new();
    collect(&docs, &mut pages);
    pages.retain(|page| page.file_name().is_none_or(|name| name != "SUMMARY.md"));
    named.sort();
    pages.sort();
    assert_eq!(named, pages);
}

#[test]
fn the_index_of_the_documents_leads_to_each_page() {
    let docs = root().join("docs");
    let index = std::fs::read_to_string(docs.join("README.md")).unwrap();
    let mut pages = Vec::new();
    collect(&docs, &mut pages);
    for page in pages.iter().filter(|page| page.parent() == Some(docs.as_path())) {
        let name = page.file_name().unwrap().to_str().unwrap();
        let is_listed = ["README.md", "SUMMARY.md"].contains(&name) || targets(&index).contains(&name);
        assert!(is_listed, "docs/README.md has no link to {name}");
    }
    assert!(targets(&index).contains(&"commands/README.md"));
}

/// Runs mdBook's preprocessor on pages; returns their contents.
fn preprocessed(config: &Value, pages: &[(&str, &str)]) -> Vec<String> {
    let chapters: Vec<Value> = pages
        .iter()
        .map(|(path, content)| json!({"Chapter": {"path": path, "content": content, "sub_items": []}}))
        .collect();
    let mut command = Command::new("python3");
    command.arg(root().join("scripts/book-links.py")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.env_remove("GITHUB_REPOSITORY").spawn().unwrap();
    let input = json!([{"config": config}, {"items": chapters}]).to_string();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let book: Value = serde_json::from_slice(&output.stdout).unwrap();
    let items = book["items"].as_array().unwrap();
    items.iter().map(|item| item["Chapter"]["content"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn links_that_lead_out_of_the_book_lead_to_the_repository() {
    if !has_oracle("python3") {
        return;
    }
    let pages = [
        ("fleet.md", "[a](../systemd/README.md#x) [b](commands/README.md#y) [c](https://example.org/..)"),
        ("commands/fleet.md", "[d](../fleet.md) [e](../../DESIGN.md)"),
    ];
    let config = json!({"output": {"html": {"git-repository-url": "https://example.com/r"}}});
    let [fleet, commands]: [String; 2] = preprocessed(&config, &pages).try_into().unwrap();
    assert!(fleet.starts_with("[a](https://example.com/r/blob/") && fleet.contains("/systemd/README.md#x) "));
    assert!(fleet.ends_with(" [b](commands/index.md#y) [c](https://example.org/..)"), "{fleet}");
    assert!(commands.starts_with("[d](../fleet.md) [e](https://example.com/r/blob/"), "{commands}");
    let [fleet, _]: [String; 2] = preprocessed(&json!({}), &pages).try_into().unwrap();
    assert!(fleet.starts_with("a [b]("), "{fleet}");
}
