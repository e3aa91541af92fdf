//! Reasons why a run that began with a base gives it up, and sends all of the disk.

use crate::store::{CopySource, ObjectStore, StoreError};

/// Reason why a run gave its base up.
#[derive(Debug, thiserror::Error)]
pub enum WhyFull {
    /// The store copies no parts, or not for this identity, or does not let it read the base.
    #[error("the store refused to copy from it")]
    Refused(#[source] StoreError),
    /// The store demands parts of equal size.
    #[error("the store takes no parts of unequal size")]
    EqualParts(#[source] StoreError),
    /// The base does not exist any more.
    #[error("it was removed while it was copied")]
    Vanished,
    /// The base is another object by now.
    #[error("it was replaced while it was copied")]
    Replaced,
    /// Bytes of the base are not those that its manifest records.
    #[error("it is damaged at byte {at}: {reason}")]
    Damaged {
        /// Offset in the base.
        at: u64,
        reason: String,
    },
    /// What the store holds of the copies can't be looked at.
    #[error("its copies can't be compared with the store's list of the parts")]
    Unlisted(#[source] StoreError),
    /// The store copied something else.
    #[error("the store copied something else: {0}")]
    Disproved(String),
}

impl WhyFull {
    /// Returns the reason in one word, for programs.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::EqualParts(_) => "equal-parts",
            Self::Vanished => "vanished",
            Self::Replaced => "replaced",
            Self::Damaged { .. } => "damaged",
            Self::Unlisted(_) => "unlisted",
            Self::Disproved(_) => "disproved",
        }
    }

    /// Returns the store's refusal, if every other run with a base would meet it too.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        match self {
            Self::Refused(error) | Self::EqualParts(error) => Some(error.to_string()),
            Self::Vanished
            | Self::Replaced
            | Self::Damaged { .. }
            | Self::Unlisted(_)
            | Self::Disproved(_) => None,
        }
    }
}

/// Trouble of an upload.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The conversion fails.
    Final(StoreError),
    /// The base is given up, and all of the disk is sent.
    GiveUp(WhyFull),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Final(error)
    }
}

impl From<WhyFull> for Trouble {
    fn from(why: WhyFull) -> Self {
        Self::GiveUp(why)
    }
}

/// Returns the trouble that an error of a copy, or of a read of the base, means.
pub(super) async fn of_base(store: &dyn ObjectStore, base: &CopySource, error: StoreError) -> Trouble {
    match error {
        StoreError::NoSuchKey { .. } => WhyFull::Vanished.into(),
        // Stores differ in what they compare, so HEAD decides.
        StoreError::Precondition { .. } => match is_unchanged(store, base).await {
            Ok(()) => WhyFull::Refused(error).into(),
            Err(trouble) => trouble,
        },
        StoreError::Mismatch { .. } => WhyFull::Disproved(error.to_string()).into(),
        StoreError::CopyRefused { .. } | StoreError::Unsupported { .. } | StoreError::Denied { .. } => {
            WhyFull::Refused(error).into()
        }
        StoreError::Refused { .. } if !error.class().is_retryable() => WhyFull::Refused(error).into(),
        error => error.into(),
    }
}

/// Checks that the base is the version that was opened.
pub(super) async fn is_unchanged(store: &dyn ObjectStore, base: &CopySource) -> Result<(), Trouble> {
    match store.head(&base.key).await {
        Ok(Some(meta)) if (meta.size, &meta.etag) == (base.size, &base.etag) => Ok(()),
        Ok(Some(_)) => Err(WhyFull::Replaced.into()),
        Ok(None) => Err(WhyFull::Vanished.into()),
        Err(error @ (StoreError::Denied { .. } | StoreError::Unsupported { .. })) => {
            Err(WhyFull::Refused(error).into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Returns the trouble that an error of the completion means, in an upload with copied parts.
pub(super) fn of_completion(error: StoreError) -> Trouble {
    match &error {
        StoreError::Refused { code, .. } if code == "InvalidPart" => WhyFull::EqualParts(error).into(),
        _ if error.is_damage() => WhyFull::Disproved(error.to_string()).into(),
        StoreError::Refused { .. } if !error.class().is_retryable() => WhyFull::Refused(error).into(),
        StoreError::Mismatch { .. } => WhyFull::Disproved(error.to_string()).into(),
        _ => error.into(),
    }
}
