//! Takes a directory, the tests' authority and a port; gives Debian's glewlwyd as a second provider, with a database of its own and
//! provisioned by its own API: one person, ada, a public client for her, and the relay's client. Everything it does is its own doing:
//! `slow_down`, `//` in its endpoints, lists with commas, an audience that is the list of scopes unless a resource is asked for.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::KeyPair;
use serde_json::{Value, json};
use url::form_urlencoded::Serializer;

use crate::http::{Answer, Http, full, request};
use crate::pki::Pki;
use crate::process::{self, Program};
use crate::wait;

/// The public client that `postern` uses.
pub const CLI: &str = "postern-cli";
/// The relay's own client and its secret.
pub const RELAY: (&str, &str) = ("relay", "relay-secret");
const PASSWORD: &str = "ada-password";
/// The one who may provision, as the package's own database has it.
const ADMIN: (&str, &str) = ("admin", "password");
const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";
/// Where the package keeps what makes an empty database.
const SCHEMA: &str = "/usr/share/dbconfig-common/data/glewlwyd/install/sqlite3";

/// The running server.
pub struct Glewlwyd {
    url: String,
    http: Http,
    /// The administrator's session.
    admin: String,
    /// Of the provider within it.
    parameters: Value,
    _program: Program,
}

/// What a server on that port calls itself.
pub fn iss(port: u16) -> String {
    format!("https://127.0.0.1:{port}/api/oidc")
}

impl Glewlwyd {
    /// Tokens can be asked for with `resource` as their audience. `interval` is that of the device grant, in seconds.
    pub async fn start(dir: &Path, pki: &Pki, port: u16, resource: &str, interval: u64) -> Result<Self> {
        let database = dir.join("glewlwyd.db");
        let mut make = Command::new("sqlite3");
        make.arg(&database).arg(format!(".read {SCHEMA}"));
        process::run(make, Duration::from_secs(20)).await?.expect_code(0)?;
        let config = dir.join("glewlwyd.conf");
        std::fs::write(&config, configuration(pki, port, &database)?)?;
        let mut command = Command::new("glewlwyd");
        command.arg(format!("--config-file={}", config.display()));
        let mut program = Program::start("glewlwyd", command, &dir.join("glewlwyd.log"))?;
        // Its log says that it started before it listens.
        program.wait_line("Glewlwyd started on port", Duration::from_secs(20)).await?;
        let listens = async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop);
        wait::until("glewlwyd listens", wait::SOON, listens).await?;

