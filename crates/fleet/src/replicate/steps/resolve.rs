//! Step `resolve`: finds the server and its boot volume, or the snapshot that is to be read.

use snapferry_ibmcloud::vpc::VpcError;

use super::super::error::Fault;
use super::super::job::Origin;
use super::super::saga::Run;
use super::super::state::ServerState;

pub(super) async fn run(run: &mut Run<'_>) -> Result<String, Fault> {
    let home = &run.context.home;
    match &run.job.origin {
        Origin::Server => {
            let server = match home.server(&run.job.server).await {
                Err(error) => return Err(or_elsewhere(run, error).await.into()),
                Ok(server) => server,
            };
            let volume = home.boot_volume(&server).await?;
            let summary = format!(
                "{} ({}), boot volume {}, {} GB",
                server.name, server.status, volume.name, volume.capacity
            );
            run.state.server = Some(ServerState { id: server.id.clone(), boot_volume: volume.id.clone() });
            run.found.server = Some(server);
            run.found.volume = Some(volume);
            Ok(summary)
        }
        Origin::Snapshot(named) => {
            let snapshot = home.named_snapshot(named).await?;
            let summary = format!(
                "snapshot {} ({}), {} GB",
                snapshot.name, snapshot.lifecycle_state, snapshot.minimum_capacity
            );
            run.found.snapshot = Some(snapshot);
            Ok(summary)
        }
    }
}

/// Adds a server of that name in the recovery region to the error, for a user who has mixed up the two
/// regions.
async fn or_elsewhere(run: &Run<'_>, error: VpcError) -> VpcError {
    let away = &run.context.away;
    match error {
        VpcError::Missing { kind, name, scope, mut similar } if away.region() != scope => {
            if let Ok(Some(instance)) = away.instance_by_name(&name).await {
                similar.insert(0, format!("{} in {}", instance.name, away.region()));
            }
            VpcError::Missing { kind, name, scope, similar }
        }
        error => error,
    }
}
