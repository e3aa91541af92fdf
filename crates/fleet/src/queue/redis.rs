//! The queue on Redis. Each change is one script, which the server runs as a whole or not at all, on its own
//! clock.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use redis::{FromRedisValue, Script};
use snapferry_base::job::JobId;

use super::connection::{Connection, RedisConfig, Taken, address_of};
use super::job::{
    CatchUp, Counts, Delivered, Enqueued, GcSurvey, JobRecord, JobState, LastSuccess, NewJob, Priority,
    QueueEvent, Reaped, Schedule, WorkerSeen,
};
use super::rights;
use super::text::{Text, or_warn, paired};
use super::{EVENTS_KEPT, Lease, LeaseStatus, OnFailure, Queue, QueueError, Timing, Token};

/// Default prefix of all keys. The braces are a hash tag, so all keys lie in one slot of a cluster.
const PREFIX: &str = "{snapferry}:";

/// Largest value that is read as a whole, in bytes; the journal of a job takes some ten thousand. A user with
/// write access to a queue can write half a GiB into each of its fields.
const MAX_VALUE_LENGTH: usize = 1 << 20;
/// Longest text of an event that is read as a whole, in bytes.
const MAX_EVENT_LENGTH: usize = 64 << 10;
/// Number that no connection has.
const NONE: u64 = u64::MAX;

/// Start of each script, which sets `now` from the server's clock.
const SERVER_CLOCK: &str =
    "local t = redis.call('TIME')\nlocal now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)\n";
/// Start of each script in tests that set the clock: `now` is the last argument.
const TEST_CLOCK: &str = "local now = tonumber(ARGV[#ARGV])\n";

macro_rules! scripts {
    ($($name:ident = $file:literal),* $(,)?) => {
        struct Scripts {
            $($name: Script,)*
        }

        impl Scripts {
            fn on(clock: &str) -> Self {
                let script = |body: &str| Script::new(&format!("{clock}local EVENTS_KEPT = {EVENTS_KEPT}\n{}{body}", include_str!("lua/states.lua")));
                Self { $($name: script(include_str!($file)),)* }
            }
        }
    };
}

scripts! {
    enqueue = "lua/enqueue.lua",
    claim = "lua/claim.lua",
    beat = "lua/beat.lua",
    step = "lua/step.lua",
    release = "lua/release.lua",
    finish = "lua/finish.lua",
    fail = "lua/fail.lua",
    cancel = "lua/cancel.lua",
    retry = "lua/retry.lua",
    reap = "lua/reap.lua",
    purge = "lua/purge.lua",
    forget = "lua/forget.lua",
    list = "lua/list.lua",
    survey = "lua/survey.lua",
    schedule = "lua/schedule.lua",
    tick = "lua/tick.lua",
    waiting = "lua/waiting.lua",
    hash = "lua/hash.lua",
    counts = "lua/counts.lua",
    events = "lua/events.lua",
}

/// Queue on a Redis server. It connects again after the connection fails.
pub struct RedisQueue {
    connection: Connection,
    scripts: &'static Scripts,
    prefix: String,
    address: String,
    timing: Timing,
    /// Number of the connection that the last search for expired leases used.
    last_reaped_on: AtomicU64,
    /// Number of the connection on which INFO was refused. Repeating it would fill the server's log with
    /// refusals.
    info_refused_on: AtomicU64,
    /// Clock of a test that replaces the server's, in milliseconds.
    test_clock: Option<std::sync::Arc<std::sync::atomic::AtomicU64>>,
}

impl RedisQueue {
    /// Connects to the server.
    ///
    /// # Errors
    /// If the server can't be reached or refuses a request.
    pub async fn connect(config: &RedisConfig) -> Result<Self, QueueError> {
        let address = address_of(&config.url);
        let connection = Connection::connect(config).await?;
        static SCRIPTS: OnceLock<Scripts> = OnceLock::new();
        let scripts = SCRIPTS.get_or_init(|| Scripts::on(SERVER_CLOCK));
        let prefix =
            config.prefix.as_ref().map_or_else(|| PREFIX.to_owned(), |prefix| format!("{{{prefix}}}:"));
        Ok(Self {
            connection,
            scripts,
            prefix,
            address,
            timing: config.timing,
            last_reaped_on: AtomicU64::new(NONE),
            info_refused_on: AtomicU64::new(NONE),
            test_clock: None,
        })
    }

