//! The relay's own addresses: what clients need to log in, the metadata of RFC 9728, what a caller may reach, why or why not, what holds
//! it up now, and how long its live streams may run.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, header};
use hyper::body::Incoming;
use postern_base::id::ServiceName;
use postern_gate::path::CanonicalPath;
use postern_gate::policy::{Context, DenialKind, Permit, ServiceKind, Target};
use postern_gate::principal::Principal;
use postern_gate::token::Accept;
use postern_gate::token::settings::LoginFlow;
use serde::Serialize;
use serde_json::json;

use super::authenticate::{self, Expected};
use super::body::ResponseBody;
use super::limit;
use super::record::Record;
use super::respond::Refusal;
use crate::public::Connection;
use crate::relay::Snapshot;
use crate::settings::{HostPattern, Service};
use state::State;

mod lease;
mod state;

/// Which of the relay's own addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnAddress {
    Root,
    /// RFC 9728, for the relay or any path on it.
    Metadata,
    Login,
    /// RFC 7517: what assertions are checked with.
    Keys,
    Services,
    Explain,
    Lease,
    Unknown,
}

/// Before the name of a TCP service.
pub const TCP_SERVICES: &str = "/.postern/tcp/";
const METADATA: &str = "/.well-known/oauth-protected-resource";

impl OwnAddress {
    /// The own address that a canonical path on the relay's host is, if it is one.
    pub fn of(path: &str) -> Option<Self> {
        match path {
            "/" => Some(Self::Root),
            METADATA => Some(Self::Metadata),
            "/.well-known/postern" => Some(Self::Login),
            "/.well-known/postern/jwks.json" => Some(Self::Keys),
            "/.postern/services" => Some(Self::Services),
            "/.postern/explain" => Some(Self::Explain),
            "/.postern/lease" => Some(Self::Lease),
            _ if path.strip_prefix(METADATA).is_some_and(|rest| rest.starts_with('/')) => {
                Some(Self::Metadata)
            }
            _ if path.starts_with("/.postern") || path.starts_with("/.well-known") => Some(Self::Unknown),
            _ => None,
        }
    }
}

pub async fn answer(
    connection: &Connection,
    snapshot: &Snapshot,
    address: OwnAddress,
    head: &http::request::Parts,
    body: Incoming,
    record: &mut Record,
    now: SystemTime,
) -> Result<Response<ResponseBody>, Refusal> {
    let allow = if address == OwnAddress::Lease { "POST" } else { "GET, HEAD" };
    if !allow.split(", ").any(|method| head.method == *method) {
        return Err(Refusal::OwnMethod(allow));
    }
    let relays = Expected::default();
    let answer = match address {
        OwnAddress::Root => {
            let origin = snapshot.settings.url.origin();
            let text = format!("This is a Postern relay. To log in: postern login {origin}\n");
            return Ok(content("text/plain; charset=utf-8", text.into(), &head.method));
        }
        OwnAddress::Metadata => metadata(snapshot, head.uri.path()),
        OwnAddress::Login => login(snapshot, now),
        OwnAddress::Keys => {
            let keys = connection.worker.relay.onward().keys.published();
            let mut answer = content("application/jwk-set+json", keys, &head.method);
            // A key is there for days before it signs.
            answer
                .headers_mut()
                .insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
            return Ok(answer);
        }
        OwnAddress::Services => {
            let caller = authenticate::verify(connection, snapshot, head, relays, record, now).await?;
            services(connection, snapshot, &caller.principal, record.peer().ip())
        }
        OwnAddress::Explain => explain(connection, snapshot, head, record, now).await?,
        OwnAddress::Lease => lease::renew(connection, snapshot, head, body, record, now).await?,
        OwnAddress::Unknown => {
            authenticate::verify(connection, snapshot, head, relays, record, now).await?;
            return Err(Refusal::NotFound);
        }
    };
    Ok(json_answer(&answer, &head.method))
}

fn json_answer(value: &impl Serialize, method: &Method) -> Response<ResponseBody> {
    content("application/json", serde_json::to_vec(value).unwrap_or_default().into(), method)
}

