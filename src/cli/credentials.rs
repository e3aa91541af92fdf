//! Lookup of keys in files, systemd's credentials and the environment, but never on the command line.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use snapferry_base::clock::SystemClock;
use snapferry_base::identity::TokenSource;
use snapferry_base::secret::Secret;
use snapferry_ibmcloud::iam::{
    ApiKeyConfig, ApiKeySource, IBM_IAM, Metadata, MetadataConfig, Profile, ProfileSource,
};

use super::environment::Environment;
use super::error::UsageError;
use crate::cli::args::{IdentityArgs, StoreArgs};
use crate::cli::error::{CommandError, CommandResult};

/// Variables that hold an API key, the first one that is set before the other: the name that IBM's command
/// line takes, and the one that IBM's Terraform provider takes.
pub const API_KEYS: [&str; 2] = ["IBMCLOUD_API_KEY", "IC_API_KEY"];

/// Credentials for the object store or for IBM Cloud.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// HMAC key pair for S3, with a session token if the keys are temporary.
    Hmac { access_key: String, secret_key: Secret, session_token: Option<Secret> },
    /// API key of IBM Cloud.
    ApiKey(Secret),
    /// Trusted profile of this server.
    TrustedProfile(Profile),
}

/// Finds the credentials for the object store. Looks in this order: `--credentials-file`, `--api-key-file` or
/// `--trusted-profile`; `AWS_ACCESS_KEY_ID` with `AWS_SECRET_ACCESS_KEY`; `IBMCLOUD_API_KEY` or `IC_API_KEY`;
/// `$CREDENTIALS_DIRECTORY/apikey` from systemd; `AWS_SHARED_CREDENTIALS_FILE` or `~/.aws/credentials`.
pub fn find(args: &StoreArgs, environment: &Environment) -> CommandResult<Credentials> {
    if let Some(path) = &args.credentials_file {
        return from_file(path, environment);
    }
    if let Some(named) = named(&args.identity)? {
        return Ok(named);
    }
    match (environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")) {
        (Some(access_key), Some(secret)) => {
            let session_token = environment.get("AWS_SESSION_TOKEN").map(Secret::new);
            return Ok(Credentials::Hmac {
                access_key: access_key.to_owned(),
                secret_key: Secret::new(secret),
                session_token,
            });
        }
        (None, None) => {}
        (Some(_), None) => {
            return Err(
                UsageError("AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not".into()).into()
            );
        }
        (None, Some(_)) => {
            return Err(
                UsageError("AWS_SECRET_ACCESS_KEY is set, but AWS_ACCESS_KEY_ID is not".into()).into()
            );
        }
    }
    if let Some(found) = of_environment(environment)? {
        return Ok(found);
    }
    let shared = environment.get("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
    let home = environment.get("HOME").map(|home| Path::new(home).join(".aws/credentials"));
    match shared.or_else(|| home.filter(|path| path.exists())) {
        Some(path) => from_file(&path, environment),
        None => Err(UsageError(
            "no credentials for the object store: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (HMAC keys) or IBMCLOUD_API_KEY, \
             or give --credentials-file, --api-key-file or --trusted-profile default"
                .into(),
        )
        .into()),
    }
}

/// Finds the credentials for IBM's own APIs, which take no S3 keys. Looks in this order: `--api-key-file` or
/// `--trusted-profile`; `IBMCLOUD_API_KEY` or `IC_API_KEY`; `$CREDENTIALS_DIRECTORY/apikey` from systemd.
pub fn find_identity(args: &IdentityArgs, environment: &Environment) -> CommandResult<Credentials> {
    if let Some(found) = named(args)? {
        return Ok(found);
    }
    of_environment(environment)?.ok_or_else(|| {
        UsageError(
            "no credentials for IBM Cloud: give --trusted-profile default on a server that has one, or --api-key-file, or set \
             IBMCLOUD_API_KEY"
                .into(),
        )
        .into()
    })
}

/// Returns the API key or trusted profile that the arguments name. The command line and `settings` refuse
/// both at once.
fn named(args: &IdentityArgs) -> CommandResult<Option<Credentials>> {
    match (&args.api_key_file, &args.trusted_profile) {
        (Some(path), _) => api_key(path).map(Some),
        (None, Some(profile)) => Ok(Some(Credentials::TrustedProfile(Profile::parse(profile)))),
        (None, None) => Ok(None),
    }
}

/// Returns the API key of the environment or of systemd's credentials.
fn of_environment(environment: &Environment) -> CommandResult<Option<Credentials>> {
    if let Some(key) = API_KEYS.iter().find_map(|name| environment.get(name)) {
        return Ok(Some(Credentials::ApiKey(Secret::new(key))));
    }
    let of_systemd = environment.get("CREDENTIALS_DIRECTORY").map(|folder| Path::new(folder).join("apikey"));
    of_systemd.filter(|path| path.exists()).map(|path| api_key(&path)).transpose()
}

/// Identity in IBM Cloud, with the source of its tokens, which all clients of this identity share.
#[derive(Clone)]
pub struct Identity {
    found: Credentials,
    pub tokens: Arc<dyn TokenSource>,
}

impl Identity {
    /// Finds an identity in the places and order of [`find_identity`].
    pub fn find(args: &IdentityArgs, environment: &Environment) -> CommandResult<Self> {
        let found = find_identity(args, environment)?;
        Ok(Self { tokens: token_source(&found, args, environment)?, found })
    }

    /// Returns the kind of identity, for messages.
    pub fn kind(&self) -> &'static str {
        match self.found {
            Credentials::TrustedProfile(_) => "a trusted profile of this server",
            Credentials::ApiKey(_) | Credentials::Hmac { .. } => "an API key",
        }
    }

    /// True if `found` are the credentials of this identity, so that its tokens serve for them.
    pub fn is(&self, found: &Credentials) -> bool {
        self.found == *found
    }
}

