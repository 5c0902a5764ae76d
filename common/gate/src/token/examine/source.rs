//! Where an issuer is and what it publishes, looked at afresh: its documents, its endpoints, its keys and its clock.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Request, Response, Uri, header};
use jiff::fmt::rfc2822::DateTimeParser;
use postern_base::console::checks::Check;
use postern_base::http_client::HttpClient;
use serde_json::Value;
use tokio::time::timeout;

use super::{Endpoint, Key};
use crate::token::discovery::{self, Endpoint as Wanted, FetchError};
use crate::token::key;
use crate::token::settings::{Discovery, IssuerSettings, KeyPlace, Reach};

/// What an issuer's documents may name, in the order in which people think of them.
const ENDPOINTS: [&str; 8] = [
    "jwks_uri",
    "authorization_endpoint",
    "token_endpoint",
    "device_authorization_endpoint",
    "introspection_endpoint",
    "revocation_endpoint",
    "userinfo_endpoint",
    "end_session_endpoint",
];
/// The whole look, whatever hangs: two documents, the endpoints and the keys.
const LOOK: Duration = Duration::from_secs(20);
/// Beyond this, clocks are worth a word although tokens still pass.
const DRIFT: Duration = Duration::from_secs(5);
/// Keys that are shown; more than these nobody reads.
const SHOWN: usize = 100;
/// Characters of a key's own words that are shown.
const WORDS: usize = 64;

#[derive(Default)]
pub(super) struct Seen {
    pub(super) checks: Vec<Check>,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) keys: Vec<Key>,
    pub(super) clock_ahead_ms: Option<i64>,
}

pub(super) async fn look(settings: &IssuerSettings) -> Seen {
    let mut seen = Seen::default();
    if timeout(LOOK, seen.look(settings)).await.is_err() {
        let fix = "see whether the issuer is slow for everybody, or the way to it from here";
        seen.checks.push(Check::bad("issuer", format!("it did not answer within {} s", LOOK.as_secs()), fix));
    }
    seen
}

impl Seen {
    async fn look(&mut self, settings: &IssuerSettings) {
        let source = &settings.keys;
        let client = match discovery::client(&source.reach) {
            Ok(client) => client,
            Err(e) => {
                let fix = "look at `ca` and `proxy` of this issuer in the configuration";
                return self.checks.push(Check::bad("client", e.to_string(), fix));
            }
        };
        self.documents(&client, &source.reach).await;
        if settings.has_keys() {
            self.keys(&client, settings).await;
        }
        for (reach, given, wanted) in asked(settings) {
            if let Some(uri) = given {
                self.checks.push(Check::good(wanted.name(), format!("{uri}, as the configuration says")));
                continue;
            }
            let found = discovery::endpoint(&client, reach, wanted).await;
            self.checks.push(match found {
                Ok(uri) => Check::good(wanted.name(), uri.to_string()),
                Err(e) => Check::bad(wanted.name(), e.to_string(), fix(&e)),
            });
        }
        self.clock(settings.leeway);
    }

    /// The issuer's own documents, and its clock by what they came with.
    async fn documents(&mut self, client: &HttpClient, reach: &Reach) {
        let Some([openid, oauth]) = discovery::well_known(&reach.issuer) else {
            let error = FetchError::Address(reach.issuer.clone());
            let fix = fix(&error);
            return self.checks.push(Check::bad("discovery", error.to_string(), fix));
        };
        let documents = match reach.discovery {
            Discovery::Off => {
                return self.checks.push(Check::skipped("discovery", "the configuration turns it off"));
            }
            Discovery::Oidc => vec![openid],
            Discovery::Oauth => vec![oauth],
            Discovery::Auto => vec![openid, oauth],
        };
        let mut failed = Vec::new();
        for document in documents {
            let said = match self.get(client, document.clone()).await {
                Ok(said) => said,
                Err(e) => {
                    failed.push(e);
                    continue;
                }
            };
            let issuer = said.get("issuer").and_then(Value::as_str).unwrap_or_default();
            if issuer != reach.issuer && !reach.also.iter().any(|alias| alias == issuer) {
                failed.push(FetchError::OtherIssuer(document, issuer.to_owned()));
                continue;
            }
            let named = ENDPOINTS.iter().filter_map(|name| Some((*name, said.get(*name)?.as_str()?)));
            for (name, uri) in named {
                let is_new = !self.endpoints.iter().any(|known| known.name == name);
                if is_new {
                    self.endpoints.push(Endpoint { name: name.to_owned(), uri: uri.to_owned() });
                }
            }
            self.checks.push(Check::good("discovery", document.to_string()));
            failed.clear();
            break;
        }
        if let Some(error) = failed.first() {
            self.checks.push(Check::bad("discovery", error.to_string(), fix(error)));
        }
    }

