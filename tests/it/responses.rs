//! Responses that never end: the client reads each up to its limit, and then returns an error. The test
//! counts the bytes that the server has sent, since a client can't hold bytes that it has not read.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use snapferry_base::clock::SystemClock;
use snapferry_base::identity::TokenSource as _;
use snapferry_base::proxy::Proxies;
use snapferry_base::retry::Class;
use snapferry_base::secret::Secret;
use snapferry_base::units::{ByteCount, MIB, to_usize};
use snapferry_engine::hash::Crc64;
use snapferry_engine::store::Overwrite;
use snapferry_engine::store::{
    CopiedPart, CopySource, ETag, ExpectedObject, ObjectKey, ObjectStore as _, Part, PartNumber, StoreError,
    StoredPart, Upload, UploadPlan,
};
use snapferry_ibmcloud::iam::{ApiKeyConfig, ApiKeySource, Metadata, MetadataConfig};
use snapferry_s3::LARGEST_RESPONSE;
use snapferry_s3::{Auth, S3Config, S3Store};

/// Upper bound for the bytes that socket buffers hold on both sides.
const ON_THE_WAY: u64 = 16 * MIB;

/// Server that gives every request the same response.
struct Endless {
    port: u16,
    sent: Arc<AtomicU64>,
}

impl Endless {
    /// Starts a server that sends `response` after the head of each request, and then `filling` without end,
    /// if there is one.
    fn start(response: impl Into<Vec<u8>>, filling: Option<&'static [u8]>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, sent) = (listener.local_addr().unwrap().port(), Arc::<AtomicU64>::default());
        let (response, counter) = (response.into(), Arc::clone(&sent));
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (response, counter) = (response.clone(), Arc::clone(&counter));
                thread::spawn(move || respond(stream, &response, filling, &counter));
            }
        });
        Self { port, sent }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn store(&self) -> S3Store {
        let auth =
            Auth::Hmac { access_key: "key".into(), secret_key: Secret::new("secret"), session_token: None };
        S3Store::connect(S3Config::new(&self.url(), "us-south", "images", auth)).unwrap()
    }

    /// Returns the number of bytes sent since the last call.
    fn sent(&self) -> u64 {
        self.sent.swap(0, Ordering::SeqCst)
    }
}

fn respond(mut stream: TcpStream, response: &[u8], filling: Option<&[u8]>, counter: &AtomicU64) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if !matches!(stream.read(&mut byte), Ok(1)) {
            return;
        }
        head.push(byte[0]);
    }
    let mut send = |bytes: &[u8]| {
        counter.fetch_add(bytes.len().try_into().unwrap(), Ordering::SeqCst);
        stream.write_all(bytes).is_ok()
    };
    let mut connected = send(response);
    while let Some(filling) = filling.filter(|_| connected) {
        connected = send(filling);
    }
}

static FILLING: [u8; 65536] = [b'a'; 65536];

fn upload() -> Upload {
    Upload { key: ObjectKey::new("disk.qcow2").unwrap(), id: "id".to_owned() }
}