fn content(kind: &'static str, bytes: Bytes, method: &Method) -> Response<ResponseBody> {
    let length = HeaderValue::from(bytes.len());
    let mut response =
        Response::new(ResponseBody::full(if method == Method::HEAD { Bytes::new() } else { bytes }));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CONTENT_LENGTH, length);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// RFC 9728: alike for every path, whether or not a service is there.
fn metadata(snapshot: &Snapshot, path: &str) -> serde_json::Value {
    let suffix = path.strip_prefix(METADATA).unwrap_or_default();
    let issuers: Vec<&str> = snapshot.issuers.settings().map(|issuer| issuer.issuer.as_str()).collect();
    json!({
        "resource": format!("{}{suffix}", snapshot.settings.url.origin()),
        "authorization_servers": issuers,
        "bearer_methods_supported": ["header"],
        "dpop_signing_alg_values_supported": snapshot.issuers.proof_algorithms(),
        "tls_client_certificate_bound_access_tokens": snapshot.settings.client_certificates,
    })
}

/// All that a client needs to know before a login.
fn login(snapshot: &Snapshot, now: SystemTime) -> serde_json::Value {
    let origin = snapshot.settings.url.origin();
    let logins = snapshot.issuers.settings().filter_map(|issuer| {
        let login = issuer.login.as_ref()?;
        let mut client_ids = serde_json::Map::new();
        for flow in &login.flows {
            let name = match flow {
                LoginFlow::Pkce => "pkce",
                LoginFlow::Device => "device",
            };
            client_ids.insert(name.to_owned(), login.client_id(*flow).into());
        }
        let scopes = login.scopes.clone().unwrap_or_else(|| {
            let mut scopes = vec!["openid".to_owned(), "offline_access".to_owned()];
            let named = snapshot.policy.scopes_named_for(&issuer.name);
            scopes.extend(named.into_iter().filter(|scope| scope != "openid" && scope != "offline_access"));
            scopes
        });
        // The token is asked for this relay (RFC 8707) where the issuer's audience says that it may be, and the issuer can be asked so.
        let resource = issuer.audience.iter().filter(|_| login.resource).find(|audience| {
            url::Url::parse(audience).is_ok_and(|url| url.origin().ascii_serialization() == origin)
        });
        Some(json!({
            "name": issuer.name,
            "issuer": issuer.issuer,
            "client_ids": client_ids,
            "scopes": scopes,
            "resource": resource,
            "audience": login.audience,
        }))
    });
    let time = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_millis());
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "relay": origin,
        // A client sees by it how far its clock is off.
        "time": u64::try_from(time).unwrap_or(u64::MAX),
        "logins": logins.collect::<Vec<_>>(),
    })
}

fn public_url(snapshot: &Snapshot, service: &Service) -> Option<String> {
    let url = &snapshot.settings.url;
    if service.kind == ServiceKind::Tcp {
        return Some(format!("{}{TCP_SERVICES}{}", url.origin(), service.name));
    }
    let by_host = service.hosts.iter().find_map(|host| match host {
        HostPattern::Exact(host) => Some(match url.port() {
            443 => format!("https://{host}/"),
            port => format!("https://{host}:{port}/"),
        }),
        HostPattern::Wildcard(_) => None,
    });
    by_host.or_else(|| service.prefix.as_ref().map(|prefix| format!("{}{prefix}/", url.origin())))
}

