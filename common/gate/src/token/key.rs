//! Takes JSON Web Keys as an issuer publishes them (RFC 7517); gives those fit to check its tokens, each with its one algorithm; leaves
//! out the rest: symmetric, for encryption, on other curves, too small, or known to be broken.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{DecodingKey, crypto};
use schemars::JsonSchema;
use serde::de::IntoDeserializer;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A signature algorithm (RFC 7518, RFC 8037). None is symmetric, and "none" is not among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl Algorithm {
    /// The algorithm of exactly this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        let name: serde::de::value::StrDeserializer<'_, serde::de::value::Error> = name.into_deserializer();
        Self::deserialize(name).ok()
    }

    fn is_rsa(self) -> bool {
        match self {
            Self::Rs256 | Self::Rs384 | Self::Rs512 | Self::Ps256 | Self::Ps384 | Self::Ps512 => true,
            Self::Es256 | Self::Es384 | Self::EdDsa => false,
        }
    }

    fn library(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Rs256 => jsonwebtoken::Algorithm::RS256,
            Self::Rs384 => jsonwebtoken::Algorithm::RS384,
            Self::Rs512 => jsonwebtoken::Algorithm::RS512,
            Self::Ps256 => jsonwebtoken::Algorithm::PS256,
            Self::Ps384 => jsonwebtoken::Algorithm::PS384,
            Self::Ps512 => jsonwebtoken::Algorithm::PS512,
            Self::Es256 => jsonwebtoken::Algorithm::ES256,
            Self::Es384 => jsonwebtoken::Algorithm::ES384,
            Self::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// The members that matter. `x5u` and `x5c` do not: nothing is fetched or believed but the key set itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

/// A public key with the one algorithm it is for.
pub(super) struct Key {
    jwk: Jwk,
    algorithm: Algorithm,
    decoding: DecodingKey,
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        // The decoding key follows from these.
        self.jwk == other.jwk && self.algorithm == other.algorithm
    }
}

impl Key {
    /// The key, if it is fit for one of the issuer's algorithms. An RSA key that does not state its own is for the first RSA
    /// algorithm among them.
    pub(super) fn new(published: &Value, allowed: &[Algorithm]) -> Option<Self> {
        let jwk = Jwk::deserialize(published).ok()?;
        let signs = jwk.purpose.as_deref().is_none_or(|purpose| purpose == "sig")
            && jwk.key_ops.as_ref().is_none_or(|all| all.iter().any(|one| one == "verify"));
        if !signs {
            return None;
        }
        let stated = match &jwk.alg {
            Some(name) => Some(Algorithm::named(name)?),
            None => None,
        };
        let (algorithm, decoding) = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", _) => {
                let first = || allowed.iter().copied().find(|algorithm| algorithm.is_rsa());
                (stated.or_else(first).filter(|algorithm| algorithm.is_rsa())?, rsa(&jwk)?)
            }
            ("EC", Some("P-256")) => (Algorithm::Es256, curve_point(&jwk, 32)?),
            ("EC", Some("P-384")) => (Algorithm::Es384, curve_point(&jwk, 48)?),
            ("OKP", Some("Ed25519")) => {
                (Algorithm::EdDsa, DecodingKey::from_ed_der(&decode(jwk.x.as_ref(), Some(32))?))
            }
            _ => return None,
        };
        let fits = allowed.contains(&algorithm) && stated.is_none_or(|stated| stated == algorithm);
        fits.then_some(Self { jwk, algorithm, decoding })
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(super) fn kid(&self) -> Option<&str> {
        self.jwk.kid.as_deref()
    }

    /// Whether `signature` (base64url) over `signed` is this key's.
    pub(super) fn verifies(&self, signed: &str, signature: &str) -> bool {
        crypto::verify(signature, signed.as_bytes(), &self.decoding, self.algorithm.library())
            .unwrap_or(false)
    }
}

fn decode(text: Option<&String>, length: Option<usize>) -> Option<Vec<u8>> {
    let bytes = URL_SAFE_NO_PAD.decode(text?).ok()?;
    length.is_none_or(|length| length == bytes.len()).then_some(bytes)
}

fn curve_point(jwk: &Jwk, length: usize) -> Option<DecodingKey> {
    let x = decode(jwk.x.as_ref(), Some(length))?;
    let y = decode(jwk.y.as_ref(), Some(length))?;
    // An uncompressed point (SEC 1, 2.3.3); one that is not on the curve verifies nothing.
    Some(DecodingKey::from_ec_der(&[&[4], x.as_slice(), y.as_slice()].concat()))
}

/// Moduli of 2048 to 8192 bits; the exponent is judged at each verification.
fn rsa(jwk: &Jwk) -> Option<DecodingKey> {
    let n = decode(jwk.n.as_ref(), None)?;
    let e = decode(jwk.e.as_ref(), None)?;
    let bits = n.len() * 8 - n.first()?.leading_zeros() as usize;
    ((2048..=8192).contains(&bits) && !is_roca(&n)).then(|| DecodingKey::from_rsa_raw_components(&n, &e))
}

/// Whether a library that made weak primes made this modulus (CVE-2017-15361): such keys can be factored. Their moduli are powers of
/// 65537 modulo every small prime, which others are by chance once in 2^27.
fn is_roca(modulus: &[u8]) -> bool {
    // Only primes modulo which 65537 does not reach every residue tell anything.
    const PRIMES: [u32; 17] = [11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157];
    PRIMES.iter().all(|prime| {
        let residue = modulus.iter().fold(0, |rest, byte| (rest * 256 + u32::from(*byte)) % prime);
        let mut power = 1;
        (0..*prime).any(|_| {
            power = power * 65537 % prime;
            power == residue
        })
    })
}

#[cfg(test)]
mod tests;
