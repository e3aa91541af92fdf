//! Streaming of bodies: a request's body into a file, hashed on its way; a file into a response's body.
//!
//! The files are read and written on tokio's blocking threads; a short bounded channel connects them to the
//! socket.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::HeaderMap;
use hyper::body::{Body, Frame, SizeHint};
use s3s::dto::StreamingBlob;
use s3s::{S3Error, S3ErrorCode, S3Result, TrailingHeaders, s3_error};
use snapferry_base::units::{to_u64, to_usize};
use tokio::sync::mpsc;

use super::digests::{Claims, Sums, Tally};

/// Pieces of a body that may wait between the socket and the file's thread. A piece is at most hyper's read
/// buffer.
const PIECES_IN_FLIGHT: usize = 8;
/// Bytes in one piece of a response's body.
const ANSWER_PIECE: u64 = 256 << 10;

/// Runs work on files on a blocking thread, away from the async ones.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> S3Result<T> + Send + 'static,
) -> S3Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(S3Error::internal_error)?
}

/// File that does not have its final name yet. It is removed on drop unless [`Draft::keep_as`] has renamed
/// it.
#[derive(Debug)]
pub(super) struct Draft {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl Draft {
    pub(super) fn create(path: PathBuf) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok(Self { path, file, kept: false })
    }

    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives the file its final name, and replaces the file that had it.
    pub(super) fn keep_as(mut self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept
            && let Err(err) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %err, "can't remove an unfinished file");
        }
    }
}

/// Destination that a body is written to.
pub(super) trait Sink: Send + 'static {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
}

impl Sink for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }
}

enum Piece {
    Bytes(Bytes),
    /// End of the body. If it does not come, the body is not complete.
    End,
}

/// Bytes of a request's body that came over the wire, and the number that Content-Length announced. Passed in
/// the request's extensions.
#[derive(Clone, Debug, Default)]
pub(super) struct Wire {
    pub(super) received_bytes: Arc<AtomicU64>,
    pub(super) expected: Option<u64>,
}

impl Wire {
    fn is_complete(&self) -> bool {
        self.expected == Some(self.received_bytes.load(Ordering::Relaxed))
    }
}

/// Body of a request that is about to be received.
pub(super) struct Incoming {
    pub(super) body: Option<StreamingBlob>,
    pub(super) wire: Wire,
    /// Value of the Content-Length header.
    pub(super) length: Option<i64>,
    pub(super) claims: Claims,
    pub(super) trailers: Option<TrailingHeaders>,
}

/// Streams a body into `sink`, and compares it with its claims. On an error the sink is dropped.
pub(super) async fn receive<S: Sink>(
    incoming: Incoming,
    mut tally: Tally,
    mut sink: S,
) -> S3Result<(S, Sums)> {
    let Incoming { body, wire, length, claims, trailers } = incoming;
    let (tx, mut rx) = mpsc::channel(PIECES_IN_FLIGHT);
    let writer = tokio::task::spawn_blocking(move || -> S3Result<(S, Sums)> {
        loop {
            match rx.blocking_recv() {
                Some(Piece::Bytes(bytes)) => {
                    sink.write(&bytes).map_err(S3Error::internal_error)?;
                    tally.update(&bytes);
                }
                Some(Piece::End) => return Ok((sink, tally.finish())),
                None => return Err(s3_error!(IncompleteBody)),
            }
        }
    });
    let expected = length.and_then(|length| u64::try_from(length).ok());
    let fed = feed(body, expected, &wire, &tx).await;
    // Before waiting for the writer: if the body broke off, the writer must not wait for more.
    drop(tx);
    let written = writer.await.map_err(S3Error::internal_error)?;
    fed?;
    let (sink, sums) = written?;
    let trailers: Option<HeaderMap> = trailers.and_then(|trailers| trailers.take());
    claims.check(&sums, trailers.as_ref())?;
    Ok((sink, sums))
}

async fn feed(
    body: Option<StreamingBlob>,
    expected: Option<u64>,
    wire: &Wire,
    tx: &mpsc::Sender<Piece>,
) -> S3Result<()> {
    let mut received = 0;
    if let Some(body) = body {
        let mut body = s3s::Body::from(body);
        while let Some(frame) = body.frame().await {
            let Ok(bytes) = frame.map_err(|err| broken_body(err, wire))?.into_data() else { continue };
            received += to_u64(bytes.len());
            if tx.send(Piece::Bytes(bytes)).await.is_err() {
                return Ok(()); // The writer failed, and its error is the one to answer with.
            }
        }
    }
    if expected.is_some_and(|expected| expected != received) {
        return Err(s3_error!(IncompleteBody));
    }
    // If the writer has failed, it returns its error itself.
    let _ = tx.send(Piece::End).await;
    Ok(())
}

/// Returns the error for a body that broke off. The stream that checks `x-amz-content-sha256` hides its error
/// type. If it fails although all bytes came, the hash is what differs.
fn broken_body(err: s3s::StdError, wire: &Wire) -> S3Error {
    if wire.is_complete() {
        let mut err = S3Error::with_message(
            S3ErrorCode::Custom("XAmzContentSHA256Mismatch".into()),
            "The provided 'x-amz-content-sha256' header does not match what was computed.",
        );
        err.set_status_code(hyper::StatusCode::BAD_REQUEST);
        err
    } else {
        S3Error::with_source(S3ErrorCode::IncompleteBody, err)
    }
}

/// Body of a response: a file from an offset on, or a part of it.
pub(super) struct Outgoing {
    rx: mpsc::Receiver<io::Result<Bytes>>,
    remaining: u64,
}

impl Outgoing {
    /// Creates a body of `length` bytes, from the current offset of `file`.
    pub(super) fn new(mut file: File, length: u64) -> Self {
        let (tx, rx) = mpsc::channel(PIECES_IN_FLIGHT);
        tokio::task::spawn_blocking(move || {
            let mut remaining = length;
            while remaining > 0 {
                let mut piece = vec![0; to_usize(remaining.min(ANSWER_PIECE))];
                let read = file.read_exact(&mut piece).map(|()| Bytes::from(piece));
                let failed = read.is_err();
                // If sending fails, the client has gone away.
                if tx.blocking_send(read).is_err() || failed {
                    return;
                }
                remaining = remaining.saturating_sub(ANSWER_PIECE);
            }
        });
        Self { rx, remaining: length }
    }

    pub(super) fn into_blob(self) -> StreamingBlob {
        StreamingBlob::from(s3s::Body::http_body_unsync(self))
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.rx.poll_recv(cx).map(|piece| {
            let piece = piece?;
            if let Ok(bytes) = &piece {
                self.remaining = self.remaining.saturating_sub(to_u64(bytes.len()));
            }
            Some(piece.map(Frame::data))
        })
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}
