//! Header hygiene in both directions (http.md, "What the upstream sees" and "What the caller sees back"): what a caller must not say for
//! itself is removed in every spelling, what the relay says is added afterwards, so nothing of ours can be named away.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use postern_wire::fields::{self, folded, is_of_the_connection, is_steering};

use super::authorize::Permitted;
use super::record::Record;
use super::respond::Refusal;
use super::route::Routed;
use crate::settings::Service;

/// W3C trace context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What a caller might say to pass for someone, somewhere or something else.
const SPOOFED: [&str; 6] = ["forwarded", "x-real-ip", "x-request-id", "authorization", "dpop", "traceparent"];
const SPOOFED_PREFIXES: [&str; 3] = ["x-forwarded-", "x-postern-", "proxy-"];

/// What the upstream must not tell the caller.
const UPSTREAM_ONLY: [&str; 6] =
    ["server", "x-powered-by", "alt-svc", "x-request-id", "http2-settings", "dpop-nonce"];
/// What would speak for the relay's whole origin when the service is but a prefix of it.
const ORIGIN_WIDE: [&str; 4] =
    ["set-cookie", "clear-site-data", "service-worker-allowed", "strict-transport-security"];

/// Whether the relay sets or removes this request field itself, so that no configuration may give it another meaning.
pub fn is_ours(name: &HeaderName) -> bool {
    is_ours_folded(&folded(name))
}

fn is_ours_folded(name: &str) -> bool {
    is_of_the_connection(name)
        || is_steering(name)
        || SPOOFED.contains(&name)
        || SPOOFED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || matches!(name, "host" | "content-length")
}

/// The names in Connection fields.
fn named_by_connection(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(header::CONNECTION).iter().chain(headers.get_all("proxy-connection"));
    let names = values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    names
        .map(|name| name.trim().to_ascii_lowercase().replace('_', "-"))
        .filter(|name| !name.is_empty())
        .collect()
}

/// Whether a field is unwanted is asked with its name as it is and folded.
fn remove(headers: &mut HeaderMap, unwanted: impl Fn(&HeaderName, &str) -> bool) {
    let names: Vec<HeaderName> =
        headers.keys().filter(|name| unwanted(name, &folded(name))).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Makes of the caller's head what the upstream gets, but for what `onward` says of the caller: forwarding fields are the relay's own.
pub fn to_upstream(
    head: &mut http::request::Parts,
    permitted: &Permitted,
    routed: &Routed,
    record: &Record,
) -> Result<(), Refusal> {
    let service = permitted.service();
    let trailers = takes_trailers(&head.headers);
    let trace = trace_parent(head.headers.get(TRACEPARENT));
    let named = named_by_connection(&head.headers);
    remove(&mut head.headers, |name, folded| {
        *name == header::HOST
            || (*name != header::CONTENT_LENGTH && is_ours_folded(folded))
            || named.iter().any(|named| named == folded)
            || lists(&service.removed, folded)
    });
    one_length(&mut head.headers);
    one_cookie(&mut head.headers);
    clean_trailer_names(&mut head.headers, &service.removed);
    let mut add = |name: &'static str, value: String| {
        let value = HeaderValue::try_from(value)
            .map_err(|_| Refusal::Malformed("the Host field does not fit".into()))?;
        head.headers.insert(HeaderName::from_static(name), value);
        Ok::<_, Refusal>(())
    };
    let peer = record.peer().ip().to_canonical();
    let node = if peer.is_ipv6() { format!("\"[{peer}]\"") } else { peer.to_string() };
    add("forwarded", format!("for={node};proto=https;host=\"{}\"", routed.authority))?;
    add("x-forwarded-for", if peer.is_ipv6() { peer.to_string() } else { node })?;
    add("x-forwarded-host", routed.authority.as_str().to_owned())?;
    add("host", routed.authority.as_str().to_owned())?;
    if let Some(prefix) = routed.prefix() {
        add("x-forwarded-prefix", prefix.to_owned())?;
    }
    add("traceparent", trace)?;
    head.headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
    head.headers.insert("x-request-id", record.id_field().clone());
    if trailers {
        head.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    Ok(())
}

/// Whether the caller takes trailers (RFC 9110, 10.1.4), whatever else it takes.
fn takes_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::TE).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

/// Trailers that will not arrive are not announced either.
fn clean_trailer_names(headers: &mut HeaderMap, removed: &[String]) {
    if !headers.contains_key(header::TRAILER) {
        return;
    }
    let values = headers.get_all(header::TRAILER).iter().filter_map(|value| value.to_str().ok());
    let names =
        values.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse::<HeaderName>().ok());
    let kept: Vec<String> = names
        .filter(|name| !is_ours(name) && !lists(removed, &folded(name)))
        .map(|name| name.to_string())
        .collect();
    headers.remove(header::TRAILER);
    if let (false, Ok(value)) = (kept.is_empty(), HeaderValue::from_str(&kept.join(", "))) {
        headers.insert(header::TRAILER, value);
    }
}

/// HTTP/2 lets the same length come twice; routing has made sure that they agree.
fn one_length(headers: &mut HeaderMap) {
    if let Some(length) = headers.get(header::CONTENT_LENGTH).cloned() {
        headers.insert(header::CONTENT_LENGTH, length);
    }
}

