//! Hints for errors of the cloud, the bucket, the identity service and the queue.

use std::io::ErrorKind;

use snapferry_base::identity::IdentityError;
use snapferry_base::proxy::ProxyFault;
use snapferry_base::suggest::similar;
use snapferry_engine::store::StoreError;
use snapferry_fleet::queue::{QueueError, rights};
use snapferry_fleet::replicate::{Fault, JobError, Step};
use snapferry_ibmcloud::vpc::{Method, Request, VpcError};

/// Command that gives the image service access to buckets (IBM's documentation, "Granting access to IBM Cloud
/// Object Storage to import images").
pub const AUTHORIZE: &str =
    "ibmcloud iam authorization-policy-create is cloud-object-storage Reader --source-resource-type image";
/// Code of IBM's image service for a bucket that it may not read or write (`status_reasons[].code` of images
/// and export jobs).
const NO_ACCESS: &str = "cannot_access_storage_bucket";
/// Code of IBM's API for an account that has used up one of its quotas.
const OVER_QUOTA: &str = "over_quota";
/// Code of IBM's API for a volume of which another snapshot is being taken.
const BUSY: &str = "snapshots_source_volume_busy";
/// Code of IBM's API for a missing role.
const NO_ROLE: &str = "not_authorized";
/// Field that a refused import names if the location of its file is the reason.
const FILE: &str = "file.href";
/// IBM's regions (its documentation of VPC endpoints, 2026). They are used only to guess which one the user
/// meant: there may be more by now.
const REGIONS: [&str; 13] = [
    "us-south", "us-east", "br-sao", "ca-tor", "ca-mon", "eu-gb", "eu-de", "eu-es", "jp-tok", "jp-osa",
    "au-syd", "in-che", "in-mum",
];

pub fn of_job(error: &JobError) -> Option<String> {
    match (error.step, &*error.fault) {
        (Step::Import, Fault::Cloud(VpcError::Refused { refusal, .. })) if refusal.is_about(FILE) => {
            Some(authorize_hint())
        }
        (Step::Import, Fault::Cloud(VpcError::Refused { request, refusal })) if refusal.status == 403 => {
            Some(format!("{}; or {}", missing_role(request), authorize_hint()))
        }
        (Step::Available, Fault::Cloud(VpcError::Ended { reasons, .. })) => Some(of_failed_import(reasons)),
        // A resumed job goes on waiting, and the output names that command anyway.
        (_, Fault::Cloud(VpcError::Overdue { .. })) => None,
        (_, fault) => super::of_fault(fault),
    }
}

/// Returns the hint for an image that failed, by the reasons that IBM documents (`status_reasons[].code`).
fn of_failed_import(reasons: &[String]) -> String {
    let has_reason = |code: &str| reasons.iter().any(|reason| reason.starts_with(code));
    if has_reason("image_data_corrupted") {
        "the image service could not read the file: `snapferry verify` tells whether it is whole, and --codec deflate with the default \
         cluster size is what every importer reads"
            .to_owned()
    } else if has_reason("image_provisioned_size_unsupported") {
        "the disk is larger than an image may be: carry it as an object (--no-import), or its snapshot (`snapferry snapshot copy`)"
            .to_owned()
    } else if has_reason("encryption_key") || has_reason("encrypted_data_key") {
        "the key that the image is to be encrypted with is gone or disabled: see to it in Key Protect or HPCS"
            .to_owned()
    } else {
        authorize_hint()
    }
}

/// Returns the hint for an import that can't read its bucket: the image service reads it, and needs a right
/// of its own.
fn authorize_hint() -> String {
    format!(
        "the image service reads the bucket by itself: let it in once by `{AUTHORIZE}`, and see that --bucket-location is where the \
         bucket is"
    )
}

