//! The development issuer: takes anyone's word for who they are; gives real tokens for it, by authorization code with PKCE and by device
//! code, so that the demo needs no identity provider. FOR DEVELOPMENT ONLY: it lives in the demo, listens on loopback, and its key and
//! sessions are gone when it ends. What it does ask of clients it asks strictly: S256, exact redirects, codes once, rotation.

mod codes;
mod keys;
mod pages;
mod params;
#[cfg(test)]
mod tests;
mod tokens;

use std::ffi::OsString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use codes::{Asked, Codes, INTERVAL, PATIENCE, Time};
use http::header::{CACHE_CONTROL, HOST, LOCATION};
use http::{HeaderValue, Request, Response, StatusCode};
use keys::Key;
use params::{Params, Refusal};
use serde_json::{Value, json};
use url::Url;

use crate::{roles, serve};

/// Somebody who may log in.
#[derive(Debug)]
struct Person {
    name: &'static str,
    email: &'static str,
    groups: &'static [&'static str],
}

static PEOPLE: [Person; 2] = [
    Person { name: "ada", email: "ada@example.com", groups: &["finance"] },
    Person { name: "bob", email: "bob@example.com", groups: &[] },
];

/// The one client: public, so it proves itself by PKCE or by holding the device code.
const CLIENT_ID: &str = "postern-cli";
const SCOPES: [&str; 5] = ["openid", "email", "offline_access", "invoices:read", "invoices:write"];
const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// `args`: the address to listen on, and the resource for which, and for what lies below it, tokens are given.
pub(crate) fn run(args: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    let [address, resource] = roles::exactly(args)?;
    let issuer = Issuer::new(format!("http://{address}"), resource)?;
    let handler = move |request: &Request<Bytes>| {
        // A clock before 1970 makes every token expired, which is the right end of that.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let response = issuer.handle(now, request);
        tracing::info!("{} {} {}", request.method(), request.uri().path(), response.status().as_u16());
        response
    };
    serve::run(vec![(address.parse()?, Arc::new(handler))])
}

struct Issuer {
    url: String,
    resource: String,
    key: Key,
    codes: Mutex<Codes>,
}

impl Issuer {
    fn new(url: String, resource: String) -> anyhow::Result<Self> {
        Ok(Self { url, resource, key: Key::generate()?, codes: Mutex::new(Codes::new()) })
    }

    fn handle(&self, now: Time, request: &Request<Bytes>) -> Response<Bytes> {
        // A web page whose name was pointed at loopback would come with a host of its own.
        let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
        if host != self.url.strip_prefix("http://") {
            return pages::message(StatusCode::MISDIRECTED_REQUEST, "This is not the host you asked for.");
        }
        let query = request.uri().query().unwrap_or_default();
        let method = request.method().as_str();
        let params = match Params::parse(if method == "POST" { request.body() } else { query.as_bytes() }) {
            Ok(params) => params,
            Err(refusal) => return refused(refusal),
        };
        match (method, request.uri().path()) {
            ("GET", "/.well-known/openid-configuration" | "/.well-known/oauth-authorization-server") => {
                json_answer(StatusCode::OK, &self.metadata())
            }
            ("GET", "/jwks") => json_answer(StatusCode::OK, self.key.set()),
            ("GET", "/authorize") => self.authorization_page(now, &params),
            ("POST", "/authorize") => self.authorization_answer(now, &params),
            ("GET", "/device") => pages::device(params.get("user_code").unwrap_or_default()),
            ("POST", "/device") => self.device_answer(now, &params),
            ("POST", "/device_authorization") => answered(self.start_device(now, &params)),
            ("POST", "/token") => answered(self.token(now, &params)),
            ("POST", "/revoke") => answered(self.revoke(now, &params)),
            _ => pages::message(StatusCode::NOT_FOUND, "There is nothing here."),
        }
    }

