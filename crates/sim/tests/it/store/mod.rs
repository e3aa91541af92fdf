//! The embedded store, driven by the AWS SDK, and by hand for requests that the SDK can't make.

mod access;
mod copies;
mod faults;
mod objects;
mod uploads;

use std::fmt::Debug;
use std::net::SocketAddr;

use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Builder, Region, RequestChecksumCalculation, ResponseChecksumValidation,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use bytes::Bytes;
use snapferry_engine::hash::Crc64;
use snapferry_sim::{SimConfig, SimStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const BUCKET: &str = "images";
/// Least size of a part on S3, in bytes.
const PART: usize = 5 << 20;

/// Store with one bucket, and a client that makes exactly one attempt.
struct Fixture {
    folder: TempDir,
    store: SimStore,
    client: Client,
}

impl Fixture {
    async fn start() -> Self {
        Self::start_with(|config| config).await
    }

    async fn start_with(change: impl FnOnce(SimConfig) -> SimConfig) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = SimStore::start(change(SimConfig::new(folder.path()))).await.expect("a store");
        store.create_bucket(BUCKET).await.expect("a bucket");
        let client = Client::from_conf(client_config(&store).build());
        Self { folder, store, client }
    }

    async fn put(&self, key: &str, body: &Bytes) {
        self.client
            .put_object()
            .bucket(BUCKET)
            .key(key)
            .body(body.clone().into())
            .send()
            .await
            .expect("stored");
    }

    async fn get(&self, key: &str) -> Bytes {
        let answer = self.client.get_object().bucket(BUCKET).key(key).send().await.expect("found");
        answer.body.collect().await.expect("all of it").into_bytes()
    }

    async fn has(&self, key: &str) -> bool {
        match self.client.head_object().bucket(BUCKET).key(key).send().await {
            Ok(_) => true,
            Err(err) => {
                assert_eq!(refusal(err).0, 404);
                false
            }
        }
    }

    /// Begins an upload with a CRC64NVME over the whole object.
    async fn begin(&self, key: &str) -> String {
        let create = self.client.create_multipart_upload().bucket(BUCKET).key(key);
        let create =
            create.checksum_algorithm(ChecksumAlgorithm::Crc64Nvme).checksum_type(ChecksumType::FullObject);
        create.send().await.expect("an upload").upload_id.expect("an id")
    }

    async fn part(&self, key: &str, id: &str, number: i32, body: &Bytes) -> CompletedPart {
        let crc = Crc64::of(body).to_base64();
        let put = self.client.upload_part().bucket(BUCKET).key(key).upload_id(id).part_number(number);
        let stored =
            put.checksum_crc64_nvme(&crc).body(body.clone().into()).send().await.expect("a stored part");
        assert_eq!(stored.checksum_crc64_nvme, Some(crc), "the checksum comes back");
        CompletedPart::builder().part_number(number).set_e_tag(stored.e_tag).build()
    }

    async fn open_uploads(&self) -> usize {
        let list = self.client.list_multipart_uploads().bucket(BUCKET).send().await.expect("a list");
        list.uploads().len()
    }

    fn complete(
        &self,
        key: &str,
        id: &str,
        parts: Vec<CompletedPart>,
    ) -> aws_sdk_s3::operation::complete_multipart_upload::builders::CompleteMultipartUploadFluentBuilder
    {
        let upload = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        self.client.complete_multipart_upload().bucket(BUCKET).key(key).upload_id(id).multipart_upload(upload)
    }
}

/// Configures a client as the uploader does: no checksums of the SDK's own, one attempt.
fn client_config(store: &SimStore) -> Builder {
    let config = store.config();
    let keys = Credentials::new(&config.access_key, config.secret_key.reveal(), None, None, "test");
    Builder::new()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new(config.region.clone()))
        .endpoint_url(store.endpoint())
        .force_path_style(true)
        .credentials_provider(keys)
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .retry_config(RetryConfig::disabled())
}

/// Returns bytes that don't repeat: the high bytes of a linear congruential generator.
fn noise(len: usize, seed: u64) -> Bytes {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

/// Returns the status and the error code of a refusal.
fn refusal<E: ProvideErrorMetadata + Debug>(err: SdkError<E, HttpResponse>) -> (u16, String) {
    let status = err.raw_response().unwrap_or_else(|| panic!("no answer at all: {err:?}")).status().as_u16();
    (status, err.code().unwrap_or_default().to_owned())
}

fn refused(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

/// Sends one request by hand, and returns the status and the whole response. The client stays connected until
/// the response is there, since the store drops a request whose client has gone.
async fn by_hand(store: &SimStore, head: &str, body: &[u8]) -> (u16, String) {
    let stream = sent_by_hand(store, head, body).await;
    answer_by_hand(stream).await
}

async fn sent_by_hand(store: &SimStore, head: &str, body: &[u8]) -> TcpStream {
    let address: SocketAddr = store.endpoint().trim_start_matches("http://").parse().expect("an address");
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let head = format!("{head}\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream.write_all(body).await.expect("sent");
    stream
}

async fn answer_by_hand(mut stream: TcpStream) -> (u16, String) {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("no status in {answer:?}")), answer)
}

/// Requests a bearer token for an API key from IAM; returns the status and the body.
async fn token(store: &SimStore, api_key: &str) -> (u16, serde_json::Value) {
    let form = format!("grant_type=urn%3Aibm%3Aparams%3Aoauth%3Agrant-type%3Aapikey&apikey={api_key}");
    let head = format!(
        "POST /identity/token HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}",
        form.len()
    );
    let (status, answer) = by_hand(store, &head, form.as_bytes()).await;
    let json = answer.split_once("\r\n\r\n").expect("a body").1;
    (status, serde_json::from_str(json).expect("JSON"))
}

async fn bearer(store: &SimStore) -> String {
    let (status, answer) = token(store, store.config().api_keys[0].reveal()).await;
    assert_eq!(status, 200);
    answer["access_token"].as_str().expect("a token").to_owned()
}

fn stream(body: &Bytes) -> ByteStream {
    ByteStream::from(body.clone())
}
