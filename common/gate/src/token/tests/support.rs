//! What the tests of this room share: keys that sign, and an issuer on loopback that counts who asks it for what.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair, RsaPublicKeyComponents};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use postern_base::config::Source;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::token::Algorithm;
use crate::token::key::Key;
use crate::token::settings::{IssuerFile, IssuerSettings};

/// The time of these tests, in seconds since the epoch.
pub(crate) const NOW: u64 = 1_800_000_000;

pub(crate) fn at(seconds: f64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW - 3600) + Duration::from_secs_f64(3600.0 + seconds)
}

pub(crate) fn now() -> SystemTime {
    at(0.0)
}

/// An ES256 token under the other signature that verifies: (r, n - s) for (r, s).
pub(crate) fn twin(token: &str) -> String {
    const N: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let mut signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let mut borrow = 0;
    for at in (0..32).rev() {
        let digit = i32::from_str_radix(&N[at * 2..at * 2 + 2], 16).unwrap();
        let left = digit - i32::from(signature[32 + at]) - borrow;
        borrow = i32::from(left < 0);
        signature[32 + at] = u8::try_from(left.rem_euclid(256)).unwrap();
    }
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

enum Pair {
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
    Rsa(RsaKeyPair),
}

/// A private key with its name.
pub(crate) struct Signer {
    pub(crate) kid: &'static str,
    algorithm: Algorithm,
    pair: Pair,
}

impl Signer {
    pub(crate) fn new(algorithm: Algorithm, kid: &'static str) -> Self {
        let ec = |kind| Pair::Ec(EcdsaKeyPair::generate(kind).unwrap());
        let pair = match algorithm {
            Algorithm::Es256 => ec(&signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            Algorithm::Es384 => ec(&signature::ECDSA_P384_SHA384_FIXED_SIGNING),
            Algorithm::EdDsa => Pair::Ed(Ed25519KeyPair::generate().unwrap()),
            Algorithm::Rs256
            | Algorithm::Rs384
            | Algorithm::Rs512
            | Algorithm::Ps256
            | Algorithm::Ps384
            | Algorithm::Ps512 => Pair::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()),
        };
        Self { kid, algorithm, pair }
    }

    /// The private key, as PKCS#8.
    pub(crate) fn pem(&self) -> String {
        let der = match &self.pair {
            Pair::Ec(pair) => pair.to_pkcs8v1().unwrap().as_ref().to_vec(),
            Pair::Ed(pair) => pair.to_pkcs8v1().unwrap().as_ref().to_vec(),
            Pair::Rsa(pair) => AsDer::<Pkcs8V1Der<'_>>::as_der(pair).unwrap().as_ref().to_vec(),
        };
        format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der))
    }

    /// Whether `signature` (base64url) is this key's.
    pub(crate) fn signed(&self, text: &str, signature: &str) -> bool {
        Key::new(&self.jwk(), &[self.algorithm]).unwrap().verifies(text, signature)
    }

    pub(crate) fn jwk(&self) -> Value {
        let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut jwk = match &self.pair {
            Pair::Ec(pair) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(pair.public_key().as_ref().len() / 2);
                let crv = if self.algorithm == Algorithm::Es256 { "P-256" } else { "P-384" };
                json!({ "kty": "EC", "crv": crv, "x": b64(x), "y": b64(y) })
            }
            Pair::Ed(pair) => json!({ "kty": "OKP", "crv": "Ed25519", "x": b64(pair.public_key().as_ref()) }),
            Pair::Rsa(pair) => {
                let public = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                json!({ "kty": "RSA", "n": b64(&public.n), "e": b64(&public.e) })
            }
        };
        jwk["kid"] = self.kid.into();
        jwk["alg"] = self.algorithm.to_string().into();
        jwk["use"] = "sig".into();
        jwk
    }

    /// A token with the usual header.
    pub(crate) fn token(&self, claims: &Value) -> String {
        self.token_with(&json!({ "kid": self.kid, "typ": "at+jwt" }), claims)
    }

    /// A token whose header has these members, and `alg` unless it is among them.
    pub(crate) fn token_with(&self, header: &Value, claims: &Value) -> String {
        let mut header = header.clone();
        if header.get("alg").is_none() {
            header["alg"] = self.algorithm.to_string().into();
        }
        self.sign(&header.to_string(), &claims.to_string())
    }

    /// Signs any two texts.
    pub(crate) fn sign(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let random = SystemRandom::new();
        let made = match &self.pair {
            Pair::Ec(pair) => pair.sign(&random, signed.as_bytes()).unwrap().as_ref().to_vec(),
            Pair::Ed(pair) => pair.sign(signed.as_bytes()).as_ref().to_vec(),
            Pair::Rsa(pair) => {
                let encoding: &'static dyn signature::RsaEncoding = match self.algorithm {
                    Algorithm::Rs256 => &signature::RSA_PKCS1_SHA256,
                    Algorithm::Rs384 => &signature::RSA_PKCS1_SHA384,
                    Algorithm::Rs512 => &signature::RSA_PKCS1_SHA512,
                    Algorithm::Ps256 => &signature::RSA_PSS_SHA256,
                    Algorithm::Ps384 => &signature::RSA_PSS_SHA384,
                    Algorithm::Ps512 => &signature::RSA_PSS_SHA512,
                    Algorithm::Es256 | Algorithm::Es384 | Algorithm::EdDsa => unreachable!(),
                };
                let mut made = vec![0; pair.public_modulus_len()];
                pair.sign(encoding, &random, signed.as_bytes(), &mut made).unwrap();
                made
            }
        };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(made))
    }
}

