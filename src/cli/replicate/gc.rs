//! `snapferry gc`: shows what dead jobs have left behind, and removes it with `--apply`.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Args as Group;
use serde_json::json;
use snapferry_base::clock::SystemClock;
use snapferry_base::retry::chain;
use snapferry_fleet::queue::{JobState, Queue as _, RedisQueue};
use snapferry_fleet::replicate::gc::{Because, Fate, Finding, Kind, Places, Rules, Survey, remove, survey};
use snapferry_fleet::replicate::{Age, JobSpec, JournalFolder};

use super::site::{SiteArgs, state_folder, turns, waits};
use crate::cli::args::{CloudArgs, ConsentArgs, OutputArgs, PlaceArgs, QueueArgs, RecoveryArgs};
use crate::cli::cloud::{Cloud, run as run_on_cloud};
use crate::cli::consent::{Consent, Unasked};
use crate::cli::duration::approximate;
use crate::cli::error::CommandResult;
use crate::cli::exit::Code;
use crate::cli::fleet;
use crate::cli::fleet::metrics::Leftovers;
use crate::cli::log::Verbosity;
use crate::cli::printable::{self, Form};
use crate::cli::session::Session;
use crate::cli::table::Table;

/// Time for which the journals of jobs that are over are kept.
const JOURNALS_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Result of removing one leftover.
struct Removed<'a> {
    finding: &'a Finding,
    /// Error, if it could not be removed.
    failed: Option<String>,
}

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry gc --to us-east --bucket images-us-east\n  snapferry gc --to us-east --bucket images-us-east --apply\n\nWithout --to no images are looked at, without --bucket no uploads and objects; the report says so."
)]
pub struct GcArgs {
    /// Remove what was found
    #[arg(long)]
    pub apply: bool,

    /// Print what --apply would remove, which is the default; nor are the workers' metrics told
    #[arg(short = 'n', long, conflicts_with = "apply")]
    pub dry_run: bool,

    #[command(flatten)]
    pub consent: ConsentArgs,

    /// Ignore anything younger than this; must exceed your longest job
    #[arg(long, default_value = "24h", value_name = "AGE")]
    pub min_age: Age,

    /// Prefix of the objects' keys, as for replicate
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub prefix: String,

    #[command(flatten)]
    pub output: OutputArgs,

    #[command(flatten)]
    pub place: PlaceArgs,

    #[command(flatten)]
    pub queue: QueueArgs,

    #[command(flatten)]
    pub cloud: CloudArgs,

    #[command(flatten)]
    pub recovery: RecoveryArgs,
}

pub fn run(args: &GcArgs, session: &Session) -> CommandResult<Code> {
    let consent = Consent::of(args.consent, session)?;
    run_on_cloud(&args.cloud, session, async |cloud| {
        let site_args =
            SiteArgs { cloud_args: &args.cloud, recovery: &args.recovery, place: &args.place, session };
        let places = places(&site_args, &args.prefix, &cloud.waiting(waits(&args.place)))?;
        let journals = JournalFolder::new(&state_folder(&args.place, &session.environment));
        let queue = match args.queue.redis {
            Some(_) => Some(fleet::open(&args.queue, &session.environment).await?),
            None => None,
        };
        let rules = rules(args, &journals, queue.as_ref()).await?;
        let found = survey(&places, &rules).await?;
        let mut removed = Vec::new();
        if args.apply {
            ask(consent, &found, session)?;
            for finding in found.leftovers() {
                // Removing may take hours: a process may have taken the job up since the survey.
                if live(&journals, queue.as_ref()).await?.contains(&finding.run) {
                    continue;
                }
                let outcome = remove(finding, &places, &rules).await;
                if cloud.cancel().is_cancelled() {
                    outcome?;
                    continue;
                }
                match outcome {
                    Ok(true) => removed.push(Removed { finding, failed: None }),
                    Ok(false) => {}
                    Err(err) => removed.push(Removed { finding, failed: Some(chain(&err)) }),
                }
            }
            let before = SystemTime::now().checked_sub(JOURNALS_KEPT).unwrap_or(SystemTime::UNIX_EPOCH);
            journals.forget(before)?;
        }
        if let Some(queue) = queue.as_ref().filter(|_| !args.dry_run) {
            let remaining = serde_json::to_string(&remaining(&found, &removed))?;
            // This is for the workers' metrics only: the command itself does not depend on it.
            if let Err(err) = queue.set_survey(places.home.region(), &remaining).await {
                tracing::warn!("the metrics will not know what was found: {}", chain(&err));
            }
        }
        print(args, &places, &found, &removed, session.verbosity)?;
        let is_incomplete =
            !found.could_not_list.is_empty() || removed.iter().any(|removed| removed.failed.is_some());
        Ok(if is_incomplete { Code::Cloud } else { Code::Done })
    })
}