pub fn of_cloud(error: &VpcError) -> Option<String> {
    match error {
        VpcError::Refused { refusal, .. } if refusal.status == 401 => {
            Some("the token is not accepted: check whose it is, and this machine's clock (`snapferry doctor` compares it)".into())
        }
        VpcError::Refused { request, refusal } if refusal.has(NO_ROLE) => Some(missing_role(request)),
        VpcError::Refused { request, refusal } if refusal.status == 403 => Some(format!(
            "the cloud does not say that a role is missing, which is the likeliest; a restriction by context or address answers so, too. If a \
             role: {}",
            missing_role(request)
        )),
        VpcError::Busy { .. } => Some(
            "something else changes it all the time: Terraform, another tool, a backup policy. What it is shows in IBM Cloud's activity \
             tracking; once it is through, start again"
                .into(),
        ),
        VpcError::Refused { refusal, .. } if refusal.has(OVER_QUOTA) => Some(
            "`snapferry gc` finds what was left behind; where nothing was, delete what is not needed, or ask IBM's support for more"
                .into(),
        ),
        VpcError::Unreachable { request, .. } | VpcError::TimedOut { request, .. } => Some(unreachable(&request.host)),
        VpcError::Missing { kind: "server", .. } => {
            Some("check the name, and --region: each region has its own. `ibmcloud is instances` lists them".into())
        }
        VpcError::Missing { kind: "image", .. } => {
            Some("check the name, and --region: each region has its own. `snapferry images list` shows them".into())
        }
        VpcError::Missing { kind: "snapshot", .. } => {
            Some("check the name, and --region: each region has its own. `snapferry snapshot list` shows them".into())
        }
        VpcError::NameTaken { .. } => Some("give another name, or remove what has it".into()),
        VpcError::Ended { reasons, .. } if reasons.iter().any(|reason| reason.starts_with(NO_ACCESS)) => Some(format!(
            "the image service needs a right of its own on the bucket, Reader to import and Writer to export: `{AUTHORIZE}`"
        )),
        VpcError::Overdue { .. } => {
            Some("it may still get there: `snapferry snapshot list` and `snapferry images list` show how far it is".into())
        }
        VpcError::Refused { refusal, .. } if refusal.has(BUSY) => {
            Some("IBM takes one snapshot of a volume at a time: a backup policy may be at it. Try again in some minutes".into())
        }
        VpcError::Identity { source, .. } => of_identity(source),
        VpcError::Proxy { source, .. } => Some(of_proxy(source)),
        _ => None,
    }
}

/// Returns the hint for a missing role: the role, the service, and the command that grants it.
fn missing_role(request: &Request) -> String {
    let (role, on) = match (&request.method, request.path.as_str()) {
        (_, path) if path.starts_with("/v3/tags") => {
            ("Editor", "what is tagged: snapshots, volumes and images of VPC Infrastructure Services")
        }
        (method, _) if *method == Method::GET => ("Viewer", "VPC Infrastructure Services"),
        (_, path) if path.ends_with("/volume_attachments") => {
            ("Editor", "the server that snapferry runs on, which attaching a volume changes")
        }
        _ => ("Editor", "VPC Infrastructure Services"),
    };
    format!(
        "it needs the role {role} on {on}: `ibmcloud iam trusted-profile-policy-create PROFILE --roles {role} --service-name is` \
         (service-policy-create for a service ID); `snapferry doctor` shows what else is missing"
    )
}

/// Returns the region that the user may have meant, if IBM has none of the name `region`.
fn suggested_region(region: &str) -> Option<&'static str> {
    if REGIONS.contains(&region) { None } else { similar(region, REGIONS).first().copied() }
}

fn unreachable(host: &str) -> String {
    let name = host.trim_start_matches("https://");
    if name.starts_with("tags.") {
        return "images are tagged there, by IBM's Global Tagging: a server without a public gateway reaches it at \
                https://tags.private.global-search-tagging.cloud.ibm.com (--vpc-endpoint private, or --tagging-endpoint URL)"
            .to_owned();
    }
    let region = name.split('.').next().unwrap_or_default();
    let suggestion = suggested_region(region)
        .map_or_else(String::new, |suggestion| format!("was --region {suggestion} meant? "));
    format!(
        "{suggestion}check --region (`ibmcloud is regions` lists them) and --vpc-endpoint, and that this machine may reach it: a server \
         without a public gateway needs --vpc-endpoint private"
    )
}

pub fn of_identity(error: &IdentityError) -> Option<String> {
    match error {
        IdentityError::MetadataOff { .. } => Some(
            "switch the instance metadata service on (`ibmcloud is instance-update SERVER --metadata-service true`), or give \
             --api-key-file"
                .into(),
        ),
        IdentityError::Refused { .. } => Some(
            "check the API key (`ibmcloud iam service-api-key-create NAME SERVICE_ID --file key.json` makes one), or that the \
             trusted profile is linked to this server (`ibmcloud iam trusted-profile-links PROFILE`)"
                .into(),
        ),
        IdentityError::Unreachable { .. } => {
            Some("check --iam-endpoint, and that this machine may reach it: `curl -sI` with its address tells".into())
        }
        IdentityError::Proxy { source, .. } => Some(of_proxy(source)),
        _ => None,
    }
}

