//! Clients for IBM Cloud over HTTP: tokens from IAM and the instance metadata service, and the VPC API.

#![warn(missing_docs)]

pub mod http_client;
pub mod iam;
pub mod response_limits;
pub mod vpc;