/// What this caller may reach, and whether it is up.
fn services(
    connection: &Connection,
    snapshot: &Snapshot,
    caller: &Arc<Principal>,
    address: IpAddr,
) -> serde_json::Value {
    let relay = &connection.worker.relay;
    let reach = snapshot.policy.reach(caller);
    let services = reach.iter().filter_map(|reach| {
        let service = snapshot.settings.services.get(&reach.service)?;
        let State { agents, lock, down_since } = State::of(relay, &reach.service);
        let hosts = service.hosts.iter().map(|host| match host {
            HostPattern::Exact(host) => host.clone(),
            HostPattern::Wildcard(suffix) => format!("*.{suffix}"),
        });
        let may: Vec<&str> = reach.rules.iter().flat_map(|rule| rule.to.iter().map(String::as_str)).collect();
        let rules: Vec<_> = reach
            .rules
            .iter()
            .map(|rule| {
                let limits = limit::standing(relay, caller, address, &rule.counted);
                json!({ "name": rule.rule, "to": rule.to, "needs": rule.needs, "limits": limits })
            })
            .collect();
        Some(json!({
            "name": service.name,
            "kind": service.kind.to_string(),
            "about": service.about,
            "url": public_url(snapshot, service),
            "hosts": hosts.collect::<Vec<_>>(),
            "resource": service.audience.as_ref().and_then(|audience| audience.first()),
            "may": may,
            "rules": rules,
            "up": !agents.is_empty() && lock.is_none(),
            "agents": agents,
            "down_since": down_since,
            "locked": lock,
        }))
    });
    let roles = snapshot.policy.roles_of(caller);
    json!({
        "principal": {
            "issuer": caller.issuer(),
            "subject": caller.subject(),
            "user": caller.user(),
            "client": caller.client(),
            "scopes": caller.scopes(),
            "groups": caller.groups(),
            "roles": roles.iter().collect::<Vec<_>>(),
            "expires": caller.expires(),
        },
        "services": services.collect::<Vec<_>>(),
    })
}

/// The decision on a call that is not made: `?method=DELETE&target=billing/v1/invoices/7`.
async fn explain(
    connection: &Connection,
    snapshot: &Snapshot,
    head: &http::request::Parts,
    record: &mut Record,
    now: SystemTime,
) -> Result<serde_json::Value, Refusal> {
    let refuse = |why: &str| {
        let form = "ask ?method=GET&target=<service>/<path>, or ?method=CONNECT&target=<service>";
        Refusal::Malformed(format!("{why}; {form}"))
    };
    let (mut method, mut target) = (None, None);
    for (key, value) in url::form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes()) {
        match &*key {
            "method" => method = Some(value.into_owned()),
            "target" => target = Some(value.into_owned()),
            _ => return Err(refuse("unknown parameter")),
        }
    }
    let (method, target) = method.zip(target).ok_or_else(|| refuse("method and target are needed"))?;
    let (name, path) = target.split_once('/').unwrap_or((&target, ""));
    let service = name.parse::<ServiceName>().ok().and_then(|name| snapshot.settings.services.get(&name));
    // A token that is good here but not for that service must not tell that the service is there.
    let accept = service.map_or_else(Accept::default, |service| service.accept());
    let expected = Expected { accept, is_told: false };
    let caller = authenticate::verify(connection, snapshot, head, expected, record, now).await?.principal;
    let service = service.ok_or(Refusal::NotFound)?;
    let raw = format!("/{path}");
    let path = CanonicalPath::parse(&raw, service.paths).map_err(|e| refuse(&e.to_string()))?;
    let target = Target { service: &service.name, method: &method, path: &path };
    let context = Context { address: record.peer().ip(), now };
    let decision = match snapshot.policy.decide(&caller, &target, &context) {
        Err(denial) if *denial.kind() == DenialKind::NotVisible => return Err(Refusal::NotFound),
        Err(denial) => denial.decision(),
        Ok(permit) => permit.decision(),
    };
    if service.kind == ServiceKind::Tcp && path.as_str() != "/" {
        return Err(refuse("a TCP service has no paths"));
    }
    let relay = &connection.worker.relay;
    let tell = |caller: &Principal, address, permit: &mut Permit| limit::look(relay, caller, address, permit);
    let explanation = snapshot.policy.explain(&caller, &target, &context, &tell);
    let obstacle =
        explanation.allowed.then(|| state::held(relay, &service.name, &explanation.limits)).flatten();
    let mut answer = serde_json::to_value(explanation).map_err(|e| Refusal::Malformed(e.to_string()))?;
    answer["decision_id"] = decision.to_string().into();
    answer["held"] = obstacle.unwrap_or_default();
    Ok(answer)
}
