//! The mistakes of a user's first hour, made with the real program: each ends with its exit code, reports
//! what is wrong and where, and names the command to type next. A row fails if its hint is missing.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use snapferry_base::units::{ByteCount, MIB};
use snapferry_sim::{Action, Operation, RegionAction, RegionOperation, RegionRule, Rule, ServerSeed};
use snapferry_testkit::disks::{Disk, Kind};
use snapferry_testkit::loopdev::SmallFs;
use snapferry_testkit::skip::{is_root, skip};

use crate::support::{AWAY, BUCKET, Bench, Ended, HOME, Host, Redis, SAFE, SERVER};

/// Expected exit code and messages of one mistake.
struct Row<'a> {
    code: i32,
    /// Texts in the error's own line: what is wrong, and where.
    wrong: &'a [&'a str],
    /// Texts anywhere in the output: the command to type next.
    next: &'a [&'a str],
}

/// Differences from the expected rows, reported all at once.
#[derive(Default)]
struct Table(Vec<String>);

impl Table {
    fn row(&mut self, ended: &Ended, row: &Row<'_>) {
        let (out, err) = (&ended.out, &ended.err);
        let message = err.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
        let all = format!("{out}{err}");
        // Commands that report in lines of their own name the error there.
        let message = if message.is_empty() { &all } else { message };
        let mut missing: Vec<&str> =
            row.wrong.iter().filter(|text| !message.contains(**text)).copied().collect();
        missing.extend(row.next.iter().filter(|text| !all.contains(**text)));
        let code = ended.code;
        if code != Some(row.code) || !missing.is_empty() {
            self.0.push(format!("code {code:?}, to be {}; missing {missing:?} in:\n{all}", row.code));
        }
    }

    fn assert_empty(self) {
        assert!(self.0.is_empty(), "{}", self.0.join("\n"));
    }
}

