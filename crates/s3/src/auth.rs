//! Authorization with IBM IAM tokens: a request is not signed, but has the token in its `authorization`
//! header.

use std::sync::{Arc, PoisonError, RwLock};

use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use snapferry_base::identity::{IdentityError, TokenSource};
use snapferry_base::secret::Secret;

/// Token for the requests. The SDK's hooks can't wait for a new one, so the sender of a request calls
/// [`Bearer::renew`] first.
#[derive(Clone)]
pub(super) struct Bearer {
    source: Arc<dyn TokenSource>,
    current: Arc<RwLock<Option<Secret>>>,
}

impl std::fmt::Debug for Bearer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bearer(***)")
    }
}

impl Bearer {
    pub(super) fn new(source: Arc<dyn TokenSource>) -> Self {
        Self { source, current: Arc::default() }
    }

    /// Makes sure that the next request has a valid token. Fast while the current token is valid.
    pub(super) async fn renew(&self) -> Result<(), IdentityError> {
        let token = self.source.token().await?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(token.bearer);
        Ok(())
    }
}

impl Intercept for Bearer {
    fn name(&self) -> &'static str {
        "Bearer"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let token = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let token = token.ok_or("no token was fetched before the request")?;
        let headers = context.request_mut().headers_mut();
        headers
            .try_insert("authorization", format!("Bearer {}", token.reveal()))
            .map_err(|_| "the token is no header value")?;
        Ok(())
    }
}
