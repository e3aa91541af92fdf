//! Everything that a user sees of a mounted filesystem.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Each path with its type, mode, owner, links, length, times, target, extended attributes and the
/// hash of its content.
pub(crate) type Tree = BTreeMap<PathBuf, String>;

/// Reads all of `root`. What can't be read stands there with its error.
pub(crate) fn read(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let key = |path: &Path| path.strip_prefix(root).expect("below the root").to_owned();
        match fs::read_dir(&folder) {
            Err(error) => drop(tree.insert(key(&folder).join("."), error.to_string())),
            Ok(entries) => {
                for entry in entries {
                    let path = match entry {
                        Ok(entry) => entry.path(),
                        Err(error) => {
                            tree.insert(key(&folder).join("."), error.to_string());
                            break;
                        }
                    };
                    tree.insert(key(&path), describe(&path).unwrap_or_else(|error| error.to_string()));
                    if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
                        folders.push(path);
                    }
                }
            }
        }
    }
    tree
}

fn describe(path: &Path) -> std::io::Result<String> {
    let metadata = path.symlink_metadata()?;
    let mut text = format!(
        "{:o} {}:{} links {} length {} blocks {} changed {}.{}",
        metadata.mode(),
        metadata.uid(),
        metadata.gid(),
        metadata.nlink(),
        metadata.len(),
        metadata.blocks(),
        metadata.mtime(),
        metadata.mtime_nsec()
    );
    let mut add = |what: &str| write!(text, " {what}").expect("text grows");
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut names[..])?;
    let mut names: Vec<String> = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    names.sort();
    for name in names {
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, &name, &mut value[..])?;
        add(&format!("{name}={}", blake3::hash(&value[..length])));
    }
    if metadata.is_symlink() {
        add(&format!("-> {}", fs::read_link(path)?.display()));
    } else if metadata.is_file() {
        add(blake3::hash(&fs::read(path)?).to_hex().as_str());
    }
    Ok(text)
}

/// Returns the paths at which `other` differs, with both states.
pub(crate) fn differences(one: &Tree, other: &Tree) -> Vec<String> {
    let mut paths: Vec<&PathBuf> = one.keys().chain(other.keys()).collect();
    paths.sort();
    paths.dedup();
    paths
        .into_iter()
        .filter(|path| one.get(*path) != other.get(*path))
        .map(|path| format!("{}: {:?} and {:?}", path.display(), one.get(path), other.get(path)))
        .collect()
}
