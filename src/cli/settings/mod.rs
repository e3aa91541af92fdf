//! Settings: values that the user may give once for all commands, in the environment or a file, and the
//! origin of each.
//!
//! A flag beats the environment (`SNAPFERRY_*`), which beats the user's file, which beats the system's file,
//! which beats the default. Before the command line is read, the values found replace the defaults of the
//! flags: so a setting has one name, one check and one meaning wherever it is given.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use snapferry_base::suggest::similar;

use super::error::UsageError;
use super::variables;
use crate::cli::environment::Environment;

mod file;

pub use file::{SYSTEM_FILE, user_file};

/// Prefix of the variables of settings.
const PREFIX: &str = "SNAPFERRY_";
/// Commands that read no settings: they need none, or stand in for another tool.
const APART: [&str; 5] = ["qemu-img", "help", "completions", "man", "version"];

/// One setting, by the id of the flag that it stands for.
#[derive(Clone, Copy, Debug)]
struct Setting {
    name: &'static str,
    /// Commands that the setting is for; if empty, all that have the flag.
    only: &'static [&'static str],
}

const fn everywhere(name: &'static str) -> Setting {
    Setting { name, only: &[] }
}

/// All settings. A name is that of the flag, with underscores; for commands on the cloud `--region` is
/// `vpc_region`.
const SETTINGS: [Setting; 45] = [
    // For commands that write: an image to be read is always named in full.
    Setting {
        name: "bucket",
        only: &[
            "convert",
            "uploads",
            "list",
            "abort",
            "doctor",
            "replicate",
            "gc",
            "enqueue",
            "worker",
            "add",
        ],
    },
    everywhere("endpoint"),
    everywhere("region"),
    everywhere("addressing"),
    everywhere("sse"),
    everywhere("storage_class"),
    everywhere("requester_pays"),
    everywhere("credentials_file"),
    everywhere("api_key_file"),
    everywhere("trusted_profile"),
    everywhere("iam_endpoint"),
    everywhere("metadata_endpoint"),
    everywhere("ca_file"),
    everywhere("vpc_region"),
    everywhere("vpc_endpoint"),
    everywhere("recovery_region"),
    everywhere("tagging_endpoint"),
    everywhere("resource_group"),
    everywhere("device_folder"),
    everywhere("state_folder"),
    everywhere("redis"),
    everywhere("redis_user"),
    everywhere("redis_password_file"),
    everywhere("redis_ca_file"),
    everywhere("redis_prefix"),
    everywhere("concurrency"),
    everywhere("stop_within"),
    everywhere("keep_jobs"),
    everywhere("metrics"),
    everywhere("bucket_location"),
    everywhere("volume_profile"),
    everywhere("keep_snapshots"),
    everywhere("keep_images"),
    everywhere("keep_objects"),
    everywhere("snapshot_age"),
    everywhere("image_age"),
    everywhere("object_age"),
    Setting { name: "codec", only: &["convert", "replicate", "enqueue", "add"] },
    Setting { name: "level", only: &["convert", "replicate", "enqueue", "add"] },
    // For `convert` the base may be a key, which belongs to one disk.
    Setting { name: "base", only: &["replicate", "enqueue", "add"] },
    Setting { name: "cluster_size", only: &["convert"] },
    everywhere("threads"),
    Setting { name: "part_size", only: &["convert"] },
    everywhere("connections"),
    Setting { name: "limit", only: &["convert"] },
];

/// Identities, each with the settings that it replaces if they were given with less authority.
/// `credentials_file` replaces none: the store uses it first, and the cloud needs an identity beside it.
const INSTEAD: [(&str, [&str; 2]); 2] = [
    ("api_key_file", ["trusted_profile", "credentials_file"]),
    ("trusted_profile", ["api_key_file", "credentials_file"]),
];

