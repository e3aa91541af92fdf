//! `snapferry status`: age of the last good image of each server and region, and the jobs that are open.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

use clap::Args as Group;
use clap_complete::ArgValueCompleter;
use serde_json::{Value, json};
use snapferry_base::clock::rfc3339;
use snapferry_base::message_id::IMAGE_STALE;
use snapferry_fleet::queue::{JobRecord, JobState, LastSuccess, Queue, WorkerSeen};
use snapferry_fleet::replicate::Age;
use snapferry_fleet::worker::schedule::read;

use super::jobs::at;
use super::sent::{self, Sent};
use super::{on_queue, snapshot_time};
use crate::cli::args::{ConsentArgs, OutputArgs, QueueArgs};
use crate::cli::completions::names;
use crate::cli::consent::{Consent, Unasked};
use crate::cli::duration::approximate;
use crate::cli::error::CommandResult;
use crate::cli::error::UsageError;
use crate::cli::exit::Code;
use crate::cli::log::{self, LogFormat};
use crate::cli::print_json;
use crate::cli::printable::{self, LONGEST_SHOWN, cut};
use crate::cli::rehearsal::would_with;
use crate::cli::session::Session;
use crate::cli::table::Table;

/// Jobs of each state that are read at most.
const JOBS: usize = 10_000;

/// Images and jobs of one server in one region.
#[derive(Default)]
struct Row {
    success: Option<LastSuccess>,
    /// Job that waits or runs.
    open: Option<JobRecord>,
    /// Last job that failed for good.
    dead: Option<JobRecord>,
}

impl Row {
    /// Returns the age of the last good image: the age of its snapshot, or the time since the success if the
    /// result does not contain the snapshot's time.
    fn age(&self, now: SystemTime) -> Option<Duration> {
        let taken = snapshot_time(self.success.as_ref()?);
        now.duration_since(taken).ok().or(Some(Duration::ZERO))
    }

    fn image(&self) -> Option<String> {
        let result: Value = serde_json::from_str(&self.success.as_ref()?.result).ok()?;
        Some(result["image"]["name"].as_str()?.to_owned())
    }

    /// Returns what was sent for the image, and what was unchanged, as text for the table.
    fn sent(&self) -> Option<String> {
        Some(Sent::of_result(&self.success.as_ref()?.result)?.short())
    }

    /// Returns the job that failed, unless a success came after it.
    fn failed(&self) -> Option<&JobRecord> {
        let success = self.success.as_ref().map(|success| success.at);
        self.dead.as_ref().filter(|job| success.is_none_or(|success| success < job.changed_at))
    }
}

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry status\n  snapferry status --check --max-age 26h\n  snapferry status --forget web07\n\nWith --check: exit code 0 where every image is young enough, 8 where one is not, 6 where the queue can't be asked."
)]
pub struct StatusArgs {
    /// Exit with 8 if an image is older than --max-age, or was never made
    #[arg(long)]
    pub check: bool,

    /// Maximum allowed age of an image
    #[arg(long, default_value = "26h", value_name = "AGE")]
    pub max_age: Age,

    /// Only these servers, by name
    #[arg(value_name = "SERVER", add = ArgValueCompleter::new(names::servers))]
    pub servers: Vec<String>,

    /// Forget these servers, which are no more: their last image, and their jobs that are dead
    #[arg(long, requires = "servers", conflicts_with = "check")]
    pub forget: bool,

    /// Print what --forget would do, and change nothing
    #[arg(short = 'n', long, requires = "forget")]
    pub dry_run: bool,

    #[command(flatten)]
    pub consent: ConsentArgs,

    /// Forget them for this region alone
    #[arg(long, value_name = "REGION", requires = "forget")]
    pub to: Option<String>,

    #[command(flatten)]
    pub output: OutputArgs,

    #[command(flatten)]
    pub queue: QueueArgs,
}

pub fn run(args: &StatusArgs, session: &Session) -> CommandResult<Code> {
    let consent = Consent::of(args.consent, session)?;
    let mut code = Code::Done;
    on_queue(&args.queue, session, async |queue| {
        let now = SystemTime::now();
        let mut rows = rows(queue).await?;
        if args.forget {
            return forget(queue, args, consent, &rows, session).await;
        }
        rows.retain(|(server, _), _| args.servers.is_empty() || args.servers.contains(server));
        let unknown: Vec<&String> =
            args.servers.iter().filter(|&server| !rows.keys().any(|(known, _)| known == server)).collect();
        // A server of which nothing is known has no image, so it counts as too old.
        rows.extend(unknown.iter().map(|&server| ((server.clone(), String::new()), Row::default())));
        let Age(max_age) = args.max_age;
        let too_old = |row: &Row| row.age(now).is_none_or(|age| age > max_age);
        if args.check && (rows.is_empty() || rows.values().any(too_old)) {
            code = Code::Stale;
        }
        if args.check && log::format() != LogFormat::Text {
            for ((server, region), row) in rows.iter().filter(|(_, row)| too_old(row)) {
                let age = row.age(now);
                tracing::warn!(
                    message_id = IMAGE_STALE,
                    server,
                    region,
                    age_seconds = age.map(|age| age.as_secs()),
                    "the last good image is too old: {}",
                    age.map_or_else(|| "there is none".to_owned(), approximate)
                );
            }
        }
        if args.output.json {
            let all: Vec<Value> = rows
                .iter()
                .map(|((server, region), row)| row_json(server, region, row, now, too_old(row)))
                .collect();
            let workers = queue.workers().await?;
            let worker =
                |worker: &WorkerSeen| json!({ "worker": worker.worker, "heard_at": rfc3339(worker.at) });
            let all = json!({ "servers": all, "workers": workers.iter().map(worker).collect::<Value>() });
            return print_json(&all);
        }
        let mut table = Table::new(&["server", "region", "last good", "image", "sent", "now", "failed"]);
        for ((server, region), row) in &rows {
            let age = row.age(now).map_or_else(|| "never".to_owned(), approximate);
            let mark = if args.check && too_old(row) { ", too old" } else { "" };
            table.row(vec![
                server.clone(),
                region.clone(),
                format!("{age}{mark}"),
                row.image().unwrap_or_default(),
                row.sent().unwrap_or_default(),
                row.open.as_ref().map(at).unwrap_or_default(),
                row.failed().and_then(|job| job.error.clone()).unwrap_or_default(),
            ]);
        }
        table.print("no server was ever enqueued: `snapferry enqueue SERVER`", session.verbosity)?;
        let mut out = printable::out();
        for worker in queue.workers().await? {
            let ago = now.duration_since(worker.at).unwrap_or_default();
            writeln!(
                out,
                "worker {} was heard of {} ago",
                cut(&worker.worker, LONGEST_SHOWN),
                approximate(ago)
            )?;
        }
        for server in unknown {
            writeln!(out, "{server} was never enqueued: `snapferry enqueue {server}`")?;
        }
        Ok(())
    })?;
    Ok(code)
}