/// HTTP/2 callers may split Cookie into several fields, which HTTP/1.1 upstreams take for a mistake (RFC 9113, 8.2.3).
fn one_cookie(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, joined);
    }
}

/// The caller's trace with a new parent, or a new trace.
pub fn trace_parent(caller: Option<&HeaderValue>) -> String {
    let hex = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let known = caller.and_then(|value| value.to_str().ok()).and_then(|text| {
        let mut parts = text.split('-');
        let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_whole = version == "00" && trace.len() == 32 && parent.len() == 16 && flags.len() == 2;
        let is_good = is_whole && parts.next().is_none() && hex(trace) && hex(parent) && hex(flags);
        (is_good && trace.bytes().any(|b| b != b'0')).then_some((trace, flags))
    });
    let parent = rand::random::<u64>().max(1);
    match known {
        Some((trace, flags)) => format!("00-{trace}-{parent:016x}-{flags}"),
        None => format!("00-{:032x}-{parent:016x}-00", rand::random::<u128>().max(1)),
    }
}

/// Whether a folded name is one of these.
fn lists(names: &[String], folded: &str) -> bool {
    names.iter().any(|one| one == folded)
}

/// A caller's trailers get no further than its header fields did; `removed` are the service's own.
pub fn clean_upload_trailers(trailers: &mut HeaderMap, removed: &[String]) {
    clean_trailers(trailers);
    remove(trailers, |_, folded| lists(removed, folded));
}

/// A caller's or upstream's trailers get no further than its header fields would have.
pub fn clean_trailers(trailers: &mut HeaderMap) {
    remove(trailers, |_, folded| {
        is_ours_folded(folded) || UPSTREAM_ONLY.contains(&folded) || ORIGIN_WIDE.contains(&folded)
    });
}

/// Makes of the upstream's head what the caller gets.
pub fn to_caller(status: StatusCode, headers: &mut HeaderMap, service: &Service, routed: &Routed) {
    if status == StatusCode::NO_CONTENT {
        // RFC 9110, 8.6: a length there would be taken for a body that never comes.
        headers.remove(header::CONTENT_LENGTH);
    }
    let named = named_by_connection(headers);
    let challenges: Vec<HeaderValue> = headers
        .get_all(header::WWW_AUTHENTICATE)
        .iter()
        .filter(|value| !is_token_challenge(value))
        .cloned()
        .collect();
    remove(headers, |name, folded| {
        is_of_the_connection(folded)
            || UPSTREAM_ONLY.contains(&folded)
            || folded.starts_with("x-postern-")
            || folded.starts_with("proxy-")
            || *name == header::WWW_AUTHENTICATE
            || (service.prefix.is_some() && ORIGIN_WIDE.contains(&folded))
            // Which pages may read it, the relay says then.
            || (service.cors.is_some() && folded.starts_with("access-control-"))
            || named.iter().any(|named| named == folded)
            || service.strip_response.iter().any(|strip| fields::folded(strip) == folded)
    });
    for challenge in challenges {
        headers.append(header::WWW_AUTHENTICATE, challenge);
    }
    clean_trailer_names(headers, &[]);
    for name in [header::LOCATION, header::CONTENT_LOCATION] {
        let public = |text: &str| {
            public_location(text, routed.authority.as_str(), routed.prefix().unwrap_or_default())
        };
        let rewritten = headers.get(&name).and_then(|value| public(value.to_str().ok()?));
        if let Some(value) = rewritten.and_then(|text| HeaderValue::from_str(&text).ok()) {
            headers.insert(name, value);
        }
    }
}

/// A Bearer or DPoP challenge of the upstream would send the caller's client to the wrong issuer.
fn is_token_challenge(value: &HeaderValue) -> bool {
    let scheme = value.as_bytes().split(|b| *b == b' ').next().unwrap_or_default();
    scheme.eq_ignore_ascii_case(b"bearer") || scheme.eq_ignore_ascii_case(b"dpop")
}

/// The public form of a location that means this service: relative to its root (the agent has taken the upstream's own address off), or
/// absolute with the host that the caller used. `None` leaves it as it is.
fn public_location(location: &str, authority: &str, prefix: &str) -> Option<String> {
    let of_host = ["https://", "http://"].iter().find_map(|scheme| {
        let rest = location.strip_prefix(scheme)?.strip_prefix(authority)?;
        matches!(rest.as_bytes().first(), None | Some(b'/' | b'?' | b'#')).then_some(rest)
    });
    let path = match of_host {
        Some("") => "/",
        Some(rest) => rest,
        None => location,
    };
    match (of_host, path.starts_with('/') && !path.starts_with("//")) {
        (Some(_), _) => Some(format!("https://{authority}{prefix}{path}")),
        (None, true) if !prefix.is_empty() => Some(format!("{prefix}{path}")),
        _ => None,
    }
}

/// A request without a body says so, and only those whose methods usually have one say it with a length: the agent tells by this that
/// nothing will come.
pub fn without_body(headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
}

#[cfg(test)]
mod tests;
