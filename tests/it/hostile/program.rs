//! The same images through the program: every command refuses or reports each of them, quickly and in little
//! memory.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use snapferry_testkit::hostile::{self, Hostile, Stage};

use super::decode_bytes;
use crate::support::program;

/// Limits for a child process: none of these images needs more.
const CPU_SECONDS: u32 = 1;
const PEAK_KIB: u64 = 64 * 1024;
/// Exit codes for errors of usage, of a source and of an image.
const OURS: [i32; 3] = [2, 3, 7];

/// Exit status, output and peak memory of a command.
struct Ended {
    code: Option<i32>,
    signal: Option<i32>,
    said: String,
    /// Peak resident memory in KiB.
    peak: u64,
}

/// Runs the program under the limits, one command after the other. Python starts the commands, since only a
/// parent can read a child's peak memory, after the child's end.
struct Runner {
    python: Child,
    requests: ChildStdin,
    responses: BufReader<ChildStdout>,
}

impl Runner {
    fn start() -> Self {
        // `subprocess` would collect the child's status, and with it the figures.
        const RUN: &str = "import json, os, resource, sys, tempfile\n\
            seconds, program = int(sys.argv[1]), sys.argv[2]\n\
            for line in sys.stdin:\n\
            \x20 said = tempfile.TemporaryFile()\n\
            \x20 pid = os.fork()\n\
            \x20 if pid == 0:\n\
            \x20   try:\n\
            \x20     resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))\n\
            \x20     os.dup2(os.open(os.devnull, os.O_RDONLY), 0)\n\
            \x20     os.dup2(said.fileno(), 1)\n\
            \x20     os.dup2(said.fileno(), 2)\n\
            \x20     os.execv(program, [program] + json.loads(line))\n\
            \x20   finally:\n\
            \x20     os._exit(99)\n\
            \x20 _, status, usage = os.wait4(pid, 0)\n\
            \x20 said.seek(0)\n\
            \x20 code = os.waitstatus_to_exitcode(status)\n\
            \x20 print(json.dumps([code, usage.ru_maxrss, said.read().decode(errors='replace')]), flush=True)";
        let mut python = Command::new("python3")
            .args(["-c", RUN, &CPU_SECONDS.to_string(), program()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let requests = python.stdin.take().unwrap();
        let responses = BufReader::new(python.stdout.take().unwrap());
        Self { python, requests, responses }
    }

    fn run(&mut self, arguments: &[&str]) -> Ended {
        writeln!(self.requests, "{}", serde_json::to_string(arguments).unwrap()).unwrap();
        let mut line = String::new();
        self.responses.read_line(&mut line).unwrap();
        let (code, peak, said): (i32, u64, String) = serde_json::from_str(&line).unwrap();
        Ended { code: (code >= 0).then_some(code), signal: (code < 0).then_some(-code), said, peak }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = self.python.kill();
        let _ = self.python.wait();
    }
}

/// Returns what is wrong with a command's end on an image that it should refuse, or `None`. `codes` are the
/// exit codes that are allowed besides 0.
fn complaint(
    command: &str,
    image: &Hostile,
    ended: &Ended,
    may_succeed: bool,
    codes: &[i32],
) -> Option<String> {
    let Ended { code, signal, said, peak } = ended;
    let what = if let Some(signal) = signal {
        format!("died of signal {signal}")
    } else if said.contains("panicked") || *code == Some(101) {
        "panicked".to_owned()
    } else if *peak > PEAK_KIB {
        format!("took {peak} KiB")
    } else if *code == Some(0) && !may_succeed {
        "ended well".to_owned()
    } else if *code != Some(0) && said.trim().is_empty() {
        "gave no reason".to_owned()
    } else if code.is_none_or(|code| code != 0 && !codes.contains(&code)) {
        format!("ended with {code:?}")
    } else {
        return None;
    };
    Some(format!("{command} of {:?} {what}: {said}", image.name))
}

/// Runs `work` on every image, on all cores.
fn with_each(work: impl Fn(&mut Runner, &Hostile, &Path) -> Vec<String> + Sync) {
    let images = hostile::all();
    let next = AtomicUsize::new(0);
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                let folder = tempfile::tempdir().unwrap();
                let mut runner = Runner::start();
                while let Some(image) = images.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let path = folder.path().join("image.qcow2");
                    std::fs::write(&path, &image.bytes).unwrap();
                    let found = work(&mut runner, image, &path);
                    wrong.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn verify_and_restore_refuse_every_broken_image() {
    with_each(|runner, image, path| {
        let text = path.to_str().unwrap();
        let sound = matches!(image.stage, Stage::Check | Stage::Never);
        let mut wrong: Vec<String> =
            complaint("verify", image, &runner.run(&["verify", text]), sound, &OURS).into_iter().collect();
        let raw = path.with_file_name("disk.raw");
        let ended = runner.run(&["restore", text, "--output", raw.to_str().unwrap()]);
        wrong.extend(complaint("restore", image, &ended, sound, &OURS));
        match std::fs::read(&raw) {
            Ok(disk) if !sound => wrong.push(format!(
                "restore of {:?} left {} bytes under the final name",
                image.name,
                disk.len()
            )),
            Ok(disk) if decode_bytes(&image.bytes).ok().as_ref() != Some(&disk) => {
                wrong.push(format!("restore of {:?} gave other bytes", image.name));
            }
            Ok(_) => std::fs::remove_file(&raw).unwrap(),
            Err(_) if sound => {
                wrong.push(format!("restore of {:?} gave nothing: {}", image.name, ended.said));
            }
            Err(_) => {}
        }
        wrong
    });
}

#[test]
fn check_and_the_drop_in_refuse_or_report_every_broken_image() {
    with_each(|runner, image, path| {
        let text = path.to_str().unwrap();
        // `check` finds errors that decoding does not, and reads bodies only with `--data`.
        let silent = matches!(image.stage, Stage::Never);
        let mut wrong: Vec<String> =
            complaint("check", image, &runner.run(&["check", text, "--data"]), silent, &OURS)
                .into_iter()
                .collect();
        let raw = path.with_file_name("disk.raw");
        let sound = matches!(image.stage, Stage::Check | Stage::Never);
        let ended =
            runner.run(&["qemu-img", "convert", "-f", "qcow2", "-O", "raw", text, raw.to_str().unwrap()]);
        wrong.extend(complaint("qemu-img convert", image, &ended, sound, &[1]));
        match std::fs::read(&raw) {
            Ok(_) if !sound => wrong.push(format!("qemu-img convert of {:?} left a file", image.name)),
            Ok(disk) if decode_bytes(&image.bytes).ok().as_ref() != Some(&disk) => {
                wrong.push(format!("qemu-img convert of {:?} gave other bytes", image.name));
            }
            _ => {}
        }
        let _ = std::fs::remove_file(&raw);
        wrong
    });
}
