//! Takes ports, files and what a mode adds; gives the texts of nginx.conf, relay.toml and agent.toml.

use std::path::PathBuf;

use postern_tests::pki::CertFiles;
use postern_tests::relay_toml;

use crate::issuer::ASKED;

/// What the measured token may do; the rules ask for it.
pub(crate) const SCOPE: &str = "files:read";
/// The file that the relay proves itself to the issuer with.
pub(crate) const SECRET: &str = "relay.secret";

/// What a mode adds: keys of the issuer, and whole sections of both files.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extra {
    pub(crate) issuer: String,
    pub(crate) relay: String,
    pub(crate) agent: String,
}

impl Extra {
    /// A service of the one real agent, for whoever holds the measured token; `upstream` as in agent.toml.
    pub(crate) fn service(&mut self, name: &str, upstream: &str) {
        let (kind, to) = if upstream.starts_with("tcp://") {
            ("kind = \"tcp\"\n", "CONNECT")
        } else {
            ("", "GET,POST /**")
        };
        let (relay, agent) = (&mut self.relay, &mut self.agent);
        relay.extend(["[services.", name, "]\nagent = \"dc1\"\n", kind, &rule(to), "\n"]);
        agent.extend(["[services.", name, "]\nupstream = \"", upstream, "\"\n\n"]);
    }
}

/// The one rule of a service: role, scope and target.
pub(crate) fn rule(to: &str) -> String {
    format!("rules = [{{ {} }}]\n", entries(to).trim_end().replace('\n', ", "))
}

/// The same as a table's lines.
pub(crate) fn entries(to: &str) -> String {
    format!("allow = \"role:clerk\"\nto = \"{to}\"\nwith = {{ scope = \"{SCOPE}\" }}\n")
}

/// What the three files are made of.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) dir: PathBuf,
    pub(crate) relay: u16,
    /// nginx: HTTP/1.1, HTTP/2 with prior knowledge, and both over TLS.
    pub(crate) plain: u16,
    pub(crate) h2c: u16,
    pub(crate) tls: u16,
    pub(crate) cert: CertFiles,
}

impl Facts {
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.relay)
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address())
    }

    /// nginx in plain text; also the issuer's name, whose documents it serves.
    pub(crate) fn backend(&self) -> String {
        format!("http://127.0.0.1:{}", self.plain)
    }

    /// Keys of the issuer: it is asked about tokens that are no JWTs, and believed for as long as by default.
    pub(crate) fn asked(&self) -> String {
        let endpoint = self.backend() + ASKED;
        let (id, secret) = (r#"client_id = "relay""#, format!(r#"client_secret = {{ file = "{SECRET}" }}"#));
        format!(
            "check = \"auto\"\nintrospect = {{ endpoint = \"{endpoint}\", {id}, {secret}, cache = \"30s\" }}"
        )
    }

    pub(crate) fn nginx_conf(&self, index: usize) -> String {
        let Self { dir, plain, h2c, tls, cert, .. } = self;
        let dir = dir.display();
        // Root's nginx would otherwise read the files as nobody.
        let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
        format!(
            "daemon off;
master_process off;
{user}
pid {dir}/nginx-{index}.pid;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    keepalive_requests 1000000000;
    keepalive_timeout 300s;
    server {{
        listen 127.0.0.1:{plain} reuseport;
        listen 127.0.0.1:{h2c} http2 reuseport;
        listen 127.0.0.1:{tls} ssl http2 reuseport;
        ssl_certificate {cert};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.3;
        root {dir}/html;
        default_type application/json;
        location = /1k {{ default_type application/octet-stream; }}
        # A file has no answer to POST, but as the page of that error.
        location = {ASKED} {{ error_page 405 =200 {ASKED}; }}
    }}
}}
",
            cert = cert.cert.display(),
            key = cert.key.display(),
        )
    }

    pub(crate) fn relay_toml(&self, extra: &Extra) -> String {
        let url = self.url();
        format!(
            r#"{begin}invite_ttl = "1h"
{issuers}{issuer}

[roles]
clerk = {{ any = ["group:finance"] }}

[[rules]]
name = "nobody reaches debug pages"
deny = "*"
to = "* /debug/**"

[audit]
file = "{dir}/audit.jsonl"
rotate = {{ size = "off" }}

[services.files]
agent = "dc1"
{rule}
{more}"#,
            begin = relay_toml::begin(&self.dir, &url, &self.address(), &self.cert),
            issuers = relay_toml::issuer(&url, &self.backend()),
            dir = self.dir.display(),
            rule = rule("GET /**"),
            issuer = extra.issuer,
            more = extra.relay,
        )
    }

    pub(crate) fn agent_toml(&self, extra: &Extra) -> String {
        format!(
            r#"version = 1
relay = "{address}"
state = "{dir}/agent"

[telemetry]
metrics = "127.0.0.1:0"

[services.files]
upstream = "{backend}"

{more}"#,
            address = self.address(),
            dir = self.dir.display(),
            backend = self.backend(),
            more = extra.agent,
        )
    }
}
