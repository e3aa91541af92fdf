//! Tables and progress fit the terminal, whatever its size; elsewhere nothing is cut.

use std::process::Command;

use console::measure_text_width;
use snapferry_base::units::{ByteCount, MIB};
use snapferry_fleet::queue::{NewJob, Queue as _, Timing};
use snapferry_sim::{Action, Operation, Rule};
use snapferry_testkit::disks::{Disk, Kind};
use tempfile::TempDir;

use crate::support::{
    Bucket, CTRL_C, KEY, Redis, SAFE, Terminal, assert_fits, drawn, folder, job, run, snapferry, wait_until,
};

/// Widths of terminals: of a phone, the VT100, a wide screen, and between.
const WIDTHS: [u16; 8] = [20, 33, 40, 60, 80, 100, 132, 200];

fn with_long_settings() -> Command {
    let mut command = snapferry(["config", "show"]);
    command.env("SNAPFERRY_BUCKET", "サーバー".repeat(20)).env("SNAPFERRY_STATE_FOLDER", "/👩‍💻/🚀".repeat(30));
    command
}

#[test]
fn a_table_fits_the_terminal() {
    for columns in WIDTHS {
        let (code, text) = Terminal::start(&with_long_settings(), columns).end();
        let lines = drawn(&text);
        assert_eq!(code, Some(0), "{text}");
        assert!(lines.len() > 40, "{lines:?}");
        // The first line is no table: it names the file.
        assert_fits(&lines[1..], columns.into());
        assert!(lines[1..].iter().any(|line| line.contains('…')), "{columns}: {lines:?}");
    }
}

#[test]
fn nothing_is_cut_for_a_program() {
    let ended = run(with_long_settings()).code(0);
    assert!(ended.out.contains(&"サーバー".repeat(20)) && ended.out.contains(&"/👩‍💻/🚀".repeat(30)));
    assert!(!ended.out.contains('…'), "{}", ended.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_hostile_names_fits_the_terminal() {
    let Some(redis) = Redis::start(&SAFE).await else { return };
    let queue = redis.queue(Timing::default()).await;
    let hostile = "x\u{1b}[2J\u{9b}31m\u{202e}gnp\r\n".repeat(30);
    for server in [hostile.as_str(), &"データベース".repeat(30), &"🚀".repeat(99), "web01"] {
        queue.enqueue(&NewJob { server: server.to_owned(), ..job("web01") }).await.unwrap();
    }
    let url = redis.url();
    for columns in WIDTHS {
        let (code, text) = Terminal::start(&snapferry(["jobs", "list", "--redis", &url]), columns).end();
        assert_eq!(code, Some(0), "{text}");
        assert!(!text.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{text:?}");
        let lines = drawn(&text);
        assert_eq!(lines.len(), 5, "{lines:?}");
        assert_fits(&lines, columns.into());
    }
}

/// A store that takes its time with each request, a disk, and its image in the store.
struct Slow {
    bucket: Bucket,
    home: TempDir,
}

impl Slow {
    fn new() -> Self {
        let slow = Self { bucket: Bucket::start(), home: folder() };
        let raw = slow.home.path().join("disk.raw");
        Disk::new(Kind::Random, ByteCount(40 * MIB), 9).write(&raw).expect("a disk");
        run(slow.bucket.convert(&raw, &[])).expect(0, &[]);
        slow.bucket.sim.faults().add(Rule::on(Operation::GetObject), Action::Delay { milliseconds: 400 });
        slow
    }

    fn convert(&self) -> Command {
        let more = ["--force", "--limit", "500k", "--part-size", "8M"];
        self.bucket.convert(&self.home.path().join("disk.raw"), &more)
    }

    fn verify(&self) -> Command {
        self.bucket.command(["verify", "--key", KEY, "--connections", "1"])
    }

    fn restore(&self) -> Command {
        let mut command = self.bucket.command(["restore", "--key", KEY, "--connections", "1"]);
        command.arg("--output").arg(self.home.path().join("back.raw"));
        command
    }
}

/// Lines of the display: they have a percentage. The terminal itself shows Ctrl-C behind the last one. Log
/// lines, which begin with the date, are printed over the display, and are never cut.
fn display(text: &str) -> Vec<String> {
    let is_log = |line: &str| line.split_once('-').is_some_and(|(year, _)| year.parse::<u16>().is_ok());
    let is_display = |line: &String| line.contains('%') && !is_log(line);
    let lines = drawn(text).into_iter().filter(is_display);
    lines.map(|line| line.trim_end_matches("^C").to_owned()).collect()
}

/// Runs a command on terminals of all widths until it has drawn its progress a few times.
fn assert_progress_fits(command: impl Fn() -> Command) {
    for columns in WIDTHS {
        let mut terminal = Terminal::start(&command(), columns);
        wait_until("progress", || display(&terminal.text()).len() > 2);
        terminal.press(CTRL_C);
        let (_, text) = terminal.end();
        let lines = display(&text);
        assert_fits(&lines, columns.into());
        let has = |part: &str| lines.iter().any(|line| line.contains(part));
        // The least important part is there only if there is room for everything.
        assert_eq!((has("ETA"), has("ratio")), (true, columns >= 132), "{columns}: {lines:?}");
    }
}

#[test]
fn progress_of_a_conversion_fits_the_terminal() {
    let slow = Slow::new();
    assert_progress_fits(|| slow.convert());
}

#[test]
fn progress_of_a_verification_fits_the_terminal() {
    let slow = Slow::new();
    assert_progress_fits(|| slow.verify());
}

#[test]
fn progress_of_a_restore_fits_the_terminal() {
    let slow = Slow::new();
    assert_progress_fits(|| slow.restore());
}

#[test]
fn progress_fits_a_terminal_that_becomes_narrower_and_wider() {
    let slow = Slow::new();
    let mut terminal = Terminal::start(&slow.convert(), 132);
    wait_until("progress", || display(&terminal.text()).iter().any(|line| line.contains("ratio")));
    for columns in [40_u16, 100, 20] {
        terminal.resize(columns);
        let before = terminal.printed();
        wait_until("progress in the new size", || {
            // The first line may have been begun before, and be as wide as the terminal was.
            let lines = display(&terminal.text_after(before)).into_iter().skip(1).collect::<Vec<_>>();
            lines.len() > 2 && lines.iter().all(|line| measure_text_width(line) <= columns.into())
        });
    }
    terminal.press(CTRL_C);
    terminal.end();
}

#[test]
fn progress_of_the_drop_in_fits_the_terminal() {
    let home = folder();
    let (raw, image) = (home.path().join("disk.raw"), home.path().join("disk.qcow2"));
    Disk::new(Kind::Random, ByteCount(4 * MIB), 9).write(&raw).expect("a disk");
    let mut command = snapferry(["qemu-img", "convert", "-p", "-f", "raw", "-O", "qcow2"]);
    command.arg(&raw).arg(&image);
    let (code, text) = Terminal::start(&command, 20).end();
    assert_eq!(code, Some(0), "{text}");
    let lines = display(&text);
    assert_eq!(lines.last().map(|line| line.trim()), Some("(100.00/100%)"));
    assert_fits(&lines, 20);
}
