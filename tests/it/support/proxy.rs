//! TCP proxy in front of Redis, whose connections break as they do in networks.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use snapferry_fleet::queue::{RedisConfig, RedisQueue};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::unix;
use tokio::net::{TcpListener, TcpStream, UnixStream};

use super::Redis;

/// Moment at which a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Before the request reaches Redis.
    Before,
    /// After Redis has the request; its response is lost.
    After,
}

#[derive(Default)]
struct Faults {
    accepted: AtomicUsize,
    /// Number of connections, counted from the first, that are silent.
    silent: AtomicUsize,
    /// Text at which a connection is cut, once.
    cut: Mutex<Option<(Vec<u8>, Cut)>>,
}

/// Proxy that forwards connections to a Redis.
pub struct Proxy {
    port: u16,
    faults: Arc<Faults>,
}

impl Proxy {
    pub async fn to(redis: &Redis) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, faults) = (listener.local_addr().unwrap().port(), Arc::<Faults>::default());
        let (socket, shared) = (redis.url().strip_prefix("unix://").unwrap().to_owned(), Arc::clone(&faults));
        tokio::spawn(async move {
            while let Ok((theirs, _)) = listener.accept().await {
                let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
                let ours = UnixStream::connect(&socket).await.unwrap();
                tokio::spawn(forward(theirs, ours, number, Arc::clone(&shared)));
            }
        });
        Self { port, faults }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub async fn queue(&self, config: &RedisConfig) -> RedisQueue {
        RedisQueue::connect(&RedisConfig { url: self.url(), ..config.clone() }).await.unwrap()
    }

    /// Number of connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.faults.accepted.load(Ordering::SeqCst)
    }

    /// Makes the open connections silent: from now on no bytes pass, and neither side is closed.
    pub fn silence(&self) {
        self.faults.silent.store(self.accepted(), Ordering::SeqCst);
    }

    /// Cuts the next connection on which this text is sent.
    pub fn cut(&self, text: &str, cut: Cut) {
        *self.faults.cut.lock().unwrap() = Some((text.as_bytes().to_vec(), cut));
    }

    /// True if the cut has happened.
    pub fn has_cut(&self) -> bool {
        self.faults.cut.lock().unwrap().is_none()
    }
}

/// Forwards bytes until either side closes the connection, or it is cut.
async fn forward(theirs: TcpStream, ours: UnixStream, number: usize, faults: Arc<Faults>) {
    let ((from_client, to_client), (from_redis, to_redis)) = (theirs.into_split(), ours.into_split());
    tokio::select! {
        () = forward_requests(from_client, to_redis, number, &faults) => {}
        () = forward_responses(from_redis, to_client, number, &faults) => {}
    }
}

async fn forward_requests(
    mut from: OwnedReadHalf,
    mut to: unix::OwnedWriteHalf,
    number: usize,
    faults: &Faults,
) {
    let mut bytes = [0; 65536];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        wait_if_silent(number, faults).await;
        let found =
            |(text, _): &mut (Vec<u8>, Cut)| bytes[..length].windows(text.len()).any(|window| window == text);
        let cut = faults.cut.lock().unwrap().take_if(found);
        if matches!(cut, Some((_, Cut::Before))) {
            return;
        }
        if to.write_all(&bytes[..length]).await.is_err() || cut.is_some() {
            return;
        }
    }
}

async fn forward_responses(
    mut from: unix::OwnedReadHalf,
    mut to: OwnedWriteHalf,
    number: usize,
    faults: &Faults,
) {
    let mut bytes = [0; 65536];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        wait_if_silent(number, faults).await;
        if to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}

async fn wait_if_silent(number: usize, faults: &Faults) {
    if number < faults.silent.load(Ordering::SeqCst) {
        std::future::pending::<()>().await;
    }
}