    async fn keys(&mut self, client: &HttpClient, settings: &IssuerSettings) {
        let (source, name) = (&settings.keys, "keys");
        let (at, document) = match &source.place {
            KeyPlace::File(path) => {
                let (at, path) = (path.display().to_string(), path.clone());
                let reading = tokio::task::spawn_blocking(move || {
                    discovery::text(&path).and_then(|text| {
                        serde_json::from_slice(&text).map_err(|e| FetchError::File(e.to_string()))
                    })
                });
                (at, reading.await.unwrap_or(Err(FetchError::Cut)))
            }
            KeyPlace::At(uri) => (uri.to_string(), self.get(client, uri.clone()).await),
            KeyPlace::Discovered => match discovery::endpoint(client, &source.reach, Wanted::Jwks).await {
                Ok(uri) => (uri.to_string(), self.get(client, uri).await),
                Err(e) => return self.checks.push(Check::bad(name, e.to_string(), fix(&e))),
            },
        };
        let document = match document {
            Ok(document) => document,
            Err(e) => return self.checks.push(Check::bad(name, e.to_string(), fix(&e))),
        };
        let all = document.get("keys").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        self.keys = all.iter().take(SHOWN).map(|one| shown(one, &source.algorithms)).collect();
        let fit: Vec<_> = self.keys.iter().filter_map(|key| key.algorithm.as_deref()).collect();
        self.checks.push(if fit.is_empty() {
            let wanted: Vec<_> = source.algorithms.iter().map(ToString::to_string).collect();
            let text = format!("none of the {} at {at} is for {}", all.len(), wanted.join(", "));
            Check::bad(
                name,
                text,
                "give `algorithms` of this issuer what it signs with, or have it sign otherwise",
            )
        } else {
            Check::good(name, format!("{} of {} fit ({}), at {at}", fit.len(), all.len(), fit.join(", ")))
        });
    }

    fn clock(&mut self, leeway: Duration) {
        let Some(ahead) = self.clock_ahead_ms else {
            return self.checks.push(Check::skipped("clock", "the issuer's answers say no time"));
        };
        let off = Duration::from_millis(ahead.unsigned_abs());
        let side = if ahead < 0 { "behind" } else { "ahead of" };
        let text = format!("the issuer's is {:.1} s {side} ours", off.as_secs_f64());
        let fix = "set the clock of this machine by NTP (timedatectl); if it is right, tell the issuer";
        self.checks.push(if off > leeway.max(DRIFT) {
            Check::bad("clock", format!("{text}: more than leeway = {} s forgives", leeway.as_secs()), fix)
        } else if off > DRIFT {
            Check::warn("clock", text, fix)
        } else {
            Check::good("clock", text)
        });
    }

    async fn get(&mut self, client: &HttpClient, uri: Uri) -> Result<Value, FetchError> {
        let request = Request::get(uri.clone())
            .header(header::ACCEPT, "application/json")
            .body(Bytes::new())
            .map_err(|e| FetchError::Answer(uri.clone(), e.to_string()))?;
        let began = SystemTime::now();
        let answer = client.send(request).await?;
        if let Some(ahead) = ahead(&answer, began, SystemTime::now()) {
            self.clock_ahead_ms = Some(ahead);
        }
        if answer.status() != http::StatusCode::OK {
            return Err(FetchError::Status(uri, answer.status()));
        }
        serde_json::from_slice(answer.body()).map_err(|e| FetchError::Answer(uri, e.to_string()))
    }
}

/// By how many milliseconds the other clock is ahead. A date is cut to the second, so that half a second is added to it; ours is taken in
/// the middle of the exchange.
fn ahead(answer: &Response<Bytes>, began: SystemTime, ended: SystemTime) -> Option<i64> {
    let date = answer.headers().get(header::DATE)?.to_str().ok()?;
    let theirs = DateTimeParser::new().parse_timestamp(date).ok()?.as_millisecond() + 500;
    let since = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        i64::try_from(since.as_millis()).ok()
    };
    let (began, ended) = (since(began)?, since(ended)?);
    Some(theirs - began.midpoint(ended))
}

/// Which endpoints of the issuer are asked, where the configuration may give the address itself.
fn asked(settings: &IssuerSettings) -> Vec<(&Reach, Option<&Uri>, Wanted)> {
    let introspect =
        settings.introspect.as_ref().map(|how| (&how.reach, how.endpoint.as_ref(), Wanted::Introspection));
    let exchange = settings.exchange.as_ref().map(|how| (&how.reach, how.endpoint.as_ref(), Wanted::Token));
    introspect.into_iter().chain(exchange).collect()
}

fn shown(published: &Value, allowed: &[key::Algorithm]) -> Key {
    let said = |name: &str| {
        let text = published.get(name)?.as_str()?;
        Some(text.chars().take(WORDS).map(|c| if c.is_control() { ' ' } else { c }).collect::<String>())
    };
    let fit = key::Key::new(published, allowed);
    let says = ["kty", "crv", "alg", "use"].into_iter().filter_map(said).collect::<Vec<_>>().join(" ");
    Key { kid: said("kid"), algorithm: fit.map(|key| key.algorithm().to_string()), says }
}

/// What to do about it.
fn fix(error: &FetchError) -> String {
    match error {
        FetchError::Http(_) => {
            "see whether this machine reaches the issuer (name, route, proxy), and whether `ca` names who signed its certificate"
        }
        FetchError::Status(..) | FetchError::Answer(..) => {
            "compare the issuer's address with what it calls itself: often a realm or a tenant is missing"
        }
        FetchError::OtherIssuer(..) => "write `issuer` exactly as the issuer does, slash at the end included",
        FetchError::Address(_) => "write the issuer's address as its tokens have it in `iss`",
        FetchError::NoEndpoint(..) => "write the address in the configuration, or have the issuer publish it",
        FetchError::Loopback(_) => "the issuer names an address that is only its own: have it name a public one",
        FetchError::File(_) => "put the issuer's key set into that file, readable for the relay",
        FetchError::Late | FetchError::Cut => "try again",
    }
    .to_owned()
}
