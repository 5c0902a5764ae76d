//! Takes the ID token that came with an access token; refuses it unless the issuer signed it for this client and this login.

use openidconnect::core::{
    CoreIdToken, CoreIdTokenVerifier, CoreJsonWebKeySet, CoreJwsSigningAlgorithm as Algorithm,
    CoreTokenResponse,
};
use openidconnect::{ClientId, IssuerUrl, JsonWebKeySetUrl, Nonce};
use postern_base::http_client::HttpClient;

use super::discovery::Metadata;
use super::{LoginError, Plan};
use crate::issuer::{self, Prover};
use crate::output::text::escape;

/// Asymmetric ones alone: a public client has no secret for HMAC, and `none` proves nothing.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RsaSsaPkcs1V15Sha256,
    Algorithm::RsaSsaPkcs1V15Sha384,
    Algorithm::RsaSsaPkcs1V15Sha512,
    Algorithm::RsaSsaPssSha256,
    Algorithm::RsaSsaPssSha384,
    Algorithm::RsaSsaPssSha512,
    Algorithm::EcdsaP256Sha256,
    Algorithm::EcdsaP384Sha384,
    Algorithm::EdDsa,
];

/// Checks the ID token, if there is one (a plain OAuth server gives none). Without a nonce (device code) only the rest is checked.
pub(crate) async fn check(
    answer: &CoreTokenResponse,
    nonce: Option<&Nonce>,
    plan: &Plan,
    metadata: &Metadata,
    http: &HttpClient,
) -> Result<(), LoginError> {
    let Some(token) = answer.extra_fields().id_token() else { return Ok(()) };
    let bad = |reason: String| LoginError::IdToken(escape(&reason));
    let keys = metadata
        .jwks_uri
        .clone()
        .ok_or_else(|| bad("the issuer publishes no keys to check it with".into()))?;
    let keys = CoreJsonWebKeySet::fetch_async(
        &JsonWebKeySetUrl::from_url(keys),
        &issuer::sender(http, &Prover::default()),
    )
    .await
    .map_err(|e| bad(format!("the issuer's keys: {e}")))?;
    let issuer = IssuerUrl::new(metadata.issuer.clone()).map_err(|e| bad(e.to_string()))?;
    let verifier =
        CoreIdTokenVerifier::new_public_client(ClientId::new(plan.client_id.clone()), issuer, keys)
            .set_allowed_algs(ALGORITHMS);
    verify(token, &verifier, nonce).map_err(bad)
}

fn verify(
    token: &CoreIdToken,
    verifier: &CoreIdTokenVerifier<'_>,
    nonce: Option<&Nonce>,
) -> Result<(), String> {
    let checked = match nonce {
        Some(nonce) => token.claims(verifier, nonce),
        None => token.claims(verifier, |_: Option<&Nonce>| Ok(())),
    };
    checked.map(|_| ()).map_err(|e| e.to_string())
}
