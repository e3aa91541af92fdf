//! The server and what it boots from, or the snapshot that is to be read.

use super::super::error::Fault;
use super::super::job::Origin;
use super::super::saga::Run;
use super::super::state::ServerState;
use crate::vpc::model::Snapshot;
use crate::vpc::{RegionClient, SnapshotId, VpcError};

pub(super) async fn run(run: &mut Run<'_>) -> Result<String, Fault> {
    let home = &run.site.home;
    match &run.job.origin {
        Origin::Server => {
            let server = home.server(&run.job.server).await?;
            let boot = server.boot_volume_attachment.as_ref().and_then(|attachment| attachment.volume.as_ref());
            let missing =
                || VpcError::Missing { noun: "boot volume of", name: server.name.clone(), place: home.region().to_owned() };
            let boot = boot.ok_or_else(missing)?.id.clone();
            let volume = home.volume(&boot).await?.ok_or_else(missing)?;
            let words = format!("{} ({}), boot volume {}, {} GB", server.name, server.status, volume.name, volume.capacity);
            run.state.server = Some(ServerState { id: server.id.clone(), boot_volume: boot });
            run.found.server = Some(server);
            run.found.volume = Some(volume);
            Ok(words)
        }
        Origin::Snapshot(named) => {
            let snapshot = named_snapshot(home, named).await?;
            let words = format!("snapshot {} ({}), {} GB", snapshot.name, snapshot.lifecycle_state, snapshot.minimum_capacity);
            run.found.snapshot = Some(snapshot);
            Ok(words)
        }
    }
}

/// The snapshot of that name, or else of that id.
async fn named_snapshot(home: &RegionClient, named: &str) -> Result<Snapshot, VpcError> {
    let found = match home.snapshot_by_name(named).await? {
        Some(found) => Some(found),
        None => home.snapshot(&SnapshotId::new(named)).await?,
    };
    found.ok_or_else(|| VpcError::Missing { noun: "snapshot", name: named.to_owned(), place: home.region().to_owned() })
}