/// Asks before the leftovers are removed, with a list of them.
fn ask(consent: Consent, found: &Survey, session: &Session) -> CommandResult<()> {
    let count = found.leftovers().count();
    if count == 0 || !consent.is_asked(session) {
        return Ok(());
    }
    let mut table = Table::new(&["kind", "name", "id"]);
    for finding in found.leftovers() {
        table.row(vec![finding.kind.to_string(), finding.name.clone(), finding.id.clone()]);
    }
    table.write(&mut printable::err(), printable::error_width())?;
    let plural = if count == 1 { "" } else { "s" };
    consent.ask(session, Unasked::GoOn, &format!("remove {count} leftover{plural}"))
}

/// Returns the places that are searched for leftovers, as far as the user named them.
pub fn places(site_args: &SiteArgs<'_>, prefix: &str, cloud: &Cloud) -> CommandResult<Places> {
    let away = match &site_args.recovery.to {
        Some(to) => Some((cloud.region(to)?, cloud.tagging()?)),
        None => None,
    };
    let bucket = match &site_args.recovery.bucket {
        Some(bucket) => Some((site_args.store(bucket, cloud)?, prefix.to_owned(), bucket.clone())),
        None => None,
    };
    Ok(Places {
        server_locks: turns(site_args.place, &site_args.session.environment),
        home: cloud.client()?,
        away,
        bucket,
    })
}

/// Returns the rules for leftovers: what this machine works on is none, however old it is, nor is what the
/// fleet still has to do.
async fn rules(args: &GcArgs, journals: &JournalFolder, queue: Option<&RedisQueue>) -> CommandResult<Rules> {
    let mut known = BTreeSet::new();
    for read in journals.all()? {
        known.insert(read.job.names()?.run.to_string());
    }
    known.extend(queued(queue, &JobState::ALL).await?);
    let live = live(journals, queue).await?;
    let Age(min_age) = args.min_age;
    Ok(Rules { min_age, live, known, clock: Arc::new(SystemClock), waits: waits(&args.place) })
}

/// Returns the runs that a process works on, or still has to. Of a fleet's jobs only the open ones are read,
/// because they are few.
async fn live(journals: &JournalFolder, queue: Option<&RedisQueue>) -> CommandResult<BTreeSet<String>> {
    let mut live = BTreeSet::new();
    for read in journals.all()?.into_iter().filter(|read| journals.is_busy(read.job.id)) {
        live.insert(read.job.names()?.run.to_string());
    }
    let open: Vec<JobState> = JobState::ALL.into_iter().filter(|state| !state.is_over()).collect();
    live.extend(queued(queue, &open).await?);
    Ok(live)
}

/// Returns the runs of the fleet's jobs in these states.
async fn queued(queue: Option<&RedisQueue>, states: &[JobState]) -> CommandResult<Vec<String>> {
    let Some(queue) = queue else { return Ok(Vec::new()) };
    let mut runs = Vec::new();
    for queued in queue.jobs_in(states, usize::MAX).await? {
        // A job that another version has queued can't be judged here.
        let Ok(job) = serde_json::from_str::<JobSpec>(&queued.spec) else { continue };
        runs.push(job.names()?.run.to_string());
    }
    Ok(runs)
}

