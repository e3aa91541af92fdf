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
    pub life: Duration,
}

/// Request by which a token source gets a token.
#[async_trait]
pub(super) trait Ask: Send + Sync + 'static {
    /// Sends one request.
    async fn ask(&self) -> Result<Grant, IdentityError>;
}

/// Token with the time from which to refresh it.
#[derive(Clone, Debug)]
struct CachedToken {
    token: Token,
    refresh_from: SystemTime,
}

/// Source of tokens ([`TokenSource`]) that keeps one token and gets new ones by `A`.
pub(super) struct Refreshing<A> {
    pub(super) way: A,
    clock: Arc<dyn Clock>,
    backoff: Backoff,
    held: RwLock<Option<CachedToken>>,
    /// Lock for the right to request a token. The other callers wait for it, or use the old token.
    asking: Mutex<()>,
}

impl<A: Ask> Refreshing<A> {
    pub(super) fn new(way: A, clock: Arc<dyn Clock>) -> Self {
        Self { way, clock, backoff: Backoff::TOKEN, held: RwLock::new(None), asking: Mutex::new(()) }
    }

    fn held(&self) -> Option<CachedToken> {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn hold(&self, held: CachedToken) {
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = Some(held);
    }

    /// Returns the present token, if it can be used for another request.
    fn usable(&self) -> Option<CachedToken> {
        self.held().filter(|held| self.clock.now() + DEAD_EARLY < held.token.expires)
    }

    /// Sends one request. The guard proves that the caller has the right to send it.
    async fn ask(&self, _asking: &MutexGuard<'_, ()>) -> Result<CachedToken, IdentityError> {
        // Life is counted from before the request: the request may take a while, and the issuer counts from a
        // time during it.
        let asked = self.clock.now();
        let Grant { bearer, life } = self.way.ask().await?;
        let early = EARLY.min(life / EARLY_SHARE);
        Ok(CachedToken { token: Token { bearer, expires: asked + life }, refresh_from: asked + life - early })
    }

    /// Refreshes a token that can still be used: one attempt; if it fails, the old token is used for another
    /// while.
    async fn refresh(&self, old: CachedToken, asking: MutexGuard<'_, ()>) -> Token {
        match self.ask(&asking).await {
            Ok(held) => {
                self.hold(held.clone());
                held.token
            }
            Err(err) => {
                tracing::warn!("the token could not be refreshed, going on with the one we have: {err}");
                let token = old.token.clone();
                self.hold(CachedToken { refresh_from: self.clock.now() + PAUSE_AFTER_FAILURE, ..old });
                token
            }
        }
    }

    /// Fetches a token if there is no usable one, with several attempts.
    async fn fetch(&self, asking: MutexGuard<'_, ()>) -> Result<Token, IdentityError> {
        let mut attempt = 1;
        loop {
            let err = match self.ask(&asking).await {
                Ok(held) => {
                    self.hold(held.clone());
                    return Ok(held.token);
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
impl<A: Ask> TokenSource for Refreshing<A> {
    fn refused(&self, token: &Token) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        // Only the refused token is dropped: there may be a new one by now.
        if held.as_ref().is_some_and(|held| held.token.bearer == token.bearer) {
            *held = None;
        }
    }

    async fn token(&self) -> Result<Token, IdentityError> {
        if let Some(held) = self.usable() {
            if self.clock.now() < held.refresh_from {
                return Ok(held.token);
            }
            // Another caller is refreshing it already, and the old token can still be used.
            let Ok(asking) = self.asking.try_lock() else { return Ok(held.token) };
            return match self.usable() {
                Some(fresh) if self.clock.now() < fresh.refresh_from => Ok(fresh.token),
                _ => Ok(self.refresh(held, asking).await),
            };
        }
        let asking = self.asking.lock().await;
        match self.usable() {
            Some(held) => Ok(held.token),
            None => self.fetch(asking).await,
        }
    }
}
