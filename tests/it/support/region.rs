//! The simulated cloud's regions, and clients of them.

use std::sync::Arc;
use std::time::Duration;

use snapferry_base::cancel::Cancel;
use snapferry_base::clock::SystemClock;
use snapferry_base::identity::TokenSource;
use snapferry_base::proxy::Proxies;
use snapferry_base::retry::Backoff;
use snapferry_ibmcloud::iam::{ApiKeyConfig, ApiKeySource};
use snapferry_ibmcloud::vpc::{ClientConfig, ClientContext, Endpoint, LogWatch, Policy, RegionClient, Waits};
use snapferry_sim::SimRegion;

pub const HOME: &str = "us-south";
pub const AWAY: &str = "us-east";
pub const SERVER: &str = "web01";

/// Policy with short delays and few attempts, for tests that use all of them up.
pub const POLICY: Policy = Policy {
    connect: Duration::from_secs(5),
    deadline: Duration::from_secs(10),
    budget: Duration::from_secs(30),
    backoff: Backoff { attempts: 4, first: Duration::from_millis(5), longest: Duration::from_millis(20) },
    list_lag: Duration::from_secs(20),
    waits: Waits { interval: Some(Duration::from_millis(5)), deadline: Some(Duration::from_millis(200)) },
};

/// Clock and the other dependencies of a client that has these tokens.
pub fn client_context(tokens: Arc<dyn TokenSource>) -> ClientContext {
    ClientContext {
        tokens,
        clock: Arc::new(SystemClock),
        cancel: Cancel::new(),
        watch: Arc::new(LogWatch),
        fence: Arc::new(snapferry_base::fence::Unfenced),
        known_hosts: Default::default(),
    }
}

/// Client of a region, for tests that check the effect of other processes.
pub fn client_of(sim: &SimRegion, region: &str) -> RegionClient {
    let endpoint = Endpoint::parse(&sim.endpoint_template());
    let config = ClientConfig {
        region: region.to_owned(),
        endpoint,
        ca_file: None,
        proxies: Proxies::default(),
        policy: POLICY,
    };
    RegionClient::new(config, client_context(tokens(sim))).unwrap()
}

pub fn tokens(sim: &SimRegion) -> Arc<dyn TokenSource> {
    let config = ApiKeyConfig {
        api_key: sim.api_key(),
        endpoint: sim.iam_endpoint(),
        ca_file: None,
        proxies: Proxies::default(),
    };
    Arc::new(ApiKeySource::new(config, Arc::new(SystemClock)).unwrap())
}