/// Deletes the records of servers that no longer exist, so that no check misses their images.
async fn forget(
    queue: &dyn Queue,
    args: &StatusArgs,
    consent: Consent,
    known: &BTreeMap<(String, String), Row>,
    session: &Session,
) -> CommandResult<()> {
    let mut chosen = Vec::new();
    for server in &args.servers {
        let is_selected = |region: &str| args.to.as_deref().is_none_or(|to| to == region);
        let regions: Vec<&str> = known
            .keys()
            .filter(|(name, region)| name == server && is_selected(region))
            .map(|(_, region)| region.as_str())
            .collect();
        if regions.is_empty() {
            return Err(UsageError(format!(
                "nothing is known of {server}; `snapferry status` shows the servers there are"
            ))
            .into());
        }
        chosen.extend(regions.into_iter().map(|region| (server, region)));
    }
    let names: Vec<String> =
        chosen.iter().map(|(server, region)| format!("{server} into {region}")).collect();
    if !args.dry_run && chosen.len() > 1 {
        let what = format!("forget the last images of {} servers: {}", names.len(), names.join(", "));
        consent.ask(session, Unasked::GoOn, &what)?;
    }
    for ((server, region), name) in chosen.into_iter().zip(&names) {
        if args.dry_run {
            let more = json!({ "server": server, "region": region });
            would_with(args.output.form(), format_args!("forget {name}"), &more)?;
            continue;
        }
        queue.forget(server, region).await?;
        if args.output.json {
            print_json(&json!({ "server": server, "region": region, "forgotten": true }))?;
        } else {
            writeln!(printable::out(), "{name} is forgotten")?;
        }
    }
    if args.dry_run {
        return Ok(());
    }
    for (server, region) in rows(queue).await?.keys().filter(|key| args.servers.contains(&key.0)) {
        tracing::warn!(
            "{server} into {region} is still in the queue, or in a schedule: `snapferry jobs cancel`, `snapferry schedule rm`"
        );
    }
    Ok(())
}

/// Returns a row for each server and region that has a success, a job in the queue, or a schedule.
async fn rows(queue: &dyn Queue) -> CommandResult<BTreeMap<(String, String), Row>> {
    let mut rows: BTreeMap<(String, String), Row> = BTreeMap::new();
    for success in queue.last_successes().await? {
        let row = rows.entry((success.server.clone(), success.region.clone())).or_default();
        row.success = Some(success);
    }
    for job in
        queue.jobs_in(&[JobState::Dead, JobState::Delayed, JobState::Ready, JobState::Running], JOBS).await?
    {
        let row = rows.entry((job.server.clone(), job.region.clone())).or_default();
        if job.state == JobState::Dead {
            // The newest come first.
            row.dead.get_or_insert(job);
        } else {
            row.open = Some(job);
        }
    }
    for schedule in queue.schedules().await? {
        let Ok((plan, _)) = read(&schedule) else { continue };
        for job in plan.jobs {
            rows.entry((job.server, job.to)).or_default();
        }
    }
    Ok(rows)
}

fn success_json(success: &LastSuccess) -> Value {
    let mut all = sent::fields(&success.result);
    all["at"] = json!(rfc3339(success.at));
    all["job"] = json!(success.id);
    all
}

fn row_json(server: &str, region: &str, row: &Row, now: SystemTime, too_old: bool) -> Value {
    json!({
        "server": server,
        "region": (!region.is_empty()).then_some(region),
        "age_seconds": row.age(now).map(|age| age.as_secs()),
        "too_old": too_old,
        "last_success": row.success.as_ref().map(success_json),
        "image": row.image(),
        "job": row.open.as_ref().map(|job| json!({ "job": job.id, "state": job.state, "step": job.step })),
        "failed": row.failed().map(|job| json!({ "job": job.id, "at": rfc3339(job.changed_at), "error": job.error })),
    })
}