/// Origin of a setting's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Name of the environment variable.
    Environment(String),
    /// Path of the configuration file, and number of the line.
    File(PathBuf, usize),
    /// Path of a file that systemd hands over as a credential.
    Credential(PathBuf),
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Credential(path) => write!(f, "credential {}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// Values by the names of the settings, each with its origin.
type Values = BTreeMap<&'static str, (String, Origin)>;

/// Values found in the environment and the configuration files.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    values: Values,
    /// Files that were read, the one with more authority last.
    files: Vec<PathBuf>,
}

/// One line of `config show`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub name: String,
    /// None if the setting is not given, and its flag has no fixed default.
    pub value: Option<String>,
    pub origin: Origin,
}

fn variable(name: &str) -> String {
    format!("{PREFIX}{}", name.to_ascii_uppercase())
}

impl Setting {
    /// Returns the setting that stands for a flag of a command.
    fn of(command: &str, flag: &str) -> Option<Self> {
        let setting = SETTINGS.into_iter().find(|setting| setting.name == flag)?;
        setting.is_for(command).then_some(setting)
    }

    fn is_for(&self, command: &str) -> bool {
        self.only.is_empty() || self.only.contains(&command)
    }
}

/// Returns the names of all settings.
pub fn names() -> impl Iterator<Item = &'static str> {
    SETTINGS.into_iter().map(|setting| setting.name)
}

/// Returns the environment variable that stands for a flag of a command, if the flag is a setting there.
pub fn variable_of(command: &str, flag: &str) -> Option<String> {
    Setting::of(command, flag).map(|setting| variable(setting.name))
}

/// True if settings change the meaning of a command line, as far as it can be read without them. They don't
/// for help, for the version, and for a command line that ends before its last command, so that help is there
/// even if a configuration is broken.
#[must_use]
pub fn matter_to(command: &Command, typed: &ArgMatches) -> bool {
    let Some((name, below)) = typed.subcommand() else { return !command.has_subcommands() };
    let chosen = command.find_subcommand(name);
    !APART.contains(&name) && chosen.is_some_and(|chosen| matter_to(chosen, below))
}

/// True if the user typed a flag, for this command or one below it.
fn is_typed(matches: &ArgMatches, name: &str) -> bool {
    let typed_here =
        matches.ids().any(|id| id == name) && matches.value_source(name) == Some(ValueSource::CommandLine);
    typed_here || matches.subcommand().is_some_and(|(_, below)| is_typed(below, name))
}

impl Settings {
    /// Reads the environment and the configuration files: the one that the command line or `SNAPFERRY_CONFIG`
    /// names, or else the system's and the user's.
    ///
    /// # Errors
    /// If a named file does not exist, or a file is no configuration: with the file, the line, and what is
    /// wrong there. If two identities are given in one place.
    pub fn find(typed: &[OsString], environment: &Environment) -> Result<Self, UsageError> {
        let named = file::named(typed).or_else(|| environment.get(&variable("config")).map(PathBuf::from));
        let files = match named {
            Some(path) => vec![path],
            None => [Some(PathBuf::from(SYSTEM_FILE)), user_file(environment)]
                .into_iter()
                .flatten()
                .filter(|path| path.exists())
                .collect(),
        };
        Self::of_files(files, environment)
    }

    /// Reads files, each of which has more authority than those before it, and the environment, which has
    /// more than all of them.
    fn of_files(files: Vec<PathBuf>, environment: &Environment) -> Result<Self, UsageError> {
        let mut settings = Self::default();
        for path in &files {
            settings.overlay(file::read(path)?);
        }
        settings.files = files;
        let variables = names().filter_map(|name| {
            let variable = variable(name);
            Some((name, (environment.get(&variable)?.to_owned(), Origin::Environment(variable))))
        });
        settings.overlay(variables.collect());
        if let Some((variable, region)) = variables::region(environment) {
            let origin = Origin::Environment(variable.to_owned());
            settings.values.entry("vpc_region").or_insert((region.to_owned(), origin));
        }
        if let (Some((_, one)), Some((_, other))) =
            (settings.values.get("api_key_file"), settings.values.get("trusted_profile"))
        {
            return Err(UsageError(format!(
                "api_key_file ({one}) and trusted_profile ({other}) exclude each other: give one"
            )));
        }
        settings.prefer_secrets_at_hand(environment);
        Ok(settings)
    }

