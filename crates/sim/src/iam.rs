//! Part of IBM's IAM that turns an API key into a bearer token: `POST /identity/token`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use percent_encoding::percent_decode_str;
use rand::RngExt as _;
use s3s::Body;
use serde_json::json;
use snapferry_base::secret::Secret;

/// Grant type of an API key.
const API_KEY_GRANT: &str = "urn:ibm:params:oauth:grant-type:apikey";
/// Longest form that is read, in bytes.
pub(super) const LONGEST_FORM: usize = 64 << 10;

/// Issues tokens, and verifies them. A token proves itself, as IBM's do: one that was issued before the
/// process was killed is still accepted.
#[derive(Debug)]
pub(super) struct Iam {
    api_keys: Vec<Secret>,
    token_life: Duration,
    /// Key that signs tokens. It is derived from the API keys, which outlast the process.
    key: [u8; 32],
    /// Number of times that all tokens were expired. Tokens with another number are no longer accepted.
    era: AtomicU64,
}

/// Purpose of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenPurpose {
    /// Access to all services.
    Bearer,
    /// Identity of a server towards its metadata service; not accepted elsewhere.
    Identity,
}

impl TokenPurpose {
    const fn name(self) -> &'static str {
        match self {
            Self::Bearer => "ServiceId-simulated",
            Self::Identity => "instance-simulated",
        }
    }
}

fn now_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}

impl Iam {
    pub(super) fn new(api_keys: Vec<Secret>, token_life: Duration) -> Self {
        let mut all = String::new();
        api_keys.iter().for_each(|key| all.push_str(key.reveal()));
        let key = blake3::derive_key("snapferry's simulated IAM: signature of tokens", all.as_bytes());
        Self { api_keys, token_life, key, era: AtomicU64::new(0) }
    }

    fn signature(&self, signed: &str) -> String {
        URL_SAFE_NO_PAD.encode(blake3::keyed_hash(&self.key, signed.as_bytes()).as_bytes())
    }

    /// Creates a token in the form of IBM's: a JWT, because IBM's own clients read the times in it.
    fn sign(&self, life: Duration, purpose: TokenPurpose) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let head = json!({ "alg": "RS256", "kid": "simulated", "typ": "JWT" });
        let body = json!({
            "iss": "https://iam.cloud.ibm.com/identity",
            "sub": purpose.name(),
            "account": { "valid": true, "bss": "0123456789abcdef0123456789abcdef" },
            "scope": "ibm openid",
            "iat": now,
            "exp": now + life.as_secs(),
            "jti": format!("{:016x}", rand::rng().random::<u64>()),
            "ends_ms": (now_ms() + life.as_millis()).to_string(),
            "era": self.era.load(Ordering::Relaxed),
        });
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&head), part(&body));
        let signature = self.signature(&signed);
        format!("{signed}.{signature}")
    }

    fn is_valid(&self, token: &str, purpose: TokenPurpose) -> bool {
        let body = token.rsplit_once('.').filter(|(signed, signature)| self.signature(signed) == *signature);
        let body = body.and_then(|(signed, _)| URL_SAFE_NO_PAD.decode(signed.split_once('.')?.1).ok());
        let Some(body) = body.and_then(|body| serde_json::from_slice::<serde_json::Value>(&body).ok()) else {
            return false;
        };
        let ends: u128 = body["ends_ms"].as_str().and_then(|ends| ends.parse().ok()).unwrap_or(0);
        body["sub"] == purpose.name() && body["era"] == self.era.load(Ordering::Relaxed) && now_ms() < ends
    }

    /// True if IAM issued this token as a bearer token and it has not expired.
    pub(super) fn accepts(&self, token: &str) -> bool {
        self.is_valid(token, TokenPurpose::Bearer)
    }

    /// True if this token proves the identity of a server and has not expired.
    pub(super) fn accepts_identity(&self, token: &str) -> bool {
        self.is_valid(token, TokenPurpose::Identity)
    }

    /// Creates a bearer token that is valid for `life`.
    pub(super) fn mint(&self, life: Duration) -> String {
        self.sign(life, TokenPurpose::Bearer)
    }

    /// Creates a token that a server presents to its metadata service.
    pub(super) fn mint_identity(&self, life: Duration) -> String {
        self.sign(life, TokenPurpose::Identity)
    }

    /// Expires every token that was issued so far.
    pub(super) fn expire_all(&self) {
        self.era.fetch_add(1, Ordering::Relaxed);
    }

    /// Answers a request for a token, sent as a form.
    pub(super) fn answer(&self, form: &[u8]) -> Response<Body> {
        let form = String::from_utf8_lossy(form);
        let field = |name: &str| {
            form.split('&').filter_map(|pair| pair.split_once('=')).find(|(found, _)| *found == name).map(
                |(_, value)| {
                    let value = value.replace('+', " ");
                    percent_decode_str(&value).decode_utf8_lossy().into_owned()
                },
            )
        };
        match (field("grant_type").as_deref(), field("apikey")) {
            (Some(API_KEY_GRANT), Some(key)) if self.api_keys.iter().any(|known| known.reveal() == key) => {
                self.issue()
            }
            (Some(API_KEY_GRANT), Some(_)) => refusal("BXNIM0415E", "Provided API key could not be found."),
            (Some(API_KEY_GRANT), None) => refusal("BXNIM0109E", "Property missing or empty: apikey"),
            (None, _) => refusal("BXNIM0109E", "Property missing or empty: grant_type"),
            (Some(other), _) => refusal("BXNIM0138E", &format!("Grant type {other} is not supported here.")),
        }
    }

    fn issue(&self) -> Response<Body> {
        let token = self.mint(self.token_life);
        let expiration = SystemTime::now() + self.token_life;
        let expiration = expiration.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let body = json!({
            "access_token": token,
            "refresh_token": "not_supported",
            "token_type": "Bearer",
            "expires_in": self.token_life.as_secs(),
            "expiration": expiration,
            "scope": "ibm openid",
        });
        answer(StatusCode::OK, &body)
    }
}

