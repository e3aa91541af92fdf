//! Client for the REST API of IBM Cloud VPC, one for each region. It also reports the device of an attached
//! volume.
//!
//! ```text
//! operation ─▶ create: look up, adopt, create ─▶ http: token, version, deadline, retry ─▶ region's API
//!              list: page by page
//!              wait: poll until a state is reached
//! ```
//!
//! | file | contents |
//! |---|---|
//! | `client/` | the API's operations, one file for each kind of resource |
//! | `client/conflict` | changes to a busy resource: look at it, then adopt, wait or fail |
//! | `client/create` | names as keys: never two resources of one name, even if responses are lost |
//! | `client/lists` | lists and their pages |
//! | `http` | one request: token, headers, deadline, and the rules for sending it again |
//! | `wait` | polling: intervals, deadlines, passing and final states |
//! | `model/` | the API's responses |
//! | `names` | resource names as the API accepts them, tags, identifiers, CRNs |
//! | `refusal`, `error` | IBM's error responses; errors of this client and their classes |
//!
//! There is one implementation and no trait over it. Tests use a simulated region that fails on command, so
//! the code that uses the cloud is tested through real HTTP, headers and retries.

mod client;
mod error;
mod http;
pub mod model;
mod names;
mod refusal;
mod wait;

pub use client::{
    BootFrom, ClientConfig, ClientContext, Endpoint, ExportPrototype, GLOBAL_TAGGING, ImageFilter,
    ImageOrigin, ImagePatch, ImagePrototype, InstanceAction, InstancePrototype, LARGEST_IMAGE,
    PRIVATE_TAGGING, RegionClient, Schedule, SnapshotFilter, SnapshotOrder, SnapshotPrototype, Tagging,
    TaggingConfig, VolumeFilter, VolumePrototype,
};
pub use error::{Request, VpcError};
pub use http::{API_VERSION, KnownHosts, Policy};
pub use names::{
    AttachmentId, Crn, ExportJobId, ImageId, InstanceId, KeyId, LONGEST_NAME, LONGEST_TAG, NameError,
    ResourceGroupId, ResourceName, SecurityGroupId, SnapshotId, SubnetId, Tag, VolumeId, VpcId,
};
pub use refusal::{Fault, Refusal};
pub use reqwest::Method;
pub use wait::{LogWatch, Patience, Sighting, Verdict, Waiting, Waits, Watch};
