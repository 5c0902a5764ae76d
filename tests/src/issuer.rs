//! Takes a directory and certificates; gives the running OpenID provider of `tests/idp` and tokens from it, each by a real flow
//! completed without a person: authorization code with PKCE, device grant, client credentials, refresh.

mod bound;
mod browser;
mod clients;
pub mod forge;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls::RootCertStore;
use serde_json::Value;
use url::Url;
use url::form_urlencoded::Serializer;

pub use bound::ProofKey;
pub use browser::{Browser, Page};
pub use clients::{ClientKeys, Machine, public_jwk, sign};

use crate::http::{Answer, Body, Http, full, request};
use crate::pki::{CertFiles, Pki};
use crate::process::{Program, Signal};
use crate::wait;

/// The public client that `postern` uses.
pub const CLI: &str = "postern-cli";
/// The confidential client, for `client_credentials`.
pub const BATCH: (&str, &str) = ("nightly-batch", "nightly-batch-secret");
/// A resource that is not the relay.
pub const OTHER_RESOURCE: &str = "https://other.example.com";
/// A resource whose tokens are opaque.
pub const OPAQUE_RESOURCE: &str = "https://opaque.example.com";

const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// The running issuer; stopped, it can be started again on the same address, where it has forgotten everything and has new keys.
pub struct Issuer {
    pub url: Url,
    /// The main resource: what tokens for the relay have as their audience.
    pub resource: String,
    program: Option<Program>,
    http: Http,
    port: u16,
    /// The same issuer where it asks for a client certificate.
    mtls_port: u16,
    /// What its confidential clients prove themselves with.
    pub clients: ClientKeys,
    roots: RootCertStore,
    ca: PathBuf,
    cert: CertFiles,
    dir: PathBuf,
    starts: u32,
}

/// What a person's login asks for. [`Login::of`] has the defaults.
#[derive(Debug, Clone)]
pub struct Login {
    pub user: String,
    pub scope: String,
    /// The resource indicator; none means the issuer's main resource.
    pub resource: Option<String>,
    /// How well the person proves who they are: `pwd` or `mfa`.
    pub acr: String,
}

impl Login {
    /// A login with the scope to read invoices, by password.
    pub fn of(user: &str) -> Self {
        let scope = "openid offline_access invoices:read".to_owned();
        Self { user: user.to_owned(), scope, resource: None, acr: "pwd".to_owned() }
    }

    #[must_use]
    pub fn scope(mut self, scope: &str) -> Self {
        scope.clone_into(&mut self.scope);
        self
    }

    #[must_use]
    pub fn resource(mut self, resource: &str) -> Self {
        self.resource = Some(resource.to_owned());
        self
    }

    #[must_use]
    pub fn acr(mut self, acr: &str) -> Self {
        acr.clone_into(&mut self.acr);
        self
    }
}

/// What the token endpoint gave.
#[derive(Debug, Clone)]
pub struct Tokens {
    pub access: String,
    pub refresh: Option<String>,
    pub id: Option<String>,
}

impl Tokens {
    fn of(answer: &Answer) -> Result<Self> {
        let answer = answer.clone().expect_status(200)?.json()?;
        let text = |name: &str| answer[name].as_str().map(str::to_owned);
        let access = text("access_token").context("no access token")?;
        Ok(Self { access, refresh: text("refresh_token"), id: text("id_token") })
    }
}

/// A form's fields as a request's body.
fn form(builder: http::request::Builder, fields: &[(&str, &str)]) -> Result<http::Request<Body>> {
    let text = Serializer::new(String::new()).extend_pairs(fields).finish();
    let builder = builder.header("content-type", "application/x-www-form-urlencoded");
    Ok(builder.body(full(text))?)
}

fn pairs<'a>(fields: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    fields.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// How new signing keys come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// The old keys stay published behind the new ones.
    Overlap,
    /// The old keys are gone at once.
    Hard,
}

impl Issuer {
    /// Starts it over HTTPS; tokens for `resource` have that audience.
    pub async fn start(dir: &Path, pki: &Pki, resource: &str) -> Result<Self> {
        let port = wait::free_port()?;
        let mut issuer = Self {
            url: Url::parse(&format!("https://127.0.0.1:{port}"))?,
            resource: resource.to_owned(),
            program: None,
            http: Http::h1(pki.roots()?)?,
            port,
            mtls_port: wait::free_port()?,
            clients: ClientKeys::create(dir, pki)?,
            roots: pki.roots()?,
            ca: pki.ca_file(),
            cert: pki.server(&format!("issuer-{port}"), &[])?,
            dir: dir.to_owned(),
            starts: 0,
        };
        issuer.start_again().await?;
        Ok(issuer)
    }