    /// Adds values of more authority: each replaces the one of the same name, and an identity the others.
    fn overlay(&mut self, values: Values) {
        self.drop_replaced(|name| values.contains_key(name));
        self.values.extend(values);
    }

    /// Returns the settings without those that a typed identity replaces.
    #[must_use]
    pub fn without_replaced(&self, typed: &ArgMatches) -> Self {
        let mut remaining = self.clone();
        remaining.drop_replaced(|name| is_typed(typed, name));
        remaining
    }

    /// Drops the settings that an identity with more authority replaces.
    fn drop_replaced(&mut self, is_given: impl Fn(&str) -> bool) {
        for (_, replaced) in INSTEAD.iter().filter(|(name, _)| is_given(name)) {
            self.values.retain(|name, _| !replaced.contains(name));
        }
    }

    /// Replaces a file that the configuration names for a secret, if systemd hands the secret over or a
    /// variable holds it, because only root may be able to read that file.
    fn prefer_secrets_at_hand(&mut self, environment: &Environment) {
        let folder = environment.get("CREDENTIALS_DIRECTORY").map(Path::new);
        for (name, credential, variable) in [
            ("api_key_file", "apikey", None),
            ("redis_password_file", "redis-password", Some("SNAPFERRY_REDIS_PASSWORD")),
        ] {
            if !matches!(self.values.get(name), Some((_, Origin::File(..)))) {
                continue;
            }
            let credential_file = folder.map(|folder| folder.join(credential)).filter(|path| path.exists());
            if let Some(path) = credential_file {
                self.values.insert(name, (path.display().to_string(), Origin::Credential(path)));
            } else if variable.is_some_and(|variable| environment.get(variable).is_some()) {
                self.values.remove(name);
            }
        }
    }

    /// Returns variables that look like snapferry's but are not, each with those that the user may have
    /// meant. Variables that resemble none belong to other programs, and are left out.
    #[must_use]
    pub fn misspelt(environment: &Environment) -> Vec<(String, Vec<String>)> {
        let settings = names().map(variable);
        let known: Vec<String> = settings.chain(variables::names().map(str::to_owned)).collect();
        let known = || known.iter().map(String::as_str);
        let is_unknown = |name: &&str| name.starts_with(PREFIX) && !known().any(|known| known == *name);
        let suggestions = |name: &str| {
            // All names have the same prefix; only the rest is compared.
            let suffixes = known().filter_map(|known| known.strip_prefix(PREFIX));
            similar(&name[PREFIX.len()..], suffixes)
                .into_iter()
                .map(|rest| format!("{PREFIX}{rest}"))
                .collect::<Vec<_>>()
        };
        let names = environment.names().filter(is_unknown);
        names
            .map(|name| (name.to_owned(), suggestions(name)))
            .filter(|(_, suggestions)| !suggestions.is_empty())
            .collect()
    }

    /// Returns the command with the values found in place of its flags' defaults.
    #[must_use]
    pub fn apply(&self, command: Command) -> Command {
        command.mut_subcommands(|command| {
            if APART.contains(&command.get_name()) { command } else { self.apply_to(command) }
        })
    }

    fn apply_to(&self, command: Command) -> Command {
        let name = command.get_name().to_owned();
        let command = command.mut_args(|arg| {
            let setting = Setting::of(&name, arg.get_id().as_str());
            match setting.and_then(|setting| self.values.get(setting.name)) {
                // A required flag is satisfied by the setting.
                Some((value, _)) => {
                    let has_value = arg.get_action().takes_values();
                    arg.required(false).default_value(value.clone()).hide_default_value(has_value)
                }
                None => arg,
            }
        });
        command.mut_subcommands(|command| self.apply_to(command))
    }

