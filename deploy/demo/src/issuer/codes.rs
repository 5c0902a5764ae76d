//! Takes what people agreed to; gives codes and refresh tokens for it, each good for a short while and once; refuses the second use and
//! takes back what came of the first. Everything is in memory, bounded, and forgets by itself.

use std::collections::HashMap;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;

use super::Person;
use super::keys::{base64url, hash, unguessable};
use super::params::Refusal;

/// Since the Unix epoch.
pub(super) type Time = Duration;

/// How long a page may stay open, and a device code be waited for.
pub(super) const PATIENCE: Duration = Duration::from_mins(10);
/// Between redirect and redemption there is only a program (RFC 6749 4.1.2 allows at most ten minutes).
const CODE_LIFE: Duration = Duration::from_mins(1);
/// A demo lasts no longer.
const SESSION: Duration = Duration::from_hours(12);
/// How often a device may ask; short, because nobody but the demo's own people use this issuer.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);
/// What `slow_down` adds (RFC 8628 3.5).
const SLOWER: Duration = Duration::from_secs(5);
/// Entries of each kind; a few hundred bytes each.
const ENTRIES: usize = 512;
/// No vowels, so no words, and no two letters that look alike (RFC 8628 6.1).
const USER_CODE: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";

const FULL: Refusal =
    Refusal::new("temporarily_unavailable", "too many logins are under way: try again later");
const BAD_CODE: Refusal = Refusal::new("invalid_grant", "the code is unknown, used or expired");
const BAD_REFRESH: Refusal = Refusal::new("invalid_grant", "the refresh token is unknown, used or expired");

/// Entries that end by themselves, at most so many.
struct Shelf<T> {
    life: Duration,
    entries: HashMap<String, (Time, T)>,
}

impl<T> Shelf<T> {
    fn new(life: Duration) -> Self {
        Self { life, entries: HashMap::new() }
    }

    fn put(&mut self, now: Time, name: String, value: T) -> Result<(), Refusal> {
        self.entries.retain(|_, (end, _)| *end > now);
        if self.entries.len() >= ENTRIES {
            return Err(FULL);
        }
        self.entries.insert(name, (now + self.life, value));
        Ok(())
    }

    fn entry(&mut self, now: Time, name: &str) -> Option<&mut T> {
        self.entries.get_mut(name).filter(|(end, _)| *end > now).map(|(_, value)| value)
    }

    fn take(&mut self, now: Time, name: &str) -> Option<T> {
        self.entries.remove(name).filter(|(end, _)| *end > now).map(|(_, value)| value)
    }
}

/// What a person agreed to.
#[derive(Debug, Clone)]
pub(super) struct Grant {
    pub(super) person: &'static Person,
    /// Space-separated.
    pub(super) scope: String,
    pub(super) nonce: Option<String>,
    /// When the person pressed the button.
    pub(super) at: Time,
}

impl Grant {
    pub(super) fn has(&self, scope: &str) -> bool {
        self.scope.split(' ').any(|known| known == scope)
    }
}

/// What a client asked the authorization endpoint for, already checked.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) redirect_uri: String,
    /// S256 (RFC 7636).
    pub(super) challenge: String,
    pub(super) scope: String,
    pub(super) state: Option<String>,
    pub(super) nonce: Option<String>,
}

struct Code {
    redirect_uri: String,
    challenge: String,
    grant: Grant,
    spent: bool,
    /// The session that came of it.
    family: Option<String>,
}

enum Decision {
    Pending,
    Refused,
    Agreed(Grant),
}

struct Device {
    user_code: String,
    scope: String,
    expires: Time,
    polled: Option<Time>,
    interval: Duration,
    decision: Decision,
}

/// A session: all refresh tokens that follow from one login. Only the newest one is good.
struct Family {
    newest: String,
    grant: Grant,
}

/// What redeeming anything gives: the grant, and a refresh token where `offline_access` was asked for.
pub(super) type Redeemed = (Grant, Option<String>);

pub(super) struct Codes {
    pages: Shelf<Asked>,
    granted: Shelf<Code>,
    devices: Shelf<Device>,
    families: Shelf<Family>,
}

impl Codes {
    pub(super) fn new() -> Self {
        Self {
            pages: Shelf::new(PATIENCE),
            granted: Shelf::new(CODE_LIFE),
            // As long again, so that a device that comes late hears `expired_token`.
            devices: Shelf::new(2 * PATIENCE),
            families: Shelf::new(SESSION),
        }
    }

    /// A page is about to be shown; gives the unguessable name by which its answer will come.
    pub(super) fn open_page(&mut self, now: Time, asked: Asked) -> Result<String, Refusal> {
        let name = unguessable();
        self.pages.put(now, name.clone(), asked)?;
        Ok(name)
    }

    /// The page was answered, which can be done once.
    pub(super) fn close_page(&mut self, now: Time, name: &str) -> Option<Asked> {
        self.pages.take(now, name)
    }

    pub(super) fn authorization_code(
        &mut self,
        now: Time,
        asked: Asked,
        person: &'static Person,
    ) -> Result<String, Refusal> {
        let grant = Grant { person, scope: asked.scope, nonce: asked.nonce, at: now };
        let Asked { redirect_uri, challenge, .. } = asked;
        let name = unguessable();
        self.granted.put(
            now,
            name.clone(),
            Code { redirect_uri, challenge, grant, spent: false, family: None },
        )?;
        Ok(name)
    }