/// Results of every request that the store client can make.
async fn try_all(store: &S3Store) -> Vec<(&'static str, Result<(), StoreError>)> {
    let (key, body) = (ObjectKey::new("disk.qcow2").unwrap(), Bytes::from_static(b"x"));
    let crc64 = Crc64::of(&body);
    let part = Part { number: PartNumber(1), at: 0, body: body.clone(), crc64 };
    let stored = StoredPart { number: PartNumber(1), size: 1, etag: ETag("e".to_owned()), crc64: None };
    let copied = CopiedPart { number: PartNumber(1), at: 0, range: 0..1, crc64 };
    let from = CopySource { key: key.clone(), etag: ETag("e".to_owned()), size: 1 };
    let whole = ExpectedObject { size: 1, crc64, replaces: None };
    vec![
        ("get", store.get_range(&key, 0..100, None).await.map(drop)),
        ("put", store.put(&key, body).await),
        ("delete", store.delete(&key).await),
        ("list", store.list("").await.map(drop)),
        ("uploads", store.list_uploads("").await.map(drop)),
        (
            "create",
            store
                .create_upload(
                    &key,
                    &UploadPlan { part_size: ByteCount(5 * MIB), overwrite: Overwrite::Replace },
                )
                .await
                .map(drop),
        ),
        ("part", store.put_part(&upload(), part).await.map(drop)),
        ("copy", store.copy_part(&upload(), copied, &from).await.map(drop)),
        ("parts", store.list_parts(&upload()).await.map(drop)),
        ("complete", store.complete(&upload(), &[stored], &whole).await),
        ("abort", store.abort(&upload()).await),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stores_answers_are_read_up_to_a_limit_whatever_was_asked() {
    for status in
        ["200 OK", "206 Partial Content", "403 Forbidden", "404 Not Found", "500 Internal Server Error"]
    {
        let server = Endless::start(
            format!("HTTP/1.1 {status}\r\ncontent-type: application/xml\r\n\r\n<a>"),
            Some(&FILLING),
        );
        for (operation, outcome) in try_all(&server.store()).await {
            // The client does not read a body that it has no use for.
            if status.starts_with('2') && matches!(operation, "list" | "uploads" | "parts" | "create" | "get")
            {
                let refused = outcome.unwrap_err();
                assert_eq!(refused.class(), Class::Permanent, "{status} to {operation}: {refused}");
            }
        }
        let most = 24 * (LARGEST_RESPONSE + ON_THE_WAY);
        let sent = server.sent();
        assert!(sent < most, "{status}: {sent} bytes were taken");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_address_has_no_room_for_is_refused_by_name() {
    let long = "a".repeat(to_usize(8 * MIB));
    let xml = |body: &str| {
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    let created =
        format!("<InitiateMultipartUploadResult><UploadId>{long}</UploadId></InitiateMultipartUploadResult>");
    let server = Endless::start(xml(&created), None);
    let refused = server
        .store()
        .create_upload(
            &upload().key,
            &UploadPlan { part_size: ByteCount(5 * MIB), overwrite: Overwrite::Replace },
        )
        .await;
    assert!(
        refused.unwrap_err().to_string().contains("the upload id has 8388608 bytes; at most 2048 are used")
    );
    // An upload id that the caller gives.
    let named = Upload { id: long.clone(), ..upload() };
    for refused in [server.store().abort(&named).await, server.store().list_parts(&named).await.map(drop)] {
        assert!(refused.unwrap_err().to_string().contains("the upload id has"));
    }
    assert!(server.store().list(&long).await.unwrap_err().to_string().contains("the prefix has"));
    assert!(server.store().list_uploads(&long).await.unwrap_err().to_string().contains("the prefix has"));
    let mark = "a".repeat(100_000);
    for (name, body) in [
        (
            "list",
            format!(
                "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>{mark}</NextContinuationToken></ListBucketResult>"
            ),
        ),
        (
            "uploads",
            format!(
                "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated><NextKeyMarker>{mark}</NextKeyMarker></ListMultipartUploadsResult>"
            ),
        ),
    ] {
        let server = Endless::start(xml(&body), None);
        let store = server.store();
        let refused = if name == "list" {
            store.list("").await.map(drop)
        } else {
            store.list_uploads("").await.map(drop)
        };
        assert!(refused.unwrap_err().to_string().contains("goes on without saying where"), "{name}");
    }
    let open = format!(
        "<ListMultipartUploadsResult><Upload><Key>a</Key><UploadId>{long}</UploadId></Upload>\
         <Upload><Key>b</Key><UploadId>id</UploadId></Upload></ListMultipartUploadsResult>"
    );
    let found = Endless::start(xml(&open), None).store().list_uploads("").await.unwrap();
    assert_eq!(
        found.iter().map(|open| open.upload.key.as_str()).collect::<Vec<_>>(),
        ["b"],
        "the other can't be asked about"
    );
    let parts = format!(
        "<ListPartsResult><Part><PartNumber>1</PartNumber><Size>1</Size><ETag>{mark}</ETag></Part></ListPartsResult>"
    );
    let refused = Endless::start(xml(&parts), None).store().list_parts(&upload()).await.unwrap_err();
    assert!(refused.to_string().contains("the ETag has"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_read_up_to_a_limit_and_live_for_a_day_at_most() {
    let source = |url: String| {
        let config = ApiKeyConfig {
            api_key: Secret::new("key"),
            endpoint: url,
            ca_file: None,
            proxies: Proxies::default(),
        };
        ApiKeySource::new(config, Arc::new(SystemClock)).unwrap()
    };
    let server = Endless::start("HTTP/1.1 400 Bad Request\r\n\r\n", Some(&FILLING));
    let metadata = Metadata::new(&MetadataConfig { endpoint: Some(server.url()), ca_file: None }).unwrap();
    assert!(metadata.instance().await.unwrap_err().to_string().contains("it is longer than 1048576 bytes"));
    // The first of several attempts.
    let outcome =
        tokio::time::timeout(Duration::from_secs(1), async { source(server.url()).token().await }).await;
    assert!(outcome.is_err() || outcome.is_ok_and(|token| token.is_err()));
    assert!(server.sent() < 64 * (MIB + ON_THE_WAY));
    let grant = format!(r#"{{"access_token":"t","expires_in":{}}}"#, u64::MAX);
    let server =
        Endless::start(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{grant}", grant.len()), None);
    let token = source(server.url()).token().await.unwrap();
    assert!(token.expires <= std::time::SystemTime::now() + Duration::from_secs(24 * 3600));
}
