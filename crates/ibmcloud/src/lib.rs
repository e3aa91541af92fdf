//! Clients for IBM Cloud over HTTP: tokens from IAM and the instance metadata service, and the VPC API.

pub mod answers;
pub mod http_client;
pub mod iam;
pub mod vpc;
