//! Options that a store or the policy of a bucket may require: the form of its address, and headers of
//! requests.

use std::fmt;
use std::str::FromStr;

use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::types::{ServerSideEncryption, StorageClass as SdkStorageClass};

/// Place of the bucket's name in the address of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Addressing {
    /// In the path: `https://s3.example.com/BUCKET/KEY`. Every known store takes it, except for new buckets
    /// of some.
    #[default]
    Path,
    /// In the name of the host: `https://BUCKET.s3.example.com/KEY`.
    Virtual,
}

impl FromStr for Addressing {
    type Err = String;
    fn from_str(typed: &str) -> Result<Self, String> {
        match typed {
            "path" => Ok(Self::Path),
            "virtual" => Ok(Self::Virtual),
            other => Err(format!(
                "{other:?} is no form of a bucket's address: give path (https://HOST/BUCKET) or virtual (https://BUCKET.HOST)"
            )),
        }
    }
}

impl fmt::Display for Addressing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Path => "path",
            Self::Virtual => "virtual",
        })
    }
}

/// Encryption of new objects by the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// With keys that the store manages.
    Aes256,
    /// With a key of a key management service: the one of this name, or the bucket's default one.
    Kms { key: Option<String> },
}

impl FromStr for Encryption {
    type Err = String;
    fn from_str(typed: &str) -> Result<Self, String> {
        match typed {
            "AES256" => Ok(Self::Aes256),
            "aws:kms" => Ok(Self::Kms { key: None }),
            other => match other.strip_prefix("aws:kms:") {
                Some(key) if is_header_text(key) && !key.is_empty() => {
                    Ok(Self::Kms { key: Some(key.to_owned()) })
                }
                _ => {
                    Err(format!("{other:?} is no encryption of a store: give AES256, aws:kms or aws:kms:KEY"))
                }
            },
        }
    }
}

impl fmt::Display for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aes256 => f.write_str("AES256"),
            Self::Kms { key: None } => f.write_str("aws:kms"),
            Self::Kms { key: Some(key) } => write!(f, "aws:kms:{key}"),
        }
    }
}

impl Encryption {
    pub(super) fn algorithm(&self) -> ServerSideEncryption {
        match self {
            Self::Aes256 => ServerSideEncryption::Aes256,
            Self::Kms { .. } => ServerSideEncryption::AwsKms,
        }
    }

    pub(super) fn key(&self) -> Option<&str> {
        match self {
            Self::Aes256 => None,
            Self::Kms { key } => key.as_deref(),
        }
    }
}

/// Storage class of new objects, under the store's own name for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageClass(String);

impl FromStr for StorageClass {
    type Err = String;
    fn from_str(typed: &str) -> Result<Self, String> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if !typed.is_empty() && typed.chars().all(is_name) {
            Ok(Self(typed.to_owned()))
        } else {
            Err(format!(
                "{typed:?} is no name of a storage class: give one such as STANDARD_IA, as the store names it"
            ))
        }
    }
}

impl fmt::Display for StorageClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StorageClass {
    pub(super) fn to_sdk(&self) -> SdkStorageClass {
        SdkStorageClass::from(self.0.as_str())
    }
}

/// Headers that the policy of a bucket may require. The default sends none of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requirements {
    /// Encryption that is asked for with each new object.
    pub encryption: Option<Encryption>,
    /// Storage class that is asked for with each new object.
    pub storage_class: Option<StorageClass>,
    pub payer: Payer,
}

/// Account that pays for requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Payer {
    /// The owner of the bucket.
    #[default]
    Owner,
    /// The account that sends the requests, which has to confirm it with each one.
    Requester,
}

fn is_header_text(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Hook that confirms with each request that its sender pays.
#[derive(Debug)]
pub(super) struct RequesterPays;

impl Intercept for RequesterPays {
    fn name(&self) -> &'static str {
        "RequesterPays"
    }

    // Before the signature, which covers the header.
    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        context.request_mut().headers_mut().insert("x-amz-request-payer", "requester");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encryptions_are_s3s_own_names() {
        let parse = |typed: &str| typed.parse::<Encryption>();
        assert_eq!(parse("AES256"), Ok(Encryption::Aes256));
        assert_eq!(parse("aws:kms"), Ok(Encryption::Kms { key: None }));
        let key = "arn:aws:kms:eu:1:key/2";
        assert_eq!(parse(&format!("aws:kms:{key}")), Ok(Encryption::Kms { key: Some(key.to_owned()) }));
        for wrong in ["aes256", "kms", "aws:kms:", "aws:kms:a b", "aws:kms:a\r\nx: y", ""] {
            assert!(parse(wrong).expect_err(wrong).contains("give AES256, aws:kms or aws:kms:KEY"));
        }
    }

    #[test]
    fn what_is_no_storage_class_or_addressing_is_refused_with_what_is() {
        for wrong in ["", "a b", "x\r\ny"] {
            assert!(wrong.parse::<StorageClass>().expect_err(wrong).contains("STANDARD_IA"));
        }
        assert!("STANDARD_IA".parse::<StorageClass>().is_ok());
        assert!("host".parse::<Addressing>().expect_err("host").contains("give path"));
        assert_eq!("virtual".parse(), Ok(Addressing::Virtual));
    }
}
