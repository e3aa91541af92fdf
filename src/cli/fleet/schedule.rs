//! `snapferry schedule`: jobs that are added at certain times, by the worker that looks first.

use std::io::Write as _;
use std::time::SystemTime;

use clap::{Args as Group, Subcommand};
use clap_complete::ArgValueCompleter;
use serde_json::{Value, json};
use snapferry_base::clock::{SystemClock, rfc3339};
use snapferry_base::job::JobId;
use snapferry_fleet::queue::Priority;
use snapferry_fleet::queue::{CatchUp, Queue as _, Schedule};
use snapferry_fleet::worker::schedule::{Plan, Ticks, read};

use super::servers::chosen;
use super::{on_queue, open};
use crate::cli::args::{
    CloudArgs, ConsentArgs, HowArgs, OutputArgs, QueueArgs, RecoveryArgs, RehearsalArgs, ServersArgs,
};
use crate::cli::cloud::home_region;
use crate::cli::completions::names;
use crate::cli::consent::{Consent, Unasked};
use crate::cli::error::CommandResult;
use crate::cli::error::UsageError;
use crate::cli::exit::Code;
use crate::cli::print_json;
use crate::cli::printable;
use crate::cli::rehearsal::would_with;
use crate::cli::replicate::job_of;
use crate::cli::session::Session;
use crate::cli::table::Table;

#[derive(Debug, Group)]
pub struct ScheduleArgs {
    #[command(subcommand)]
    pub action: ScheduleAction,
}

#[derive(Debug, Subcommand)]
pub enum ScheduleAction {
    /// List schedules, when they were last due and will be next
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        output: OutputArgs,

        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Add a schedule, or replace the one of that name; workers carry it out
    #[command(
        after_help = "Examples:\n  snapferry schedule add nightly --cron '30 2 * * *' web01 web02 db01\n  snapferry schedule add weekly --cron '0 4 * * 0' --file servers.txt --priority 3"
    )]
    Add(Box<ScheduleAddArgs>),
    /// Remove schedules; jobs they have added stay
    #[command(visible_aliases = ["delete", "remove"])]
    Rm {
        /// Names of the schedules
        #[arg(value_name = "NAME", required = true, add = ArgValueCompleter::new(names::schedules))]
        names: Vec<String>,

        #[command(flatten)]
        rehearsal: RehearsalArgs,

        #[command(flatten)]
        consent: ConsentArgs,

        #[command(flatten)]
        output: OutputArgs,

        #[command(flatten)]
        queue: QueueArgs,
    },
}

#[derive(Debug, Group)]
pub struct ScheduleAddArgs {
    /// Name of the schedule
    #[arg(value_name = "NAME")]
    pub name: String,

    /// Times: minute, hour, day, month, weekday, in UTC, see cron(5)
    #[arg(long, value_name = "FIELDS")]
    pub cron: String,

    #[command(flatten)]
    pub which: ServersArgs,

    /// Priority, 0 to 9; 9 goes first
    #[arg(long, default_value = "5", value_name = "0-9")]
    pub priority: Priority,

    #[command(flatten)]
    pub rehearsal: RehearsalArgs,

    #[command(flatten)]
    pub output: OutputArgs,

    #[command(flatten)]
    pub how: HowArgs,

    #[command(flatten)]
    pub queue: QueueArgs,

    #[command(flatten)]
    pub cloud: CloudArgs,

    #[command(flatten)]
    pub recovery: RecoveryArgs,
}

pub fn run(args: &ScheduleArgs, session: &Session) -> CommandResult<Code> {
    match &args.action {
        ScheduleAction::List { output, queue } => list(output.json, queue, session),
        ScheduleAction::Add(args) => add(args, session),
        ScheduleAction::Rm { names, rehearsal, consent, output, queue } => {
            remove(names, *rehearsal, Consent::of(*consent, session)?, *output, queue, session)
        }
    }
}

fn remove(
    names: &[String],
    rehearsal: RehearsalArgs,
    consent: Consent,
    output: OutputArgs,
    queue: &QueueArgs,
    session: &Session,
) -> CommandResult<Code> {
    let missing = |name: &str| {
        UsageError(format!("there is no schedule {name}; `snapferry schedule list` shows those there are"))
    };
    on_queue(queue, session, async |queue| {
        if rehearsal.dry_run {
            let schedules = queue.schedules().await?;
            for name in names {
                if !schedules.iter().any(|schedule| schedule.name == *name) {
                    return Err(missing(name).into());
                }
                let what = format_args!("remove schedule {name}");
                would_with(output.form(), what, &json!({ "schedule": name }))?;
            }
            return Ok(());
        }
        if names.len() > 1 {
            let what = format!("remove {} schedules: {}", names.len(), names.join(", "));
            consent.ask(session, Unasked::GoOn, &what)?;
        }
        for name in names {
            if !queue.remove_schedule(name).await? {
                return Err(missing(name).into());
            }
            if output.json {
                print_json(&json!({ "schedule": name, "removed": true }))?;
            } else {
                writeln!(printable::out(), "{name} is no more")?;
            }
        }
        Ok(())
    })
}

