//! Takes a session and an audience; asks the issuer for a new token, by the refresh token or, for a program, by what proves it. Gives what
//! was granted, or how the issuer refused.

use oauth2::basic::BasicClient;
use oauth2::{ClientId, RefreshToken, TokenUrl};
use postern_base::http_client::HttpClient;

use crate::issuer::{self, Granted, IssuerError, Prover};
use crate::session::machine::Asked;
use crate::session::{Session, Token};

pub(super) async fn ask(
    http: &HttpClient,
    session: &Session,
    resource: Option<String>,
    prover: &Prover,
) -> Result<Granted, IssuerError> {
    let targets: Vec<_> = resource.into_iter().map(|resource| ("resource", resource)).collect();
    match (&session.machine, &session.refresh_token) {
        (Some(machine), _) => {
            let (client_id, endpoint) = (&session.client_id, &session.token_endpoint);
            let asked = Asked { machine, client_id, endpoint, scopes: &session.scopes, targets };
            asked.grant(http, prover).await
        }
        (None, Some(refresh)) => refreshed(http, session, refresh, targets, prover).await,
        (None, None) => Err(IssuerError::Nonsense("there is nothing to renew it with".to_owned())),
    }
}

async fn refreshed(
    http: &HttpClient,
    session: &Session,
    refresh: &Token,
    targets: Vec<(&'static str, String)>,
    prover: &Prover,
) -> Result<Granted, IssuerError> {
    let client = BasicClient::new(ClientId::new(session.client_id.clone()))
        .set_token_uri(TokenUrl::from_url(session.token_endpoint.clone()));
    let refresh = RefreshToken::new(refresh.0.expose().to_owned());
    let mut request = client.exchange_refresh_token(&refresh);
    for (name, value) in targets {
        request = request.add_extra_param(name, value);
    }
    let answer = request.request_async(&issuer::sender(http, prover)).await?;
    Granted::new(&answer, prover)
}
