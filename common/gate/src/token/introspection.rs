//! Takes tokens that only their issuer understands; gives what it says of them (RFC 7662); refuses to guess: without a plain answer there
//! is none.
//!
//! One question per token is under way at a time, in a task of its own that no caller's disconnection ends; all callers wait for it, with a
//! deadline. Answers are remembered, good ones never beyond the token's expiry; tokens are remembered by their hash alone. What is under
//! way and what is remembered is bounded.

mod credentials;
mod request;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use moka::sync::Cache;
use postern_base::defaults::HTTP_CLIENT_TIMEOUT;
use postern_base::id::IssuerName;
use postern_base::secret::Secret;
use postern_base::sync::lock;
use serde_json::{Map, Value};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

pub(super) use self::credentials::CredentialsError;
pub(super) use self::request::{AskError, Asker};
use super::breaker::Breaker;
use super::discovery::Endpoint;
use super::error::TokenError;
use super::settings::IntrospectSettings;

/// Bytes of answers remembered, by their texts; parsed they take a few times that.
const REMEMBERED: u64 = 8 * 1024 * 1024;
/// What an answer takes beside its text: its key and its place.
const OVERHEAD: usize = 256;
/// Requests to one issuer at once: enough for thousands of new tokens a second, and no attack on it.
const AT_ONCE: usize = 64;
/// Questions under way or waiting for their turn.
const UNDER_WAY: usize = 4096;
/// How long a question waits for its turn: an issuer that is slow must not hold callers longer.
const TURN: Duration = Duration::from_secs(3);
/// Its turn, where to ask, and the answer: each has a limit of its own, together they get this.
const QUESTION_LIMIT: Duration = HTTP_CLIENT_TIMEOUT.saturating_mul(2);

/// What is asked, without and with a client certificate.
const ENDPOINTS: [Endpoint; 2] = [Endpoint::Introspection, Endpoint::MtlsIntrospection];

/// What an issuer said of a token.
#[derive(Debug)]
pub(super) struct Answer {
    /// None: that it is not active.
    pub(super) claims: Option<Map<String, Value>>,
    /// How long that is believed.
    pub(super) until: SystemTime,
    /// Bytes that it takes, as text.
    pub(super) size: u32,
}

impl Answer {
    /// `longest` is how long an answer may be believed: one that says longer was given before the clock was set back.
    fn holds(&self, longest: Duration, now: SystemTime) -> bool {
        holds(self.until, longest, now)
    }
}

/// Whether what is believed until then, for at most `longest`, is still believed. Requests that came before the one that asked may see
/// an answer too, hence the second.
pub(super) fn holds(until: SystemTime, longest: Duration, now: SystemTime) -> bool {
    until.duration_since(now).is_ok_and(|left| !left.is_zero() && left <= longest + Duration::from_secs(1))
}

type Outcome = Result<Arc<Answer>, TokenError>;

/// Asks one issuer about tokens, from any runtime.
pub(super) struct Introspector {
    name: IssuerName,
    asker: Asker,
    cache: Duration,
    negative: Duration,
    answers: Cache<[u8; 32], Arc<Answer>>,
    under_way: Mutex<HashMap<[u8; 32], watch::Receiver<Option<Outcome>>>>,
    /// Owns the questions. Apart from what is known of them: a runtime that is shutting down drops a task, and so ends it, at once.
    tasks: Mutex<JoinSet<()>>,
    turns: Semaphore,
    breaker: Breaker,
    /// Why the last question failed; none after an answer.
    error: Mutex<Option<String>>,
}

impl Introspector {
    pub(super) fn new(name: &IssuerName, settings: &IntrospectSettings) -> Self {
        let answers =
            Cache::builder().max_capacity(REMEMBERED).weigher(|_, answer: &Arc<Answer>| answer.size);
        Self {
            name: name.clone(),
            asker: Asker::new(&settings.reach, &settings.auth, settings.endpoint.as_ref(), ENDPOINTS),
            cache: settings.cache,
            negative: settings.negative,
            answers: answers.build(),
            under_way: Mutex::default(),
            tasks: Mutex::default(),
            turns: Semaphore::new(AT_ONCE),
            breaker: Breaker::new(),
            error: Mutex::default(),
        }
    }

    /// Whether secrets, keys and certificates that prove who asks can be read, and fit.
    pub(super) fn check(&self) -> Result<(), CredentialsError> {
        self.asker.check()
    }

    /// For a reload: remembers what the one before, of the same settings, was told.
    #[must_use]
    pub(super) fn remembering(self, before: &Self) -> Self {
        Self { answers: before.answers.clone(), ..self }
    }

    /// How long an answer may be believed.
    pub(super) fn longest(&self) -> Duration {
        self.cache.max(self.negative)
    }

    /// What the issuer says of a token now, or said not long ago. `hash` is the token's.
    pub(super) async fn ask(self: &Arc<Self>, token: &str, hash: &[u8; 32], now: SystemTime) -> Outcome {
        if let Some(answer) = self.remembered(hash, now) {
            return Ok(answer);
        }
        let mut end = match self.question(token, hash, now)? {
            Question::Answered(answer) => return Ok(answer),
            Question::UnderWay(end) => end,
        };
        // A task whose runtime ended says so; the limit is for one that stands still.
        let outcome = timeout(QUESTION_LIMIT * 2, end.wait_for(Option::is_some)).await;
        let outcome = outcome.ok().and_then(Result::ok).and_then(|outcome| outcome.clone());
        outcome.unwrap_or_else(|| Err(self.silent()))
    }