    /// Returns the same queue on a clock that a test sets, in milliseconds since 1970.
    #[must_use]
    pub fn on_clock(self, clock: std::sync::Arc<std::sync::atomic::AtomicU64>) -> Self {
        static SCRIPTS: OnceLock<Scripts> = OnceLock::new();
        let scripts = SCRIPTS.get_or_init(|| Scripts::on(TEST_CLOCK));
        Self { scripts, test_clock: Some(clock), ..self }
    }

    /// Runs a script. If the server does not know it, as after a restart, the library sends it and asks
    /// again.
    async fn run<T: FromRedisValue>(&self, script: &Script, arguments: &[&str]) -> Result<T, QueueError> {
        let mut taken = self.connection.take().await?;
        self.run_over(&mut taken, script, arguments).await
    }

    async fn run_over<T: FromRedisValue>(
        &self,
        taken: &mut Taken,
        script: &Script,
        arguments: &[&str],
    ) -> Result<T, QueueError> {
        let mut call = script.key(&self.prefix);
        for argument in arguments {
            call.arg(*argument);
        }
        if let Some(clock) = &self.test_clock {
            call.arg(clock.load(Ordering::Relaxed));
        }
        let response = call.invoke_async(&mut taken.connection).await;
        self.connection.take_response(taken, response).await
    }

    /// Returns a hash as a map. Long values are cut, and bytes that are not UTF-8 are replaced.
    async fn hash(&self, name: &str) -> Result<BTreeMap<String, String>, QueueError> {
        let pairs: Vec<Text> = self.run(&self.scripts.hash, &[name, &MAX_VALUE_LENGTH.to_string()]).await?;
        Ok(paired(pairs))
    }

    /// Parses ids from the result of a script. Leaves out values that are not an id.
    fn ids(&self, texts: &[Text]) -> Vec<JobId> {
        texts.iter().filter_map(|Text(text)| or_warn(self.id(text))).collect()
    }

    pub(super) async fn ask<T: FromRedisValue>(&self, command: &redis::Cmd) -> Result<T, QueueError> {
        let mut taken = self.connection.take().await?;
        let response = command.query_async(&mut taken.connection).await;
        self.connection.take_response(&taken, response).await
    }

    fn unreadable(&self, reason: impl Into<String>) -> QueueError {
        QueueError::Foreign { address: self.address.clone(), reason: reason.into() }
    }

    fn id(&self, text: &str) -> Result<JobId, QueueError> {
        text.parse().map_err(|_| self.unreadable(format!("{text:?} is no job's id")))
    }

    /// Converts the result of a script that needs a lease.
    fn lease_status(response: &str, id: JobId) -> Result<LeaseStatus, QueueError> {
        match response {
            "lost" => Err(QueueError::LeaseLost { id }),
            "cancelled" => Ok(LeaseStatus::Cancelled),
            _ => Ok(LeaseStatus::On),
        }
    }

    async fn leased(&self, script: &Script, lease: &Lease, more: &[&str]) -> Result<LeaseStatus, QueueError> {
        let id = lease.id.to_string();
        let arguments: Vec<&str> =
            [id.as_str(), lease.token.as_str()].into_iter().chain(more.iter().copied()).collect();
        let response: String = self.run(script, &arguments).await?;
        Self::lease_status(&response, lease.id)
    }

    fn lease_ms(&self) -> String {
        self.timing.lease.as_millis().to_string()
    }

    fn parse_job(&self, id: JobId, fields: &BTreeMap<String, String>) -> Result<JobRecord, QueueError> {
        let text = |name: &str| fields.get(name).cloned();
        let needed =
            |name: &str| text(name).ok_or_else(|| self.unreadable(format!("job {id} has no {name}")));
        let number = |name: &str| -> Result<u64, QueueError> {
            needed(name)?.parse().map_err(|_| self.unreadable(format!("job {id} has a strange {name}")))
        };
        let small = |name: &str| {
            u32::try_from(number(name)?)
                .map_err(|_| self.unreadable(format!("job {id} has a strange {name}")))
        };
        let time = |name: &str| Ok::<SystemTime, QueueError>(at_ms(number(name)?));
        let priority = u8::try_from(number("priority")?).ok().and_then(Priority::new);
        Ok(JobRecord {
            id,
            server: needed("server")?,
            region: needed("region")?,
            spec: needed("spec")?,
            priority: priority.ok_or_else(|| self.unreadable(format!("job {id} has a strange priority")))?,
            state: needed("state")?.parse().map_err(|err: String| self.unreadable(err))?,
            step: text("step"),
            progress: text("progress"),
            journal: text("journal"),
            deliveries: small("deliveries")?,
            attempts: small("attempts")?,
            takeovers: small("takeovers")?,
            error: text("error"),
            result: text("result"),
            worker: text("worker"),
            cancel: fields.contains_key("cancel"),
            added_at: time("added")?,
            changed_at: time("changed")?,
        })
    }
}