/// Returns how many leftovers remain, of each kind that could be listed completely.
fn remaining(found: &Survey, removed: &[Removed<'_>]) -> Leftovers {
    let is_removed = |finding: &Finding| {
        removed.iter().any(|removed| removed.failed.is_none() && removed.finding == finding)
    };
    let count =
        |kind| found.leftovers().filter(|finding| finding.kind == kind && !is_removed(finding)).count();
    found
        .seen()
        .map(|kind| (kind.name().to_owned(), u32::try_from(count(kind)).unwrap_or(u32::MAX)))
        .collect()
}

fn print(
    args: &GcArgs,
    places: &Places,
    found: &Survey,
    removed: &[Removed<'_>],
    verbosity: Verbosity,
) -> CommandResult<()> {
    let mut out = printable::out_as(Form::of(args.output.json));
    let home = places.home.region();
    if args.output.json {
        let removed: Vec<_> = removed
            .iter()
            .map(|Removed { finding, failed }| json!({ "kind": finding.kind, "id": finding.id, "name": finding.name, "error": failed }))
            .collect();
        let report = json!({
            "region": home,
            "recovery_region": args.recovery.to,
            "bucket": args.recovery.bucket,
            "applied": args.apply,
            "queue_asked": args.queue.redis.is_some(),
            "findings": found.findings,
            "could_not_list": found.could_not_list,
            "not_looked_at": found.not_looked_at,
            "removed": removed,
        });
        writeln!(out, "{report}")?;
        return Ok(());
    }
    let mut table = Table::new(&["kind", "name", "id", "age", "size", "fate"]);
    for finding in &found.findings {
        table.row(vec![
            finding.kind.to_string(),
            finding.name.clone(),
            finding.id.clone(),
            finding
                .age_seconds
                .map_or_else(|| "unknown".to_owned(), |seconds| approximate(Duration::from_secs(seconds))),
            finding.size_gb.map_or_else(String::new, |size| format!("{size} GB")),
            fate(finding, args, removed),
        ]);
    }
    if !found.findings.is_empty() {
        table.write(&mut out, printable::terminal_width())?;
    }
    for failure in &found.could_not_list {
        writeln!(out, "{}s COULD NOT BE LISTED: {}", failure.kind, failure.why)?;
    }
    if verbosity == Verbosity::Quiet {
        return Ok(());
    }
    let listed: Vec<&str> = found.seen().map(Kind::name).collect();
    let leftovers = found.leftovers().count();
    let counted = if leftovers == 0 { "no leftovers".to_owned() } else { format!("{leftovers} leftovers") };
    writeln!(out, "{counted} among the {}s of {home}{}", listed.join("s, "), other_places(args))?;
    if !found.not_looked_at.is_empty() {
        let kinds: Vec<&str> = found.not_looked_at.iter().map(|kind| kind.name()).collect();
        writeln!(
            out,
            "not looked at: {}s (images take --to, uploads and objects --bucket)",
            kinds.join("s, ")
        )?;
    }
    if args.queue.redis.is_none() {
        writeln!(
            out,
            "no queue was asked: a fleet's jobs are told from dead ones by their age alone (--redis)"
        )?;
    }
    if leftovers > 0 && !args.apply {
        writeln!(out, "nothing was removed: --apply does it")?;
    }
    Ok(())
}

fn other_places(args: &GcArgs) -> String {
    let to = args.recovery.to.as_ref().map_or_else(String::new, |to| format!(", {to}"));
    let bucket =
        args.recovery.bucket.as_ref().map_or_else(String::new, |bucket| format!(", bucket {bucket}"));
    format!("{to}{bucket}")
}

fn fate(finding: &Finding, args: &GcArgs, removed: &[Removed<'_>]) -> String {
    match finding.fate {
        Fate::Live => "stays: its job is being worked on".to_owned(),
        Fate::Young => format!("stays: younger than {}", args.min_age),
        Fate::Leftover if !args.apply && finding.because == Because::NotKept => {
            format!("leftover: {} does not keep it", finding.run)
        }
        Fate::Leftover if !args.apply => "leftover".to_owned(),
        Fate::Leftover => match removed.iter().find(|removed| removed.finding == finding) {
            Some(Removed { failed: None, .. }) => "removed".to_owned(),
            Some(Removed { failed: Some(error), .. }) => format!("NOT REMOVED: {error}"),
            None => "stays: it is in use again".to_owned(),
        },
    }
}
