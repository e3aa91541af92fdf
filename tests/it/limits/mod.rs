//! Every command that needs no cloud, under every limit that a shell, a service or a container sets, from
//! tiny to large.
//!
//! A command either succeeds, and its result is checked, or it is refused: with an exit code of its own, a
//! message on stderr, and nothing left behind. It never panics, dies of a signal or hangs. Each test prints a
//! table of the settings under which commands were refused.

mod work;

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Command;

use rustix::process::{geteuid, getpid};
use snapferry_base::units::MIB;
use snapferry_testkit::skip::{is_root, skip};

use self::work::{End, Work};

/// Seconds after which a command is killed, and the test fails: no command needs as long under any limit.
const DEADLINE: &str = "30";

/// One limit with one value: the wrapper that comes before a command's own arguments.
struct Setting {
    label: String,
    wrapper: Vec<String>,
}

impl Setting {
    fn new(label: impl Into<String>, wrapper: &[&str]) -> Self {
        let wrapper =
            ["timeout", "-s", "KILL", DEADLINE].iter().chain(wrapper).map(ToString::to_string).collect();
        Self { label: label.into(), wrapper }
    }

    /// Setting of the command `prlimit --RESOURCE=VALUE`.
    fn prlimit(resource: &str, value: u64, label: String) -> Self {
        Self::new(label, &["prlimit", &format!("--{resource}={value}")])
    }

    fn run(&self, command: &Command) -> std::process::Output {
        let mut wrapped = Command::new(&self.wrapper[0]);
        wrapped.args(&self.wrapper[1..]).arg(command.get_program()).args(command.get_args());
        wrapped
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(std::process::Stdio::null());
        wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        wrapped.output().expect("timeout is there")
    }

    /// True if the program can be loaded at all: otherwise none of its own code runs.
    fn loads(&self, work: &Work) -> bool {
        let output = self.run(&work.bare());
        let stderr = String::from_utf8_lossy(&output.stderr);
        // The loader's messages name the program too.
        output.status.success() || stderr.contains("error: ") && !stderr.contains("error while loading")
    }
}

/// Runs every command under every setting, prints the table, and fails if a result is wrong.
fn check_limit(name: &str, settings: &[Setting], work: &Work) {
    let mut table = format!("{name}: . right, R refused, ! wrong\n");
    let mut wrong = Vec::new();
    let settings: Vec<&Setting> = settings
        .iter()
        .filter(|setting| {
            let loads = setting.loads(work);
            if !loads {
                let _ = writeln!(table, "  {}: the program can't be loaded", setting.label);
            }
            loads
        })
        .collect();
    let (mut right, mut refused) = (0, 0);
    for job in work.jobs() {
        let mut row = String::new();
        for setting in &settings {
            work.reset();
            let output = setting.run(&job.command);
            row.push(match work.judge(&job, &output) {
                Ok(End::Right) => {
                    right += 1;
                    '.'
                }
                Ok(End::Refused) => {
                    refused += 1;
                    'R'
                }
                Err(reason) => {
                    wrong.push(format!("{} under {}: {reason}", job.name, setting.label));
                    '!'
                }
            });
        }
        let _ = writeln!(table, "  {row}  {}", job.name);
    }
    let values: Vec<&str> = settings.iter().map(|setting| setting.label.as_str()).collect();
    let _ =
        writeln!(table, "  {}\n  {right} right, {refused} refused, {} wrong", values.join(", "), wrong.len());
    // For runs with --nocapture, and for the output of a failed test.
    let _ = std::io::stdout().write_all(table.as_bytes());
    assert!(wrong.is_empty(), "{table}\n{}", wrong.join("\n"));
    assert!(right > 0, "{table}");
}

fn mib(resource: &str, values: &[u64]) -> Vec<Setting> {
    values.iter().map(|value| Setting::prlimit(resource, value * MIB, format!("{value} MiB"))).collect()
}

/// A test build has some 150 MiB of text and symbols, a release build 20.
#[test]
fn address_space() {
    let values =
        [32, 64, 96, 128, 160, 176, 192, 208, 224, 256, 288, 320, 384, 448, 512, 640, 768, 1024, 2048];
    check_limit("address space", &mib("as", &values), &Work::new());
}

#[test]
fn data() {
    let values = [1, 4, 8, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512, 1024];
    check_limit("data", &mib("data", &values), &Work::new());
}

#[test]
fn file_size() {
    let kib = [0, 1, 4, 64, 100, 192, 256, 512, 1024, 4096, 8192, 12_288, 12_289, 16_384, 65_536];
    let settings: Vec<Setting> =
        kib.iter().map(|kib| Setting::prlimit("fsize", kib << 10, format!("{kib} KiB"))).collect();
    check_limit("file size", &settings, &Work::new());
}