/// Returns a source of tokens for an API key or a trusted profile.
pub fn token_source(
    found: &Credentials,
    args: &IdentityArgs,
    environment: &Environment,
) -> CommandResult<Arc<dyn TokenSource>> {
    let clock = Arc::new(SystemClock);
    Ok(match found {
        Credentials::ApiKey(api_key) => {
            let endpoint = args.iam_endpoint.clone().unwrap_or_else(|| IBM_IAM.to_owned());
            let config = ApiKeyConfig {
                endpoint,
                api_key: api_key.clone(),
                ca_file: args.ca_file.clone(),
                proxies: environment.proxies(),
            };
            Arc::new(ApiKeySource::new(config, clock)?)
        }
        Credentials::TrustedProfile(profile) => {
            Arc::new(ProfileSource::new(metadata(args)?, profile.clone(), clock))
        }
        Credentials::Hmac { .. } => return Err(UsageError("S3 keys give no tokens".into()).into()),
    })
}

/// Returns a client of the instance metadata service.
pub fn metadata(args: &IdentityArgs) -> CommandResult<Arc<Metadata>> {
    let config = MetadataConfig { endpoint: args.metadata_endpoint.clone(), ca_file: args.ca_file.clone() };
    Ok(Arc::new(Metadata::new(&config)?))
}

fn read(path: &Path, what: &str) -> CommandResult<String> {
    snapferry_base::user_file::read_text(path)
        .map_err(|error| UsageError(format!("cannot read the {what} {}: {error}", path.display())).into())
}

fn api_key(path: &Path) -> CommandResult<Credentials> {
    let text = read(path, "API key file")?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    // `ibmcloud iam api-key-create --file` writes JSON; a secret store usually gives the bare key.
    let key = match serde_json::from_str::<ApiKeyJson>(text) {
        Ok(found) => Secret::new(&found.apikey),
        Err(_) => Secret::new(text),
    };
    if key.is_empty() || key.reveal().contains(char::is_whitespace) {
        return Err(UsageError(format!("{} does not hold an API key alone", path.display())).into());
    }
    Ok(Credentials::ApiKey(key))
}

#[derive(Deserialize)]
struct ApiKeyJson {
    apikey: String,
}

/// Service credential of IBM, in the JSON that the console offers for download.
#[derive(Deserialize)]
struct ServiceCredential {
    cos_hmac_keys: Option<HmacJson>,
    apikey: Option<String>,
}

#[derive(Deserialize)]
struct HmacJson {
    access_key_id: String,
    secret_access_key: String,
}

