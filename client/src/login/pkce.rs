//! Takes a plan and the issuer's metadata; sends the person to the issuer in a browser (RFC 8252, RFC 7636 S256) and gives what the issuer
//! granted for the code that came back. Refuses a callback with a foreign `state` or `iss` (RFC 9207) and a bad ID token.

use std::time::Duration;

use openidconnect::core::{CoreAuthPrompt, CoreAuthenticationFlow, CoreClient, CoreJsonWebKeySet};
use openidconnect::{
    AuthUrl, AuthorizationCode, ClientId, CsrfToken, EndpointNotSet, EndpointSet, IssuerUrl, Nonce,
    PkceCodeChallenge, RedirectUrl, Scope, TokenUrl,
};
use postern_base::http_client::HttpClient;
use url::Url;
use url::form_urlencoded;

use super::callback::Callback;
use super::discovery::Metadata;
use super::{LoginError, Plan, Way, id_token, openable};
use crate::issuer::{self, Granted, IssuerError, Prover};
use crate::output::Output;
use crate::output::text::escape;

/// Time enough to find a second factor; a browser left open must not hold the port for ever.
const PATIENCE: Duration = Duration::from_mins(10);

type PkceClient =
    CoreClient<EndpointSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet, EndpointNotSet>;

pub(crate) async fn log_in(
    plan: &Plan,
    metadata: &Metadata,
    prover: &Prover,
    http: &HttpClient,
    out: &Output,
) -> Result<Granted, LoginError> {
    let no_endpoint = || LoginError::Discovery {
        issuer: escape(&metadata.issuer),
        reason: "its metadata names no authorization_endpoint".into(),
    };
    let authorize = openable(metadata.authorization_endpoint.as_ref().ok_or_else(no_endpoint)?)?;
    let callback = Callback::bind().await.map_err(LoginError::Callback)?;
    let client = client(plan, metadata, authorize, callback.redirect())?;
    let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
    let (url, state, nonce) = request(&client, plan, prover, challenge);
    send_there(&url, plan.way, out).await;
    let query = callback.wait(PATIENCE).await?;
    let code = judge(&query, state.secret(), metadata)?;
    let mut request = client.exchange_code(AuthorizationCode::new(code)).set_pkce_verifier(verifier);
    for (name, value) in targets(plan) {
        request = request.add_extra_param(name, value);
    }
    let answer = request.request_async(&issuer::sender(http, prover)).await.map_err(IssuerError::from)?;
    id_token::check(&answer, Some(&nonce), plan, metadata, http).await?;
    Ok(Granted::new(&answer, prover)?)
}

fn client(
    plan: &Plan,
    metadata: &Metadata,
    authorize: &Url,
    redirect: &Url,
) -> Result<PkceClient, IssuerError> {
    let issuer = IssuerUrl::new(metadata.issuer.clone()).map_err(|e| IssuerError::Nonsense(e.to_string()))?;
    Ok(CoreClient::new(ClientId::new(plan.client_id.clone()), issuer, CoreJsonWebKeySet::default())
        .disable_openid_scope()
        .set_auth_uri(AuthUrl::from_url(authorize.clone()))
        .set_token_uri(TokenUrl::from_url(metadata.token_endpoint.clone()))
        .set_redirect_uri(RedirectUrl::from_url(redirect.clone())))
}

/// The address that the browser opens, and what the answer must fit.
fn request(
    client: &PkceClient,
    plan: &Plan,
    prover: &Prover,
    challenge: PkceCodeChallenge,
) -> (Url, CsrfToken, Nonce) {
    let mut request = client
        .authorize_url(CoreAuthenticationFlow::AuthorizationCode, CsrfToken::new_random, Nonce::new_random)
        .add_scopes(plan.scopes.iter().cloned().map(Scope::new))
        .set_pkce_challenge(challenge);
    // Else the issuer would go by the login that its page remembers, however long ago that was.
    if plan.anew {
        request = request.add_prompt(CoreAuthPrompt::Login);
    }
    // An issuer must ignore offline_access, and so give no refresh token, unless it asks for consent (OpenID Connect Core 11).
    if plan.scopes.iter().any(|scope| scope == "offline_access") {
        request = request.add_prompt(CoreAuthPrompt::Consent);
    }
    // The code is then worth nothing without the key either (RFC 9449, 10).
    let thumbprint = prover.thumbprint().map(|jkt| ("dpop_jkt", jkt.to_owned()));
    for (name, value) in targets(plan).chain(thumbprint) {
        request = request.add_extra_param(name, value);
    }
    request.url()
}

/// `resource` (RFC 8707) and `audience`, where the relay names them.
pub(super) fn targets(plan: &Plan) -> impl Iterator<Item = (&'static str, String)> {
    let resource = plan.login.resource.clone().map(|value| ("resource", value));
    let audience = plan.login.audience.clone().map(|value| ("audience", value));
    resource.into_iter().chain(audience)
}

async fn send_there(url: &Url, way: Way, out: &Output) {
    if way == Way::Browser {
        let place = escape(&url.origin().ascii_serialization());
        out.note(&format!("Opening {place}/... (no browser? run again with --device)"));
        let address = url.to_string();
        // A browser on the terminal returns only when it is left: the callback is awaited meanwhile.
        let opening = tokio::task::spawn_blocking(move || webbrowser::open(&address).is_ok());
        match tokio::time::timeout(Duration::from_secs(5), opening).await {
            Ok(Ok(true)) | Err(_) => return,
            Ok(Ok(false) | Err(_)) => out.warn("no browser could be opened"),
        }
    }
    out.warn(&format!("Open this address in a browser on this machine:\n  {}", escape(url.as_str())));
}

