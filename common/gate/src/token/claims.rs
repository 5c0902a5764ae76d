//! Takes claims whose signature is good; gives what they prove; refuses them when they are out of date, incomplete, of the wrong type,
//! or an ID token's. Everything here is what the JWT library leaves to its user (RFC 7519 4.1, RFC 9068 4, OpenID Connect Core 2).
//!
//! **ID tokens** are never accepted. `nonce`, `at_hash`, `c_hash` or `s_hash` give one away, as do a `token_use` other than `access`
//! and a payload `typ` other than Bearer or DPoP. A header type `at+jwt` settles the rest. Without it a token must show that it is an
//! access token: by payload `typ`, by `token_use`, by `scope` or `scp`; or by naming a client that is not among its audiences, since
//! an ID token is always meant for its client. Of a token that it was asked about the issuer says itself what it is.

use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

use super::binding::Binding;
use super::claim::{ClaimPath, NotAnObject};
use super::error::TokenError;
use super::settings::{IssuerSettings, normal_type};
use crate::principal::{Proved, TokenId};

/// Where claims come from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Said<'a> {
    /// From a JWT, with its header's type.
    InToken(Option<&'a str>),
    /// From the issuer's answer to a question about the token (RFC 7662 2.2).
    WhenAsked,
}

/// The audience is not judged here: which one is needed depends on the service.
pub(super) fn judge(
    claims: Map<String, Value>,
    said: Said<'_>,
    settings: &IssuerSettings,
    token_id: TokenId,
    now: SystemTime,
) -> Result<Proved, TokenError> {
    let claims = match said {
        Said::InToken(_) => claims,
        Said::WhenAsked => with_numbers(claims),
    };
    let expires = lifetime(&claims, settings, now)?;
    let look = Look { claims: &claims };
    let subject = look.first(&settings.subject_from, "sub")?.ok_or(TokenError::Missing("sub"))?;
    let audience = look.audience(&settings.audience_claim)?;
    let client = look.first(&settings.client_from, "client")?;
    match said {
        Said::InToken(typ) => refuse_id_token(&claims, typ, &audience, client.as_deref(), settings)?,
        Said::WhenAsked => refuse_other_kinds(&claims)?,
    }
    look.has_what_it_must(settings)?;
    if let Some(clients) = &settings.clients
        && !client.as_ref().is_some_and(|client| clients.contains(client))
    {
        return Err(TokenError::ClientNotAccepted);
    }
    Ok(Proved {
        issuer: settings.name.clone(),
        iss: settings.issuer.clone(),
        user: user(&look, settings)?.unwrap_or_else(|| subject.clone()),
        subject,
        client,
        audience,
        scopes: look.all(&settings.scope_from, "scope")?,
        token_roles: look.all(&settings.roles_from, "roles")?,
        groups: look.all(&settings.groups_from, "groups")?,
        acr: text(&claims, "acr")?.map(str::to_owned),
        auth_time: date(&claims, "auth_time")?,
        expires,
        token_id,
        binding: Binding::of(&claims)?,
        claims,
    })
}

/// Some issuers (Google) write the dates of an answer as text, since they do so with all numbers of 64 bits.
fn with_numbers(mut claims: Map<String, Value>) -> Map<String, Value> {
    for name in ["exp", "iat", "nbf", "auth_time"] {
        if let Some(date) = claims.get_mut(name)
            && let Some(number) = date.as_str().and_then(|text| text.parse::<u64>().ok())
        {
            *date = number.into();
        }
    }
    claims
}

/// When a token stops being good: its `exp`, and as long as clocks may differ.
pub(super) fn is_expired(expires: u64, leeway: Duration, now: SystemTime) -> bool {
    since_epoch(now) >= Duration::from_secs(expires).saturating_add(leeway)
}

