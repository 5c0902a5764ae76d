//! Takes a good token; gives the bad ones an attacker would make of it: unsigned, signed with the public key as an HMAC secret,
//! signed by a stranger's key, changed after signing, or naming another issuer.

use std::fmt::Display;

use anyhow::{Context, Result};
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::clients::sign;

/// Header and claims of a JWT, unverified.
pub fn decode(token: &str) -> Result<(Value, Value)> {
    let mut parts = token.split('.').map(|part| URL_SAFE_NO_PAD.decode(part));
    let mut next = || -> Result<Value> { Ok(serde_json::from_slice(&parts.next().context("not a JWT")??)?) };
    Ok((next()?, next()?))
}

pub(super) fn encode(
    header: impl Display,
    claims: impl Display,
    sign: impl FnOnce(&[u8]) -> Result<Vec<u8>>,
) -> Result<String> {
    let [header, claims] = [header.to_string(), claims.to_string()].map(|part| URL_SAFE_NO_PAD.encode(part));
    let signed = format!("{header}.{claims}");
    let signature = sign(signed.as_bytes())?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// `alg: none` and an empty signature.
pub fn unsigned(token: &str) -> Result<String> {
    let (mut header, claims) = decode(token)?;
    header["alg"] = json!("none");
    encode(&header, &claims, |_| Ok(Vec::new()))
}

/// HS256 with the issuer's public key, as PEM, for a secret; `jwks` is the issuer's own answer.
pub fn hmac_with_public_key(token: &str, jwks: &Value) -> Result<String> {
    let (mut header, claims) = decode(token)?;
    let key = jwks["keys"]
        .as_array()
        .and_then(|keys| keys.iter().find(|key| key["kid"] == header["kid"]))
        .context("the token's key is not in the JWKS")?;
    let secret = p256_pem(key)?;
    header["alg"] = json!("HS256");
    encode(&header, &claims, |input| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        Ok(hmac::sign(&key, input).as_ref().to_vec())
    })
}

/// An EC public key as PEM of its `SubjectPublicKeyInfo`: the fixed prefix for P-256, then the uncompressed point.
fn p256_pem(jwk: &Value) -> Result<String> {
    const PREFIX: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE";
    let coordinate = |name: &str| -> Result<Vec<u8>> {
        Ok(URL_SAFE_NO_PAD.decode(jwk[name].as_str().context("not an EC key")?)?)
    };
    let mut der = STANDARD.decode(PREFIX)?;
    der.extend(coordinate("x")?);
    der.extend(coordinate("y")?);
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
    Ok(format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n")))
}

/// Properly signed with ES256, by a key that the issuer never had; `change` edits header and claims first.
pub fn by_stranger(token: &str, change: impl FnOnce(&mut Value, &mut Value)) -> Result<String> {
    let (mut header, mut claims) = decode(token)?;
    change(&mut header, &mut claims);
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
    sign(&key, header, claims)
}

/// The issuer's own header and signature around other claims.
pub fn tampered(token: &str, change: impl FnOnce(&mut Value)) -> Result<String> {
    let (header, mut claims) = decode(token)?;
    change(&mut claims);
    let signature = token.rsplit('.').next().context("not a JWT")?;
    let signature = URL_SAFE_NO_PAD.decode(signature)?;
    encode(&header, &claims, |_| Ok(signature))
}
