//! `snapferry-sim`, run as a user runs it.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_snapferry-sim"))
}

#[test]
fn the_services_end_in_order_at_every_signal_to_stop() {
    let home = tempfile::tempdir().unwrap();
    for signal in [Signal::INT, Signal::TERM, Signal::QUIT, Signal::HUP] {
        for service in ["store", "region"] {
            let mut command = program();
            command.args([service, "--port", "0", "--dir"]).arg(home.path().join(service));
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
            assert!(lines.any(|line| line.starts_with("# serving")), "{service} serves");
            kill_process(Pid::from_child(&child), signal).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(0), "{signal:?} to {service}");
        }
    }
}

#[test]
fn a_folder_that_can_not_be_made_and_a_wrong_option_have_codes_of_their_own() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    std::fs::write(&file, "").unwrap();
    let output = program().args(["region", "--dir"]).arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("snapferry-sim: "), "{output:?}");
    assert_eq!(program().args(["store", "--folder", "x"]).output().unwrap().status.code(), Some(2));
    let faults = home.path().join("faults.json");
    std::fs::write(&faults, "not JSON").unwrap();
    let output =
        program().args(["store", "--dir"]).arg(home.path()).arg("--faults").arg(&faults).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}