    /// The issuer as its tokens name it: without a slash at the end.
    pub fn iss(&self) -> &str {
        self.url.as_str().trim_end_matches('/')
    }

    /// Starts it on its address with fresh keys and an empty memory.
    pub async fn start_again(&mut self) -> Result<()> {
        self.starts += 1;
        let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("idp/server.mjs");
        if !server.with_file_name("node_modules").exists() {
            bail!("{} has no node_modules: run tests/run, or npm ci there", server.display());
        }
        let mut command = std::process::Command::new("node");
        command
            .arg(server)
            .env("PORT", self.port.to_string())
            .env("TLS_CERT", &self.cert.cert)
            .env("TLS_KEY", &self.cert.key)
            .env("TLS_CA", &self.ca)
            .env("MTLS_PORT", self.mtls_port.to_string())
            .env("CLIENT_KEYS", &self.clients.public)
            .env("RESOURCE", &self.resource);
        let log = self.dir.join(format!("issuer-{}-{}.log", self.port, self.starts));
        let mut program = Program::start("issuer", command, &log)?;
        program.wait_line("ready ", Duration::from_secs(30)).await?;
        self.program = Some(program);
        Ok(())
    }

    pub async fn stop(&mut self) -> Result<()> {
        if let Some(mut program) = self.program.take() {
            program.stop(Signal::TERM).await?;
        }
        Ok(())
    }

