//! HTTP client with a limit on the length of responses. The limit is needed because the SDK reads a whole
//! response before it parses it.

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::config::{ConfigBag, RuntimeComponents, SharedHttpClient};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponentsBuilder;
use http_body_util::{LengthLimitError, Limited};
use snapferry_base::units::{KIB, MIB, to_usize};

/// Largest response of a store. A page of a list has a thousand entries, each with a key of 1024 bytes, which
/// may be six times as long with escapes.
pub const LARGEST_RESPONSE: u64 = 16 * MIB;
/// Largest error response: S3's document has a few hundred bytes; a proxy may send its own page.
pub(super) const LARGEST_ERROR_RESPONSE: u64 = 256 * KIB;

/// An HTTP client, or one of its connectors, with the limit on responses.
#[derive(Debug)]
pub(super) struct BoundedClient<T>(pub T);

impl HttpClient for BoundedClient<SharedHttpClient> {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(BoundedClient(self.0.http_connector(settings, components)))
    }

    fn validate_base_client_config(
        &self,
        components: &RuntimeComponentsBuilder,
        config: &ConfigBag,
    ) -> Result<(), BoxError> {
        HttpClient::validate_base_client_config(&self.0, components, config)
    }

    fn validate_final_config(
        &self,
        components: &RuntimeComponents,
        config: &ConfigBag,
    ) -> Result<(), BoxError> {
        HttpClient::validate_final_config(&self.0, components, config)
    }
}

impl HttpConnector for BoundedClient<SharedHttpConnector> {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        // A request with a range reads an object; the caller checks the length of that response.
        let of_object = request.headers().get("range").is_some();
        let response = self.0.call(request);
        HttpConnectorFuture::new(async move { Ok(limit_length(response.await?, of_object)) })
    }
}

fn limit_length(response: HttpResponse, of_object: bool) -> HttpResponse {
    let max = match (response.status().is_success(), of_object) {
        (true, true) => return response,
        (true, false) => LARGEST_RESPONSE,
        (false, _) => LARGEST_ERROR_RESPONSE,
    };
    let mut response = response;
    let body = std::mem::replace(response.body_mut(), SdkBody::taken());
    *response.body_mut() = SdkBody::from_body_1_x(Limited::new(body, to_usize(max)));
    response
}

/// True if an error means that a response was longer than the limit.
pub(super) fn is_too_long(err: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(err);
    while let Some(err) = cause {
        if err.is::<LengthLimitError>() {
            return true;
        }
        cause = err.source();
    }
    false
}
