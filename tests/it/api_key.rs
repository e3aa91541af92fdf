//! Tokens from the embedded store's IAM.

use std::sync::Arc;
use std::time::Duration;

use snapferry_base::clock::Clock as _;
use snapferry_base::identity::{IdentityError, TokenSource as _};
use snapferry_base::proxy::Proxies;
use snapferry_base::retry::Class;
use snapferry_base::secret::Secret;
use snapferry_ibmcloud::iam::{ApiKeyConfig, ApiKeySource};
use snapferry_sim::{Action, Operation, Rule, SimConfig, SimStore, When};
use snapferry_testkit::clock::ManualClock;
use tempfile::TempDir;

struct Iam {
    _folder: TempDir,
    sim: SimStore,
    clock: Arc<ManualClock>,
}

impl Iam {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sim = SimStore::start(SimConfig::new(folder.path())).await.unwrap();
        Self { _folder: folder, sim, clock: ManualClock::hurried() }
    }

    fn source(&self, api_key: Secret) -> Arc<ApiKeySource> {
        let config = ApiKeyConfig {
            api_key,
            endpoint: self.sim.iam_endpoint(),
            ca_file: None,
            proxies: Proxies::default(),
        };
        Arc::new(ApiKeySource::new(config, self.clock.clone()).unwrap())
    }

    fn right_key(&self) -> Secret {
        self.sim.config().api_keys[0].clone()
    }

    fn request_count(&self) -> u64 {
        self.sim.stats().of(Operation::IdentityToken).requests
    }
}

#[tokio::test]
async fn one_request_serves_all_who_wait_and_the_token_lives_its_hour() {
    let iam = Iam::start().await;
    let source = iam.source(iam.right_key());
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            tokio::spawn({
                let source = source.clone();
                async move { source.token().await }
            })
        })
        .collect();
    let mut tokens = Vec::new();
    for caller in waiting {
        tokens.push(caller.await.unwrap().unwrap());
    }
    assert_eq!(iam.request_count(), 1);
    assert!(tokens.iter().all(|token| token.bearer == tokens[0].bearer));
    assert_eq!(tokens[0].expires, iam.clock.now() + Duration::from_secs(3600));

    iam.clock.advance(Duration::from_secs(39 * 60));
    assert_eq!(source.token().await.unwrap().bearer, tokens[0].bearer);
    assert_eq!(iam.request_count(), 1);
    // The token has less than twenty minutes left.
    iam.clock.advance(Duration::from_secs(2 * 60));
    let fresh = source.token().await.unwrap();
    assert_eq!(iam.request_count(), 2);
    assert_eq!(fresh.expires, iam.clock.now() + Duration::from_secs(3600));
}

#[tokio::test]
async fn the_old_token_does_while_a_refresh_fails_and_not_longer() {
    let iam = Iam::start().await;
    let source = iam.source(iam.right_key());
    let first = source.token().await.unwrap();
    iam.sim.faults().add(Rule::on(Operation::IdentityToken), Action::answer(500, "InternalError"));
    iam.clock.advance(Duration::from_secs(45 * 60));
    assert_eq!(source.token().await.unwrap().bearer, first.bearer);
    assert_eq!(source.token().await.unwrap().bearer, first.bearer);
    // The second call did not ask IAM again at once.
    assert_eq!(iam.request_count(), 2);
    iam.clock.advance(Duration::from_secs(31));
    assert_eq!(source.token().await.unwrap().bearer, first.bearer);
    assert_eq!(iam.request_count(), 3);
    iam.clock.advance(Duration::from_secs(15 * 60));
    let err = source.token().await.unwrap_err();
    assert!(matches!(err, IdentityError::Unreachable { .. }), "{err}");
    assert_eq!(err.class(), Class::Transient);
    iam.sim.faults().clear();
    assert!(source.token().await.unwrap().expires > iam.clock.now());
}

#[tokio::test]
async fn passing_faults_are_tried_again() {
    let iam = Iam::start().await;
    let on = || Rule::on(Operation::IdentityToken);
    iam.sim.faults().add(on().when(When::Nth(1)), Action::answer(503, "ServiceUnavailable"));
    iam.sim.faults().add(on().when(When::Nth(2)), Action::DropAfterBody);
    iam.sim.faults().add(on().when(When::Nth(3)), Action::answer(429, "TooManyRequests"));
    iam.source(iam.right_key()).token().await.unwrap();
    assert_eq!(iam.request_count(), 4);
}

#[tokio::test]
async fn a_wrong_key_is_refused_at_once_and_never_shown() {
    let iam = Iam::start().await;
    let source = iam.source(Secret::new("hunter2-no-such-key"));
    let err = source.token().await.unwrap_err();
    assert!(matches!(&err, IdentityError::Refused { code, .. } if code.starts_with("BXNIM")), "{err:?}");
    assert_eq!(iam.request_count(), 1);
    for text in [format!("{err}"), format!("{err:?}"), format!("{source:?}")] {
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn a_key_is_not_sent_in_the_clear() {
    for (key, endpoint) in [("k", "http://iam.example.com"), ("k", "no URL"), ("", "https://iam.example.com")]
    {
        let config = ApiKeyConfig {
            api_key: Secret::new(key),
            endpoint: endpoint.to_owned(),
            ca_file: None,
            proxies: Proxies::default(),
        };
        let err = ApiKeySource::new(config, ManualClock::standing()).unwrap_err();
        assert!(matches!(err, IdentityError::Setup(_)), "{err}");
    }
}