        let key = KeyPair::generate()?;
        let url = format!("https://127.0.0.1:{port}/api");
        let http = Http::h1(pki.roots()?)?;
        let admin = session(&http, &url, ADMIN).await?;
        let parameters = parameters(port, resource, interval, &key);
        let server = Self { url, http, admin, parameters, _program: program };
        server.provision().await?;
        Ok(server)
    }

    async fn api(&self, session: &str, method: &str, path: &str, body: &Value) -> Result<()> {
        let answer = send(&self.http, method, &format!("{}{path}", self.url), session, body).await?;
        ensure!(answer.status == 200, "{method} {path}: {} {}", answer.status, answer.text());
        Ok(())
    }

    async fn provision(&self) -> Result<()> {
        let many = json!({ "multiple": true, "read": true, "write": true, "profile-read": true });
        let people = json!({
            "module": "database", "name": "database", "display_name": "people", "order_rank": 0, "readonly": false,
            "parameters": {
                "use-glewlwyd-connection": true, "data-format": { "roles": many, "groups": many },
            },
        });
        self.api(&self.admin, "PUT", "/mod/user/database", &people).await?;
        self.api(&self.admin, "PUT", "/mod/user/database/reset", &json!({})).await?;
        for (name, password) in [("invoices", true), ("offline_access", true), ("introspect", false)] {
            let scope = json!({
                "name": name, "display_name": name, "description": name, "password_required": password,
                "password_max_age": 0, "scheme": {},
            });
            self.api(&self.admin, "POST", "/scope/", &scope).await?;
        }
        let ada = json!({
            "username": "ada", "name": "Ada", "password": PASSWORD, "enabled": true, "roles": ["clerk", "auditor"],
            "groups": ["finance"], "scope": ["g_profile", "openid", "invoices", "offline_access"],
        });
        self.api(&self.admin, "POST", "/user/", &ada).await?;
        let client = |id: &str, scope: &str, grants: &[&str], more: Value| {
            let mut client = json!({
                "client_id": id, "name": id, "enabled": true, "scope": [scope], "authorization_type": grants,
                "redirect_uri": ["http://127.0.0.1/callback"],
            });
            for (name, value) in more.as_object().into_iter().flatten() {
                client[name] = value.clone();
            }
            client
        };
        let public = json!({ "confidential": false, "token_endpoint_auth_method": ["none"] });
        let cli = client(CLI, "invoices", &["device_authorization", "refresh_token"], public);
        self.api(&self.admin, "POST", "/client/", &cli).await?;
        let confidential = json!({
            "confidential": true, "client_secret": RELAY.1, "token_endpoint_auth_method": ["client_secret_basic"],
        });
        let relay = client(RELAY.0, "introspect", &["client_credentials"], confidential);
        self.api(&self.admin, "POST", "/client/", &relay).await?;
        self.api(&self.admin, "POST", "/mod/plugin/", &self.plugin()).await
    }

    fn plugin(&self) -> Value {
        json!({ "module": "oidc", "name": "oidc", "display_name": "provider", "parameters": self.parameters })
    }

    /// From now on the device grant's polling interval is this; those who were told another are told to slow down.
    pub async fn interval(&mut self, seconds: u64) -> Result<()> {
        self.parameters["device-authorization-interval"] = json!(seconds);
        self.api(&self.admin, "PUT", "/mod/plugin/oidc", &self.plugin()).await?;
        self.api(&self.admin, "PUT", "/mod/plugin/oidc/reset", &json!({})).await
    }

    /// What ada does with a device code: logs in, lets the client have its scope, and confirms the code.
    pub async fn approve(&self, user_code: &str) -> Result<()> {
        let ada = session(&self.http, &self.url, ("ada", PASSWORD)).await?;
        let scope = json!({ "scope": "openid invoices offline_access" });
        self.api(&ada, "PUT", &format!("/auth/grant/{CLI}"), &scope).await?;
        let url = format!("{}/oidc/device?code={user_code}&g_continue", self.url);
        let answer = send(&self.http, "GET", &url, &ada, &Value::Null).await?;
        let end = answer.header("location");
        ensure!(end.contains("prompt=deviceComplete"), "{} {end} {}", answer.status, answer.text());
        Ok(())
    }

    async fn post(&self, path: &str, authorization: Option<&str>, fields: &[(&str, &str)]) -> Result<Answer> {
        let form = Serializer::new(String::new()).extend_pairs(fields).finish();
        let mut builder = request("POST", &format!("{}/oidc{path}", self.url), None)
            .header("content-type", "application/x-www-form-urlencoded");
        if let Some(value) = authorization {
            builder = builder.header("authorization", value);
        }
        self.http.send(builder.body(full(form))?).await
    }

    /// Starts a device grant, with `resource` where there is one; the answer has `user_code` and `device_code`.
    pub async fn device_start(&self, resource: Option<&str>) -> Result<Value> {
        let mut fields = vec![("client_id", CLI), ("scope", "openid invoices offline_access")];
        fields.extend(resource.map(|resource| ("resource", resource)));
        self.post("/device_authorization", None, &fields).await?.expect_status(200)?.json()
    }

    /// Asks once for the tokens of a device code.
    pub async fn device_finish(&self, device_code: &str) -> Result<Answer> {
        let fields = [("grant_type", DEVICE_GRANT), ("client_id", CLI), ("device_code", device_code)];
        self.post("/token", None, &fields).await
    }

    /// A token with which the relay may ask about others.
    pub async fn relay_token(&self) -> Result<String> {
        let basic = format!("Basic {}", STANDARD.encode(format!("{}:{}", RELAY.0, RELAY.1)));
        let fields = [("grant_type", "client_credentials"), ("scope", "introspect")];
        let answer = self.post("/token", Some(&basic), &fields).await?.expect_status(200)?.json()?;
        Ok(answer["access_token"].as_str().context("no access token")?.to_owned())
    }

    /// Revokes somebody's token, as the relay's client may.
    pub async fn revoke(&self, token: &str) -> Result<()> {
        let bearer = format!("Bearer {}", self.relay_token().await?);
        self.post("/revoke", Some(&bearer), &[("token", token)]).await?.expect_status(200).map(drop)
    }
}