fn since_epoch(now: SystemTime) -> Duration {
    now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Checks `exp`, `nbf` and `iat`; gives `exp`.
fn lifetime(
    claims: &Map<String, Value>,
    settings: &IssuerSettings,
    now: SystemTime,
) -> Result<u64, TokenError> {
    let expires = date(claims, "exp")?.ok_or(TokenError::Missing("exp"))?;
    if is_expired(expires, settings.leeway, now) {
        return Err(TokenError::Expired);
    }
    let latest_start = since_epoch(now).saturating_add(settings.leeway);
    let lies_ahead = |at: u64| Duration::from_secs(at) > latest_start;
    if date(claims, "nbf")?.is_some_and(lies_ahead) {
        return Err(TokenError::NotYetValid);
    }
    let life = match date(claims, "iat")? {
        Some(issued) if lies_ahead(issued) => return Err(TokenError::IssuedInFuture),
        Some(issued) => Duration::from_secs(expires.saturating_sub(issued)),
        None => Duration::from_secs(expires).saturating_sub(since_epoch(now)),
    };
    if life > settings.max_lifetime { Err(TokenError::LivesTooLong) } else { Ok(expires) }
}

/// A `NumericDate` (RFC 7519 2) in whole seconds; fractions, which some issuers write, are cut off.
fn date(claims: &Map<String, Value>, name: &'static str) -> Result<Option<u64>, TokenError> {
    /// The last second that a JSON number in double precision has exactly, some 285 million years ahead.
    const LAST: f64 = 9_007_199_254_740_991.0;
    match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) => match number.as_f64() {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "the guard keeps it within what u64 holds; cutting the fraction is meant"
            )]
            Some(seconds) if (0.0..=LAST).contains(&seconds) => Ok(Some(seconds as u64)),
            _ => Err(TokenError::BadClaim(name)),
        },
        Some(Value::Bool(_) | Value::String(_) | Value::Array(_) | Value::Object(_)) => {
            Err(TokenError::BadClaim(name))
        }
    }
}

fn text<'a>(claims: &'a Map<String, Value>, name: &'static str) -> Result<Option<&'a str>, TokenError> {
    match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_str().map(Some).ok_or(TokenError::BadClaim(name)),
    }
}

fn strings(list: &[Value]) -> Option<Vec<String>> {
    list.iter().map(|one| one.as_str().map(str::to_owned)).collect()
}

/// What people call the caller. A token without the claim has none (a machine's, mostly).
fn user(look: &Look<'_>, settings: &IssuerSettings) -> Result<Option<String>, TokenError> {
    for path in &settings.user_from {
        if let Some(user) = look.first(std::slice::from_ref(path), "user")? {
            let is_verified = || look.claims.get("email_verified") == Some(&Value::Bool(true));
            if path.to_string() == "email" && !is_verified() {
                return Err(TokenError::UnverifiedEmail);
            }
            return Ok(Some(user));
        }
    }
    Ok(None)
}

/// Claims that only ID tokens have (OpenID Connect Core 2, 3.3.2.11).
const OF_ID_TOKENS: [&str; 4] = ["nonce", "at_hash", "c_hash", "s_hash"];

/// Whether a payload's `typ` is an access token's, as Keycloak writes it.
fn is_access_type(typ: &str) -> bool {
    typ.eq_ignore_ascii_case("Bearer") || typ.eq_ignore_ascii_case("DPoP")
}

/// Of a token that it was asked about the issuer says what it is; one of another kind (a refresh token, mostly) may be active as well.
fn refuse_other_kinds(claims: &Map<String, Value>) -> Result<(), TokenError> {
    let is_access = |kind: &str| {
        is_access_type(kind) || ["access", "access_token", "at+jwt"].contains(&&*normal_type(kind))
    };
    for name in ["token_type", "token_use", "typ"] {
        if text(claims, name)?.is_some_and(|kind| !is_access(kind)) {
            return Err(TokenError::IdToken);
        }
    }
    if OF_ID_TOKENS.iter().any(|name| claims.contains_key(*name)) { Err(TokenError::IdToken) } else { Ok(()) }
}

