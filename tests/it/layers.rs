//! Folders are layers: a module names only what lies below it. The table in the documentation of `src/lib.rs` says what lies where.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Beside the tower. They may name everything below the command line, and only they and these commands may name them.
const BESIDE: [&str; 2] = ["sim", "testing"];
const MAY_NAME_BESIDE: [&str; 2] = ["cli/demo.rs", "cli/sim.rs"];
/// Words of layer 1 are said in each other's terms.
const LOWEST: u32 = 1;

/// Each module's layer, from the table in the documentation.
fn layers(lib: &str) -> BTreeMap<String, u32> {
    let mut layers = BTreeMap::new();
    for line in lib.lines() {
        let mut cells = line.strip_prefix("//! |").into_iter().flat_map(|row| row.split('|')).map(str::trim);
        if let (Some(Ok(layer)), Some(modules)) = (cells.next().map(str::parse), cells.next()) {
            for module in modules.split(',') {
                layers.insert(module.trim().trim_matches(['[', ']', '`']).to_owned(), layer);
            }
        }
    }
    layers
}

/// The source without what the compiler does not read as code (comments, text), and without items under `#[cfg(test)]`. Lines stay
/// where they are.
fn code_of(source: &str) -> String {
    without_tests(&without_text(source))
}

/// Blanks all but line ends.
fn blank(text: &str) -> String {
    text.chars().map(|c| if c == '\n' { c } else { ' ' }).collect()
}

fn without_text(source: &str) -> String {
    let mut code = String::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let len = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(hashes) = raw_string(rest).filter(|_| !code.ends_with(|c: char| c.is_alphanumeric() || c == '_')) {
            let close = format!("\"{}", "#".repeat(hashes));
            let open = 2 + hashes;
            rest[open..].find(&close).map_or(rest.len(), |end| open + end + close.len())
        } else if first == '"' {
            quoted(rest, '"')
        } else if first == '\'' && is_char(rest) {
            quoted(rest, '\'')
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        code.push_str(&blank(&rest[..len]));
        rest = &rest[len..];
    }
    code
}

/// The number of hashes, where a raw string begins.
fn raw_string(text: &str) -> Option<usize> {
    let hashes = text.strip_prefix('r')?.chars().take_while(|&c| c == '#').count();
    text[1 + hashes..].starts_with('"').then_some(hashes)
}

/// A character, not a lifetime.
fn is_char(text: &str) -> bool {
    let mut chars = text.chars().skip(1);
    matches!((chars.next(), chars.next()), (Some('\\'), _) | (_, Some('\'')))
}

/// The length of a text in quotes, both included.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if c == quote && !escaped {
            return at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    text.len()
}

fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut kept = String::new();
    let mut rest = code;
    while let Some(at) = rest.find(MARK) {
        kept.push_str(&rest[..at]);
        let item = &rest[at..];
        let mut depth = 0_u32;
        let mut end = item.len();
        for (at, c) in item.char_indices().skip(MARK.len()) {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 && matches!(c, '}' | ';') {
                end = at + 1;
                break;
            }
        }
        kept.push_str(&blank(&item[..end]));
        rest = &item[end..];
    }
    kept + rest
}

