//! One look of every error, and errors as JSON.

use serde_json::Value;
use snapferry_sim::{Action, Operation, Rule};

use crate::support::{Bucket, Ended, Terminal, folder, run, snapferry};

/// The object about an error, which must be all that is on stdout.
#[track_caller]
fn error_of(ended: &Ended) -> Value {
    let report = ended.report();
    assert_eq!(report.as_object().map(serde_json::Map::len), Some(1), "{report}");
    let error = report["error"].clone();
    let names: Vec<&String> = error.as_object().expect("an object").keys().collect();
    assert_eq!(names, ["class", "code", "hint", "leftovers", "message"], "{report}");
    assert_eq!(error["code"].as_i64(), ended.code.map(i64::from), "the exit code is the same");
    error
}

#[test]
fn an_error_of_a_command_looks_as_one_of_the_command_line() {
    let typed = run(snapferry(["info", "--jsn", "missing.qcow2"])).code(2);
    assert!(typed.err.starts_with("error: unexpected argument '--jsn' found\n\n  tip: "), "{}", typed.err);
    let ended = run(snapferry(["restore", "s3:/images/missing.qcow2", "--output", "x.raw"])).code(3);
    let lines: Vec<&str> = ended.err.lines().collect();
    assert!(lines[0].starts_with("error: cannot open s3:/images/missing.qcow2"), "{lines:?}");
    assert_eq!(lines[1..], ["", "  tip: an object is named s3://BUCKET/KEY"]);
    assert_eq!(ended.out, "");
}

#[test]
fn both_kinds_of_errors_are_coloured_alike_on_a_terminal() {
    let red = |text: &str| {
        let (before, _) = text.split_once("error:").expect("an error");
        before.contains("\u{1b}[31m") && before.contains("\u{1b}[1m")
    };
    for args in [&["info", "--jsn", "x"][..], &["info", "missing.qcow2"]] {
        let (code, text) = Terminal::start(&snapferry(args), 100).end();
        assert!(red(&text), "{args:?}: {code:?} {text:?}");
        let mut plain = snapferry(args);
        plain.env("NO_COLOR", "1");
        let (_, text) = Terminal::start(&plain, 100).end();
        assert!(!text.contains('\u{1b}'), "{args:?}: {text:?}");
    }
}

#[test]
fn the_drop_in_reports_as_qemu_does() {
    for args in [&["qemu-img", "info", "missing.qcow2", "--output=json"][..], &["qemu-img", "info", "--json"]]
    {
        let ended = run(snapferry(args)).code(1);
        assert!(ended.err.starts_with("qemu-img"), "{}", ended.err);
        assert_eq!(ended.out, "");
    }
}

#[test]
fn a_missing_image_is_an_object_on_stdout_and_text_on_stderr() {
    let ended = run(snapferry(["verify", "s3:/images/missing.qcow2", "--json"])).code(3);
    let error = error_of(&ended);
    assert_eq!(error["class"], "source");
    assert_eq!(error["hint"], "an object is named s3://BUCKET/KEY");
    assert_eq!(error["leftovers"], Value::Array(Vec::new()));
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains("No such file") && ended.err.contains(message), "{ended:?}");
}

#[test]
fn a_wrong_command_line_is_an_object_too() {
    let ended = run(snapferry(["verify", "--jsn", "x.qcow2", "--json"])).code(2);
    let error = error_of(&ended);
    assert_eq!(
        (&error["class"], &error["message"]),
        (&"usage".into(), &"unexpected argument '--jsn' found".into())
    );
    assert!(
        error["hint"].as_str().is_some_and(|hint| hint.starts_with("a similar argument exists: '--json'"))
    );
    // A command line that asks for no JSON gets none.
    assert_eq!(run(snapferry(["verify", "--jsn", "x.qcow2"])).code(2).out, "");
    // What stands after -- is no option.
    assert_eq!(run(snapferry(["verify", "--", "--json"])).code(3).out, "");
}

#[test]
fn a_wrong_configuration_is_an_object_too() {
    let home = folder();
    let file = home.path().join("config.toml");
    std::fs::write(&file, "regoin = \"us-east\"\n").expect("written");
    let mut command = snapferry(["config", "show", "--json", "--config"]);
    command.arg(&file);
    let error = error_of(&run(command).code(2));
    assert!(
        error["message"].as_str().is_some_and(|message| message.contains("was region meant?")),
        "{error}"
    );
    assert_eq!(error["hint"], Value::Null);
}

#[test]
fn an_upload_that_is_left_behind_is_named() {
    let (home, bucket) = (folder(), Bucket::start());
    let raw = home.path().join("disk.raw");
    std::fs::write(&raw, vec![7; 1 << 20]).expect("written");
    bucket.sim.faults().add(Rule::on(Operation::UploadPart), Action::answer(403, "AccessDenied"));
    bucket.sim.faults().add(Rule::on(Operation::PutObject), Action::answer(403, "AccessDenied"));
    bucket.sim.faults().add(Rule::on(Operation::AbortMultipartUpload), Action::answer(403, "AccessDenied"));
    let ended = run(bucket.convert(&raw, &["--json"])).code(4);
    let error = error_of(&ended);
    assert_eq!(error["class"], "store");
    let left = error["leftovers"][0].as_str().expect("something is left");
    assert!(left.contains("snapferry uploads abort --bucket images --key disk.qcow2"), "{left}");
    assert!(ended.err.contains("left behind: the upload could not be aborted"), "{}", ended.err);
}

#[test]
fn hostile_text_in_an_error_stays_the_same_value_and_is_obeyed_by_no_terminal() {
    let name = "x\u{1b}[2J\u{202e}y.qcow2";
    let ended = run(snapferry(["info", name, "--json"])).code(3);
    assert!(!ended.out.contains(['\u{1b}', '\u{202e}']), "{:?}", ended.out);
    assert!(error_of(&ended)["message"].as_str().is_some_and(|message| message.contains(name)));
}