    fn codes(&self) -> MutexGuard<'_, Codes> {
        self.codes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// OpenID Connect Discovery, RFC 8414.
    fn metadata(&self) -> Value {
        let at = |path: &str| format!("{}{path}", self.url);
        json!({
            "issuer": self.url,
            "authorization_endpoint": at("/authorize"),
            "token_endpoint": at("/token"),
            "device_authorization_endpoint": at("/device_authorization"),
            "revocation_endpoint": at("/revoke"),
            "jwks_uri": at("/jwks"),
            "scopes_supported": SCOPES,
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": ["authorization_code", "refresh_token", DEVICE_GRANT],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["none"],
            "revocation_endpoint_auth_methods_supported": ["none"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
            "authorization_response_iss_parameter_supported": true,
        })
    }

    /// A wrong client or redirect is told to the person, everything else to the client (RFC 6749 4.1.2.1).
    fn authorization_page(&self, now: Time, params: &Params) -> Response<Bytes> {
        let redirect_uri = params.get("redirect_uri").filter(|uri| is_loopback_redirect(uri));
        let (Ok(()), Some(redirect_uri)) = (client(params), redirect_uri) else {
            let text =
                "This login request names an unknown client, or a redirect that is not to this machine.";
            return pages::message(StatusCode::BAD_REQUEST, text);
        };
        let page = self.asked(params, redirect_uri).and_then(|asked| self.codes().open_page(now, asked));
        match page {
            Ok(page) => pages::authorize(&page),
            Err(refusal) => self.redirect(
                redirect_uri,
                params.get("state"),
                &[("error", refusal.code), ("error_description", refusal.why)],
            ),
        }
    }

    fn asked(&self, params: &Params, redirect_uri: &str) -> Result<Asked, Refusal> {
        if params.need("response_type")? != "code" {
            return Err(Refusal::new("unsupported_response_type", "only response_type=code"));
        }
        let challenge = params.need("code_challenge")?;
        if params.get("code_challenge_method") != Some("S256") || challenge.len() != 43 {
            return Err(Refusal::new("invalid_request", "PKCE with code_challenge_method=S256 is required"));
        }
        self.resource(params)?;
        Ok(Asked {
            redirect_uri: redirect_uri.to_owned(),
            challenge: challenge.to_owned(),
            scope: scope(params),
            state: params.get("state").map(str::to_owned),
            nonce: params.get("nonce").map(str::to_owned),
        })
    }

    fn authorization_answer(&self, now: Time, params: &Params) -> Response<Bytes> {
        let mut codes = self.codes();
        let Some(asked) = params.get("page").and_then(|page| codes.close_page(now, page)) else {
            return pages::message(StatusCode::BAD_REQUEST, "This page was answered already, or too late.");
        };
        let (redirect_uri, state) = (asked.redirect_uri.clone(), asked.state.clone());
        let code = match person(params) {
            Some(person) => codes.authorization_code(now, asked, person),
            None => Err(Refusal::new("access_denied", "the person said no")),
        };
        let outcome = match &code {
            Ok(code) => vec![("code", code.as_str())],
            Err(refusal) => vec![("error", refusal.code), ("error_description", refusal.why)],
        };
        self.redirect(&redirect_uri, state.as_deref(), &outcome)
    }

    /// Back to the client, with `state` and `iss` (RFC 9207).
    fn redirect(&self, uri: &str, state: Option<&str>, outcome: &[(&str, &str)]) -> Response<Bytes> {
        let query = url::form_urlencoded::Serializer::for_suffix(format!("{uri}?"), uri.len() + 1)
            .extend_pairs(outcome)
            .extend_pairs(state.map(|state| ("state", state)))
            .append_pair("iss", &self.url)
            .finish();
        let Ok(location) = HeaderValue::from_str(&query) else {
            return pages::message(
                StatusCode::BAD_REQUEST,
                "This login request names an impossible redirect.",
            );
        };
        let mut response = pages::message(StatusCode::SEE_OTHER, "Back to the program that asked.");
        response.headers_mut().insert(LOCATION, location);
        response
    }

    /// RFC 8628 3.1.
    fn start_device(&self, now: Time, params: &Params) -> Result<Value, Refusal> {
        client(params)?;
        self.resource(params)?;
        let (device_code, user_code) = self.codes().start_device(now, scope(params))?;
        let page = format!("{}/device", self.url);
        Ok(json!({
            "device_code": device_code,
            "verification_uri_complete": format!("{page}?user_code={user_code}"),
            "user_code": user_code,
            "verification_uri": page,
            "expires_in": PATIENCE.as_secs(),
            "interval": INTERVAL.as_secs(),
        }))
    }

    fn device_answer(&self, now: Time, params: &Params) -> Response<Bytes> {
        // People leave out the dash, or type small letters.
        let typed = params.get("user_code").unwrap_or_default();
        let mut user_code: String = typed.chars().filter(char::is_ascii_alphabetic).collect();
        user_code.make_ascii_uppercase();
        if user_code.len() > 4 {
            user_code.insert(4, '-');
        }
        let person = person(params);
        if !self.codes().decide_device(now, &user_code, person) {
            return pages::message(
                StatusCode::BAD_REQUEST,
                "No login waits for this code: it was mistyped, used or has expired.",
            );
        }
        let text = person.map_or_else(
            || "Refused. You may close this page.".to_owned(),
            |person| format!("The device is logged in as {}. You may close this page.", person.name),
        );
        pages::message(StatusCode::OK, &text)
    }

    fn token(&self, now: Time, params: &Params) -> Result<Value, Refusal> {
        client(params)?;
        let resource = self.resource(params)?;
        let redeemed = match params.need("grant_type")? {
            "authorization_code" => self.codes().redeem_code(
                now,
                params.need("code")?,
                params.need("redirect_uri")?,
                params.need("code_verifier")?,
            ),
            "refresh_token" => self.codes().rotate(now, params.need("refresh_token")?),
            DEVICE_GRANT => self.codes().poll_device(now, params.need("device_code")?),
            _ => Err(Refusal::new(
                "unsupported_grant_type",
                "only authorization_code, refresh_token and device_code",
            )),
        }?;
        tokens::answer(now, &self.key, &self.url, &resource, redeemed)
    }

    /// RFC 7009: a token that is unknown is as good as revoked.
    fn revoke(&self, now: Time, params: &Params) -> Result<Value, Refusal> {
        client(params)?;
        self.codes().revoke(now, params.need("token")?);
        Ok(json!({}))
    }

    /// RFC 8707: a token is for one resource, the relay or something at it that has an audience of its own; without a word for the relay. A
    /// slash at the end is forgiven.
    fn resource(&self, params: &Params) -> Result<String, Refusal> {
        let mut asked = params.all("resource").map(|asked| asked.strip_suffix('/').unwrap_or(asked));
        let resource = asked.next().unwrap_or(&self.resource);
        let below = resource.strip_prefix(&self.resource);
        if !below.is_some_and(|path| path.is_empty() || path.starts_with('/')) {
            return Err(Refusal::new("invalid_target", "this issuer knows no such resource"));
        }
        if asked.any(|other| other != resource) {
            return Err(Refusal::new("invalid_target", "a token is for one resource: ask for one at a time"));
        }
        Ok(resource.to_owned())
    }
}

fn client(params: &Params) -> Result<(), Refusal> {
    if params.get("client_id") == Some(CLIENT_ID) {
        return Ok(());
    }
    Err(Refusal::new("invalid_client", "the only client here is postern-cli, without a secret"))
}

/// What was asked for, less what is unknown here.
fn scope(params: &Params) -> String {
    let asked = params.get("scope").unwrap_or_default();
    asked.split(' ').filter(|scope| SCOPES.contains(scope)).collect::<Vec<_>>().join(" ")
}

fn person(params: &Params) -> Option<&'static Person> {
    PEOPLE.iter().find(|person| params.get("person") == Some(person.name))
}

/// RFC 8252 7.3: plain http to a loopback literal, with any port and path, written exactly as a URL parser would write it.
fn is_loopback_redirect(uri: &str) -> bool {
    Url::parse(uri).is_ok_and(|url| {
        url.as_str() == uri
            && url.scheme() == "http"
            && matches!(url.host_str(), Some("127.0.0.1" | "[::1]"))
            && url.port().is_some()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    })
}

fn answered(answer: Result<Value, Refusal>) -> Response<Bytes> {
    answer.map_or_else(refused, |body| json_answer(StatusCode::OK, &body))
}

fn refused(refusal: Refusal) -> Response<Bytes> {
    let status = match refusal.code {
        "invalid_client" => StatusCode::UNAUTHORIZED,
        "temporarily_unavailable" => StatusCode::SERVICE_UNAVAILABLE,
        "server_error" => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::BAD_REQUEST,
    };
    json_answer(status, &json!({ "error": refusal.code, "error_description": refusal.why }))
}

fn json_answer(status: StatusCode, body: &Value) -> Response<Bytes> {
    let mut response = serve::text(status, "application/json", body.to_string());
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
