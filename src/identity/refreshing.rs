//! A token that is held for everybody, and fetched anew in time.
//!
//! One token serves all. It is refreshed early, by whoever asks first, while the others go on with the old one; a refresh that
//! fails is tried again later, and is an error only for a token that is of no use any more.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::sync::{Mutex, MutexGuard};

use super::{IdentityError, Token, TokenSource};
use crate::clock::Clock;
use crate::retry::Backoff;
use crate::secret::Secret;

/// A token is refreshed in the last twenty minutes of its hour...
const EARLY: Duration = Duration::from_secs(20 * 60);
/// ...but of a shorter one never before half its life is over.
const EARLY_SHARE: u32 = 2;
/// A token is taken for dead this long before its issuer does: requests take time, and clocks differ.
const DEAD_EARLY: Duration = Duration::from_secs(30);
/// After a refresh that failed, while the old token is good.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(30);

/// A token as it was granted: its text, and its life from when it was asked for.
pub(super) struct Grant {
    pub bearer: Secret,
    pub life: Duration,
}

/// One way of getting a token.
#[async_trait]
pub(super) trait Ask: Send + Sync + 'static {
    /// Asks once.
    async fn ask(&self) -> Result<Grant, IdentityError>;
}

/// A token, and when to fetch the next.
#[derive(Clone, Debug)]
struct Held {
    token: Token,
    refresh_from: SystemTime,
}

/// A [`TokenSource`] over one way of getting a token.
pub(super) struct Refreshing<A> {
    pub(super) way: A,
    clock: Arc<dyn Clock>,
    backoff: Backoff,
    held: RwLock<Option<Held>>,
    /// Whoever holds it asks; the others wait for it, or go on with the token they have.
    asking: Mutex<()>,
}

impl<A: Ask> Refreshing<A> {
    pub(super) fn new(way: A, clock: Arc<dyn Clock>) -> Self {
        Self { way, clock, backoff: Backoff::TOKEN, held: RwLock::new(None), asking: Mutex::new(()) }
    }

    fn held(&self) -> Option<Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn hold(&self, held: Held) {
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = Some(held);
    }

    /// The token that we have, if it is good for another request.
    fn usable(&self) -> Option<Held> {
        self.held().filter(|held| self.clock.now() + DEAD_EARLY < held.token.expires)
    }

    /// One request. The guard is the right to make it.
    async fn ask(&self, _asking: &MutexGuard<'_, ()>) -> Result<Held, IdentityError> {
        // Counted from before the request: it may take a while, and the issuer counts from somewhere inside it.
        let asked = self.clock.now();
        let Grant { bearer, life } = self.way.ask().await?;
        let early = EARLY.min(life / EARLY_SHARE);
        Ok(Held { token: Token { bearer, expires: asked + life }, refresh_from: asked + life - early })
    }

    /// Refreshes a token that is still good: one attempt, and on failure the old one for another while.
    async fn refresh(&self, old: Held, asking: MutexGuard<'_, ()>) -> Token {
        match self.ask(&asking).await {
            Ok(held) => {
                self.hold(held.clone());
                held.token
            }
            Err(err) => {
                tracing::warn!("the token could not be refreshed, going on with the one we have: {err}");
                let token = old.token.clone();
                self.hold(Held { refresh_from: self.clock.now() + PAUSE_AFTER_FAILURE, ..old });
                token
            }
        }
    }

    /// Fetches a token when there is none to go on with: several attempts.
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
        // Another one by now is another matter.
        if held.as_ref().is_some_and(|held| held.token.bearer == token.bearer) {
            *held = None;
        }
    }

    async fn token(&self) -> Result<Token, IdentityError> {
        if let Some(held) = self.usable() {
            if self.clock.now() < held.refresh_from {
                return Ok(held.token);
            }
            // Somebody else is at it already: the old one will do.
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
