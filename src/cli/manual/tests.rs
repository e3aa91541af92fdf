use super::*;
use crate::cli::command::definition;
use crate::cli::settings::{names, variable_of};
use crate::cli::variables;

fn below(command: &Command, all: &mut Vec<Command>) {
    all.push(command.clone());
    command.get_subcommands().filter(|found| found.get_name() != "help").for_each(|found| below(found, all));
}

/// Returns the whole command line, built, and all commands in it.
fn commands() -> (Command, Vec<Command>) {
    let mut root = definition();
    root.build();
    let mut all = Vec::new();
    below(&root, &mut all);
    (root, all)
}

fn text(command: &Command) -> String {
    String::from_utf8(page(command).expect("a page"))
        .expect("UTF-8")
        .replace("\\-", "-")
        .replace("\\*(Aq", "'")
}

/// Returns the text of a section.
fn section<'a>(page: &'a str, name: &str) -> &'a str {
    let (_, rest) =
        page.split_once(&format!(".SH {name}\n")).unwrap_or_else(|| panic!("no {name} in {page}"));
    rest.split("\n.SH ").next().unwrap_or_default()
}

#[test]
fn every_command_has_a_page_and_so_has_the_configuration() {
    let folder = tempfile::tempdir().expect("a folder");
    run(&ManArgs { to: Some(folder.path().join("man")) }, definition()).expect("pages");
    let (_, all) = commands();
    for command in &all {
        let name = name(command);
        let text = std::fs::read_to_string(folder.path().join(format!("man/{name}.1"))).expect(&name);
        assert!(text.contains(".SH SYNOPSIS") && text.contains(&name.replace('-', "\\-")), "{name}: {text}");
    }
    assert!(folder.path().join("man").join(CONFIG_PAGE_FILE).exists());
    let pages = std::fs::read_dir(folder.path().join("man")).expect("a folder").count();
    assert_eq!(pages, all.len() + 1);
}

#[test]
fn every_page_has_the_sections_that_a_manual_has() {
    for command in commands().1 {
        let page = text(&command);
        for name in
            ["NAME", "SYNOPSIS", "DESCRIPTION", "\"EXIT STATUS\"", "ENVIRONMENT", "FILES", "\"SEE ALSO\""]
        {
            assert!(!section(&page, name).trim().is_empty(), "{}: {name}", super::name(&command));
        }
    }
}

#[test]
fn examples_have_their_own_section() {
    for command in commands().1 {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let Some((_, examples)) = help.split_once("Examples:\n") else { continue };
        let first = examples.lines().next().expect("an example").trim().to_owned();
        let page = text(&command);
        assert!(section(&page, "EXAMPLES").contains(&first), "{}: {page}", name(&command));
        assert!(!page.contains("Examples:"), "{}", name(&command));
    }
}

#[test]
fn every_option_is_described() {
    for command in commands().1 {
        let page = text(&command);
        for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
            let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
            let start: String = help.chars().take_while(|c| !"-'.".contains(*c)).take(20).collect();
            assert!(page.contains(start.trim()), "{} {}: {page}", name(&command), arg.get_id());
        }
    }
}

#[test]
fn the_variables_of_a_page_are_those_of_its_flags() {
    let (root, _) = commands();
    let list = root.find_subcommand("jobs").and_then(|jobs| jobs.find_subcommand("list")).expect("jobs list");
    let page = text(list);
    let environment = section(&page, "ENVIRONMENT");
    for name in ["SNAPFERRY_REDIS", "SNAPFERRY_REDIS_PREFIX", "SNAPFERRY_REDIS_PASSWORD", "SNAPFERRY_LOG"] {
        assert!(environment.contains(&format!("\\fB{name}\\fR")), "{name}: {environment}");
    }
    assert!(!environment.contains("SNAPFERRY_BUCKET") && !environment.contains("AWS_"), "{environment}");
}

#[test]
fn the_page_of_the_program_has_every_variable_that_is_no_setting() {
    let (root, _) = commands();
    let page = text(&root);
    for name in variables::names().filter(|name| *name != crate::cli::completions::VARIABLE) {
        assert!(section(&page, "ENVIRONMENT").contains(name), "{name} has no place in tables.rs");
    }
}

#[test]
fn the_page_of_the_configuration_has_every_setting_with_its_variable() {
    let (root, _) = commands();
    let page = String::from_utf8(config_file::page(&root).expect("a page")).expect("UTF-8");
    let page = page.replace("\\-", "-");
    let settings = section(&page, "SETTINGS");
    for name in names() {
        assert!(settings.contains(&format!("\\fB{name}\\fR\n")), "{name}: {settings}");
        let variable = variable_of("convert", name).unwrap_or(format!("SNAPFERRY_{}", name.to_uppercase()));
        assert!(settings.contains(&format!("variable {variable}.")), "{variable}");
    }
    assert_eq!(settings.matches("Commands: ").count(), names().count());
    let without = settings.split(".TP").skip(1).filter(|entry| entry.contains("\\fR\n\n"));
    assert_eq!(without.count(), 0, "a setting has no description: {settings}");
}

#[test]
fn the_documents_list_the_same_exit_codes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let document = std::fs::read_to_string(path).expect("the document").replace('`', "");
    let (_, table) = document.split_once("| code | meaning |\n|---|---|\n").expect("the table");
    let listed: Vec<&str> = table.lines().take_while(|line| line.starts_with('|')).collect();
    let known: Vec<String> =
        tables::EXIT_CODES.iter().map(|(code, meaning)| format!("| {} | {meaning} |", *code as u8)).collect();
    assert_eq!(listed, known);
}