    /// Any attempt spends the code; a second one ends the session that came of the first (RFC 6749 4.1.2).
    pub(super) fn redeem_code(
        &mut self,
        now: Time,
        name: &str,
        redirect_uri: &str,
        verifier: &str,
    ) -> Result<Redeemed, Refusal> {
        let code = self.granted.entry(now, name).ok_or(BAD_CODE)?;
        if std::mem::replace(&mut code.spent, true) {
            if let Some(family) = code.family.take() {
                self.families.take(now, &family);
            }
            return Err(BAD_CODE);
        }
        if code.redirect_uri != redirect_uri {
            return Err(Refusal::new(
                "invalid_grant",
                "redirect_uri is not the one that the code was sent to",
            ));
        }
        if !answers(verifier, &code.challenge) {
            return Err(Refusal::new("invalid_grant", "code_verifier does not answer the code_challenge"));
        }
        let grant = code.grant.clone();
        let refresh = self.open_family(now, &grant)?;
        if let Some(code) = self.granted.entry(now, name) {
            code.family =
                refresh.as_deref().and_then(|token| token.split_once('.')).map(|(id, _)| id.to_owned());
        }
        Ok((grant, refresh))
    }

    /// Gives the device code and the user code.
    pub(super) fn start_device(&mut self, now: Time, scope: String) -> Result<(String, String), Refusal> {
        let letters: [u8; 8] = std::array::from_fn(|_| USER_CODE[rand::random_range(0..USER_CODE.len())]);
        let (left, right) = letters.split_at(4);
        let user_code = format!("{}-{}", String::from_utf8_lossy(left), String::from_utf8_lossy(right));
        let (decision, expires) = (Decision::Pending, now + PATIENCE);
        let device = Device {
            user_code: user_code.clone(),
            scope,
            expires,
            polled: None,
            interval: INTERVAL,
            decision,
        };
        let name = unguessable();
        self.devices.put(now, name.clone(), device)?;
        Ok((name, user_code))
    }

    /// A person entered a code and agreed as `person`, or refused; false if no device waits for that code.
    pub(super) fn decide_device(
        &mut self,
        now: Time,
        user_code: &str,
        person: Option<&'static Person>,
    ) -> bool {
        let waiting = |device: &&mut Device| {
            device.user_code == user_code
                && device.expires > now
                && matches!(device.decision, Decision::Pending)
        };
        let Some(device) = self.devices.entries.values_mut().map(|(_, device)| device).find(waiting) else {
            return false;
        };
        device.decision = person.map_or(Decision::Refused, |person| {
            Decision::Agreed(Grant { person, scope: device.scope.clone(), nonce: None, at: now })
        });
        true
    }

    /// RFC 8628 3.4 and 3.5.
    pub(super) fn poll_device(&mut self, now: Time, name: &str) -> Result<Redeemed, Refusal> {
        let device = self.devices.entry(now, name).ok_or(BAD_CODE)?;
        if device.expires <= now {
            return Err(Refusal::new("expired_token", "nobody entered the code in time: start again"));
        }
        match &device.decision {
            Decision::Agreed(grant) => {
                let grant = grant.clone();
                self.devices.take(now, name);
                let refresh = self.open_family(now, &grant)?;
                Ok((grant, refresh))
            }
            Decision::Refused => {
                self.devices.take(now, name);
                Err(Refusal::new("access_denied", "the person said no"))
            }
            Decision::Pending => {
                let early = device.polled.is_some_and(|at| now < at + device.interval);
                device.polled = Some(now);
                if early {
                    device.interval += SLOWER;
                    return Err(Refusal::new(
                        "slow_down",
                        "asked too soon: wait five seconds longer each time",
                    ));
                }
                Err(Refusal::new("authorization_pending", "nobody has entered the code yet"))
            }
        }
    }

    fn open_family(&mut self, now: Time, grant: &Grant) -> Result<Option<String>, Refusal> {
        if !grant.has("offline_access") {
            return Ok(None);
        }
        let (id, newest) = (unguessable(), unguessable());
        let token = format!("{id}.{newest}");
        self.families.put(now, id, Family { newest, grant: grant.clone() })?;
        Ok(Some(token))
    }

    /// Gives the grant and the next refresh token; one that is not the newest ends the session, for it was stolen from somebody.
    pub(super) fn rotate(&mut self, now: Time, token: &str) -> Result<Redeemed, Refusal> {
        let (id, secret) = token.split_once('.').ok_or(BAD_REFRESH)?;
        let family = self.families.entry(now, id).ok_or(BAD_REFRESH)?;
        if verify_slices_are_equal(family.newest.as_bytes(), secret.as_bytes()).is_err() {
            self.families.take(now, id);
            return Err(BAD_REFRESH);
        }
        family.newest = unguessable();
        Ok((family.grant.clone(), Some(format!("{id}.{}", family.newest))))
    }

    /// Ends the session of a refresh token, old or new (RFC 7009); any other token is none of ours to end.
    pub(super) fn revoke(&mut self, now: Time, token: &str) {
        if let Some((id, _)) = token.split_once('.') {
            self.families.take(now, id);
        }
    }
}

/// RFC 7636 4.6, S256.
fn answers(verifier: &str, challenge: &str) -> bool {
    let well_formed = (43..=128).contains(&verifier.len());
    well_formed
        && verify_slices_are_equal(base64url(&hash(verifier.as_bytes())).as_bytes(), challenge.as_bytes())
            .is_ok()
}