/// Converts a stored time, in milliseconds since 1970.
fn at_ms(ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
}

/// Returns the name of the sorted set for a state.
fn set_of(state: JobState) -> &'static str {
    match state {
        JobState::Running => "leases",
        other => other.name(),
    }
}

#[async_trait]
impl Queue for RedisQueue {
    async fn rights(&self) -> Result<(), QueueError> {
        // Without the common start of the other scripts: it runs commands, too, and Redis 7.0 does not report
        // which command of a script was refused.
        static SCRIPT: OnceLock<Script> = OnceLock::new();
        let refused: Vec<Text> =
            self.run(SCRIPT.get_or_init(|| Script::new(include_str!("lua/rights.lua"))), &[]).await?;
        rights::judge(&self.address, &refused)?;
        // The only command that a worker runs outside scripts.
        self.ask::<(u64, u64)>(&redis::cmd("TIME")).await.map(drop)
    }

    async fn enqueue(&self, job: &NewJob) -> Result<Enqueued, QueueError> {
        let (id, priority) = (job.id.to_string(), job.priority.level().to_string());
        let (score, wait) = (job.priority.score(0).to_string(), job.wait.as_millis().to_string());
        let arguments = [id.as_str(), &job.server, &job.region, &job.spec, &priority, &score, &wait];
        let (outcome, other): (String, String) = self.run(&self.scripts.enqueue, &arguments).await?;
        Ok(if outcome == "open" { Enqueued::OpenAlready(self.id(&other)?) } else { Enqueued::Added })
    }

    async fn claim(&self, worker: &str, token: &Token) -> Result<Option<Delivered>, QueueError> {
        let claimed: Option<Text> =
            self.run(&self.scripts.claim, &[worker, token.as_str(), &self.lease_ms()]).await?;
        let Some(id) = claimed.map(|Text(id)| self.id(&id)).transpose()? else { return Ok(None) };
        let job = self.job(id).await?.ok_or(QueueError::NoSuchJob { id })?;
        Ok(Some(Delivered { job, token: token.clone() }))
    }

    async fn beat(&self, lease: &Lease, progress: &str) -> Result<LeaseStatus, QueueError> {
        self.leased(&self.scripts.beat, lease, &[&self.lease_ms(), progress]).await
    }

    async fn step(
        &self,
        lease: &Lease,
        step: &str,
        journal: &str,
        through: Option<u32>,
    ) -> Result<LeaseStatus, QueueError> {
        let through = through.unwrap_or_default().to_string();
        self.leased(&self.scripts.step, lease, &[&self.lease_ms(), step, journal, &through]).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), QueueError> {
        self.leased(&self.scripts.release, lease, &[]).await.map(drop)
    }

    async fn finish(&self, lease: &Lease, result: &str) -> Result<(), QueueError> {
        self.leased(&self.scripts.finish, lease, &[JobState::Done.name(), result]).await.map(drop)
    }

    async fn fail(&self, lease: &Lease, error: &str, then: OnFailure) -> Result<(), QueueError> {
        match then {
            OnFailure::Dead => {
                self.leased(&self.scripts.finish, lease, &[JobState::Dead.name(), error]).await.map(drop)
            }
            OnFailure::RetryAfter(wait) => self
                .leased(&self.scripts.fail, lease, &[error, &wait.as_millis().to_string()])
                .await
                .map(drop),
        }
    }

    async fn stop(&self, lease: &Lease) -> Result<(), QueueError> {
        self.leased(&self.scripts.finish, lease, &[JobState::Cancelled.name(), ""]).await.map(drop)
    }

    async fn cancel(&self, id: JobId) -> Result<JobState, QueueError> {
        let state: Option<String> = self.run(&self.scripts.cancel, &[&id.to_string()]).await?;
        let state = state.ok_or(QueueError::NoSuchJob { id })?;
        state.parse().map_err(|err: String| self.unreadable(err))
    }

    async fn retry(&self, id: JobId) -> Result<(), QueueError> {
        let (outcome, other): (String, String) = self.run(&self.scripts.retry, &[&id.to_string()]).await?;
        match outcome.as_str() {
            "none" => Err(QueueError::NoSuchJob { id }),
            "open" => Err(QueueError::Duplicate { other: self.id(&other)? }),
            "state" => {
                let state = other.parse().map_err(|err: String| self.unreadable(err))?;
                Err(QueueError::WrongState { id, state })
            }
            _ => Ok(()),
        }
    }

