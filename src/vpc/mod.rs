//! IBM Cloud VPC over its REST API: one client for each region, and the way from an attachment to a device.
//!
//! ```text
//! operation ─▶ create: look, adopt, make ─▶ http: token, version, deadline, retry ─▶ region's API
//!              list: page by page
//!              wait: ask until a state is reached
//! ```
//!
//! | file | what it knows |
//! |---|---|
//! | `client/` | the API's operations, one file a noun |
//! | `client/conflict` | changes that meet something busy: look, adopt, wait, or tell |
//! | `client/create` | names as keys: never two of a thing, whatever becomes of the answers |
//! | `client/lists` | pages |
//! | `http` | one request: token, headers, deadline, and when to send it again |
//! | `wait` | polling: intervals, deadlines, states that are left and states that stay |
//! | `model/` | what the API answers |
//! | `names` | what the API takes for a name, ids, CRNs |
//! | `refusal`, `error` | IBM's error answers; what can go wrong, and its class |
//! | `device` | the path of an attached volume, and the proof that it is the one |
//!
//! There is one implementation, and no trait over it: what fails on command is the simulated region at the other end of the line, so
//! that whatever drives the cloud is tested through HTTP, headers and retries as they are.

mod client;
pub mod device;
mod error;
mod http;
pub mod model;
mod names;
mod refusal;
mod wait;

pub use client::{
    BootFrom, ClientConfig, Endpoint, ExportPrototype, GLOBAL_TAGGING, ImageFilter, ImageOrigin, ImagePatch, ImagePrototype,
    InstanceAction, InstancePrototype, LARGEST_IMAGE, Means, PRIVATE_TAGGING, RegionClient, Schedule, SnapshotFilter,
    SnapshotOrder, SnapshotPrototype, Tagging, TaggingConfig, VolumeFilter, VolumePrototype,
};
pub use error::{Request, VpcError};
pub use http::{API_VERSION, CHANGES, Heard, Policy};
pub use names::{
    AttachmentId, Crn, ExportJobId, ImageId, InstanceId, KeyId, LONGEST_NAME, LONGEST_TAG, NameError, ResourceGroupId,
    ResourceName, SecurityGroupId, SnapshotId, SubnetId, Tag, VolumeId, VpcId,
};
pub use refusal::{Fault, Refusal};
pub use wait::{LogWatch, Patience, Sighting, Verdict, Waiting, Waits, Watch};
