//! Names for completions that only the fleet's queue or this machine's journals know. A queue that does not
//! answer quickly, or at all, gives no names: completing a line neither hangs nor prints an error.

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use clap::{ArgMatches, Command};
use clap_complete::engine::CompletionCandidate;
use snapferry_fleet::queue::{JobState, Queue as _, QueueError, RedisQueue};
use snapferry_fleet::replicate::JournalFolder;

use super::words;
use crate::cli::args::{PlaceArgs, QueueArgs};
use crate::cli::environment::Environment;
use crate::cli::fleet;
use crate::cli::replicate::site::state_folder;
use crate::cli::runtime::runtime;
use crate::cli::settings::Settings;

/// Time limit for the queue's answer, connecting included: the user waits for it with the hand on the key.
const DEADLINE: Duration = Duration::from_secs(1);
/// Most jobs of each state that are offered.
const MOST: usize = 100;

/// A name, with a description for shells that show one.
struct Name {
    name: String,
    about: Option<String>,
}

/// Returns the jobs in the queue.
pub fn jobs(current: &OsStr) -> Vec<CompletionCandidate> {
    jobs_in(current, &JobState::ALL)
}

/// Returns the jobs that wait or run.
pub fn open_jobs(current: &OsStr) -> Vec<CompletionCandidate> {
    jobs_in(current, &[JobState::Running, JobState::Ready, JobState::Delayed])
}

/// Returns the jobs that can be queued again.
pub fn ended_jobs(current: &OsStr) -> Vec<CompletionCandidate> {
    jobs_in(current, &[JobState::Dead, JobState::Cancelled])
}

fn jobs_in(current: &OsStr, states: &[JobState]) -> Vec<CompletionCandidate> {
    let found = ask(async |queue| {
        let jobs = queue.jobs_in(states, MOST).await?;
        let named = jobs.into_iter().map(|job| Name {
            name: job.id.to_string(),
            about: Some(format!("{} {}", job.server, job.state.name())),
        });
        Ok(named.collect())
    });
    candidates(current, found)
}

/// Returns the servers that the queue knows: those with an image, and those with a job.
pub fn servers(current: &OsStr) -> Vec<CompletionCandidate> {
    let found = ask(async |queue| {
        let with_image = queue.last_successes().await?.into_iter().map(|success| success.server);
        let with_job = queue.jobs_in(&JobState::ALL, MOST).await?.into_iter().map(|job| job.server);
        let mut all: Vec<String> = with_image.chain(with_job).collect();
        all.sort();
        all.dedup();
        Ok(all.into_iter().map(|name| Name { name, about: None }).collect())
    });
    candidates(current, found)
}

/// Returns the names of the schedules.
pub fn schedules(current: &OsStr) -> Vec<CompletionCandidate> {
    let found = ask(async |queue| {
        let schedules = queue.schedules().await?;
        Ok(schedules.into_iter().map(|schedule| Name { name: schedule.name, about: None }).collect())
    });
    candidates(current, found)
}

/// Returns the unfinished jobs in this machine's journals.
pub fn journals(current: &OsStr) -> Vec<CompletionCandidate> {
    let found = given::<PlaceArgs>(&["--state-folder"]).and_then(|(place, environment)| {
        let journals = JournalFolder::new(&state_folder(&place, &environment)).all().ok()?;
        let unfinished = journals.into_iter().filter(|journal| !journal.is_over());
        Some(
            unfinished
                .map(|journal| Name { name: journal.job.id.to_string(), about: Some(journal.job.server) })
                .collect(),
        )
    });
    candidates(current, found)
}

/// Returns what `look` finds in the queue that the line, the environment or the configuration names.
fn ask(look: impl AsyncFnOnce(&RedisQueue) -> Result<Vec<Name>, QueueError>) -> Option<Vec<Name>> {
    let options = ["--redis", "--redis-user", "--redis-password-file", "--redis-ca-file", "--redis-prefix"];
    let (args, environment) = given::<QueueArgs>(&options)?;
    args.redis.as_ref()?;
    let runtime = runtime().ok()?;
    let found = runtime.block_on(async {
        let asked = async {
            let queue = fleet::open(&args, &environment).await.ok()?;
            look(&queue).await.ok()
        };
        tokio::time::timeout(DEADLINE, asked).await.ok()?
    });
    // A name that is still being looked up must not keep the process alive.
    runtime.shutdown_background();
    found
}

/// Returns a group of arguments with those of `options` that the line has already, and the settings.
fn given<A: clap::Args>(options: &[&str]) -> Option<(A, Environment)> {
    let environment = Environment::of_process();
    let words = words(&std::env::args_os().collect::<Vec<_>>())?;
    let settings = Settings::find(&words, &environment).ok()?;
    let command = Command::new("snapferry").subcommand(A::augment_args(Command::new("names")));
    let start = ["snapferry", "names"].map(OsString::from);
    let all = start.into_iter().chain(typed_values(&words, options));
    let matches: ArgMatches = settings.apply(command).try_get_matches_from(all).ok()?;
    Some((A::from_arg_matches(matches.subcommand()?.1).ok()?, environment))
}

/// Returns those words of a line that give values to `options`.
fn typed_values(words: &[OsString], options: &[&str]) -> Vec<OsString> {
    let mut found = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let Some(text) = word.to_str() else { continue };
        if options.contains(&text) {
            found.extend(words.get(at..at + 2).unwrap_or_default().iter().cloned());
        } else if text.split_once('=').is_some_and(|(option, _)| options.contains(&option)) {
            found.push(word.clone());
        }
    }
    found
}

/// Returns the names that begin with what the user has typed. Names in the queue may hold any character;
/// those that a shell would read as more than a word are left out.
fn candidates(current: &OsStr, found: Option<Vec<Name>>) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else { return Vec::new() };
    let is_plain = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    let fitting = found.unwrap_or_default().into_iter();
    fitting
        .filter(|found| found.name.starts_with(current) && is_plain(&found.name))
        .map(|Name { name, about }| {
            let about = about.map(|about| crate::cli::printable::line(&about).into_owned());
            CompletionCandidate::new(name).help(about.map(Into::into))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_that_fit_are_offered() {
        let names = ["web01", "web02", "db01", "web$(reboot)", "web 3", "web\u{1b}"];
        let found = names.map(|name| Name { name: name.to_owned(), about: None }).into_iter().collect();
        let offered = candidates(OsStr::new("web"), Some(found));
        let offered: Vec<_> = offered.iter().map(|candidate| candidate.get_value().to_owned()).collect();
        assert_eq!(offered, ["web01", "web02"]);
        assert!(candidates(OsStr::new(""), None).is_empty());
    }

    #[test]
    fn options_that_the_line_has_already_are_found() {
        let words: Vec<OsString> =
            ["snapferry", "jobs", "show", "--redis", "redis://a", "--redis-prefix=b", "--json", ""]
                .map(OsString::from)
                .to_vec();
        let found = typed_values(&words, &["--redis", "--redis-prefix"]);
        assert_eq!(found, ["--redis", "redis://a", "--redis-prefix=b"]);
        assert!(typed_values(&words[..4], &["--redis"]).is_empty(), "its value is not there yet");
    }
}