    async fn reap(&self) -> Result<Reaped, QueueError> {
        let (lease, max_takeovers) = (self.lease_ms(), self.timing.takeovers.to_string());
        let mut taken = self.connection.take().await?;
        // Used if the server's run id is not available: no connection outlives a restart of the server, so a
        // new connection may mean a restart.
        let connection =
            if self.last_reaped_on.load(Ordering::Relaxed) == taken.number { "same" } else { "new" };
        let info =
            if self.info_refused_on.load(Ordering::Relaxed) == taken.number { "refused" } else { "ask" };
        let (extended, taken_back, dead, info_status): (String, Vec<Text>, Vec<Text>, String) = self
            .run_over(&mut taken, &self.scripts.reap, &[&lease, &max_takeovers, connection, info])
            .await?;
        self.last_reaped_on.store(taken.number, Ordering::Relaxed);
        if info_status == "refused" {
            self.info_refused_on.store(taken.number, Ordering::Relaxed);
        }
        Ok(Reaped {
            taken_back: self.ids(&taken_back),
            dead: self.ids(&dead),
            amnesty: extended.parse().unwrap_or_default(),
        })
    }

    async fn purge(&self, over_for: Duration) -> Result<u64, QueueError> {
        let (over_for, mut purged) = (over_for.as_millis().to_string(), 0);
        // Each call removes a limited number, so that other clients don't wait for long.
        loop {
            match self.run::<u64>(&self.scripts.purge, &[&over_for]).await? {
                0 => return Ok(purged),
                some => purged += some,
            }
        }
    }

