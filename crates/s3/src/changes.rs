//! Requests for changes, which have lines in the audit trail.

use std::time::Duration;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::RequestId;
use snapferry_base::audit::SentChange;
use snapferry_engine::store::{Operation, StoreError};

use super::S3Store;
use super::errors::Subject;

impl S3Store {
    /// Makes one attempt at a change, as [`Self::attempt`] does, with a line in the audit trail.
    pub(super) fn change<T, E>(
        &self,
        operation: &Operation,
        upload_id: Option<&str>,
        body: u64,
        request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>> + Send,
    ) -> impl Future<Output = Result<T, StoreError>>
    where
        T: RequestId,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        self.change_with_deadline(self.deadline_of(body), operation, upload_id.into(), request)
    }

    pub(super) fn change_with_deadline<T, E>(
        &self,
        deadline: Duration,
        operation: &Operation,
        subject: Subject<'_>,
        request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>> + Send,
    ) -> impl Future<Output = Result<T, StoreError>>
    where
        T: RequestId,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        // Boxed before it is part of any other future, because the SDK's futures have tens of kilobytes.
        let logged = Box::pin(async move {
            let change = SentChange::new(operation, None);
            let response = request.await;
            match &response {
                Ok(response) => change.done(None, response.request_id()),
                Err(SdkError::ConstructionFailure(_)) => change.not_made(),
                Err(SdkError::ServiceError(refusal)) if refusal.raw().status().is_client_error() => {
                    change.not_made();
                }
                // The store may have made the change all the same: the line has an unknown outcome.
                Err(_) => drop(change),
            }
            response
        });
        self.attempt_with_deadline(deadline, operation, subject, logged)
    }
}
