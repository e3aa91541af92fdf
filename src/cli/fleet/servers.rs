//! Servers' names, from the line and from a file.

use std::collections::BTreeSet;
use std::path::Path;

use crate::cli::cloud::{self, args::CloudArgs};
use crate::cli::exit::UsageError;
use crate::vpc::Tag;
use crate::worker::names::has;

/// Each name once, in the order given.
pub fn named(typed: &[String], file: Option<&Path>) -> Result<Vec<String>, UsageError> {
    let mut servers = typed.to_vec();
    if let Some(path) = file {
        let text = std::fs::read_to_string(path).map_err(|error| UsageError(format!("cannot read {}: {error}", path.display())))?;
        let names = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()).filter(|name| !name.is_empty());
        servers.extend(names.map(str::to_owned));
    }
    let mut seen = BTreeSet::new();
    servers.retain(|server| seen.insert(server.clone()));
    match (servers.is_empty(), file) {
        (true, Some(path)) => Err(UsageError(format!("there are no servers in {}", path.display()))),
        _ => Ok(servers),
    }
}

/// The servers of the region that have a tag, by name.
pub fn tagged(tag: &Tag, args: &CloudArgs, tagging_endpoint: &str) -> anyhow::Result<Vec<String>> {
    cloud::run(args, async |cloud| {
        let tagging = cloud.tagging(tagging_endpoint)?;
        let mut servers = Vec::new();
        // The API of servers does not tell their tags, so each is asked for.
        for server in cloud.client()?.instances().await? {
            if has(&tagging.tags(&server.crn).await?, tag) {
                servers.push(server.name);
            }
        }
        if servers.is_empty() {
            return Err(UsageError(format!("no server in {} has the tag {tag}", cloud.home)).into());
        }
        servers.sort_unstable();
        Ok(servers)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_once_and_comments_are_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("servers");
        std::fs::write(&file, "# all of them\n  web01\n\ndb01 # the one that matters\nweb01\n").expect("written");
        assert_eq!(named(&["db01".to_owned()], Some(&file)).expect("names"), ["db01", "web01"]);
        std::fs::write(&file, "# none\n").expect("written");
        assert!(named(&[], Some(&file)).expect_err("none").to_string().contains("no servers in"));
        assert!(named(&[], Some(&folder.path().join("gone"))).expect_err("no file").to_string().contains("cannot read"));
    }
}
