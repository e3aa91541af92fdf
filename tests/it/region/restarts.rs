//! A simulated cloud that is killed continues in its last state.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use snapferry_base::cancel::Cancel;
use snapferry_base::clock::SystemClock;
use snapferry_base::proxy::Proxies;
use snapferry_base::secret::Secret;
use snapferry_base::units::{ByteCount, MIB};
use snapferry_ibmcloud::iam::{ApiKeyConfig, ApiKeySource};
use snapferry_ibmcloud::vpc::{ClientConfig, ClientContext, Endpoint, InstanceId, LogWatch, RegionClient};
use snapferry_testkit::disks::{Disk, Kind};

use super::{SOON, name, ready_volume, snapshot_of, stable_snapshot};
use crate::support::{HOME, POLICY, SERVER, snapferry_sim};

/// `snapferry-sim region` as a process, which can be killed.
struct Program {
    child: Child,
    exports: Vec<(String, String)>,
}

impl Program {
    fn start(folder: &Path, disk: &Path) -> Self {
        let mut command = snapferry_sim();
        command.args(["region", "--least-capacity", "1", "--delay-ms", "100", "--dir"]).arg(folder);
        command.arg("--disk").arg(disk).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let exports = lines
            .take_while(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let (name, value) = line.strip_prefix("export ")?.split_once('=')?;
                Some((name.to_owned(), value.to_owned()))
            })
            .collect();
        Self { child, exports }
    }

    fn export(&self, name: &str) -> &str {
        &self.exports.iter().find(|(found, _)| found == name).unwrap().1
    }

    fn client(&self) -> RegionClient {
        let api_key = Secret::new(&std::fs::read_to_string(self.export("SNAPFERRY_API_KEY_FILE")).unwrap());
        let endpoint = self.export("SNAPFERRY_IAM_ENDPOINT").to_owned();
        let tokens = ApiKeySource::new(
            ApiKeyConfig { api_key, endpoint, ca_file: None, proxies: Proxies::default() },
            Arc::new(SystemClock),
        )
        .unwrap();
        let context = ClientContext {
            tokens: Arc::new(tokens),
            clock: Arc::new(SystemClock),
            cancel: Cancel::new(),
            watch: Arc::new(LogWatch),
            fence: Arc::new(snapferry_base::fence::Unfenced),
            known_hosts: Default::default(),
        };
        let endpoint = Endpoint::parse(self.export("SNAPFERRY_VPC_ENDPOINT"));
        RegionClient::new(
            ClientConfig {
                region: HOME.to_owned(),
                endpoint,
                ca_file: None,
                proxies: Proxies::default(),
                policy: POLICY,
            },
            context,
        )
        .unwrap()
    }

    fn links(&self) -> usize {
        std::fs::read_dir(PathBuf::from(self.export("SNAPFERRY_DEVICE_FOLDER"))).unwrap().count()
    }

    /// Kills the process with SIGKILL, without any cleanup.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops the process with SIGTERM, so that it cleans up.
    fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_there_is_there_and_what_was_under_way_comes() {
    let folder = crate::support::folder();
    let (cloud, disk) = (folder.path().join("cloud"), folder.path().join("web01.raw"));
    Disk { kind: Kind::Mixed, size: ByteCount(8 * MIB), seed: 5 }.write(&disk).unwrap();
    let program = Program::start(&cloud, &disk);
    let before = program.client();
    let snapshot = stable_snapshot(&before, "web01-1").await;
    let volume = ready_volume(&before, &snapshot, "web01-1").await;
    let servers = before.instances().await.unwrap();
    let own = servers.iter().find(|server| server.name != SERVER).unwrap().id.clone();
    let own = InstanceId::new(own.as_str());
    let attachment = before.attach(&own, &name("web01-1"), &volume.id).await.unwrap();
    let attachment = before.attached(&own, &attachment.id, SOON).await.unwrap();
    crate::support::wait_until("the device turns up", || program.links() == 1);
    let server = before.server(SERVER).await.unwrap();
    let pending = before.create_snapshot(&snapshot_of(&server, "web01-2")).await.unwrap();
    program.kill();

    let program = Program::start(&cloud, &disk);
    let after = program.client();
    assert_eq!(after.snapshot_by_name("web01-1").await.unwrap().unwrap(), snapshot);
    assert_eq!(after.attachment(&own, &attachment.id).await.unwrap().unwrap(), attachment);
    after.snapshot_stable(&pending.id, SOON).await.unwrap();
    crate::support::wait_until("the device is there again", || program.links() == 1);
    assert_eq!(after.instances().await.unwrap().len(), 2, "the server was not made twice");
    let history = std::fs::read_to_string(cloud.join("history.jsonl")).unwrap();
    assert_eq!(history.lines().count(), 4, "{history}");
    program.stop();
    let left =
        Command::new("losetup").arg("--list").arg("--output=BACK-FILE").arg("--noheadings").output().unwrap();
    let left = String::from_utf8_lossy(&left.stdout).into_owned();
    assert!(!left.contains(&*cloud.to_string_lossy()), "loop devices are left: {left}");
}
