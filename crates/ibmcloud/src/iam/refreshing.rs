//! Token source with one token for all callers, which it refreshes before the token expires.
//!
//! The first caller in the refresh period requests a new token, while the others use the old one. A refresh
//! that fails is tried again later, and is an error only if the old token can't be used any more.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use snapferry_base::clock::Clock;
use snapferry_base::identity::{IdentityError, Token, TokenSource};
use snapferry_base::retry::Backoff;
use snapferry_base::secret::Secret;
use tokio::sync::{Mutex, MutexGuard};

/// Refresh period at the end of a token's life: the last twenty minutes of its hour.
const EARLY: Duration = Duration::from_secs(20 * 60);
/// Divisor of a token's life that limits the refresh period: for a short-lived token, it is at most half of
/// its life.
const EARLY_SHARE: u32 = 2;
/// Time before its expiry at which a token counts as expired: requests take time, and clocks differ.
const DEAD_EARLY: Duration = Duration::from_secs(30);
/// Pause after a failed refresh, while the old token can be used.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(30);

/// Granted token: its text, and its life from the time of the request.
pub(super) struct Grant {
    pub bearer: Secret,
    pub lifetime: Duration,
}

/// Request by which a token source gets a token.
#[async_trait]
pub(super) trait TokenRequest: Send + Sync + 'static {
    /// Sends one request.
    async fn request_token(&self) -> Result<Grant, IdentityError>;
}

/// Token with the time from which to refresh it.
#[derive(Clone, Debug)]
struct CachedToken {
    token: Token,
    refresh_from: SystemTime,
}

/// Source of tokens ([`TokenSource`]) that keeps one token and gets new ones by `A`.
pub(super) struct Refreshing<A> {
    pub(super) request: A,
    clock: Arc<dyn Clock>,
    backoff: Backoff,
    cached: RwLock<Option<CachedToken>>,
    /// Lock for the right to request a token. The other callers wait for it, or use the old token.
    refresh_lock: Mutex<()>,
}

impl<A: TokenRequest> Refreshing<A> {
    pub(super) fn new(request: A, clock: Arc<dyn Clock>) -> Self {
        Self {
            request,
            clock,
            backoff: Backoff::TOKEN,
            cached: RwLock::new(None),
            refresh_lock: Mutex::new(()),
        }
    }

    fn cached(&self) -> Option<CachedToken> {
        self.cached.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn store(&self, cached: CachedToken) {
        *self.cached.write().unwrap_or_else(PoisonError::into_inner) = Some(cached);
    }

    /// Returns the present token, if it can be used for another request.
    fn usable(&self) -> Option<CachedToken> {
        self.cached().filter(|cached| self.clock.now() + DEAD_EARLY < cached.token.expires)
    }

    /// Sends one request. The guard proves that the caller has the right to send it.
    async fn request_token(&self, _guard: &MutexGuard<'_, ()>) -> Result<CachedToken, IdentityError> {
        // Life is counted from before the request: the request may take a while, and the issuer counts from a
        // time during it.
        let requested_at = self.clock.now();
        let Grant { bearer, lifetime } = self.request.request_token().await?;
        let early = EARLY.min(lifetime / EARLY_SHARE);
        Ok(CachedToken {
            token: Token { bearer, expires: requested_at + lifetime },
            refresh_from: requested_at + lifetime - early,
        })
    }

    /// Refreshes a token that can still be used: one attempt; if it fails, the old token is used for another
    /// while.
    async fn refresh(&self, old: CachedToken, guard: MutexGuard<'_, ()>) -> Token {
        match self.request_token(&guard).await {
            Ok(cached) => {
                self.store(cached.clone());
                cached.token
            }
            Err(err) => {
                tracing::warn!("the token could not be refreshed, going on with the one we have: {err}");
                let token = old.token.clone();
                self.store(CachedToken { refresh_from: self.clock.now() + PAUSE_AFTER_FAILURE, ..old });
                token
            }
        }
    }

    /// Fetches a token if there is no usable one, with several attempts.
    async fn fetch(&self, guard: MutexGuard<'_, ()>) -> Result<Token, IdentityError> {
        let mut attempt = 1;
        loop {
            let err = match self.request_token(&guard).await {
                Ok(cached) => {
                    self.store(cached.clone());
                    return Ok(cached.token);
                }
                Err(err) => err,
            };
            attempt += 1;
            match self.backoff.wait_before(attempt) {
                Some(wait) if err.class().is_retryable() => {
                    tracing::warn!(attempt, wait_ms = wait.as_millis(), "asking for a token again: {err}");
                    self.clock.sleep(wait).await;
                }
                _ => return Err(err),
            }
        }
    }
}

#[async_trait]
impl<A: TokenRequest> TokenSource for Refreshing<A> {
    fn refused(&self, token: &Token) {
        let mut cached = self.cached.write().unwrap_or_else(PoisonError::into_inner);
        // Only the refused token is dropped: there may be a new one by now.
        if cached.as_ref().is_some_and(|cached| cached.token.bearer == token.bearer) {
            *cached = None;
        }
    }

    async fn token(&self) -> Result<Token, IdentityError> {
        if let Some(cached) = self.usable() {
            if self.clock.now() < cached.refresh_from {
                return Ok(cached.token);
            }
            // Another caller is refreshing it already, and the old token can still be used.
            let Ok(guard) = self.refresh_lock.try_lock() else { return Ok(cached.token) };
            return match self.usable() {
                Some(fresh) if self.clock.now() < fresh.refresh_from => Ok(fresh.token),
                _ => Ok(self.refresh(cached, guard).await),
            };
        }
        let guard = self.refresh_lock.lock().await;
        match self.usable() {
            Some(cached) => Ok(cached.token),
            None => self.fetch(guard).await,
        }
    }
}
