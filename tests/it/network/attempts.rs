//! Attempts at an identity service that is down: its client makes them all, and no caller adds to them.

use std::sync::Arc;

use snapferry_base::cancel::Cancel;
use snapferry_base::proxy::Proxies;
use snapferry_base::retry::Backoff;
use snapferry_engine::store::{ObjectStore as _, Pace, Retrying, StoreError};
use snapferry_ibmcloud::iam::{ApiKeyConfig, ApiKeySource};
use snapferry_ibmcloud::vpc::{ClientConfig, Endpoint, RegionClient, VpcError};
use snapferry_s3::{Auth, S3Config, S3Store};
use snapferry_sim::{Action, Operation, Rule, SimConfig, SimStore};
use snapferry_testkit::clock::ManualClock;
use tempfile::TempDir;

use crate::support::{HOME, POLICY, client_context, folder};

/// A store whose identity service answers 503.
async fn down() -> (SimStore, Arc<ApiKeySource>, TempDir) {
    let folder = folder();
    let sim = SimStore::start(SimConfig::new(folder.path())).await.unwrap();
    sim.faults().add(Rule::on(Operation::IdentityToken), Action::answer(503, "ServiceUnavailable"));
    let config = ApiKeyConfig {
        api_key: sim.config().api_keys[0].clone(),
        endpoint: sim.iam_endpoint(),
        ca_file: None,
        proxies: Proxies::default(),
    };
    let source = ApiKeySource::new(config, ManualClock::hurried()).unwrap();
    (sim, Arc::new(source), folder)
}

#[tokio::test]
async fn the_store_does_not_repeat_what_the_token_source_has_repeated() {
    let (sim, source, _folder) = down().await;
    let config = S3Config::new(&sim.endpoint(), "us-south", "images", Auth::Bearer(source));
    let store = Arc::new(S3Store::connect(config).unwrap());
    let store = Retrying::new(store, ManualClock::hurried(), Cancel::new(), Pace::new(1), Backoff::STORE);
    let err = store.list_uploads("").await.unwrap_err();
    assert!(matches!(err, StoreError::Identity { .. }), "{err:?}");
    assert_eq!(sim.stats().of(Operation::IdentityToken).requests, u64::from(Backoff::TOKEN.attempts));
}

#[tokio::test]
async fn the_cloud_does_not_repeat_what_the_token_source_has_repeated() {
    let (sim, source, _folder) = down().await;
    let endpoint = Endpoint::parse(&sim.endpoint());
    let config = ClientConfig {
        region: HOME.to_owned(),
        endpoint,
        ca_file: None,
        proxies: Proxies::default(),
        policy: POLICY,
    };
    let err = RegionClient::new(config, client_context(source)).unwrap().instances().await.unwrap_err();
    assert!(matches!(err, VpcError::Identity { .. }), "{err:?}");
    assert_eq!(sim.stats().of(Operation::IdentityToken).requests, u64::from(Backoff::TOKEN.attempts));
}
