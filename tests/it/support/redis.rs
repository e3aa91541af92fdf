//! A Redis server of its own for a test.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use snapferry_base::clock::SystemClock;
use snapferry_base::job::JobId;
use snapferry_fleet::queue::{NewJob, Priority, RedisConfig, RedisQueue, Timing};
use snapferry_testkit::skip::has_oracle;
use tempfile::TempDir;

use super::folder;

/// Time limit for the server's first answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Redis server for one test, on a Unix socket in a folder of its own.
pub struct Redis {
    child: Child,
    folder: TempDir,
    options: Vec<String>,
}

impl Redis {
    /// Starts a server; returns `None` if redis-server is not installed, which is a failure in CI.
    pub async fn start(options: &[&str]) -> Option<Self> {
        if !has_oracle("redis-server") {
            return None;
        }
        let folder = folder();
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let child = serve(folder.path(), &options);
        let redis = Self { child, folder, options };
        redis.wait().await;
        Some(redis)
    }

    pub fn url(&self) -> String {
        format!("unix://{}", self.folder.path().join("socket").display())
    }

    pub fn config(&self) -> RedisConfig {
        RedisConfig {
            url: self.url(),
            user: None,
            password: None,
            ca_file: None,
            prefix: None,
            timing: Timing::default(),
        }
    }

    async fn wait(&self) {
        let begun = Instant::now();
        loop {
            if let Ok(client) = redis::Client::open(self.url())
                && let Ok(mut connection) = client.get_multiplexed_async_connection().await
            {
                match redis::cmd("PING").query_async::<String>(&mut connection).await {
                    Ok(_) => return,
                    // The server is up, and requires a password.
                    Err(error) if error.code() == Some("NOAUTH") => return,
                    Err(_) => {}
                }
            }
            assert!(begun.elapsed() < PATIENCE, "redis-server does not answer");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub async fn restart(&mut self) {
        self.child = serve(self.folder.path(), &self.options);
        self.wait().await;
    }

    pub async fn queue(&self, timing: Timing) -> RedisQueue {
        RedisQueue::connect(&RedisConfig { timing, ..self.config() }).await.unwrap()
    }

    /// All keys with their serialised values, to see whether a command has changed anything.
    pub async fn contents(&self) -> Vec<(Vec<u8>, redis::Value)> {
        let redis::Value::Array(keys) = self.command(&["KEYS", "*"]).await else { panic!("no list of keys") };
        let mut all = Vec::new();
        for key in keys {
            let redis::Value::BulkString(key) = key else { panic!("{key:?} is no key") };
            let name = String::from_utf8(key.clone()).expect("UTF-8");
            all.push((key, self.command(&["DUMP", &name]).await));
        }
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }

    /// Sends a command as any other client can.
    pub async fn command(&self, args: &[&str]) -> redis::Value {
        let client = redis::Client::open(self.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut command = redis::cmd(args[0]);
        command.arg(&args[1..]);
        command.query_async(&mut connection).await.unwrap()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(folder: &Path, options: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--dir"])
        .arg(folder)
        .arg("--unixsocket")
        .arg(folder.join("socket"))
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Options under which Redis loses no jobs.
pub const SAFE: [&str; 6] =
    ["--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction"];

pub fn job(server: &str) -> NewJob {
    NewJob {
        id: JobId::new(&SystemClock),
        server: server.to_owned(),
        region: "us-east".to_owned(),
        spec: "{}".to_owned(),
        priority: Priority::default(),
        wait: Duration::ZERO,
    }
}
