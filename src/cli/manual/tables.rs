//! Exit codes, variables and files, as the manual lists them.

use crate::cli::exit::Code;

/// Exit codes with their meanings. The table in `docs/configuration.md` has the same words.
pub const EXIT_CODES: [(Code, &str); 11] = [
    (Code::Done, meaning(Code::Done)),
    (Code::Unexpected, meaning(Code::Unexpected)),
    (Code::Usage, meaning(Code::Usage)),
    (Code::Source, meaning(Code::Source)),
    (Code::Store, meaning(Code::Store)),
    (Code::Cloud, meaning(Code::Cloud)),
    (Code::Queue, meaning(Code::Queue)),
    (Code::Image, meaning(Code::Image)),
    (Code::Stale, meaning(Code::Stale)),
    (Code::Interrupted, meaning(Code::Interrupted)),
    (Code::BrokenPipe, meaning(Code::BrokenPipe)),
];

/// Returns the meaning of an exit code. A new one does not compile without, and is added to [`EXIT_CODES`].
const fn meaning(code: Code) -> &'static str {
    match code {
        Code::Done => "done",
        Code::Unexpected => {
            "something unexpected; or a limit of this process (memory, threads) leaves too little for the work"
        }
        Code::Usage => "the command line or the configuration is wrong",
        Code::Source => "the source can't be used, or --salvage left something out",
        Code::Store => "the object store, or the output file or device",
        Code::Cloud => "the cloud's API, or IAM; with enqueue --wait, a job is dead",
        Code::Queue => "the fleet's queue",
        Code::Image => "an image is refused, or failed its check",
        Code::Stale => "an image is older than it may be (status --check)",
        Code::Interrupted => {
            "interrupted, or a question was not answered with yes; with enqueue --wait, a job was cancelled"
        }
        Code::BrokenPipe => "the reader of stdout closed it (SIGPIPE)",
    }
}

/// Environment variable that is no setting.
pub struct Variable {
    pub name: &'static str,
    /// Id of the flag whose commands use the variable; None if all do.
    pub flag: Option<&'static str>,
    pub about: &'static str,
}

const fn everywhere(name: &'static str, about: &'static str) -> Variable {
    Variable { name, flag: None, about }
}

const fn with(flag: &'static str, name: &'static str, about: &'static str) -> Variable {
    Variable { name, flag: Some(flag), about }
}

/// All variables that are no settings.
pub const VARIABLES: [Variable; 26] = [
    with("redis", "SNAPFERRY_REDIS_PASSWORD", "Password for Redis."),
    with("api_key_file", "IBMCLOUD_API_KEY", "API key for IBM Cloud."),
    with("api_key_file", "IC_API_KEY", "API key for IBM Cloud, if IBMCLOUD_API_KEY is not set."),
    with("vpc_region", "IBMCLOUD_REGION", "Region of the servers, if no setting has it."),
    with("vpc_region", "IC_REGION", "Region of the servers, if IBMCLOUD_REGION is not set."),
    with("endpoint", "HTTPS_PROXY", "Proxy for https:// addresses."),
    with("endpoint", "HTTP_PROXY", "Proxy for http:// addresses."),
    with("endpoint", "ALL_PROXY", "Proxy for addresses of a kind that has no proxy of its own."),
    with("endpoint", "NO_PROXY", "Names, domains, addresses and networks that are reached directly."),
    with("credentials_file", "AWS_ACCESS_KEY_ID", "Id of the HMAC key for the object store."),
    with("credentials_file", "AWS_SECRET_ACCESS_KEY", "HMAC key for the object store."),
    with("credentials_file", "AWS_SESSION_TOKEN", "Session token that belongs to the HMAC key."),
    with("credentials_file", "AWS_REGION", "Region of the bucket, if no setting has it."),
    with("credentials_file", "AWS_DEFAULT_REGION", "Region of the bucket, if AWS_REGION is not set."),
    with("credentials_file", "AWS_ENDPOINT_URL_S3", "Address of the object store, if no setting has it."),
    with("credentials_file", "AWS_ENDPOINT_URL", "As AWS_ENDPOINT_URL_S3, which beats it."),
    with("credentials_file", "AWS_PROFILE", "Profile in the file with HMAC keys."),
    with("credentials_file", "AWS_SHARED_CREDENTIALS_FILE", "File with HMAC keys in AWS' ini format."),
    with("api_key_file", "CREDENTIALS_DIRECTORY", "Folder of systemd's credentials: apikey, redis-password."),
    everywhere("SNAPFERRY_CONFIG", "Configuration file, as --config."),
    everywhere(
        "SNAPFERRY_LOG",
        "Level of the log: error, warn, info, debug or trace, also by module, as in snapferry=debug. It beats -q and -v.",
    ),
    with("yes", "SNAPFERRY_YES", "If 1, the answer to each question is yes, as --yes."),
    everywhere("NO_COLOR", "If set, output has no colours."),
    everywhere("CLICOLOR", "If 0, output has no colours."),
    everywhere("CLICOLOR_FORCE", "If set and not 0, output has colours without a terminal too."),
    with("args", "SNAPFERRY_QEMU_IMG", "Path of QEMU's own tool, which gets what this program does not do."),
];

/// File that commands with a certain flag use.
pub struct File {
    /// Id of the flag.
    pub flag: &'static str,
    pub path: &'static str,
    pub about: &'static str,
}

pub const FILES: [File; 3] = [
    File {
        flag: "credentials_file",
        path: "~/.aws/credentials",
        about: "HMAC keys for the object store, if nothing else has credentials.",
    },
    File {
        flag: "state_folder",
        path: "/var/lib/snapferry",
        about: "Journals of jobs, for root; ~/.local/state/snapferry for other users.",
    },
    File {
        flag: "device_folder",
        path: "/dev/disk/by-id",
        about: "Folder in which attached volumes appear.",
    },
];