/// Claims of a good token of `iss` for the audience `postern`.
pub(crate) fn good_claims(iss: &str) -> Value {
    json!({
        "iss": iss, "sub": "ada", "aud": "postern", "exp": NOW + 300, "iat": NOW, "client_id": "cli", "scope": "a b",
    })
}

/// `base` with the members of `changes`; a null removes one.
pub(crate) fn with(mut base: Value, changes: &Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            base.as_object_mut().unwrap().remove(name);
        } else {
            base[name] = value.clone();
        }
    }
    base
}

/// The settings of an issuer called `corp` whose tokens are for `postern`, with more lines of TOML.
pub(crate) fn settings(issuer: &str, more: &str) -> IssuerSettings {
    let text = format!("name = \"corp\"\nissuer = \"{issuer}\"\naudience = \"postern\"\n{more}");
    let file: IssuerFile = Source::from_text("relay.toml", text).parse().unwrap();
    file.settings(std::path::Path::new("")).unwrap()
}

#[derive(Default)]
struct Site {
    pages: HashMap<String, (u16, String)>,
    asked: HashMap<String, usize>,
    /// Of the last request: its Authorization and its body.
    said: (Option<String>, String),
}

/// An issuer on a port of its own; dropped, it is gone.
pub(crate) struct FakeIssuer {
    pub(crate) url: String,
    site: Arc<Mutex<Site>>,
    /// While false, requests are held.
    open: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl FakeIssuer {
    /// One with an OpenID Connect document and these keys.
    pub(crate) async fn with_keys(keys: &[&Signer]) -> Self {
        let issuer = Self::start().await;
        let document = json!({ "issuer": issuer.url, "jwks_uri": format!("{}/keys", issuer.url) });
        issuer.page("/.well-known/openid-configuration", 200, &document.to_string());
        issuer.publish(keys);
        issuer
    }

    /// One that knows nothing.
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1:0").await
    }

    pub(crate) async fn start_at(address: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let site = Arc::new(Mutex::new(Site::default()));
        let open = watch::Sender::new(true);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, Arc::clone(&site), open.subscribe()));
        Self { url, site, open, _tasks: tasks }
    }

    pub(crate) fn page(&self, path: &str, status: u16, body: &str) {
        self.site.lock().unwrap().pages.insert(path.to_owned(), (status, body.to_owned()));
    }

    pub(crate) fn publish(&self, keys: &[&Signer]) {
        let keys: Vec<Value> = keys.iter().map(|key| key.jwk()).collect();
        self.page("/keys", 200, &json!({ "keys": keys }).to_string());
    }

    /// How often a path was asked for.
    pub(crate) fn asked(&self, path: &str) -> usize {
        self.site.lock().unwrap().asked.get(path).copied().unwrap_or_default()
    }

    /// The Authorization and the form of the last request.
    pub(crate) fn said(&self) -> (Option<String>, HashMap<String, String>) {
        let (authorization, body) = self.site.lock().unwrap().said.clone();
        (authorization, url::form_urlencoded::parse(body.as_bytes()).into_owned().collect())
    }

    pub(crate) fn hold(&self, held: bool) {
        self.open.send_replace(!held);
    }
}

async fn serve(listener: TcpListener, site: Arc<Mutex<Site>>, open: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (site, open) = (Arc::clone(&site), open.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let (site, mut open) = (Arc::clone(&site), open.clone());
            async move {
                let path = request.uri().path().to_owned();
                *site.lock().unwrap().asked.entry(path.clone()).or_default() += 1;
                let authorization =
                    request.headers().get("authorization").map(|v| v.to_str().unwrap().to_owned());
                let body = request.into_body().collect().await.unwrap().to_bytes();
                site.lock().unwrap().said = (authorization, String::from_utf8(body.to_vec()).unwrap());
                open.wait_for(|open| *open).await.unwrap();
                let (status, body) = site
                    .lock()
                    .unwrap()
                    .pages
                    .get(&path)
                    .cloned()
                    .unwrap_or((404, "no such page".to_owned()));
                let answer = Response::builder().status(status).header("location", "/elsewhere");
                Ok::<_, Infallible>(answer.body(Full::new(Bytes::from(body))).unwrap())
            }
        });
        connections.spawn(async move {
            // A client that goes away is no failure of the issuer's.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