pub fn of_proxy(fault: &ProxyFault) -> String {
    let variable = fault.proxy().variable();
    match fault {
        ProxyFault::Unreachable { .. } => format!(
            "check {variable}, and that the proxy runs; what is reached without a proxy is listed in NO_PROXY, by name, domain or network"
        ),
        ProxyFault::Credentials { proxy } => {
            let (scheme, host) = proxy.address().split_once("://").map_or_else(
                || ("http".to_owned(), String::new()),
                |(scheme, host)| (scheme.to_owned(), host.to_owned()),
            );
            format!(
                "put the right ones into the variable: {variable}={scheme}://USER:PASSWORD@{host}, with %40 for @, %3A for :, %2F for / and \
                 %23 for # in them"
            )
        }
        ProxyFault::Refused { status, target, .. } if *status >= 500 => format!(
            "the proxy can't reach {target} either: ask who runs it; if this machine can reach it by itself, list it in NO_PROXY"
        ),
        ProxyFault::Refused { target, .. } => format!(
            "the proxy does not allow {target}: ask who runs it; if this machine can reach it by itself, list it in NO_PROXY"
        ),
    }
}

pub fn of_store(error: &StoreError) -> Option<String> {
    match error {
        StoreError::NoSuchBucket { bucket, .. } => Some(format!(
            "check the bucket's name, and that it was made in the region that is asked (--region, or --bucket-region of a replication); \
             `ibmcloud cos bucket-create --bucket {bucket} --region REGION` makes it"
        )),
        StoreError::Denied { operation, code, .. } => Some(denied(&operation.target, code)),
        StoreError::CopyRefused { status: 403, .. } => Some(
            "the role Writer has the right to copy parts of objects (object.copy_part), and the role Object Writer has not: \
             give Writer on the bucket, or send the whole image each time"
                .into(),
        ),
        StoreError::CopyRefused { .. } => Some("every run sends the whole image to this store".into()),
        StoreError::Untrusted { .. } => Some("give the authority that signed it: --ca-file PEM".into()),
        StoreError::Connection { endpoint, .. } => Some(match region_of_direct_endpoint(endpoint) {
            Some(region) => {
                let suggestion = suggested_region(region).map_or_else(String::new, |suggestion| {
                    format!("was region {suggestion} meant, not {region}? ")
                });
                format!(
                    "{suggestion}IBM COS' direct endpoints are reached from inside a VPC only; elsewhere give --endpoint public"
                )
            }
            None => CHECK_ENDPOINT.into(),
        }),
        StoreError::TimedOut { .. } => Some(CHECK_ENDPOINT.into()),
        StoreError::WrongRegion { .. } => Some(
            "give the region that the bucket was made in: --region (of a replication: --bucket-region)"
                .into(),
        ),
        StoreError::InDoubt { .. } => Some("look whether the image is there before it is made again".into()),
        StoreError::Full { .. } => {
            Some("free space on it, or send the image straight to a bucket: --bucket".into())
        }
        StoreError::Identity { source, .. } => of_identity(source),
        StoreError::Proxy { source, .. } => Some(of_proxy(source)),
        StoreError::Io { operation, source } => of_file(operation.request, source),
        _ => None,
    }
}

const CHECK_ENDPOINT: &str = "check --endpoint, and that this machine may reach it";

/// Returns the region in the name of a direct endpoint of IBM COS, such as
/// `https://s3.direct.us-south.cloud-object-storage.appdomain.cloud`.
fn region_of_direct_endpoint(endpoint: &str) -> Option<&str> {
    endpoint.split_once("://s3.direct.")?.1.split('.').next()
}

/// Returns the hint for a file that can't be made.
fn of_file(request: &str, error: &std::io::Error) -> Option<String> {
    match error.kind() {
        ErrorKind::InvalidFilename => Some(
            "a file's name has at most 255 bytes, and the manifest that is put beside an image has 9 more than the image's: give a shorter one"
                .into(),
        ),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem if request == "create" => Some(
            "an image is written under a hidden name in its folder, and its manifest beside it: give a folder that you may write to. \
             `snapferry qemu-img convert -O qcow2` writes a file that is there where it lies, and no manifest"
                .into(),
        ),
        _ => None,
    }
}