async fn send(http: &Http, method: &str, url: &str, session: &str, body: &Value) -> Result<Answer> {
    let builder = request(method, url, None).header("content-type", "application/json");
    let text = if body.is_null() { String::new() } else { body.to_string() };
    http.send(builder.header("cookie", session).body(full(text))?).await
}

/// Logs somebody in; gives the cookie.
async fn session(http: &Http, url: &str, (name, password): (&str, &str)) -> Result<String> {
    let body = json!({ "username": name, "password": password });
    let answer = send(http, "POST", &format!("{url}/auth/"), "", &body).await?.expect_status(200)?;
    let cookie = answer.header("set-cookie").split(';').next().unwrap_or_default();
    ensure!(!cookie.is_empty(), "no cookie for {name}");
    Ok(cookie.to_owned())
}

fn configuration(pki: &Pki, port: u16, database: &Path) -> Result<String> {
    let files = pki.server("glewlwyd", &[])?;
    let modules =
        ["user", "client", "plugin"].map(|kind| format!("{kind}_module_path=\"/usr/lib/glewlwyd/{kind}\"\n"));
    Ok(format!(
        "port={port}\nbind_address=\"127.0.0.1\"\nexternal_url=\"https://127.0.0.1:{port}/\"\nlogin_url=\"login.html\"\n\
         api_prefix=\"api\"\nlog_mode=\"console\"\nlog_level=\"INFO\"\nsession_expiration=3600\nsession_key=\"session\"\n\
         admin_scope=\"g_admin\"\nprofile_scope=\"g_profile\"\n{}user_auth_scheme_module_path=\"/usr/lib/glewlwyd/scheme\"\n\
         use_secure_connection=true\nsecure_connection_key_file=\"{}\"\nsecure_connection_pem_file=\"{}\"\n\
         hash_algorithm=\"SHA512\"\ndatabase = {{ type = \"sqlite3\" path = \"{}\" }}\n",
        modules.concat(),
        files.key.display(),
        files.cert.display(),
        database.display(),
    ))
}

fn parameters(port: u16, resource: &str, interval: u64, key: &KeyPair) -> Value {
    let says = |name: &str| json!({ "user-parameter": name, "token-parameter": name });
    json!({
        "iss": iss(port), "jwt-type": "ecdsa", "jwt-key-size": "256", "key": key.serialize_pem(), "cert": key.public_key_pem(),
        "access-token-duration": 300, "refresh-token-duration": 3600, "code-duration": 60, "refresh-token-rolling": true,
        "allow-non-oidc": true, "subject-type": "public", "jwks-show": true,
        "auth-type-code-enabled": false, "auth-type-token-enabled": false, "auth-type-id-token-enabled": true,
        "auth-type-none-enabled": false, "auth-type-password-enabled": false, "auth-type-client-enabled": true,
        "auth-type-device-enabled": true, "auth-type-refresh-enabled": true,
        "device-authorization-expiration": 600, "device-authorization-interval": interval,
        "introspection-revocation-allowed": true, "introspection-revocation-allow-target-client": true,
        "introspection-revocation-auth-scope": ["introspect"],
        "resource-allowed": true, "resource-scope": { "invoices": [resource] },
        "additional-parameters": [says("roles"), says("groups")],
    })
}
