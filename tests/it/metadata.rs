//! Tokens and the server's own facts from the simulated metadata service.

use std::sync::Arc;
use std::time::Duration;

use snapferry_base::clock::SystemClock;
use snapferry_base::identity::{IdentityError, TokenSource as _};
use snapferry_base::proxy::Proxies;
use snapferry_base::retry::Class;
use snapferry_ibmcloud::iam::{Metadata, MetadataConfig, Profile, ProfileSource};
use snapferry_ibmcloud::vpc::{ClientConfig, ClientContext, Endpoint, LogWatch, Policy, RegionClient};
use snapferry_sim::{RegionAction, RegionConfig, RegionOperation, RegionRule, SimRegion, When};
use snapferry_testkit::clock::ManualClock;
use tempfile::TempDir;

async fn cloud(change: impl FnOnce(&mut RegionConfig)) -> (SimRegion, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut config = RegionConfig::new(folder.path());
    change(&mut config);
    (SimRegion::start(config).await.unwrap(), folder)
}

fn service(cloud: &SimRegion) -> Arc<Metadata> {
    let config = MetadataConfig { endpoint: Some(cloud.metadata_endpoint()), ca_file: None };
    Arc::new(Metadata::new(&config).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_knows_itself_and_its_profiles_token_opens_the_api() {
    let (cloud, _folder) = cloud(|_| {}).await;
    let service = service(&cloud);
    let own = service.instance().await.unwrap();
    assert_eq!(
        (own.name.as_str(), own.zone.as_str(), own.region.as_str()),
        ("ferry", "us-south-1", "us-south")
    );
    assert_eq!(own.id, cloud.own_instance_id());
    assert!(own.vpc.is_some());
    for profile in
        ["default", "Profile-1234", "crn:v1:bluemix:public:iam-identity::a/1::profile:Profile-1234"]
    {
        let tokens = Arc::new(ProfileSource::new(
            Arc::clone(&service),
            Profile::parse(profile),
            Arc::new(SystemClock),
        ));
        let context = ClientContext {
            tokens,
            clock: Arc::new(SystemClock),
            cancel: snapferry_base::cancel::Cancel::new(),
            watch: Arc::new(LogWatch),
            fence: Arc::new(snapferry_base::fence::Unfenced),
            known_hosts: Default::default(),
        };
        let endpoint = Endpoint::parse(&cloud.endpoint_template());
        let config = ClientConfig {
            region: own.region.clone(),
            endpoint,
            ca_file: None,
            proxies: Proxies::default(),
            policy: Policy::default(),
        };
        let client = RegionClient::new(config, context).unwrap();
        assert_eq!(client.instances().await.unwrap()[0].id.as_str(), own.id);
    }
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_of_before_the_new_paths_is_asked_by_the_old_ones() {
    let (cloud, _folder) = cloud(|config| config.new_metadata_paths = false).await;
    let service = service(&cloud);
    let source = ProfileSource::new(Arc::clone(&service), Profile::Default, Arc::new(SystemClock));
    source.token().await.unwrap();
    service.instance().await.unwrap();
    assert_eq!(cloud.request_count(RegionOperation::CreateIdentityToken), 1, "once is enough to learn it");
    assert_eq!(cloud.request_count(RegionOperation::CreateIdentityTokenOld), 2);
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_off_or_not_there_is_told_as_such() {
    let (cloud, _folder) = cloud(|config| config.metadata_service = false).await;
    let off = service(&cloud).instance().await.unwrap_err();
    assert!(matches!(off, IdentityError::MetadataOff { .. }), "{off}");
    cloud.shutdown().await;
    // No process listens there any more.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = MetadataConfig { endpoint: Some(format!("http://{gone}")), ca_file: None };
    let source = ProfileSource::new(
        Arc::new(Metadata::new(&config).unwrap()),
        Profile::Default,
        ManualClock::hurried(),
    );
    let gone = source.token().await.unwrap_err();
    assert!(matches!(gone, IdentityError::MetadataOff { .. }), "{gone}");
    assert_eq!(gone.class(), Class::Permanent, "nobody waits for a service that is off");
    assert!(gone.to_string().contains("metadata service does not answer at http://127.0.0.1:"), "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_refresh_serves_many_and_comes_early() {
    let (cloud, _folder) = cloud(|_| {}).await;
    let clock = ManualClock::hurried();
    let source = Arc::new(ProfileSource::new(service(&cloud), Profile::Default, clock.clone()));
    let first = source.token().await.unwrap();
    clock.advance(Duration::from_secs(39 * 60));
    assert_eq!(source.token().await.unwrap().bearer, first.bearer);
    clock.advance(Duration::from_secs(2 * 60));
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            tokio::spawn({
                let source = source.clone();
                async move { source.token().await }
            })
        })
        .collect();
    for caller in waiting {
        caller.await.unwrap().unwrap();
    }
    assert_eq!(cloud.request_count(RegionOperation::CreateIamToken), 2);
    assert_ne!(source.token().await.unwrap().bearer, first.bearer);
    // A service that fails for a while: the old token is used.
    clock.advance(Duration::from_secs(41 * 60));
    let fails = RegionAction::answer(500, "internal_error");
    cloud.faults().add(RegionRule::on(RegionOperation::CreateIamToken).when(When::First(1)), fails);
    source.token().await.unwrap();
    assert_eq!(cloud.faults().fired(), [1]);
    cloud.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_secret_is_shown() {
    let (cloud, _folder) = cloud(|_| {}).await;
    let service = service(&cloud);
    let source = ProfileSource::new(Arc::clone(&service), Profile::Default, Arc::new(SystemClock));
    let token = source.token().await.unwrap();
    for text in [format!("{service:?}"), format!("{source:?}"), format!("{token:?}")] {
        assert!(!text.contains(token.bearer.reveal()), "{text}");
    }
    cloud.shutdown().await;
}
