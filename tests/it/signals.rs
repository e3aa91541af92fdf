//! Every early end: each signal to each long-running command leaves nothing behind, and neither does a
//! terminal that goes away. DESIGN.md has the table that these tests check; `fleet` and `replicate` check the
//! rows of their commands.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use snapferry_base::units::{ByteCount, MIB};
use snapferry_sim::{Action, Operation, Rule};
use snapferry_testkit::disks::{Disk, Kind};
use snapferry_testkit::skip::has_oracle;
use tempfile::TempDir;

use crate::support::{Bucket, KEY, Running, convert_into_file, folder, left_in, run, snapferry, wait_until};

/// Signals that end a command cleanly. A second one ends it at once, except SIGHUP.
pub const SIGNALS: [Signal; 4] = [Signal::INT, Signal::TERM, Signal::QUIT, Signal::HUP];

/// A disk that no codec makes smaller, alone in its folder.
fn disk() -> (TempDir, PathBuf) {
    let home = folder();
    let raw = home.path().join("disk.raw");
    Disk::new(Kind::Random, ByteCount(40 * MIB), 71).write(&raw).expect("a disk");
    (home, raw)
}

/// True if at least 4 MiB were written to a hidden file.
fn is_begun(folder: &Path) -> bool {
    let hidden = left_in(folder).into_iter().find(|name| name.ends_with(".partial"));
    hidden
        .and_then(|name| std::fs::metadata(folder.join(name)).ok())
        .is_some_and(|found| found.len() >= 4 * MIB)
}

fn qemu_img(format: &str, raw: &Path, to: &Path) -> Command {
    let mut command = snapferry(["qemu-img", "convert", "-p", "-r", "4M", "-f", "raw", "-O", format]);
    command.arg(raw).arg(to);
    command
}

#[test]
fn a_file_that_is_being_written_goes_with_every_word() {
    let (_home, raw) = disk();
    let to = folder();
    let target = to.path().join(KEY);
    for signal in SIGNALS {
        let commands = [
            convert_into_file(&raw, &target, &["--limit", "100k"]),
            qemu_img("qcow2", &raw, &target),
            qemu_img("raw", &raw, &target),
        ];
        for command in commands {
            let what = format!("{signal:?}: {command:?}");
            let mut running = Running::start(command);
            wait_until("it is written", || is_begun(to.path()));
            running.signal(signal);
            running.end().expect(130, &["interrupted"]);
            assert_eq!(left_in(to.path()), Vec::<String>::new(), "{what}");
        }
    }
}

#[test]
fn an_upload_goes_with_every_word() {
    let (_home, raw) = disk();
    for signal in SIGNALS {
        let bucket = Bucket::start();
        let mut running = Running::start(bucket.convert(&raw, &["--part-size", "8M", "--limit", "100k"]));
        wait_until("a part has arrived", || bucket.sim.stats().of(Operation::UploadPart).succeeded > 0);
        running.signal(signal);
        running.end().expect(130, &["interrupted"]);
        bucket.expect_nothing();
    }
}

/// A closed window sends SIGHUP two or three times, and each one arrives during the cleanup.
#[test]
fn a_hang_up_that_is_repeated_does_not_cut_the_cleaning_up_short() {
    let (_home, raw) = disk();
    let bucket = Bucket::start();
    let mut running = Running::start(bucket.convert(&raw, &["--part-size", "8M", "--limit", "100k"]));
    wait_until("a part has arrived", || bucket.sim.stats().of(Operation::UploadPart).succeeded > 0);
    bucket.sim.faults().add(Rule::on(Operation::AbortMultipartUpload), Action::Delay { milliseconds: 1000 });
    running.signal(Signal::HUP);
    wait_until("it aborts the upload", || {
        bucket.sim.stats().of(Operation::AbortMultipartUpload).requests > 0
    });
    for signal in [Signal::HUP, Signal::TERM, Signal::HUP] {
        running.signal(signal);
    }
    running.end().expect(130, &["interrupted"]);
    bucket.sim.faults().clear();
    bucket.expect_nothing();
}

/// Commands that read an image from a store that never answers.
#[test]
fn who_waits_for_a_store_ends_with_every_word() {
    let (home, raw) = disk();
    let bucket = Bucket::start();
    run(bucket.convert(&raw, &[])).expect(0, &[]);
    let to = folder();
    let (image, disk) = (format!("s3://images/{KEY}"), raw.to_str().expect("UTF-8"));
    let target = to.path().join("back.raw");
    let target = target.to_str().expect("UTF-8");
    bucket.sim.faults().add(Rule::on(Operation::GetObject), Action::Hang);
    for signal in SIGNALS {
        for args in [
            &["verify", &image][..],
            &["restore", &image, "--output", target],
            &["compare", &image, disk],
            &["check", &image],
            &["map", &image],
            &["measure", &image],
            &["info", &image],
        ] {
            let before = bucket.sim.stats().of(Operation::GetObject).requests;
            let mut running = Running::start(bucket.command_without_bucket(args));
            wait_until("it asks", || bucket.sim.stats().of(Operation::GetObject).requests > before);
            running.signal(signal);
            let ended = running.end();
            assert_eq!(ended.code, Some(130), "{signal:?} {args:?}: {ended:?}");
        }
    }
    assert_eq!((left_in(to.path()), left_in(home.path())), (Vec::new(), vec!["disk.raw".to_owned()]));
}

