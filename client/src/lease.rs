//! Takes the live streams of this process with their leases (TCP channels, WebSocket connections through a forward); renews each in good time
//! with a fresh token, all of one audience together, for as long as it lives. Says once which service's stream was not renewed, and why;
//! the relay ends that stream when its last token does.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use postern_base::id::ServiceName;
use postern_base::sync::lock;
use tokio::sync::Notify;

use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::relay_api::Relay;
use crate::relay_api::lease::{self, Renewal};
use crate::session::pass::Pass;
use crate::session::refresh::Tokens;

/// The wall clock may be set, and timers sleep while a machine does: it is looked at this often.
const LOOK: Duration = Duration::from_secs(30);
/// A renewal that came to nothing is not tried again sooner; tokens of seconds must have a second try all the same.
const AGAIN: Duration = Duration::from_millis(500);
/// The relay cuts a stream at its end, by its own clock; this much later it is not worth asking any more.
const LONG_OVER: Duration = Duration::from_mins(1);
/// The year 9999, in seconds since the epoch.
const FAR: u64 = 253_370_764_800;

/// All live streams of this process.
pub(crate) struct Leases {
    relay: Relay,
    tokens: Arc<Tokens>,
    out: Output,
    live: Mutex<Live>,
    changed: Notify,
}

#[derive(Default)]
struct Live {
    next: u64,
    held: BTreeMap<u64, Held>,
}

struct Held {
    id: String,
    service: ServiceName,
    audience: Option<String>,
    /// The end of its last token by this side's reckoning, by which tokens are told apart.
    token: SystemTime,
    /// The same, or the relay's stricter word.
    expires: SystemTime,
    /// `None`: the relay has refused, or it is over; it is not asked again.
    due: Option<SystemTime>,
    /// That it will end has been said.
    told: bool,
}

impl Live {
    /// Those of one audience that may still be renewed.
    fn of<'a>(&'a mut self, audience: Option<&'a str>) -> impl Iterator<Item = &'a mut Held> {
        let all = self.held.values_mut();
        all.filter(move |held| held.due.is_some() && held.audience.as_deref() == audience)
    }
}

impl Held {
    /// Half-way, so that there is time for a second try and for a slow issuer.
    fn until(&mut self, token: SystemTime, said: Option<SystemTime>, now: SystemTime) {
        self.token = token;
        // A word that is past already says only that the relay's clock is another.
        self.expires = said.filter(|said| *said > now).map_or(token, |said| said.min(token));
        let left = self.expires.duration_since(now).unwrap_or_default();
        self.due = Some(now + (left / 2).max(AGAIN));
        self.told = false;
    }

    fn is_due(&self, now: SystemTime) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// Not renewed this time.
    fn later(&mut self, now: SystemTime) {
        let left = self.expires.duration_since(now).unwrap_or_default();
        self.due = (now < self.expires + LONG_OVER).then(|| now + (left / 2).max(AGAIN));
    }
}

/// One stream's place among them; it is given up with the stream.
pub(crate) struct Lease {
    leases: Arc<Leases>,
    number: u64,
}

impl Lease {
    /// Until when the stream lives, in seconds since the epoch.
    pub(crate) fn expires(&self) -> u64 {
        let live = self.leases.live();
        let expires = live.held.get(&self.number).map_or(SystemTime::UNIX_EPOCH, |held| held.expires);
        expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.live().held.remove(&self.number);
    }
}

impl Leases {
    pub(crate) fn new(relay: Relay, tokens: Arc<Tokens>, out: Output) -> Self {
        Self { relay, tokens, out, live: Mutex::default(), changed: Notify::new() }
    }

    pub(crate) fn relay(&self) -> &Relay {
        &self.relay
    }

    /// Takes a stream that `pass` opened with this answer, if the relay gave it a lease and there may be another token.
    pub(crate) fn hold(
        self: &Arc<Self>,
        headers: &HeaderMap,
        service: &ServiceName,
        audience: Option<&str>,
        pass: &Pass,
    ) -> Option<Lease> {
        let id = lease::id(headers).filter(|_| self.tokens.may_renew())?.to_owned();
        let now = SystemTime::now();
        let (service, audience) = (service.clone(), audience.map(str::to_owned));
        let mut held = Held { id, service, audience, token: now, expires: now, due: None, told: false };
        held.until(at(pass.expires()), None, now);
        let mut live = self.live();
        let number = live.next;
        live.next += 1;
        live.held.insert(number, held);
        drop(live);
        self.changed.notify_one();
        Some(Lease { leases: self.clone(), number })
    }