fn add(args: &ScheduleAddArgs, session: &Session) -> CommandResult<Code> {
    let servers = chosen(&args.which, &args.cloud, session)?;
    let ticks = Ticks::read(&args.cron).map_err(|error| UsageError(error.to_string()))?;
    let next =
        ticks.next(SystemTime::now()).ok_or_else(|| UsageError(format!("{:?} never comes", args.cron)))?;
    session.runtime()?.block_on(async {
        let home = home_region(&args.cloud).await?;
        let jobs = servers
            .iter()
            .map(|server| job_of(server, &args.how, &args.recovery, JobId::new(&SystemClock), &home));
        let plan = Plan {
            cron: args.cron.clone(),
            priority: args.priority,
            jobs: jobs.collect::<CommandResult<_>>()?,
        };
        let queue = open(&args.queue, &session.environment).await?;
        let before = queue.schedules().await?.into_iter().find(|schedule| schedule.name == args.name);
        // If the servers change but not the times, jobs that are due by now stay due.
        let replaced = before.is_some();
        let same =
            before.and_then(|before| read(&before).ok()).is_some_and(|(before, _)| before.cron == plan.cron);
        let plural = if servers.len() == 1 { "" } else { "s" };
        let summary = format!("{}: {} server{plural}, next at {}", args.name, servers.len(), rfc3339(next));
        let object = json!({
            "schedule": args.name, "cron": args.cron, "priority": args.priority, "servers": servers,
            "next": rfc3339(next), "replaced": replaced,
        });
        if args.rehearsal.dry_run {
            let verb = if replaced { "replace" } else { "add" };
            would_with(args.output.form(), format_args!("{verb} schedule {summary}"), &object)?;
            return Ok(Code::Done);
        }
        let since = if same { CatchUp::Before } else { CatchUp::Now };
        queue.set_schedule(&args.name, &serde_json::to_string(&plan)?, since).await?;
        if args.output.json {
            print_json(&object)?;
        } else {
            writeln!(printable::out(), "{summary}")?;
        }
        Ok(Code::Done)
    })
}

fn list(as_json: bool, queue: &QueueArgs, session: &Session) -> CommandResult<Code> {
    on_queue(queue, session, async |queue| {
        let now = SystemTime::now();
        let mut table = Table::new(&["schedule", "cron", "servers", "last", "next"]);
        let mut all = Vec::new();
        for schedule in queue.schedules().await? {
            let (plan, ticks) = match read(&schedule) {
                Ok(read) => read,
                Err(reason) => {
                    tracing::error!(
                        "{} makes no sense to this version of snapferry: {reason}",
                        schedule.name
                    );
                    continue;
                }
            };
            let next = ticks.next(now).map(rfc3339);
            let last = last_tick(&schedule, &ticks).map(rfc3339);
            let servers: Vec<&str> = plan.jobs.iter().map(|job| job.server.as_str()).collect();
            all.push(json!({
                "schedule": schedule.name, "cron": plan.cron, "priority": plan.priority, "servers": servers,
                "last": last, "next": next,
            }));
            table.row(vec![
                schedule.name,
                plan.cron,
                servers.join(" "),
                last.unwrap_or_default(),
                next.unwrap_or_default(),
            ]);
        }
        if as_json {
            return print_json(&Value::from(all));
        }
        Ok(table.print("no schedules", session.verbosity)?)
    })
}

/// Returns the time at which jobs were last added. Before the first time, the queue keeps the time at which
/// the schedule was made, to the millisecond, which is no tick.
fn last_tick(schedule: &Schedule, ticks: &Ticks) -> Option<SystemTime> {
    ticks.last(schedule.last).filter(|&tick| tick == schedule.last)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_schedule_that_was_only_made_has_not_run() {
        let ticks = Ticks::read("0 * * * *").expect("a pattern");
        let at = |ms: u64| SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_355_200_000 + ms);
        let schedule = |last| Schedule { name: "hourly".into(), plan: String::new(), last };
        assert_eq!(last_tick(&schedule(at(1234)), &ticks), None);
        assert_eq!(last_tick(&schedule(at(0)), &ticks), Some(at(0)));
    }
}