/// Sets or removes environment variables of a command.
fn with(mut command: Command, variables: &[(&str, Option<&str>)]) -> Command {
    for (name, value) in variables {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

const REPLICATE: [&str; 2] = ["replicate", SERVER];

#[tokio::test(flavor = "multi_thread")]
async fn who_one_is_is_asked_for() {
    let bench = Bench::start().await;
    let mut table = Table::default();
    let wrong_key = bench.file("wrong-key", "not-a-key");
    for (variables, row) in [
        (
            vec![("SNAPFERRY_API_KEY_FILE", None)],
            Row {
                code: 2,
                wrong: &["no credentials for IBM Cloud"],
                next: &["--trusted-profile default", "IBMCLOUD_API_KEY"],
            },
        ),
        (
            vec![("SNAPFERRY_API_KEY_FILE", Some("/nowhere/key"))],
            Row { code: 2, wrong: &["cannot read the API key file /nowhere/key"], next: &["No such file"] },
        ),
        (
            vec![("SNAPFERRY_API_KEY_FILE", Some(wrong_key.as_str()))],
            Row {
                code: 5,
                wrong: &["identity/token refused: BXNIM0415E"],
                next: &["ibmcloud iam service-api-key-create"],
            },
        ),
    ] {
        let command = with(bench.command(Host::Own, &REPLICATE), &variables);
        table.row(&bench.finish(command).await, &row);
    }
    let command = with(
        bench.command(Host::Own, &["convert", "--device", &bench.path("web01.raw"), "--key", "a.qcow2"]),
        &[("SNAPFERRY_API_KEY_FILE", None), ("HOME", None)],
    );
    table.row(
        &bench.finish(command).await,
        &Row {
            code: 2,
            wrong: &["no credentials for the object store"],
            next: &["AWS_ACCESS_KEY_ID", "IBMCLOUD_API_KEY"],
        },
    );
    let command = with(
        bench.command(Host::Own, &["uploads", "list"]),
        &[
            ("SNAPFERRY_API_KEY_FILE", None),
            ("AWS_ACCESS_KEY_ID", Some("who")),
            ("AWS_SECRET_ACCESS_KEY", Some("what")),
        ],
    );
    table.row(
        &bench.finish(command).await,
        &Row { code: 4, wrong: &["access denied", "s3://images"], next: &["check the access key"] },
    );
    assert!(bench.sim.history().iter().all(|entry| entry.status >= 300), "something was made");
    bench.sim.shutdown().await;
    table.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_metadata_is_told_how_to_switch_it_on() {
    let bench =
        Bench::start_with(|config| snapferry_sim::RegionConfig { metadata_service: false, ..config }).await;
    let mut table = Table::default();
    const SWITCH_ON: &str = "ibmcloud is instance-update SERVER --metadata-service true";
    let command = bench.command(Host::Own, &REPLICATE);
    let row = Row { code: 2, wrong: &["this server's id is not known"], next: &[SWITCH_ON, "--instance ID"] };
    table.row(&bench.finish(command).await, &row);
    let command = with(
        bench.command(Host::Own, &["replicate", SERVER, "--instance", "0717-a"]),
        &[("SNAPFERRY_API_KEY_FILE", None), ("SNAPFERRY_TRUSTED_PROFILE", Some("default"))],
    );
    let row = Row {
        code: 5,
        wrong: &["the instance metadata service does not answer"],
        next: &[SWITCH_ON, "--api-key-file"],
    };
    table.row(&bench.finish(command).await, &row);
    let command = with(bench.command(Host::Own, &["boot-volume", SERVER]), &[("SNAPFERRY_VPC_REGION", None)]);
    table.row(
        &bench.finish(command).await,
        &Row { code: 2, wrong: &["which region? Give --region"], next: &["metadata service"] },
    );
    bench.sim.shutdown().await;
    table.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_regions_that_are_not_there_are_guessed_at() {
    let bench = Bench::start().await;
    bench.sim.seed_server(ServerSeed::new(AWAY, "mail", bench.disk())).await.unwrap();
    let mut table = Table::default();
    let long = "w".repeat(64);
    for (typed, row) in [
        (
            ["replicate", "wbe01", "--quiet"],
            Row {
                code: 5,
                wrong: &["there is no server \"wbe01\" in us-south, but web01"],
                next: &["ibmcloud is instances", "--region"],
            },
        ),
        (
            ["replicate", "mail", "--quiet"],
            Row {
                code: 5,
                wrong: &["there is no server \"mail\" in us-south, but mail in us-east"],
                next: &["--region"],
            },
        ),
        (
            ["replicate", long.as_str(), "--quiet"],
            Row { code: 2, wrong: &[long.as_str()], next: &["1 to 63 lower-case letters"] },
        ),
        (
            ["replicate", "Web_01", "--quiet"],
            Row { code: 2, wrong: &["Web_01"], next: &["lower-case letters"] },
        ),
        (
            ["boot-volume", "wbe01", "--quiet"],
            Row {
                code: 5,
                wrong: &["there is no server \"wbe01\" in us-south, but web01"],
                next: &["ibmcloud is instances"],
            },
        ),
    ] {
        table.row(&bench.finish(bench.command(Host::Own, &typed)).await, &row);
    }
    // The host name that a region's mistyped name leads to: it has no address.
    let typed = ["doctor", "--region", "us-soutt", "--vpc-endpoint", "https://{region}.iaas.invalid"];
    let row = Row {
        code: 5,
        wrong: &["https://us-soutt.iaas.invalid can't be reached"],
        next: &["was --region us-south meant?", "ibmcloud is regions"],
    };
    table.row(&bench.finish(bench.command(Host::Own, &typed)).await, &row);
    // An endpoint that never answered is not retried for long.
    let typed = ["boot-volume", SERVER, "--vpc-endpoint", "http://127.0.0.1:1/{region}"];
    let ended = bench.finish(bench.command(Host::Own, &typed)).await;
    let row = Row {
        code: 5,
        wrong: &["http://127.0.0.1:1 can't be reached"],
        next: &["ibmcloud is regions", "--vpc-endpoint private"],
    };
    table.row(&ended, &row);
    assert_eq!(ended.err.matches("asking the cloud again").count(), 3, "{}", ended.err);
    let row = Row {
        code: 5,
        wrong: &["\"image-0001\" is taken"],
        next: &["give another name, or remove what has it"],
    };
    bench.sim.seed_images(AWAY, 2);
    let typed = ["images", "rename", "image-0000", "image-0001", "--region", AWAY];
    table.row(&bench.finish(bench.command(Host::Own, &typed)).await, &row);
    assert!(bench.sim.history().iter().all(|entry| entry.status >= 300), "something was made");
    bench.sim.shutdown().await;
    table.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_too_large_for_an_image_is_told_of_before_anything_is_made() {
    let bench = Bench::start().await;
    let disk = bench.disk();
    std::fs::File::options().write(true).open(&disk).unwrap().set_len(251 << 30).unwrap();
    bench.sim.seed_server(ServerSeed::new(HOME, "huge", &disk)).await.unwrap();
    let ended = bench.finish(bench.command(Host::Own, &["replicate", "huge"])).await;
    let mut table = Table::default();
    let row = Row {
        code: 2,
        wrong: &["the disk has 251 GB, and an image may have 250"],
        next: &["--no-import", "snapferry snapshot copy"],
    };
    table.row(&ended, &row);
    assert!(bench.sim.history().iter().all(|entry| entry.status >= 300), "something was made");
    bench.sim.shutdown().await;
    table.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_can_t_be_used_is_told_of_before_anything_is_made() {
    let bench = Bench::start().await;
    let mut table = Table::default();
    let nowhere = Row {
        code: 2,
        wrong: &["bucket \"nowhere\" does not exist at http://127.0.0.1"],
        next: &["ibmcloud cos bucket-create --bucket nowhere --region", "--bucket-region"],
    };
    table.row(&bench.run(Host::Own, &["--bucket", "nowhere"]).await, &nowhere);
    let command = bench.command(
        Host::Own,
        &["convert", "--device", &bench.path("web01.raw"), "--key", "a.qcow2", "--bucket", "nowhere"],
    );
    table.row(&bench.finish(command).await, &Row { code: 4, ..nowhere });

    let denied =
        "--roles Writer --service-name cloud-object-storage --resource-type bucket --resource images";
    bench
        .sim
        .store()
        .faults()
        .add(Rule::on(Operation::ListMultipartUploads), Action::answer(403, "AccessDenied"));
    let row =
        Row { code: 2, wrong: &["ListMultipartUploads", "s3://images", "access denied"], next: &[denied] };
    table.row(&bench.run(Host::Own, &[]).await, &row);
    bench.sim.store().faults().clear();
    bench
        .sim
        .store()
        .faults()
        .add(Rule::on(Operation::CreateMultipartUpload), Action::answer(403, "AccessDenied"));
    let command =
        bench.command(Host::Own, &["convert", "--device", &bench.path("web01.raw"), "--key", "a.qcow2"]);
    let row = Row {
        code: 4,
        wrong: &["CreateMultipartUpload s3://images/a.qcow2", "access denied"],
        next: &[denied],
    };
    table.row(&bench.finish(command).await, &row);
    bench.sim.store().faults().clear();
    bench.sim.store().faults().add(Rule::any(), Action::answer(301, "PermanentRedirect"));
    let row = Row {
        code: 4,
        wrong: &["the bucket is not in region"],
        next: &["give the region that the bucket was made in"],
    };
    table.row(&bench.run(Host::Own, &[]).await, &row);
    assert!(bench.sim.history().iter().all(|entry| entry.status >= 300), "something was made");
    bench.sim.shutdown().await;
    table.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_service_that_may_not_read_the_bucket_is_let_in_and_the_job_goes_on() {
    const LET_IN: &str = "ibmcloud iam authorization-policy-create is cloud-object-storage Reader --source-resource-type image";
    let mut table = Table::default();
    let row = |wrong: &'static [&'static str]| Row {
        code: 5,
        wrong,
        next: &[LET_IN, "--bucket-location", "snapferry replicate --resume"],
    };
    let bench =
        Bench::start_with(|config| snapferry_sim::RegionConfig { image_service_authorized: false, ..config })
            .await;
    table.row(
        &bench.run(Host::Own, &["--quiet"]).await,
        &row(&["step import", "not authorized to read the bucket"]),
    );
    bench.sim.shutdown().await;

    let bench = Bench::start_with(|mut config| {
        config.bucket_locations.insert(BUCKET.to_owned(), "eu-de".to_owned());
        config
    })
    .await;
    table.row(
        &bench.run(Host::Own, &["--quiet"]).await,
        &row(&["step import", "The bucket is in another location"]),
    );
    bench.sim.shutdown().await;

    let bench = Bench::start().await;
    let failing = RegionAction::FailLater { code: "cannot_access_storage_bucket".to_owned() };
    bench.sim.faults().add(RegionRule::on(RegionOperation::CreateImage), failing);
    table.row(
        &bench.run(Host::Own, &["--quiet"]).await,
        &row(&["step available", "is failed", "cannot_access_storage_bucket"]),
    );
    bench.sim.shutdown().await;
    table.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_role_is_named() {
    let bench = Bench::start().await;
    let mut table = Table::default();
    const EDITOR: &str =
        "ibmcloud iam trusted-profile-policy-create PROFILE --roles Editor --service-name is";
    for (operation, wrong, role, next) in [
        (
            RegionOperation::ListInstances,
            "GET /us-south/v1/instances",
            "the role Viewer on VPC",
            "--roles Viewer --service-name is",
        ),
        (RegionOperation::CreateSnapshot, "POST /us-south/v1/snapshots", "the role Editor on VPC", EDITOR),
        (RegionOperation::CreateVolume, "POST /us-south/v1/volumes", "the role Editor on VPC", EDITOR),
        (
            RegionOperation::CreateAttachment,
            "/volume_attachments",
            "Editor on the server that snapferry runs on",
            EDITOR,
        ),
    ] {
        bench.sim.faults().add(RegionRule::on(operation), RegionAction::answer(403, "not_authorized"));
        let ended = bench.run(Host::Own, &["--quiet"]).await;
        bench.sim.faults().clear();
        table.row(
            &ended,
            &Row { code: 5, wrong: &[wrong, "403 not_authorized"], next: &[role, next, "snapferry doctor"] },
        );
    }
    // A job makes its image even if it can't tag it.
    bench
        .sim
        .faults()
        .add(RegionRule::on(RegionOperation::AttachTag), RegionAction::answer(403, "not_authorized"));
    let row = Row {
        code: 0,
        wrong: &["has no tags, so it will not be pruned", "403 not_authorized"],
        next: &["it takes the role Editor on images"],
    };
    table.row(&bench.run(Host::Own, &[]).await, &row);
    bench.sim.shutdown().await;

    let bench = Bench::start_with(|config| snapferry_sim::RegionConfig { volume_quota: 0, ..config }).await;
    let row = Row {
        code: 5,
        wrong: &["POST /us-south/v1/volumes", "over_quota"],
        next: &["snapferry gc", "IBM's support"],
    };
    table.row(&bench.run(Host::Own, &["--quiet"]).await, &row);
    bench.sim.shutdown().await;
    table.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_this_machine_lacks_is_named() {
    let bench = Bench::start().await;
    let mut table = Table::default();
    let elsewhere = bench.path("no-links-here");
    std::fs::create_dir(&elsewhere).unwrap();
    // Long enough for every other wait of the job.
    let ended =
        bench.run(Host::Own, &["--quiet", "--device-folder", &elsewhere, "--wait-at-most", "5s"]).await;
    let row = Row {
        code: 3,
        wrong: &["step attach", &elsewhere, "did not turn up within 5 s"],
        next: &["lsblk -o NAME,SERIAL,SIZE", "--device-folder", "snapferry replicate --resume"],
    };
    table.row(&ended, &row);

    let convert = |device: &str, output: &str| {
        bench.command(Host::Own, &["convert", "--device", device, "--output", output])
    };
    let target = bench.path("a.qcow2");
    let ended = bench.finish(with(convert("/dev/vdzz", &target), &[("SNAPFERRY_BUCKET", None)])).await;
    table.row(
        &ended,
        &Row {
            code: 3,
            wrong: &["cannot open /dev/vdzz", "No such file"],
            next: &["`lsblk` lists the devices"],
        },
    );
    if is_root() {
        let closed = bench.path("web01.raw");
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::set_permissions(bench.path("."), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = with(convert(&closed, &target), &[("SNAPFERRY_BUCKET", None)]);
        command.uid(65534).gid(65534);
        match command.output() {
            Ok(output) => {
                let row = Row {
                    code: 3,
                    wrong: &["cannot open", &closed, "Permission denied"],
                    next: &["run as root, or join the group"],
                };
                table.row(&Ended::from(output), &row);
            }
            Err(_) => skip("somebody else can't run the program from here"),
        }
    }
    if let Some(small) = SmallFs::tmpfs(MIB) {
        let disk = bench.path("full.raw");
        Disk { kind: Kind::Random, size: ByteCount(4 * MIB), seed: 1 }
            .write(std::path::Path::new(&disk))
            .unwrap();
        let output = small.path().join("a.qcow2").display().to_string();
        let ended = bench.finish(with(convert(&disk, &output), &[("SNAPFERRY_BUCKET", None)])).await;
        table.row(
            &ended,
            &Row { code: 4, wrong: &["the disk is full", &output], next: &["free space on it", "--bucket"] },
        );
    }
    bench.sim.shutdown().await;
    table.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_not_fit_is_told_of() {
    let bench = Bench::start().await;
    let mut table = Table::default();
    let list = |url: &str| bench.command(Host::Own, &["jobs", "list", "--redis", url]);
    let ended = bench.finish(list("redis://127.0.0.1:1")).await;
    let row = Row {
        code: 6,
        wrong: &["Redis at", "127.0.0.1:1", "refused"],
        next: &["check --redis", "rediss://HOST:PORT"],
    };
    table.row(&ended, &row);
    let closed = [SAFE.as_slice(), &["--requirepass", "open-sesame"]].concat();
    if let Some(redis) = Redis::start(&closed).await {
        let refused = |wrong| Row {
            code: 6,
            wrong,
            next: &["SNAPFERRY_REDIS_PASSWORD", "--redis-password-file", "snapferry doctor"],
        };
        table.row(&bench.finish(list(&redis.url())).await, &refused(&["refuses", "NOAUTH"]));
        let wrong = with(list(&redis.url()), &[("SNAPFERRY_REDIS_PASSWORD", Some("close-sesame"))]);
        let ended = bench.finish(wrong).await;
        assert!(!ended.err.contains("sesame"), "{}", ended.err);
        table.row(&ended, &refused(&["refuses", "authentication failed"]));
    }
    if let Some(redis) = Redis::start(&[]).await {
        let ended =
            bench.finish(bench.command(Host::Own, &["doctor", "--to", AWAY, "--redis", &redis.url()])).await;
        let row = Row {
            code: 6,
            wrong: &["append-only file: a crash of the server loses"],
            next: &["set `appendonly yes`"],
        };
        table.row(&ended, &row);
    }
    bench.sim.shutdown().await;
    table.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_nobody_reads_are_told_of() {
    let bench = Bench::start().await;
    let mut table = Table::default();
    let shown = || bench.command(Host::Own, &["config", "show"]);
    let ended = bench.finish(with(shown(), &[("SNAPFERRY_BUKET", Some("images"))])).await;
    table.row(
        &ended,
        &Row { code: 0, wrong: &["SNAPFERRY_BUKET does nothing"], next: &["was SNAPFERRY_BUCKET"] },
    );
    let file = bench.file("config.toml", "threads = 2\nbukket = \"images\"\n");
    let ended = bench.finish(with(shown(), &[("SNAPFERRY_CONFIG", Some(file.as_str()))])).await;
    table.row(
        &ended,
        &Row { code: 2, wrong: &["config.toml:2: bukket: there is no such setting"], next: &["was bucket"] },
    );
    let ended = bench.finish(bench.command(Host::Own, &["replicat", SERVER])).await;
    table.row(
        &ended,
        &Row { code: 2, wrong: &["unrecognized subcommand 'replicat'"], next: &["'replicate'"] },
    );
    bench.sim.shutdown().await;
    table.assert_empty();
}