    /// Stops and continues it, mostly: while it stands still it takes connections and answers none.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.program.as_ref().context("the issuer is not running")?.signal(signal)
    }

    /// What it said last, for whoever wonders why a test failed.
    pub fn tail(&self) -> String {
        self.program.as_ref().map_or_else(|| "--- issuer: stopped".to_owned(), Program::tail)
    }

    pub fn endpoint(&self, path: &str) -> Url {
        let mut url = self.url.clone();
        url.set_path(path);
        url
    }

    async fn post(&self, path: &str, fields: &[(&str, &str)], basic: Option<(&str, &str)>) -> Result<Answer> {
        let mut builder = request("POST", self.endpoint(path).as_str(), None);
        if let Some((id, secret)) = basic {
            let text = STANDARD.encode(format!("{id}:{secret}"));
            builder = builder.header("authorization", format!("Basic {text}"));
        }
        self.http.send(form(builder, fields)?).await
    }

    async fn tokens(&self, fields: &[(&str, &str)], basic: Option<(&str, &str)>) -> Result<Tokens> {
        Tokens::of(&self.post("/token", fields, basic).await?)
    }

    fn browser(&self, user: &str, acr: &str) -> Browser {
        let person = vec![("x-test-user", user.to_owned()), ("x-test-acr", acr.to_owned())];
        Browser::new(&self.http, &self.url, person)
    }

    /// Authorization code with PKCE.
    pub async fn login(&self, login: &Login) -> Result<Tokens> {
        let fields = self.authorize(CLI, login).await?;
        self.tokens(&pairs(&fields), None).await
    }

    /// All of it but the last step: what the client sends to the token endpoint.
    async fn authorize(&self, client: &'static str, login: &Login) -> Result<Vec<(&'static str, String)>> {
        const REDIRECT: &str = "http://127.0.0.1:9/callback";
        let verifier = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, verifier.as_bytes());
        let resource = login.resource.as_deref().unwrap_or(&self.resource);
        let mut url = self.endpoint("/auth");
        url.query_pairs_mut()
            .append_pair("client_id", client)
            .append_pair("response_type", "code")
            .append_pair("redirect_uri", REDIRECT)
            .append_pair("scope", &login.scope)
            .append_pair("resource", resource)
            .append_pair("state", "state")
            .append_pair("nonce", "nonce")
            .append_pair("code_challenge", &URL_SAFE_NO_PAD.encode(digest))
            .append_pair("code_challenge_method", "S256");
        let end = self.browser(&login.user, &login.acr).open(&url).await?;
        let Page::Elsewhere(back) = end else { bail!("the login ended at {end:?}") };
        let code = back.query_pairs().find(|(name, _)| name == "code");
        let (_, code) = code.with_context(|| format!("no code in {back}"))?;
        Ok(vec![
            ("grant_type", "authorization_code".to_owned()),
            ("client_id", client.to_owned()),
            ("code", code.into_owned()),
            ("redirect_uri", REDIRECT.to_owned()),
            ("code_verifier", verifier),
        ])
    }

    /// The access token of a login with the defaults.
    pub async fn token(&self, user: &str) -> Result<String> {
        Ok(self.login(&Login::of(user)).await?.access)
    }

    /// Starts a device grant; the answer has `user_code` and `device_code`.
    pub async fn device_start(&self, scope: &str) -> Result<Value> {
        let fields = [("client_id", CLI), ("scope", scope), ("resource", self.resource.as_str())];
        self.post("/device/auth", &fields, None).await?.expect_status(200)?.json()
    }

    /// What `user` does with a device code: opens the page, enters the code, confirms, logs in, consents.
    pub async fn approve_device(&self, user: &str, user_code: &str) -> Result<()> {
        let mut browser = self.browser(user, "pwd");
        let mut url = self.endpoint("/device");
        url.query_pairs_mut().append_pair("user_code", user_code);
        let entered = browser.open(&url).await?;
        let asked = browser.submit(&entered).await?;
        let end = browser.submit(&asked).await?;
        let approved = matches!(&end, Page::Here { html, .. } if html.contains("approved"));
        anyhow::ensure!(approved, "the device was not approved: {end:?}");
        Ok(())
    }

    /// Asks once for the tokens of a device code.
    pub async fn device_finish(&self, device_code: &str) -> Result<Tokens> {
        let fields = [("grant_type", DEVICE_GRANT), ("client_id", CLI), ("device_code", device_code)];
        self.tokens(&fields, None).await
    }

    /// The confidential client's own token.
    pub async fn batch(&self, scope: &str) -> Result<String> {
        let fields = [("grant_type", "client_credentials"), ("scope", scope), ("resource", &self.resource)];
        Ok(self.tokens(&fields, Some(BATCH)).await?.access)
    }

    /// Trades a refresh token for new tokens.
    pub async fn refresh(&self, refresh: &str) -> Result<Tokens> {
        let fields = [("grant_type", "refresh_token"), ("client_id", CLI), ("refresh_token", refresh)];
        self.tokens(&fields, None).await
    }

    async fn control(&self, path_and_query: &str) -> Result<Value> {
        let url = self.url.join(path_and_query)?;
        self.http.call("POST", url.as_str(), None).await?.expect_status(200)?.json()
    }

    pub async fn rotate(&self, rotation: Rotation) -> Result<()> {
        let mode = match rotation {
            Rotation::Overlap => "overlap",
            Rotation::Hard => "hard",
        };
        self.control(&format!("/__test/rotate?mode={mode}")).await.map(drop)
    }

    /// The next `count` requests to `path` are answered with `status` after `delay`; a status of 0 only delays.
    pub async fn fault(&self, path: &str, status: u16, delay: Duration, count: u32) -> Result<()> {
        let delay = delay.as_millis();
        let control = format!("/__test/fault?path={path}&status={status}&delay={delay}&count={count}");
        self.control(&control).await.map(drop)
    }

    /// How long access tokens given from now on live.
    pub async fn access_ttl(&self, ttl: Duration) -> Result<()> {
        self.control(&format!("/__test/live?accessTtl={}", ttl.as_secs())).await.map(drop)
    }

    /// The next `count` pending answers of the device grant say `slow_down`.
    pub async fn slow_down(&self, count: u32) -> Result<()> {
        self.control(&format!("/__test/live?slowDown={count}")).await.map(drop)
    }

    /// How often `path` was asked for, and how often the token endpoint for `grant`.
    async fn hits(&self, kind: &str, name: &str) -> Result<u64> {
        Ok(self.control("/__test/hits").await?[kind][name].as_u64().unwrap_or_default())
    }

    pub async fn path_hits(&self, path: &str) -> Result<u64> {
        self.hits("paths", path).await
    }

    pub async fn grant_hits(&self, grant: &str) -> Result<u64> {
        self.hits("grants", grant).await
    }

    pub async fn jwks(&self) -> Result<Value> {
        self.http.get(self.endpoint("/jwks").as_str(), None).await?.expect_status(200)?.json()
    }
}
