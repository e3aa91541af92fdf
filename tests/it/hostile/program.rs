//! The same images through the program: every command refuses or reports each of them, quickly and in little
//! memory.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use snapferry_testkit::hostile::{self, Hostile, Stage};

use super::decode_bytes;

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

/// Runs the program under the limits. The wrapper reports the child's peak memory, which only its parent can
/// read after its end.
fn run(arguments: &[&str]) -> Ended {
    // VmHWM is gone once a process has ended; GNU time is not installed everywhere, but the tests need
    // python3 already.
    const WATCH: &str = "import os, resource, subprocess, sys\n\
        resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]), int(sys.argv[1]) + 1))\n\
        child = subprocess.run(sys.argv[2:], capture_output=True)\n\
        sys.stdout.buffer.write(child.stdout + child.stderr)\n\
        print('\\n', child.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, sep=' ')";
    let answer = Command::new("python3")
        .args(["-c", WATCH, &CPU_SECONDS.to_string(), env!("CARGO_BIN_EXE_snapferry")])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        answer.status.success(),
        "{:?} {}",
        answer.status.signal(),
        String::from_utf8_lossy(&answer.stderr)
    );
    let said = String::from_utf8_lossy(&answer.stdout).into_owned();
    let (said, figures) =
        said.rsplit_once('\n').map(|(said, _)| said.rsplit_once("\n").unwrap_or(("", said))).unwrap();
    let figures: Vec<i64> = figures.split_whitespace().map(|figure| figure.parse().unwrap()).collect();
    let code = i32::try_from(figures[0]).unwrap();
    Ended {
        code: (code >= 0).then_some(code),
        signal: (code < 0).then_some(-code),
        said: said.to_owned(),
        peak: u64::try_from(figures[1]).unwrap(),
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
fn with_each(work: impl Fn(&Hostile, &Path) -> Vec<String> + Sync) {
    let images = hostile::all();
    let next = AtomicUsize::new(0);
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                let folder = tempfile::tempdir().unwrap();
                while let Some(image) = images.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let path = folder.path().join("image.qcow2");
                    std::fs::write(&path, &image.bytes).unwrap();
                    let found = work(image, &path);
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
    with_each(|image, path| {
        let text = path.to_str().unwrap();
        let sound = matches!(image.stage, Stage::Check | Stage::Never);
        let mut wrong: Vec<String> =
            complaint("verify", image, &run(&["verify", text]), sound, &OURS).into_iter().collect();
        let raw = path.with_file_name("disk.raw");
        let ended = run(&["restore", text, "--output", raw.to_str().unwrap()]);
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
    with_each(|image, path| {
        let text = path.to_str().unwrap();
        // `check` finds errors that decoding does not, and reads bodies only with `--data`.
        let silent = matches!(image.stage, Stage::Never);
        let mut wrong: Vec<String> =
            complaint("check", image, &run(&["check", text, "--data"]), silent, &OURS).into_iter().collect();
        let raw = path.with_file_name("disk.raw");
        let sound = matches!(image.stage, Stage::Check | Stage::Never);
        let ended = run(&["qemu-img", "convert", "-f", "qcow2", "-O", "raw", text, raw.to_str().unwrap()]);
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