fn from_file(path: &Path, environment: &Environment) -> CommandResult<Credentials> {
    let text = read(path, "credentials file")?;
    // Editors on Windows put a byte order mark in front.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let invalid = |reason: &str| {
        CommandError::from(UsageError(format!("the credentials file {} {reason}", path.display())))
    };
    if text.trim_start().starts_with('{') {
        // The parser's own message would quote the file, which holds secrets.
        let found: ServiceCredential =
            serde_json::from_str(text).map_err(|_| invalid("is not the JSON of a service credential"))?;
        return match (found.cos_hmac_keys, found.apikey) {
            (Some(HmacJson { access_key_id, secret_access_key }), _) => Ok(Credentials::Hmac {
                access_key: access_key_id,
                secret_key: Secret::new(&secret_access_key),
                session_token: None,
            }),
            (None, Some(key)) => Ok(Credentials::ApiKey(Secret::new(&key))),
            (None, None) => Err(invalid("holds neither cos_hmac_keys nor an apikey")),
        };
    }
    let profile = environment.get("AWS_PROFILE").unwrap_or("default");
    match from_ini(text, profile) {
        Ok(found) => found.ok_or_else(|| {
            invalid(&format!("has no aws_access_key_id and aws_secret_access_key under [{profile}]"))
        }),
        Err(number) => Err(invalid(&format!(
            "has more than a value in line {number}: no key holds a blank. A comment goes into a line of its own, and begins it with # or ;"
        ))),
    }
}

