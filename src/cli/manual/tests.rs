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
    run(&ManArgs { to: Some(folder.path().join("man")), markdown: false }, definition()).expect("pages");
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

/// Returns the part of a page that is about one command alone: from its heading to the next one.
fn part<'a>(page: &'a str, command: &str) -> &'a str {
    let start = page.find(&format!("# {command}\n")).unwrap_or_else(|| panic!("no {command} in {page}"));
    let rest = &page[start + 2..];
    &rest[..rest.find("\n#").unwrap_or(rest.len())]
}

#[test]
fn every_command_and_option_stands_in_the_reference() {
    let (root, all) = commands();
    let pages = markdown::pages(&root);
    let (index, groups) = pages.split_first().expect("an index");
    let mut options = 0;
    for command in all.iter().skip(1) {
        let name = markdown::full_name(command);
        let heading = format!("# {name}\n");
        let found: Vec<&String> =
            groups.iter().map(|(_, text)| text).filter(|text| text.contains(&heading)).collect();
        assert_eq!(found.len(), 1, "{name}");
        // Lines are broken anywhere.
        let part = part(found[0], name).split_whitespace().collect::<Vec<_>>().join(" ");
        for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
            let text = if markdown::is_everywhere(arg) { &index.1 } else { &part };
            assert!(text.contains(&format!("`{arg}`")), "{name} {arg}: {text}");
            options += 1;
        }
        let variables = command.get_arguments().filter(|arg| !arg.is_hide_set());
        for variable in variables.filter_map(|arg| variable_of(command.get_name(), arg.get_id().as_str())) {
            assert!(part.contains(&format!("Variable: `{variable}`.")), "{name} {variable}: {part}");
        }
    }
    assert!(options > 500, "{options} options were found");
    for variable in &tables::VARIABLES {
        assert!(index.1.contains(&format!("- `{}`: ", variable.name)), "{}", variable.name);
    }
}

#[test]
fn the_documents_have_the_reference_of_this_program() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/commands");
    let pages = markdown::pages(&commands().0);
    for (file, text) in &pages {
        let written = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        assert!(written == *text, "docs/commands/{file} is another program's: run `make reference`");
    }
    assert_eq!(std::fs::read_dir(folder).expect("a folder").count(), pages.len());
}

#[test]
fn the_reference_has_no_html_and_no_line_that_is_too_wide() {
    for (file, text) in markdown::pages(&commands().0) {
        let mut is_code = false;
        for line in text.lines().skip(1) {
            if line.starts_with("```") {
                is_code = !is_code;
            }
            // Code comes at every second backtick.
            let prose: String = line.split('`').step_by(2).collect();
            let bare = prose.replace("\\<", "").replace("\\>", "");
            assert!(is_code || !bare.contains('<'), "{file}: {line}");
            assert!(is_code || line.starts_with('|') || line.chars().count() <= 110, "{file}: {line}");
        }
    }
}