    async fn now(&self) -> Result<SystemTime, QueueError> {
        if let Some(clock) = &self.test_clock {
            return Ok(at_ms(clock.load(Ordering::Relaxed)));
        }
        let (seconds, microseconds): (u64, u64) = self.ask(&redis::cmd("TIME")).await?;
        Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(microseconds))
    }

    async fn set_schedule(&self, name: &str, plan: &str, since: CatchUp) -> Result<(), QueueError> {
        let since = match since {
            CatchUp::Now => "now",
            CatchUp::Before => "before",
        };
        self.run::<u64>(&self.scripts.schedule, &[name, plan, since]).await.map(drop)
    }

    async fn remove_schedule(&self, name: &str) -> Result<bool, QueueError> {
        self.run(&self.scripts.schedule, &[name, ""]).await
    }

    async fn schedules(&self) -> Result<Vec<Schedule>, QueueError> {
        let plans = self.hash("schedules").await?;
        let ticks = self.hash("ticks").await?;
        // A schedule without a tick was removed between the two requests.
        let schedules = plans.into_iter().filter_map(|(name, plan)| {
            let last = at_ms(ticks.get(&name)?.parse().ok()?);
            Some(Schedule { name, plan, last })
        });
        Ok(schedules.collect())
    }

    async fn tick(&self, name: &str, at: SystemTime) -> Result<bool, QueueError> {
        let ms = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis().to_string();
        self.run(&self.scripts.tick, &[name, &ms]).await
    }

    async fn last_successes(&self) -> Result<Vec<LastSuccess>, QueueError> {
        let parse = |(name, fields): (&String, &String)| {
            let strange =
                || self.unreadable(format!("what is kept of the last success of {name} is strange"));
            let (region, server) = name.split_once(':').ok_or_else(strange)?;
            let mut fields = fields.splitn(3, ' ');
            let mut next = || fields.next().ok_or_else(strange);
            let (at, id, result) = (next()?, next()?, next()?);
            Ok(LastSuccess {
                server: server.to_owned(),
                region: region.to_owned(),
                at: at_ms(at.parse().map_err(|_| strange())?),
                id: self.id(id)?,
                result: result.to_owned(),
            })
        };
        let mut successes: Vec<LastSuccess> =
            self.hash("good").await?.iter().filter_map(|kept| or_warn(parse(kept))).collect();
        successes
            .sort_unstable_by(|one, other| (&one.server, &one.region).cmp(&(&other.server, &other.region)));
        Ok(successes)
    }

    async fn forget(&self, server: &str, region: &str) -> Result<bool, QueueError> {
        self.run(&self.scripts.forget, &[server, region]).await
    }

    async fn set_survey(&self, place: &str, found: &str) -> Result<(), QueueError> {
        self.run(&self.scripts.survey, &[place, found]).await
    }

    async fn surveys(&self) -> Result<Vec<GcSurvey>, QueueError> {
        let parse = |(place, value): (String, String)| {
            let parts = value
                .split_once(' ')
                .and_then(|(at, found)| Some((at_ms(at.parse().ok()?), found.to_owned())));
            let (at, found) = parts.ok_or_else(|| {
                self.unreadable(format!("what is kept of the survey of {place} is strange"))
            })?;
            Ok(GcSurvey { place, at, found })
        };
        Ok(self.hash("surveys").await?.into_iter().filter_map(|kept| or_warn(parse(kept))).collect())
    }

    async fn workers(&self) -> Result<Vec<WorkerSeen>, QueueError> {
        let workers = self.hash("workers").await?;
        Ok(workers
            .into_iter()
            .filter_map(|(worker, at)| Some(WorkerSeen { worker, at: at_ms(at.parse().ok()?) }))
            .collect())
    }

    async fn job(&self, id: JobId) -> Result<Option<JobRecord>, QueueError> {
        let fields = self.hash(&format!("job:{id}")).await?;
        if fields.is_empty() { Ok(None) } else { self.parse_job(id, &fields).map(Some) }
    }

    async fn jobs_in(&self, states: &[JobState], limit: usize) -> Result<Vec<JobRecord>, QueueError> {
        let last_index = i64::try_from(limit).unwrap_or(i64::MAX).saturating_sub(1);
        if last_index < 0 {
            return Ok(Vec::new());
        }
        let sets: Vec<String> = states
            .iter()
            .map(|&state| {
                format!("{}:{}", if state.is_over() { "ZREVRANGE" } else { "ZRANGE" }, set_of(state))
            })
            .collect();
        // A script, not MULTI: redis 1.8.1 panics if MULTI itself is refused, as it is if a password is
        // missing.
        let ids: Vec<Text> =
            self.run(&self.scripts.list, &[&last_index.to_string(), &sets.join(" ")]).await?;
        let mut jobs = Vec::new();
        for id in self.ids(&ids) {
            let found = match self.job(id).await {
                // One damaged job must not hide the others.
                Err(error @ QueueError::Foreign { .. }) => or_warn(Err(error)),
                found => found?,
            };
            // A job that has moved out of all these states in the meantime is left out.
            jobs.extend(found.filter(|job| states.contains(&job.state)));
        }
        Ok(jobs)
    }

    async fn counts(&self) -> Result<Counts, QueueError> {
        let counts: Vec<u64> = self.run(&self.scripts.counts, &JobState::ALL.map(set_of)).await?;
        Ok(Counts(JobState::ALL.into_iter().zip(counts).collect()))
    }

    async fn waiting(&self) -> Result<Option<Duration>, QueueError> {
        let milliseconds: Option<u64> = self.run(&self.scripts.waiting, &[]).await?;
        Ok(milliseconds.map(Duration::from_millis))
    }

    async fn events(&self, limit: usize) -> Result<Vec<QueueEvent>, QueueError> {
        let arguments = [limit.to_string(), MAX_EVENT_LENGTH.to_string()];
        let found: Vec<(Text, Vec<Text>)> =
            self.run(&self.scripts.events, &[&arguments[0], &arguments[1]]).await?;
        let parse = |(Text(entry), fields): (Text, Vec<Text>)| {
            let fields = paired(fields);
            let text = |name: &str| {
                fields
                    .get(name)
                    .cloned()
                    .ok_or_else(|| self.unreadable(format!("event {entry} has no {name}")))
            };
            let at: u64 = text("at")?
                .parse()
                .map_err(|_| self.unreadable(format!("event {entry} has a strange time")))?;
            Ok(QueueEvent {
                at: at_ms(at),
                id: self.id(&text("id")?)?,
                what: text("what")?,
                details: text("details")?,
            })
        };
        Ok(found.into_iter().rev().filter_map(|event| or_warn(parse(event))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::connection::client;
    use super::*;

    #[test]
    fn addresses_are_shown_without_secrets() {
        assert_eq!(address_of("rediss://user:hunter2@redis.example:6379/0"), "rediss://redis.example:6379/0");
        assert_eq!(address_of("redis://127.0.0.1:6379"), "redis://127.0.0.1:6379");
        let config = RedisConfig {
            url: "redis://user:hunter2@127.0.0.1:1".to_owned(),
            user: None,
            password: None,
            ca_file: None,
            prefix: None,
            timing: Timing::default(),
        };
        assert!(!format!("{config:?}").contains("hunter2"));
        let refused = client(&config).expect_err("a password in a URL");
        assert!(matches!(&refused, QueueError::Refused { .. }), "{refused}");
        assert!(!refused.to_string().contains("hunter2"), "{refused}");
    }
}