/// Reads keys from a credentials file of AWS. A comment may follow a section's name. A comment after a value
/// belongs to the value for botocore, but not for AWS' SDK for Rust; so it is refused, with the number of the
/// line.
fn from_ini(text: &str, profile: &str) -> Result<Option<Credentials>, usize> {
    let mut inside = false;
    let (mut access_key, mut secret_key, mut session_token) = (None, None, None);
    for (number, line) in (1..).zip(text.lines().map(str::trim)) {
        let section = line.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        if let Some((section, _)) =
            section.filter(|(_, rest)| matches!(rest.trim_start().chars().next(), None | Some('#' | ';')))
        {
            inside = section.trim() == profile;
        } else if let Some((name, value)) =
            line.split_once('=').filter(|_| inside && !line.starts_with(['#', ';']))
        {
            let (name, value) = (name.trim(), value.trim());
            if name.starts_with("aws_") && value.contains(char::is_whitespace) {
                return Err(number);
            }
            match name {
                "aws_access_key_id" => access_key = Some(value.to_owned()),
                "aws_secret_access_key" => secret_key = Some(Secret::new(value)),
                "aws_session_token" => session_token = Some(Secret::new(value)),
                _ => {}
            }
        }
    }
    Ok(access_key.zip(secret_key).map(|(access_key, secret_key)| Credentials::Hmac {
        access_key,
        secret_key,
        session_token,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> StoreArgs {
        StoreArgs::default()
    }

    fn shown(found: CommandResult<Credentials>) -> String {
        match found {
            Ok(Credentials::Hmac { access_key, secret_key, session_token }) => {
                format!(
                    "hmac {access_key} {} {}",
                    secret_key.reveal(),
                    session_token.as_ref().map_or("-", Secret::reveal)
                )
            }
            Ok(Credentials::ApiKey(key)) => format!("key {}", key.reveal()),
            Ok(Credentials::TrustedProfile(profile)) => format!("profile {profile:?}"),
            Err(error) => format!("error {error}"),
        }
    }

    #[test]
    fn every_place_is_looked_into_in_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        let ini = file(
            "ini",
            "[other]\naws_access_key_id=no\n[default]\n# aws_access_key_id = no\naws_access_key_id = ini\naws_secret_access_key=s=1\n",
        );
        let json = file(
            "json",
            r#"{"apikey":"j","cos_hmac_keys":{"access_key_id":"json","secret_access_key":"s2"}}"#,
        );
        file("apikey", "from-systemd\n");
        let key = file("key.json", r#"{"name":"x","apikey":"created"}"#);
        let both =
            [("AWS_ACCESS_KEY_ID", "env"), ("AWS_SECRET_ACCESS_KEY", "s3"), ("IBMCLOUD_API_KEY", "ibm")];
        let env = Environment::from_pairs(&both);
        assert_eq!(
            shown(find(&StoreArgs { credentials_file: Some(ini.clone()), ..args() }, &env)),
            "hmac ini s=1 -"
        );
        assert_eq!(
            shown(find(&StoreArgs { credentials_file: Some(json), ..args() }, &env)),
            "hmac json s2 -"
        );
        assert_eq!(
            shown(find(
                &StoreArgs {
                    identity: IdentityArgs { api_key_file: Some(key), ..IdentityArgs::default() },
                    ..args()
                },
                &env
            )),
            "key created"
        );
        assert_eq!(shown(find(&args(), &env)), "hmac env s3 -");
        let profile = IdentityArgs { trusted_profile: Some("default".into()), ..IdentityArgs::default() };
        assert_eq!(shown(find(&StoreArgs { identity: profile.clone(), ..args() }, &env)), "profile Default");
        assert_eq!(shown(find_identity(&profile, &env)), "profile Default");
        assert_eq!(shown(find_identity(&IdentityArgs::default(), &env)), "key ibm");
        let ic = [("IC_API_KEY", "ic"), both[2]];
        assert_eq!(
            shown(find_identity(&IdentityArgs::default(), &Environment::from_pairs(&ic[..1]))),
            "key ic"
        );
        assert_eq!(shown(find(&args(), &Environment::from_pairs(&ic[..1]))), "key ic");
        assert_eq!(shown(find(&args(), &Environment::from_pairs(&ic))), "key ibm");
        assert!(
            shown(find_identity(&IdentityArgs::default(), &Environment::from_pairs(&both[..2])))
                .starts_with("error no credentials")
        );
        assert_eq!(shown(find(&args(), &Environment::from_pairs(&both[2..]))), "key ibm");
        let systemd = [("CREDENTIALS_DIRECTORY", folder.path().to_str().expect("UTF-8"))];
        assert_eq!(shown(find(&args(), &Environment::from_pairs(&systemd))), "key from-systemd");
        let shared =
            [("AWS_SHARED_CREDENTIALS_FILE", ini.to_str().expect("UTF-8")), ("AWS_PROFILE", "default")];
        assert_eq!(shown(find(&args(), &Environment::from_pairs(&shared))), "hmac ini s=1 -");
        assert!(shown(find(&args(), &Environment::default())).starts_with("error no credentials"));
        assert!(
            shown(find(&args(), &Environment::from_pairs(&both[..1])))
                .contains("AWS_SECRET_ACCESS_KEY is not")
        );
    }

    #[test]
    fn aws_files_are_read_as_aws_reads_them_or_the_line_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("credentials");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("written");
            shown(find(
                &StoreArgs { credentials_file: Some(path.clone()), ..args() },
                &Environment::default(),
            ))
        };
        let keys = "aws_access_key_id = a\naws_secret_access_key = s\n";
        for head in ["[default]", "[default] # mine", "[default]; mine", "[ default ]\t", "\u{feff}[default]"]
        {
            assert_eq!(read(&format!("{head}\n{keys}")), "hmac a s -", "{head}");
            assert_eq!(read(&format!("{head}\n{keys}").replace('\n', "\r\n")), "hmac a s -", "{head}");
        }
        assert!(read(&format!("[default]x\n{keys}")).contains("has no aws_access_key_id"));
        let refused = read("[default]\naws_access_key_id = a # mine\naws_secret_access_key = hunter2\n");
        assert!(
            refused.contains("in line 2") && !refused.contains("hunter2") && !refused.contains("mine"),
            "{refused}"
        );
        assert_eq!(
            read(&format!("[other]\naws_session_token = a b\n[default]\nregion = us south\n{keys}")),
            "hmac a s -"
        );
    }

    #[test]
    fn a_file_that_does_not_parse_is_not_quoted() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("bad");
        std::fs::write(&path, r#"{"apikey": hunter2"#).expect("written");
        let error =
            shown(find(&StoreArgs { credentials_file: Some(path), ..args() }, &Environment::default()));
        assert!(error.contains("is not the JSON") && !error.contains("hunter2"), "{error}");
    }
}