/// `command` as a shell with `nohup` runs it: SIGHUP is ignored.
fn under_nohup(command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
    shell.env_clear().stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        shell.env(name, value.expect("set, not removed"));
    }
    shell.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    shell
}

#[test]
fn what_was_told_to_ignore_hang_ups_does() {
    let (_home, raw) = disk();
    let to = folder();
    let image = to.path().join(KEY);
    let mut running = Running::start(under_nohup(&convert_into_file(&raw, &image, &["--limit", "16M"])));
    wait_until("it is written", || is_begun(to.path()));
    running.signal(Signal::HUP);
    running.end().expect(0, &[]);
    assert_eq!(left_in(to.path()), [KEY.to_owned(), format!("{KEY}.manifest")]);
    // Other signals are handled as usual.
    let mut running =
        Running::start(under_nohup(&convert_into_file(&raw, &image, &["--limit", "100k", "--force"])));
    wait_until("it is written", || is_begun(to.path()));
    running.signal(Signal::TERM);
    running.end().expect(130, &["interrupted"]);
    assert_eq!(left_in(to.path()), [KEY.to_owned(), format!("{KEY}.manifest")]);
}

/// A terminal with a process on it; it goes away on command.
struct Terminal(Child);

impl Terminal {
    /// Runs a shell command line on a new terminal, as ssh does.
    fn run(line: &str) -> Self {
        let child = Command::new("script")
            .args(["--quiet", "--flush", "--command", line, "/dev/null"])
            .env("TERM", "xterm")
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("script runs");
        Self(child)
    }

    /// Kills the terminal at once, as when the connection breaks.
    fn vanish(mut self) {
        self.0.kill().expect("it is there");
        self.0.wait().expect("our child");
    }
}

/// Command line for a shell.
fn line_of(command: &Command) -> String {
    let args = [command.get_program()].into_iter().chain(command.get_args());
    args.map(|arg| format!("'{}'", arg.to_str().expect("UTF-8"))).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_terminal_that_goes_away_ends_the_work_in_order() {
    if !has_oracle("script") {
        return;
    }
    let (_home, raw) = disk();
    let to = folder();
    let image = to.path().join(KEY);
    for more in [&["--limit", "100k"][..], &["--limit", "100k", "--verbose"]] {
        let terminal = Terminal::run(&format!("exec {}", line_of(&convert_into_file(&raw, &image, more))));
        wait_until("it is written", || is_begun(to.path()));
        terminal.vanish();
        wait_until("nothing is left", || left_in(to.path()).is_empty());
    }
    let terminal = Terminal::run(&format!("exec {}", line_of(&qemu_img("qcow2", &raw, &image))));
    wait_until("it is written", || is_begun(to.path()));
    terminal.vanish();
    wait_until("nothing is left", || left_in(to.path()).is_empty());
}

/// Under nohup the work continues after its terminal is gone, on which it can draw and print nothing more:
/// neither the bar nor a log line nor the report is a reason to stop.
#[test]
fn work_that_outlives_its_terminal_comes_to_its_end() {
    if !has_oracle("script") {
        return;
    }
    let (_home, raw) = disk();
    let to = folder();
    let (image, code) = (to.path().join(KEY), to.path().join("code"));
    for (more, expected) in [
        (&["--limit", "16M"][..], "0"),
        (&["--limit", "16M", "--verbose", "--force"], "0"),
        // The report can't be written: the exit code is that of a closed stdout.
        (&["--limit", "16M", "--json", "--force"], "141"),
    ] {
        let command = line_of(&convert_into_file(&raw, &image, more));
        let ended = code.display();
        let terminal = Terminal::run(&format!(
            "trap '' HUP; {command}; echo $? >'{ended}.new'; mv '{ended}.new' '{ended}'"
        ));
        wait_until("it is written", || is_begun(to.path()));
        terminal.vanish();
        wait_until("it has ended", || code.exists());
        assert_eq!(std::fs::read_to_string(&code).expect("a code").trim(), expected, "{more:?}");
        std::fs::remove_file(&code).expect("removed");
        assert_eq!(left_in(to.path()), [KEY.to_owned(), format!("{KEY}.manifest")]);
        let mut verify = snapferry(["verify", "--quiet"]);
        verify.arg(&image);
        run(verify).expect(0, &[]);
    }
}

/// No process reads the output any more: the work continues, and only its output is lost.
#[test]
fn closed_pipes_end_no_work() {
    let (_home, raw) = disk();
    let to = folder();
    let image = to.path().join(KEY);
    for (more, expected) in [(&["--verbose"][..], 0), (&["--json", "--force"], 141)] {
        let mut command = convert_into_file(&raw, &image, more);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        drop((child.stdout.take(), child.stderr.take()));
        assert_eq!(child.wait().expect("our child").code(), Some(expected), "{more:?}");
        assert_eq!(left_in(to.path()), [KEY.to_owned(), format!("{KEY}.manifest")]);
    }
}