    /// Renews, as long as it is polled.
    pub(crate) async fn keep(&self) -> Infallible {
        loop {
            let now = SystemTime::now();
            let next = self.live().held.values().filter_map(|held| held.due).min();
            let wait = next.map_or(LOOK, |next| next.duration_since(now).unwrap_or_default().min(LOOK));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.changed.notified() => continue,
            }
            let audiences = self.due(SystemTime::now());
            futures_util::future::join_all(audiences.iter().map(|audience| self.renew(audience.as_deref())))
                .await;
        }
    }

    /// The audiences of which some stream is to be renewed now.
    fn due(&self, now: SystemTime) -> BTreeSet<Option<String>> {
        let live = self.live();
        let due = live.held.values().filter(|held| held.is_due(now));
        due.map(|held| held.audience.clone()).collect()
    }

    /// Those of one audience that are due, and with them all that the same token gives more time.
    async fn renew(&self, audience: Option<&str>) {
        let now = SystemTime::now();
        let due = self.live().of(audience).filter(|held| held.is_due(now)).map(|held| held.token).max();
        // A token that lives longer than they do: the one at hand, if it was renewed meanwhile, else a new one.
        let longer = due.and_then(|due| due.duration_since(now).ok()).unwrap_or_default();
        let asked = self.tokens.shown(audience, longer + Duration::from_secs(1), |pass: Pass| async move {
            let expires = at(pass.expires());
            let ids = self.older(audience, expires);
            Ok((self.relay.renew(&pass, &ids).await?, expires))
        });
        match asked.await {
            Ok((answers, expires)) => self.answered(audience, &answers, expires),
            Err(failure) => self.failed(audience, &failure),
        }
    }

    /// The relay takes no token for a stream that already has the time of a newer one.
    fn older(&self, audience: Option<&str>, expires: SystemTime) -> Vec<String> {
        let mut live = self.live();
        live.of(audience).filter(|held| held.token < expires).map(|held| held.id.clone()).collect()
    }

    fn answered(&self, audience: Option<&str>, answers: &[Renewal], expires: SystemTime) {
        let now = SystemTime::now();
        let answers: BTreeMap<&str, &Renewal> =
            answers.iter().map(|answer| (answer.id.as_str(), answer)).collect();
        let mut refused = BTreeSet::new();
        for held in self.live().of(audience) {
            match answers.get(held.id.as_str()) {
                Some(Renewal { renewed: true, expires: said, .. }) => {
                    held.until(expires, said.map(at), now);
                }
                Some(Renewal { reason, .. }) => {
                    held.due = None;
                    let reason =
                        reason.as_ref().map_or_else(|| "it does not say why".to_owned(), ToString::to_string);
                    refused.insert((held.service.clone(), reason));
                }
                // It was not asked for, and if it is due the issuer gave no better token.
                None if held.is_due(now) => held.later(now),
                None => {}
            }
        }
        for (service, reason) in refused {
            self.out.warn(&format!(
                "{service}: the relay does not renew a live connection, which will end: {reason}"
            ));
        }
    }

    /// Nothing was renewed. It is tried again until the end; only what does not pass by itself is told.
    fn failed(&self, audience: Option<&str>, failure: &Failure) {
        let now = SystemTime::now();
        let passes = !matches!(failure.exit, Exit::LoginNeeded | Exit::Denied);
        let mut services = BTreeSet::new();
        for held in self.live().of(audience) {
            if held.is_due(now) {
                held.later(now);
            }
            if !passes && !held.told {
                held.told = true;
                services.insert(held.service.clone());
            }
        }
        for service in services {
            let fix = failure.fix.as_ref().map(|fix| format!(" ({fix})")).unwrap_or_default();
            let why = &failure.message;
            self.out
                .warn(&format!("{service}: a live connection cannot be renewed and will end: {why}{fix}"));
        }
        tracing::info!(error = failure.message, "live connections were not renewed");
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        lock(&self.live)
    }
}

/// A time in seconds since the epoch; one beyond all sense is far away.
fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(FAR))
}

#[cfg(test)]
mod tests;