/// What the browser brought back: the code, if this is the answer to our request.
fn judge(query: &str, state: &str, metadata: &Metadata) -> Result<String, LoginError> {
    let bad = |reason: &str| LoginError::BadCallback(reason.to_owned());
    let pairs: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
    let one = |name: &str| -> Result<Option<&str>, LoginError> {
        let mut values = pairs.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_ref());
        let first = values.next();
        if values.next().is_some() { Err(bad("a parameter comes twice")) } else { Ok(first) }
    };
    if one("state")? != Some(state) {
        return Err(bad("its state is not the one of this login"));
    }
    match one("iss")? {
        Some(iss) if iss != metadata.issuer => return Err(bad("it comes from another issuer")),
        None if metadata.authorization_response_iss_parameter_supported => {
            return Err(bad("it does not say which issuer it comes from"));
        }
        Some(_) | None => {}
    }
    if let Some(error) = one("error")? {
        let description = one("error_description")?.map(|d| format!(": {}", escape(d))).unwrap_or_default();
        return Err(LoginError::Denied(format!("{}{description}", escape(error))));
    }
    one("code")?.map(str::to_owned).ok_or_else(|| bad("it has no code"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::session::dpop::ProofKey;
    use crate::session::pass::Nonce as PrivateNonce;

    fn metadata(iss_required: bool) -> Metadata {
        Metadata {
            issuer: "https://id.example.com".into(),
            token_endpoint: Url::parse("https://id.example.com/token").unwrap(),
            authorization_endpoint: None,
            device_authorization_endpoint: None,
            revocation_endpoint: None,
            jwks_uri: None,
            authorization_response_iss_parameter_supported: iss_required,
            dpop_signing_alg_values_supported: Vec::new(),
        }
    }

    fn judged(query: &str, iss_required: bool) -> Result<String, LoginError> {
        judge(query, "s1", &metadata(iss_required))
    }

    #[test]
    fn consent_is_asked_for_where_a_refresh_token_hangs_on_it() {
        let url = Url::parse("https://id.example.com/auth").unwrap();
        let asked = |scopes: &[&str], key: Option<Arc<ProofKey>>| {
            let login = serde_json::from_value(serde_json::json!({
                "name": "corp", "issuer": "https://id.example.com", "client_ids": {}, "resource": "https://relay.example.com",
            }));
            let plan = Plan {
                login: login.unwrap(),
                client_id: "postern-cli".into(),
                way: Way::Browser,
                scopes: scopes.iter().map(ToString::to_string).collect(),
                machine: None,
                key: key.clone(),
                anew: key.is_some(),
            };
            let prover = Prover::new(key.clone(), PrivateNonce::default());
            let client = client(&plan, &metadata(false), &url, &url).unwrap();
            request(&client, &plan, &prover, PkceCodeChallenge::new_random_sha256().0).0
        };
        let value = |url: &Url, name: &str| {
            url.query_pairs().find(|(n, _)| n == name).map(|(_, value)| value.into_owned())
        };
        let renewing = asked(&["openid", "offline_access"], None);
        assert_eq!(value(&renewing, "prompt").as_deref(), Some("consent"));
        assert_eq!(value(&renewing, "scope").as_deref(), Some("openid offline_access"));
        assert_eq!(value(&renewing, "resource").as_deref(), Some("https://relay.example.com"));
        assert_eq!(value(&renewing, "dpop_jkt"), None);
        assert_eq!(value(&asked(&["openid"], None), "prompt"), None);
        let key = Arc::new(ProofKey::generate().unwrap());
        let bound = asked(&["offline_access"], Some(key.clone()));
        assert_eq!(value(&bound, "dpop_jkt").as_deref(), Some(key.thumbprint()));
        assert_eq!(value(&bound, "prompt").as_deref(), Some("login consent"), "forced");
    }

    #[test]
    fn only_the_answer_to_this_login_counts() {
        let iss = "iss=https%3A%2F%2Fid.example.com";
        assert_eq!(judged("code=c&state=s1", false).unwrap(), "c");
        assert_eq!(judged(&format!("code=c&state=s1&{iss}"), true).unwrap(), "c");
        for bad in [
            "code=c".to_owned(),
            "code=c&state=s2".into(),
            "code=c&code=d&state=s1".into(),
            "state=s1".into(),
            "code=c&state=s1&iss=https%3A%2F%2Fevil.example.com".into(),
            "error=access_denied&state=s2".into(),
        ] {
            assert!(matches!(judged(&bad, false), Err(LoginError::BadCallback(_))), "{bad}");
        }
        assert!(matches!(judged("code=c&state=s1", true), Err(LoginError::BadCallback(_))));
    }

    #[test]
    fn a_refusal_is_told_without_its_controls() {
        let error = judged("error=access_denied&error_description=no%1b%5B2J&state=s1", false).unwrap_err();
        assert_eq!(error.to_string(), "the login was refused: access_denied: no\\u{1b}[2J");
    }
}
