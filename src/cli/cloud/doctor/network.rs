//! Check of the ways to the services: directly, or through which proxy.

use std::collections::BTreeMap;

use snapferry_base::proxy::{Proxies, ProxyFault, Route, WhyDirect};
use snapferry_base::retry::chain;
use snapferry_ibmcloud::iam::IBM_IAM;
use snapferry_ibmcloud::vpc::Endpoint;

use super::{DoctorArgs, Findings, HASTY, store_args, tagging_config};
use crate::cli::config;
use crate::cli::exit::Code;
use crate::cli::hints;
use crate::cli::session::Session;

/// Region that stands for the user's in an address, if none was given: the way is the same for all of them.
const ANY_REGION: &str = "us-south";

/// A service, its address, and the exit code if it can't be reached.
struct Service {
    name: &'static str,
    address: String,
    code: Code,
}

/// Adds a finding for each way that leads to a service. A proxy that gives no connection is a failure.
pub(super) async fn routes(args: &DoctorArgs, session: &Session, findings: &mut Findings) {
    let proxies = session.environment.proxies();
    let mut direct: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for service in services(args, session) {
        // An address that is no URL is reported by the check of its service.
        let Ok(address) = service.address.parse() else { continue };
        match proxies.route(&address) {
            Err(error) => findings.failure(
                "network",
                Code::Usage,
                format!("{}: {error}", service.name),
                Some("correct the variable, or unset it".to_owned()),
            ),
            Ok(Route::Direct(why)) => direct.entry(reason(why)).or_default().push(service.name),
            Ok(Route::Through(proxy)) => match proxy.examine(&address).await {
                None => findings.ok("network", format!("{} through the proxy {proxy}", service.name)),
                Some(fault) => failed(&service, &fault, findings),
            },
        }
    }
    // Through a proxy, this service would describe the proxy's server.
    let always = "always, for it is this server's own";
    direct.entry(always.to_owned()).or_default().push("instance metadata");
    for (reason, names) in direct {
        findings.ok("network", format!("{} directly: {reason}", names.join(", ")));
    }
}

fn failed(service: &Service, fault: &ProxyFault, findings: &mut Findings) {
    let details = format!("{}: {}", service.name, chain(fault));
    findings.failure("network", service.code, details, Some(hints::of_proxy(fault)));
}

fn reason(why: WhyDirect) -> String {
    match why {
        WhyDirect::NoProxy => "no proxy is set for it".to_owned(),
        WhyDirect::Excepted(variable) => format!("{variable} lists it"),
        WhyDirect::ThisMachine => "it is on this machine, and the proxy is not".to_owned(),
        WhyDirect::LinkLocal => "it is link-local".to_owned(),
    }
}

fn services(args: &DoctorArgs, session: &Session) -> Vec<Service> {
    let iam = args.cloud.identity.iam_endpoint.clone().unwrap_or_else(|| IBM_IAM.to_owned());
    let region = args.cloud.region.as_deref().unwrap_or(ANY_REGION);
    let vpc = Endpoint::parse(&args.cloud.vpc_endpoint).base(region).map(String::from);
    let tagging = tagging_config(&args.cloud, HASTY, Proxies::default()).endpoint;
    let bucket = args
        .recovery
        .bucket
        .as_ref()
        .and_then(|_| config::endpoint_of(&store_args(args), &session.environment).ok());
    let service = |name, address, code| Service { name, address, code };
    let mut services = vec![service("IAM", iam, Code::Cloud)];
    services.extend(vpc.ok().map(|address| service("VPC", address, Code::Cloud)));
    services.push(service("tagging", tagging, Code::Cloud));
    services.extend(bucket.map(|address| service("bucket", address, Code::Store)));
    services
}