    /// Has the issuer's endpoint found before anyone waits for it.
    pub(super) async fn warm(&self) {
        if self.asker.has_found() {
            // Whether the issuer answers there is for questions to tell.
            return;
        }
        let found = timeout(QUESTION_LIMIT, self.asker.find()).await.unwrap_or(Err(AskError::Late));
        self.note(found.err().as_ref());
    }

    /// Why the last question failed.
    pub(super) fn error(&self) -> Option<String> {
        lock(&self.error).clone()
    }

    fn remembered(&self, hash: &[u8; 32], now: SystemTime) -> Option<Arc<Answer>> {
        self.answers.get(hash).filter(|answer| answer.holds(self.longest(), now))
    }

    fn question(
        self: &Arc<Self>,
        token: &str,
        hash: &[u8; 32],
        now: SystemTime,
    ) -> Result<Question, TokenError> {
        let (told, end) = {
            let mut under_way = lock(&self.under_way);
            if let Some(end) = under_way.get(hash) {
                return Ok(Question::UnderWay(end.clone()));
            }
            // It ended since this caller looked.
            if let Some(answer) = self.remembered(hash, now) {
                return Ok(Question::Answered(answer));
            }
            if under_way.len() >= UNDER_WAY {
                return Err(self.silent());
            }
            let (told, end) = watch::channel(None);
            under_way.insert(*hash, end.clone());
            (told, end)
        };
        let asked = Asked { introspector: Arc::clone(self), hash: *hash, told, outcome: None };
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(asked.run(Secret::new(token), now));
        Ok(Question::UnderWay(end))
    }

    async fn answer(&self, token: &str, now: SystemTime) -> Outcome {
        let Ok(Ok(_turn)) = timeout(TURN, self.turns.acquire()).await else { return Err(self.silent()) };
        let Some(leave) = self.breaker.leave(Instant::now()) else { return Err(self.silent()) };
        let said = self.asker.ask(token).await;
        self.note(said.as_ref().err());
        let claims = match said {
            Ok(claims) => {
                leave.answered();
                claims
            }
            Err(error) => {
                if error.is_overload() {
                    leave.failed(Instant::now());
                } else if error.is_answer() {
                    leave.answered();
                }
                return Err(match error {
                    AskError::Unsupported(_) => TokenError::NotJudged(self.name.clone()),
                    AskError::Http(_)
                    | AskError::Endpoint(_)
                    | AskError::Credentials(_)
                    | AskError::WhoAsks(..)
                    | AskError::Status(..)
                    | AskError::Answer(_)
                    | AskError::Late => self.silent(),
                });
            }
        };
        let until = match &claims {
            Some(claims) => expiry(claims, now).min(now + self.cache),
            None => now + self.negative,
        };
        let text = claims.as_ref().and_then(|claims| serde_json::to_string(claims).ok());
        let size = u32::try_from(text.map_or(0, |text| text.len()) + OVERHEAD).unwrap_or(u32::MAX);
        Ok(Arc::new(Answer { claims, until, size }))
    }

    /// Says once that asking fails, and once that it works again.
    fn note(&self, error: Option<&AskError>) {
        let mut noted = lock(&self.error);
        let (issuer, error) = (&self.name, error.map(ToString::to_string));
        match (&*noted, &error) {
            (None, None) => {}
            (Some(_), None) => tracing::info!(%issuer, "the issuer answers again"),
            (Some(before), Some(error)) if before == error => {}
            (_, Some(error)) => tracing::warn!(%issuer, %error, "cannot ask the issuer about a token"),
        }
        *noted = error;
    }

    fn silent(&self) -> TokenError {
        TokenError::Unanswered(self.name.clone())
    }
}

enum Question {
    Answered(Arc<Answer>),
    UnderWay(watch::Receiver<Option<Outcome>>),
}

/// A question under way. However it ends, also when its runtime is shut down, the end is told.
struct Asked {
    introspector: Arc<Introspector>,
    hash: [u8; 32],
    told: watch::Sender<Option<Outcome>>,
    outcome: Option<Outcome>,
}

impl Asked {
    async fn run(mut self, token: Secret, now: SystemTime) {
        self.outcome = timeout(QUESTION_LIMIT, self.introspector.answer(token.expose(), now)).await.ok();
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let outcome = self.outcome.take().unwrap_or_else(|| Err(self.introspector.silent()));
        // Remembered before the question is over, so that nobody asks it again in between.
        if let Ok(answer) = &outcome {
            self.introspector.answers.insert(self.hash, Arc::clone(answer));
        }
        lock(&self.introspector.under_way).remove(&self.hash);
        self.told.send_replace(Some(outcome));
    }
}

/// When a token expires by what its issuer says: a number, which some write as text. What is neither is not believed for a moment.
fn expiry(claims: &Map<String, Value>, now: SystemTime) -> SystemTime {
    let seconds = match claims.get("exp") {
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.parse().ok(),
        None | Some(Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_)) => None,
    };
    let since_epoch = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    since_epoch.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since)).unwrap_or(now)
}

#[cfg(test)]
mod tests;