fn refusal(code: &str, message: &str) -> Response<Body> {
    let request = format!("{:016x}", rand::rng().random::<u64>());
    let body = json!({
        "errorCode": code,
        "errorMessage": message,
        "context": { "requestId": request, "requestType": "incoming.Identity_Token" },
    });
    answer(StatusCode::BAD_REQUEST, &body)
}

fn answer(status: StatusCode, body: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(response: &Response<Body>) -> serde_json::Value {
        serde_json::from_slice(&response.body().bytes().expect("an answer in memory")).expect("JSON")
    }

    #[test]
    fn a_token_is_honoured_until_it_expires() {
        let iam = Iam::new(vec![Secret::new("k+y/1")], Duration::from_secs(3600));
        let answer =
            iam.answer(b"grant_type=urn%3Aibm%3Aparams%3Aoauth%3Agrant-type%3Aapikey&apikey=k%2By%2F1");
        assert_eq!(answer.status(), StatusCode::OK);
        let token = body(&answer)["access_token"].as_str().expect("a token").to_owned();
        assert!(iam.accepts(&token) && !iam.accepts("another"));
        iam.expire_all();
        assert!(!iam.accepts(&token));
    }

    #[test]
    fn a_token_outlasts_the_process_that_issued_it_and_is_no_other_ones() {
        let iam = |key: &str| Iam::new(vec![Secret::new(key)], Duration::from_secs(60));
        let (token, identity) =
            (iam("key").mint(Duration::from_secs(60)), iam("key").mint_identity(Duration::from_secs(60)));
        assert!(iam("key").accepts(&token) && iam("key").accepts_identity(&identity), "started again");
        assert!(!iam("key").accepts(&identity) && !iam("key").accepts_identity(&token));
        assert!(!iam("other").accepts(&token) && !iam("key").accepts(&token.replace('e', "f")));
    }

    #[test]
    fn a_token_without_a_life_is_refused_at_once() {
        let iam = Iam::new(vec![Secret::new("key")], Duration::ZERO);
        let answer = body(&iam.answer(b"apikey=key&grant_type=urn:ibm:params:oauth:grant-type:apikey"));
        assert!(!iam.accepts(answer["access_token"].as_str().expect("a token")));
    }

    #[test]
    fn refusals_have_the_codes_of_iam() {
        let iam = Iam::new(vec![Secret::new("key")], Duration::from_secs(1));
        for (form, code) in [
            ("grant_type=urn:ibm:params:oauth:grant-type:apikey&apikey=wrong", "BXNIM0415E"),
            ("apikey=key", "BXNIM0109E"),
            ("grant_type=urn:ibm:params:oauth:grant-type:apikey", "BXNIM0109E"),
            ("grant_type=password&apikey=key", "BXNIM0138E"),
        ] {
            let answer = iam.answer(form.as_bytes());
            assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
            assert_eq!(body(&answer)["errorCode"], code, "{form}");
        }
    }
}
