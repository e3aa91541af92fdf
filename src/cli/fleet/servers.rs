//! Choice of servers: by name, from a file, or by tag.

use std::collections::BTreeSet;

use snapferry_fleet::replicate::names::has;
use snapferry_ibmcloud::vpc::Tag;

use crate::cli::args::{CloudArgs, ServersArgs};
use crate::cli::cloud;
use crate::cli::error::CommandResult;
use crate::cli::error::UsageError;
use crate::cli::session::Session;

/// Returns each chosen name once, in the order given. Servers with the tag are looked up in the cloud.
///
/// # Errors
/// If no server is chosen, or the file or the cloud can't be read.
pub fn chosen(which: &ServersArgs, cloud: &CloudArgs, session: &Session) -> CommandResult<Vec<String>> {
    let mut servers = which.servers.clone();
    servers.extend(from_file(which)?);
    if let Some(tag) = &which.tag {
        servers.extend(tagged(tag, cloud, session)?);
    }
    let mut seen = BTreeSet::new();
    servers.retain(|server| seen.insert(server.clone()));
    if servers.is_empty() {
        return Err(UsageError("which servers? Give their names, --file FILE or --tag TAG".into()).into());
    }
    Ok(servers)
}

fn from_file(which: &ServersArgs) -> Result<Vec<String>, UsageError> {
    let Some(path) = &which.file else { return Ok(Vec::new()) };
    let text = snapferry_base::user_file::read_text(path)
        .map_err(|error| UsageError(format!("cannot read {}: {error}", path.display())))?;
    let names = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|name| !name.is_empty());
    let names: Vec<String> = names.map(str::to_owned).collect();
    if names.is_empty() {
        return Err(UsageError(format!("there are no servers in {}", path.display())));
    }
    Ok(names)
}

/// Returns the names of the region's servers that have `tag`, in alphabetical order.
fn tagged(tag: &Tag, args: &CloudArgs, session: &Session) -> CommandResult<Vec<String>> {
    cloud::run(args, session, async |cloud| {
        let tagging = cloud.tagging()?;
        let mut servers = Vec::new();
        // The API of servers does not return their tags, so Global Tagging is asked for each server.
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
    fn comments_and_blank_lines_are_no_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("servers");
        let which = ServersArgs { servers: Vec::new(), file: Some(file.clone()), tag: None };
        assert!(from_file(&which).expect_err("no file").to_string().contains("cannot read"));
        std::fs::write(&file, "# all of them\n  web01\n\ndb01 # the one that matters\n").expect("written");
        assert_eq!(from_file(&which).expect("names"), ["web01", "db01"]);
        std::fs::write(&file, "# none\n").expect("written");
        assert!(from_file(&which).expect_err("none").to_string().contains("no servers in"));
    }
}