fn refuse_id_token(
    claims: &Map<String, Value>,
    typ: Option<&str>,
    audience: &[String],
    client: Option<&str>,
    settings: &IssuerSettings,
) -> Result<(), TokenError> {
    if OF_ID_TOKENS.iter().any(|name| claims.contains_key(*name)) {
        return Err(TokenError::IdToken);
    }
    let token_use = text(claims, "token_use")?;
    if token_use.is_some_and(|token_use| token_use != "access") {
        return Err(TokenError::IdToken);
    }
    if typ.is_some_and(|typ| normal_type(typ) == "at+jwt") {
        return Ok(());
    }
    let inner_type = text(claims, "typ")?;
    if inner_type.is_some_and(|inner| !is_access_type(inner)) {
        return Err(TokenError::IdToken);
    }
    let shown = token_use.is_some()
        || inner_type.is_some()
        || claims.contains_key("scope")
        || claims.contains_key("scp");
    let clients = [client, text(claims, "azp")?, text(claims, "client_id")?];
    let login = settings.login.as_ref().map(|login| login.client_id.as_str());
    let for_its_client = || {
        audience.iter().any(|one| clients.iter().chain([&login]).any(|client| *client == Some(one.as_str())))
    };
    if shown || (clients.iter().any(Option::is_some) && !for_its_client()) {
        Ok(())
    } else {
        Err(TokenError::IdToken)
    }
}

/// Finds claims by the paths that the issuer's entry names.
struct Look<'a> {
    claims: &'a Map<String, Value>,
}

impl<'a> Look<'a> {
    fn find(&self, path: &ClaimPath, kind: &'static str) -> Result<Option<&'a Value>, TokenError> {
        let found = path.find(self.claims).map_err(|NotAnObject| TokenError::BadClaim(kind))?;
        if found.is_none() && self.is_elsewhere(path) { Err(TokenError::ClaimElsewhere) } else { Ok(found) }
    }

    /// A claim that was too long to be sent is not the same as one that says nothing (OpenID Connect Core 5.6.2): a rule that denies a
    /// group must not be passed by being in too many. Entra says `hasgroups` instead where even the pointer would be too long.
    fn is_elsewhere(&self, path: &ClaimPath) -> bool {
        let names = self.claims.get("_claim_names").and_then(Value::as_object);
        names.is_some_and(|names| names.contains_key(path.outermost()))
            || (path.outermost() == "groups" && self.claims.get("hasgroups") == Some(&Value::Bool(true)))
    }

    fn first(&self, paths: &[ClaimPath], kind: &'static str) -> Result<Option<String>, TokenError> {
        for path in paths {
            if let Some(found) = self.find(path, kind)? {
                let text = found.as_str().filter(|text| !text.is_empty());
                return Ok(Some(text.ok_or(TokenError::BadClaim(kind))?.to_owned()));
            }
        }
        Ok(None)
    }

    /// Whom the token is meant for: what the first of these claims that is there says.
    fn audience(&self, paths: &[ClaimPath]) -> Result<Vec<String>, TokenError> {
        for path in paths {
            match self.find(path, "aud")? {
                None => {}
                Some(Value::String(one)) => return Ok(vec![one.clone()]),
                Some(Value::Array(many)) => return strings(many).ok_or(TokenError::BadClaim("aud")),
                Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => {
                    return Err(TokenError::BadClaim("aud"));
                }
            }
        }
        Err(TokenError::Missing("aud"))
    }

    /// `require` and `forbid`.
    fn has_what_it_must(&self, settings: &IssuerSettings) -> Result<(), TokenError> {
        for (path, values) in &settings.require {
            let found = self.find(path, "required")?;
            if !found.is_some_and(|found| values.iter().any(|value| value.is_said_by(found))) {
                return Err(TokenError::Required(path.clone()));
            }
        }
        for path in &settings.forbid {
            if self.find(path, "forbidden")?.is_some() {
                return Err(TokenError::Forbidden(path.clone()));
            }
        }
        Ok(())
    }

    /// The values of all paths, each an array of strings or one string with separators.
    fn all(&self, paths: &[ClaimPath], kind: &'static str) -> Result<Vec<String>, TokenError> {
        let mut all = Vec::new();
        for path in paths {
            match self.find(path, kind)? {
                None => {}
                Some(Value::String(text)) => {
                    // Where commas separate, names of roles and groups may hold blanks; scopes never do.
                    let is_plain = kind == "scope" || !text.contains(',');
                    let separators: &[char] = if is_plain { &[' ', ','] } else { &[','] };
                    let values = text.split(separators).map(str::trim).filter(|value| !value.is_empty());
                    all.extend(values.map(str::to_owned));
                }
                Some(Value::Array(many)) => {
                    all.extend(strings(many).ok_or(TokenError::BadClaim(kind))?);
                }
                Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => {
                    return Err(TokenError::BadClaim(kind));
                }
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests;