    /// Returns every setting with its value and origin, and the other variables that are used. `command` must
    /// be the one whose defaults have not been replaced.
    #[must_use]
    pub fn show(&self, command: &Command, environment: &Environment) -> Vec<Shown> {
        let settings = SETTINGS.iter().map(|setting| match self.values.get(setting.name) {
            Some((value, origin)) => {
                Shown { name: setting.name.to_owned(), value: Some(value.clone()), origin: origin.clone() }
            }
            None => Shown {
                name: setting.name.to_owned(),
                value: default_of(command, setting),
                origin: Origin::Default,
            },
        });
        settings.chain(variables::shown(environment)).collect()
    }

    /// Returns the paths of the files that were read, the one with more authority last.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

/// Returns the own default of a setting's flag, from the command or one below it that takes the setting.
fn default_of(command: &Command, setting: &Setting) -> Option<String> {
    let is_for = setting.is_for(command.get_name());
    let default = command
        .get_arguments()
        .find(|arg| is_for && arg.get_id() == setting.name)
        .and_then(|arg| arg.get_default_values().first());
    default
        .map(|value| value.to_string_lossy().into_owned())
        .or_else(|| command.get_subcommands().find_map(|command| default_of(command, setting)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(args: &[&str]) -> Vec<OsString> {
        args.iter().map(OsString::from).collect()
    }

    fn found(text: &str, variables: &[(&str, &str)]) -> Result<Settings, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.toml");
        std::fs::write(&path, text).expect("written");
        let path = path.to_str().expect("UTF-8");
        let typed = typed(&["snapferry", "convert", "--config", path]);
        Settings::find(&typed, &Environment::from_pairs(variables))
            .map_err(|err| err.to_string().replace(path, "config.toml"))
    }

    #[test]
    fn a_flag_beats_the_environment_which_beats_the_file() {
        use clap::CommandFactory as _;
        let settings = found(
            "bucket = \"file\"\nlevel = \"small\"\nthreads = 3\n",
            &[("SNAPFERRY_BUCKET", "environment")],
        );
        let command = settings.expect("a configuration").apply(crate::cli::command::Args::command());
        let read = |args: &[&str], name: &str| {
            let matches = command.clone().try_get_matches_from(args).expect("arguments");
            let (_, convert) = matches.subcommand().expect("convert");
            convert.get_raw(name).map(|mut values| values.next().expect("one").to_string_lossy().into_owned())
        };
        let plain = ["snapferry", "convert", "--device", "a"];
        assert_eq!(read(&plain, "bucket").as_deref(), Some("environment"));
        assert_eq!(read(&plain, "level").as_deref(), Some("small"));
        assert_eq!(read(&plain, "threads").as_deref(), Some("3"));
        assert_eq!(read(&plain, "codec").as_deref(), Some("deflate"));
        let flagged = ["snapferry", "convert", "--device", "a", "--bucket", "flag"];
        assert_eq!(read(&flagged, "bucket").as_deref(), Some("flag"));
        // A typed destination does not conflict with a configured one of another kind.
        let file = ["snapferry", "convert", "--device", "a", "--output", "b"];
        assert_eq!(read(&file, "output").as_deref(), Some("b"));
    }

    /// Returns the identities that a command gets from flags, variables and a file.
    fn identities(flags: &[&str], variables: &[(&str, &str)], text: &str) -> String {
        use clap::CommandFactory as _;
        let settings = found(text, variables).expect("a configuration");
        let args = [&["snapferry", "convert", "--device", "a", "--output", "b"], flags].concat();
        let read = |settings: &Settings| {
            settings.apply(crate::cli::command::Args::command()).try_get_matches_from(&args).expect(text)
        };
        let matches = read(&settings.without_replaced(&read(&settings)));
        let (_, convert) = matches.subcommand().expect("convert");
        let names = ["credentials_file", "api_key_file", "trusted_profile"];
        let values = names.iter().filter_map(|name| convert.get_raw(name)).flatten();
        values.map(|value| value.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn an_identity_takes_the_place_of_any_that_was_given_with_less_authority() {
        let names = ["credentials_file", "api_key_file", "trusted_profile"];
        for high in names {
            for low in names.into_iter().filter(|low| *low != high) {
                // The store looks for keys first, and the cloud takes none.
                let both = high == "credentials_file";
                let (typed, configured) =
                    (format!("--{}=high", high.replace('_', "-")), format!("{low} = \"low\"\n"));
                let expected = if both { "high low" } else { "high" };
                assert_eq!(
                    identities(&[&typed], &[], &configured),
                    expected,
                    "--{high} over {low} of the file"
                );
                assert_eq!(
                    identities(&[&typed], &[(&variable(low), "low")], ""),
                    expected,
                    "--{high} over {low} of the environment"
                );
                assert_eq!(
                    identities(&[], &[(&variable(high), "high")], &configured),
                    expected,
                    "{high} of the environment over {low} of the file"
                );
            }
        }
        assert_eq!(
            identities(&[], &[], "credentials_file = \"keys\"\ntrusted_profile = \"default\"\n"),
            "keys default"
        );
    }

    #[test]
    fn every_setting_is_the_flag_of_a_command_that_it_is_for() {
        use clap::CommandFactory as _;
        fn has(command: &Command, name: &str) -> bool {
            let own = Setting::of(command.get_name(), name).is_some();
            own && command.get_arguments().any(|arg| arg.get_id() == name)
                || command.get_subcommands().any(|below| has(below, name))
        }
        let command = crate::cli::command::Args::command();
        let missing: Vec<_> = names().filter(|name| !has(&command, name)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn the_help_shows_no_value_of_a_variable() {
        let settings = found("", &[("SNAPFERRY_REDIS", "redis://:hunter2@db")]).expect("a configuration");
        let command = settings.apply(crate::cli::command::definition());
        let error = command.try_get_matches_from(["snapferry", "jobs", "list", "--help"]).expect_err("help");
        let help = error.to_string();
        assert!(help.contains("[env: SNAPFERRY_REDIS]") && !help.contains("hunter2"), "{help}");
    }

    #[test]
    fn two_identities_in_one_place_are_refused() {
        let err = found("api_key_file = \"a\"\ntrusted_profile = \"b\"\n", &[]).expect_err("two");
        assert!(
            err.contains(":1) and trusted_profile (") && err.ends_with(":2) exclude each other: give one"),
            "{err}"
        );
        let variables = [("SNAPFERRY_API_KEY_FILE", "a"), ("SNAPFERRY_TRUSTED_PROFILE", "b")];
        let err = found("", &variables).expect_err("two");
        assert!(err.contains("environment SNAPFERRY_API_KEY_FILE"), "{err}");
    }

    #[test]
    fn a_secret_that_is_at_hand_beats_a_file_that_is_configured() {
        let folder = tempfile::tempdir().expect("a folder");
        let handed = folder.path().join("redis-password");
        std::fs::write(&handed, "hunter2").expect("written");
        let credentials = ("CREDENTIALS_DIRECTORY", folder.path().to_str().expect("UTF-8"));
        let password = ("SNAPFERRY_REDIS_PASSWORD", "hunter2");
        let configured = "redis_password_file = \"/etc/snapferry/redis-password\"\napi_key_file = \"/etc/snapferry/apikey\"\n";
        let value = |variables: &[(&str, &str)], name: &str| {
            found(configured, variables)
                .expect("a configuration")
                .values
                .get(name)
                .map(|(value, _)| value.clone())
        };
        assert_eq!(value(&[], "redis_password_file").as_deref(), Some("/etc/snapferry/redis-password"));
        assert_eq!(value(&[credentials, password], "redis_password_file").as_deref(), handed.to_str());
        assert_eq!(value(&[password], "redis_password_file"), None, "the variable holds it");
        assert_eq!(
            value(&[credentials], "api_key_file").as_deref(),
            Some("/etc/snapferry/apikey"),
            "none was handed over"
        );
        // A file that the user names for this one run has priority.
        let named = ("SNAPFERRY_REDIS_PASSWORD_FILE", "mine");
        assert_eq!(value(&[credentials, password, named], "redis_password_file").as_deref(), Some("mine"));
    }

    #[test]
    fn a_variable_that_is_nearly_ours_is_told_of() {
        let variables = [
            ("SNAPFERRY_BUKET", "a"),
            ("SNAPFERRY_BUCKET", "b"),
            ("SNAPFERRY_LOG", "c"),
            ("SNAPFERRY_ZZ", "d"),
            ("BUKET", "e"),
        ];
        let misspelt = Settings::misspelt(&Environment::from_pairs(&variables));
        assert_eq!(misspelt.len(), 1, "{misspelt:?}");
        assert_eq!(
            (misspelt[0].0.as_str(), misspelt[0].1[0].as_str()),
            ("SNAPFERRY_BUKET", "SNAPFERRY_BUCKET")
        );
    }

    #[test]
    fn ibms_own_variables_give_a_region_that_is_given_nowhere_else() {
        let ic = ("IC_REGION", "eu-de");
        let ibmcloud = ("IBMCLOUD_REGION", "jp-tok");
        let region = |text: &str, variables: &[(&str, &str)]| {
            let settings = found(text, variables).expect("a configuration");
            let (value, origin) = settings.values.get("vpc_region").expect("a region");
            format!("{value} of {origin}").replace(": ", ":")
        };
        assert_eq!(region("", &[ic]), "eu-de of environment IC_REGION");
        assert_eq!(region("", &[ic, ibmcloud]), "jp-tok of environment IBMCLOUD_REGION");
        let ours = ("SNAPFERRY_VPC_REGION", "us-south");
        assert_eq!(region("", &[ic, ours]), "us-south of environment SNAPFERRY_VPC_REGION");
        assert!(region("vpc_region = \"us-east\"\n", &[ic]).starts_with("us-east of "));
    }

    #[test]
    fn mistakes_are_named_with_file_and_line() {
        for (text, message) in [
            (
                "bucket = \"a\"\n\nbukket = \"b\"\n",
                "config.toml:3: bukket: there is no such setting; was bucket",
            ),
            (
                "\n# a comment\napi_key = \"secret\"\n",
                "config.toml:3: api_key: a secret does not belong into this file",
            ),
            ("bucket = [1]\n", "config.toml:1: bucket: give a text or a number"),
            ("bucket = \"a\"\nlevel = \n", "config.toml:2: "),
        ] {
            let err = found(text, &[]).expect_err(text);
            assert!(err.starts_with(message), "{err}");
            assert!(!err.contains("\"secret\""), "{err}");
        }
        let missing =
            Settings::find(&typed(&["snapferry", "--config=/nowhere.toml"]), &Environment::default());
        assert!(missing.expect_err("no such file").to_string().contains("/nowhere.toml"));
    }

    #[test]
    fn what_is_shown_has_its_origin_and_no_secret() {
        use clap::CommandFactory as _;
        let variables = [
            ("IBMCLOUD_API_KEY", "hunter2"),
            ("IC_API_KEY", "hunter2"),
            ("https_proxy", "http://user:hunter2@proxy.example:3128"),
            ("SNAPFERRY_VPC_REGION", "eu-de"),
        ];
        let settings = found("level = \"small\"\n", &variables).expect("a configuration");
        let shown =
            settings.show(&crate::cli::command::Args::command(), &Environment::from_pairs(&variables));
        let of = |name: &str| shown.iter().find(|shown| shown.name == name).cloned().expect(name);
        assert_eq!(of("vpc_region").origin, Origin::Environment("SNAPFERRY_VPC_REGION".into()));
        assert!(matches!(of("level").origin, Origin::File(_, 1)));
        assert_eq!((of("codec").value.as_deref(), of("codec").origin), (Some("deflate"), Origin::Default));
        assert_eq!(of("IBMCLOUD_API_KEY").value.as_deref(), Some("***"));
        assert_eq!(of("IC_API_KEY").value.as_deref(), Some("***"));
        assert_eq!(of("https_proxy").value.as_deref(), Some("http://***@proxy.example:3128"));
        assert!(!format!("{shown:?}").contains("hunter2"));
    }
}