/// The first names of the paths that follow: of `a::b`, `a`; of `{a::b, c}`, `a` and `c`.
fn first_names(path: &str) -> Vec<String> {
    let name = |text: &str| text.trim_start().chars().take_while(|&c| c.is_alphanumeric() || c == '_').collect::<String>();
    let Some(group) = path.strip_prefix('{') else { return vec![name(path)] };
    let mut names = vec![name(group)];
    let mut depth = 0_u32;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(name(&group[at + 1..])),
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// Every top module that a file names, with the line: by `crate::`, and by as many `super::` as lead to the crate.
fn named(file: &Path, code: &str) -> Vec<(usize, String)> {
    let folders = file.components().count() - 1;
    let is_folder = file.file_name().is_some_and(|name| name == "mod.rs");
    let depth = if is_folder { folders } else { folders + 1 };
    let mut found = Vec::new();
    for root in ["crate::".to_owned(), "super::".repeat(depth)] {
        for (at, _) in code.match_indices(&root) {
            let before = &code[..at];
            // Not the end of a longer name, nor of a longer row of `super::`.
            if before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let line = before.matches('\n').count() + 1;
            found.extend(first_names(code[at + root.len()..].trim_start()).into_iter().map(|name| (line, name)));
        }
    }
    found
}

/// What breaks the table in one file, which is named from `src/`.
fn violations(layers: &BTreeMap<String, u32>, file: &Path, source: &str) -> Vec<String> {
    let own = file.components().next().map(|first| first.as_os_str().to_string_lossy().replace(".rs", "")).unwrap_or_default();
    let beside = BESIDE.contains(&own.as_str());
    let highest = layers.values().max().copied().unwrap_or(0);
    let mut broken = Vec::new();
    for (line, name) in named(file, &code_of(source)) {
        if name == own {
            continue;
        }
        let place = format!("src/{}:{line}", file.display());
        if BESIDE.contains(&name.as_str()) {
            if !beside && !MAY_NAME_BESIDE.iter().any(|may| Path::new(may) == file) {
                broken.push(format!("{place} names {name}, which stands beside the tower"));
            }
            continue;
        }
        let Some(&layer) = layers.get(&name) else { continue };
        let from = if beside { Some(&highest) } else { layers.get(&own) };
        match from {
            Some(&from) if layer < from || (from == LOWEST && layer == LOWEST) => {}
            Some(&from) => broken.push(format!("{place}: {own} is in layer {from} and names {name}, which is in layer {layer}")),
            None => broken.push(format!("{place}: {own} is not in the table of layers")),
        }
    }
    broken
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn modules_name_only_what_lies_below_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let layers = layers(&std::fs::read_to_string(root.join("lib.rs")).expect("lib.rs"));
    let mut broken = Vec::new();
    let mut seen = 0;
    for path in files(&root) {
        let file = path.strip_prefix(&root).expect("below it");
        if file == Path::new("lib.rs") || file == Path::new("main.rs") {
            continue;
        }
        let source = std::fs::read_to_string(&path).expect("a source file");
        seen += named(file, &code_of(&source)).len();
        broken.extend(violations(&layers, file, &source));
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
    assert!(seen > 100, "only {seen} names were found: the search itself is broken");
}

#[test]
fn every_module_is_in_the_table() {
    let lib = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).expect("lib.rs");
    let declared = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let mut declared: Vec<&str> = declared.filter(|module| !BESIDE.contains(module)).collect();
    declared.sort_unstable();
    assert_eq!(layers(&lib).into_keys().collect::<Vec<_>>(), declared);
}

#[test]
fn what_breaks_the_table_is_found_and_nothing_else() {
    let lib = "//! | 6 | [`cli`] | x |\n//! | 3 | [`source`], [`store`] | x |\n//! | 1 | [`units`], [`clock`] | x |\n";
    let layers = layers(lib);
    assert_eq!(layers.len(), 5);
    let broken = |file: &str, source: &str| violations(&layers, Path::new(file), source);
    for (file, source, line) in [
        ("source/raw.rs", "use crate::cli::main;", 1),
        ("source/raw.rs", "use crate::units::KIB;\nfn f() { crate::store::g() }", 2),
        ("source/mod.rs", "use crate::{units::{KIB, MIB}, store};", 1),
        ("source/mod.rs", "use super::store::X;", 1),
        ("source/raw.rs", "\nuse super::super::store::X;", 2),
        ("units.rs", "use super::store::X;", 1),
        ("units.rs", "// ' \nlet c = 'x'; let l: &'static str = \"\\\"\"; use crate::store::X;", 2),
        ("store/s3.rs", "use crate::testing::disks;", 1),
        ("cli/convert.rs", "use crate::sim::SimStore;", 1),
        ("sim/mod.rs", "use crate::cli::main;", 1),
        ("fresh.rs", "use crate::units::KIB;", 1),
        ("store/s3.rs", "#[cfg(test)]\nmod tests { fn f() {} }\nuse crate::source::X;", 3),
    ] {
        let found = broken(file, source);
        assert_eq!(found.len(), 1, "{file}: {source}: {found:?}");
        assert!(found[0].starts_with(&format!("src/{file}:{line}")), "{found:?}");
    }
    for (file, source) in [
        ("cli/convert.rs", "use crate::{source::Source, store::{ObjectStore, s3}};"),
        ("cli/demo.rs", "use crate::sim::SimStore;"),
        ("source/raw.rs", "use super::Source; use super::aligned::store; use crate::source::aligned::X;"),
        ("source/raw.rs", "// use crate::cli;\n/* crate::cli */ let x = \"crate::cli\"; let y = r#\"crate::cli \" \"#;"),
        (
            "source/raw.rs",
            "#[cfg(test)]\nmod tests { use crate::testing::disks; fn f() { \"}\"; } }\n#[cfg(test)]\nuse crate::cli::main;",
        ),
        ("clock.rs", "use crate::units::KIB;"),
        ("testing/suite.rs", "use crate::store::Part; use crate::testing::disks; use crate::sim::SimStore;"),
    ] {
        assert_eq!(broken(file, source), Vec::<String>::new(), "{file}: {source}");
    }
}