#[test]
fn open_files() {
    let counts = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 18, 20, 22, 24, 25, 26, 28, 32, 64];
    let settings: Vec<Setting> =
        counts.iter().map(|&count| Setting::prlimit("nofile", count, count.to_string())).collect();
    check_limit("open files", &settings, &Work::new());
}

#[test]
fn stack() {
    let kib = [256, 512, 1024, 2048, 8192, 1 << 20];
    let settings: Vec<Setting> =
        kib.iter().map(|kib| Setting::prlimit("stack", kib << 10, format!("{kib} KiB"))).collect();
    check_limit("stack of the first thread", &settings, &Work::new());
}

/// The limit that `ulimit -u`, TasksMax and a container's pids limit set.
#[test]
fn tasks() {
    if !is_root() {
        return;
    }
    let counts = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 32, 64];
    // A user id for this run alone: the limit counts all threads of a user.
    let user = (70_000 + getpid().as_raw_nonzero().get()).to_string();
    let settings: Vec<Setting> = counts
        .iter()
        .map(|count| {
            let limit = format!("--nproc={count}");
            Setting::new(
                count.to_string(),
                &["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups", "prlimit", &limit],
            )
        })
        .collect();
    let work = Work::new();
    work.give_to(&user);
    check_limit("tasks", &settings, &work);
}

/// A control group for this run, removed at the end.
struct Group {
    folder: std::path::PathBuf,
    limit: &'static str,
}

impl Group {
    fn make() -> Option<Self> {
        let name = format!("snapferry-test-{}", getpid().as_raw_nonzero());
        let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = groups
            .lines()
            .find_map(|line| line.split_once(":memory:"))
            .map(|(_, path)| path.trim_start_matches('/').to_owned());
        let candidates = [
            own.map(|own| (std::path::Path::new("/sys/fs/cgroup/memory").join(own), "memory.limit_in_bytes")),
            Some(("/sys/fs/cgroup".into(), "memory.max")),
        ];
        candidates.into_iter().flatten().find_map(|(at, limit)| {
            let group = Self { folder: at.join(&name), limit };
            std::fs::create_dir(&group.folder).ok()?;
            // A user who may make a group may lack the memory controller.
            std::fs::write(group.folder.join(limit), (512 * MIB).to_string()).ok()?;
            Some(group)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.folder);
    }
}

#[test]
fn memory_of_a_control_group() {
    let Some(group) = (if geteuid().is_root() { Group::make() } else { None }) else {
        skip("no control group with a limit on memory can be made here");
        return;
    };
    let values: [u64; 9] = [8, 16, 24, 32, 64, 128, 192, 256, 512];
    let settings: Vec<Setting> = values
        .iter()
        .map(|value| {
            let enter = format!(
                "echo {} > {at}/{limit} && echo $$ > {at}/cgroup.procs && exec \"$@\"",
                value * MIB,
                at = group.folder.display(),
                limit = group.limit
            );
            Setting::new(format!("{value} MiB"), &["sh", "-c", &enter, "sh"])
        })
        .collect();
    check_limit("memory of a control group", &settings, &Work::new());
}

/// A request for 128 threads, and the default plan, within an address space of 640 MiB: the first is refused,
/// and the second uses less memory, as the dry run promises.
#[test]
fn a_plan_for_many_cores_follows_the_limits() {
    let work = Work::new();
    let planned = |setting: &Setting, more: &[&str]| {
        let mut command = work.command(&[
            "convert",
            "--dry-run",
            "--json",
            "--bucket",
            "images",
            "--key",
            "disk.qcow2",
            "--device",
        ]);
        command.arg(work.disk()).args(more);
        setting.run(&command)
    };
    let number = |output: &std::process::Output, name: &str| {
        let plan: serde_json::Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|reason| panic!("{reason}: {output:?}"));
        plan[name].as_u64().unwrap_or_else(|| panic!("{name} in {plan}"))
    };
    let free = Setting::new("no limit", &["env"]);
    let tight = Setting::prlimit("as", 640 * MIB, "640 MiB".into());
    let many = ["--threads", "128"];
    assert_eq!(number(&planned(&free, &many), "threads"), 128);
    let refused = planned(&tight, &many);
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("the address space of this process is limited to 640 MiB (ulimit -v)"),
        "{stderr}"
    );
    let (before, after) = (planned(&free, &[]), planned(&tight, &[]));
    assert!(
        number(&after, "peak_memory") < 640 * MIB
            && number(&after, "peak_memory") <= number(&before, "peak_memory")
    );
}