fn denied(target: &str, code: &str) -> String {
    match code {
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" => {
            "the store does not know the key, or its secret is another one: check the access key and its secret; docs/configuration.md, \"Credentials\", says where they are looked for".into()
        }
        "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" | "Unauthorized" => {
            "the store does not take the token (any more): it has expired or was revoked, it is of another account, or the store has lost it. \
             Start again, with a new one; `snapferry doctor` tells whose it is"
                .into()
        }
        "RequestTimeTooSkewed" => "this machine's clock is wrong: `timedatectl set-ntp true`".into(),
        _ => {
            let bucket = target.strip_prefix("s3://").and_then(|rest| rest.split('/').next()).unwrap_or("BUCKET");
            format!(
                "the store does not say which right is missing. Likely: the role Writer on the bucket (Reader to verify and restore), given by \
                 `ibmcloud iam trusted-profile-policy-create PROFILE --roles Writer --service-name cloud-object-storage --resource-type \
                 bucket --resource {bucket}` (service-policy-create for a service ID); or a policy or firewall of the bucket that wants \
                 something else, such as a header or an address, as its message may tell; docs/configuration.md, \"Credentials\", says whose rights count"
            )
        }
    }
}

pub fn of_queue(error: &QueueError) -> Option<String> {
    match error {
        QueueError::Unavailable { .. } => Some(
            "check --redis, and that this machine may reach it; a Redis that speaks TLS, as IBM's does, is named by \
             rediss://HOST:PORT with --redis-ca-file"
                .into(),
        ),
        QueueError::Rights { .. } => Some(format!("on that Redis: {}", rights::acl_line("USER", "snapferry"))),
        QueueError::Refused { .. } => Some(
            "check --redis-user, the password (SNAPFERRY_REDIS_PASSWORD or --redis-password-file) and --redis-ca-file; \
             `snapferry doctor` tries them"
                .into(),
        ),
        QueueError::NoSuchJob { .. } => Some("`snapferry jobs list` shows those that there are".into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_that_nobody_has_is_guessed_at() {
        assert!(unreachable("https://us-soutt.iaas.cloud.ibm.com").contains("was --region us-south meant?"));
        for known in [
            "https://us-south.iaas.cloud.ibm.com",
            "https://xx-new.iaas.cloud.ibm.com",
            "http://127.0.0.1:8080",
        ] {
            assert!(!unreachable(known).contains("meant"), "{known}");
        }
    }

    #[test]
    fn a_missing_role_is_named_by_what_was_asked() {
        let hint_for = |method: Method, path: &str| {
            missing_role(&Request {
                method,
                host: "https://a".to_owned(),
                path: path.to_owned(),
                id: "1".to_owned(),
            })
        };
        assert!(hint_for(Method::GET, "/v1/instances").contains("role Viewer on VPC"));
        assert!(hint_for(Method::POST, "/v1/snapshots").contains("role Editor on VPC"));
        assert!(
            hint_for(Method::POST, "/v1/instances/a/volume_attachments").contains("Editor on the server")
        );
        assert!(hint_for(Method::POST, "/v3/tags/attach").contains("Editor on what is tagged"));
    }

    /// No hint claims a cause that the error code does not prove.
    #[test]
    fn what_is_denied_is_explained_by_its_code_alone() {
        for (code, expected, unexpected) in [
            ("AccessDenied", "Likely: the role Writer", "it needs the role"),
            ("Forbidden", "a policy or firewall of the bucket", "it needs the role"),
            ("SomethingNew", "the store does not say which right is missing", "it needs the role"),
            ("InvalidAccessKeyId", "check the access key", "role"),
            ("SignatureDoesNotMatch", "check the access key", "role"),
            ("ExpiredToken", "does not take the token", "role"),
            ("InvalidToken", "the store has lost it", "role"),
            ("Unauthorized", "does not take the token", "role"),
            ("RequestTimeTooSkewed", "clock is wrong", "role"),
        ] {
            let hint = denied("s3://images/a.qcow2", code);
            assert!(hint.contains(expected) && !hint.contains(unexpected), "{code}: {hint}");
        }
        let refused = |code: &str| {
            let fault = snapferry_ibmcloud::vpc::Fault {
                code: code.to_owned(),
                ..snapferry_ibmcloud::vpc::Fault::default()
            };
            let refusal = snapferry_ibmcloud::vpc::Refusal {
                status: 403,
                faults: vec![fault],
                ..snapferry_ibmcloud::vpc::Refusal::default()
            };
            let request = Request {
                method: Method::POST,
                host: "https://a".to_owned(),
                path: "/v1/snapshots".to_owned(),
                id: "1".to_owned(),
            };
            of_cloud(&VpcError::Refused { request, refusal }).expect("a hint")
        };
        assert!(refused("not_authorized").starts_with("it needs the role Editor"));
        assert!(refused("forbidden").starts_with("the cloud does not say that a role is missing"));
    }
}
