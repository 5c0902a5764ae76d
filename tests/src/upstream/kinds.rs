//! Takes a directory and an authority; gives an nginx that listens in every way in which an upstream can be reached, one port each: plain,
//! TLS with a client certificate demanded, TLS 1.2 alone, HTTP/2 with and without TLS, and a unix socket. Its access log says which way a
//! request came and what it carried. It may die and come back on the same ports.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::nginx;
use crate::pki::{CertFiles, Pki};
use crate::process::{Program, Signal};
use crate::wait;

const LOGGED: &[(&str, &str)] = &[
    ("way", "$server_name"),
    ("method", "$request_method"),
    ("uri", "$request_uri"),
    ("protocol", "$server_protocol"),
    ("tls", "$ssl_protocol"),
    ("client", "$ssl_client_verify"),
    ("host", "$http_host"),
    ("api_key", "$http_x_api_key"),
    ("home", "$http_x_home"),
    ("length", "$request_length"),
];

/// What the large file holds, in bytes: many windows and frames.
pub const LARGE: usize = 3 << 20;

pub struct Kinds {
    pub http: u16,
    /// Wants a certificate of the authority.
    pub https: u16,
    pub tls12: u16,
    pub h2c: u16,
    pub h2: u16,
    pub unix: PathBuf,
    /// A certificate that `https` takes.
    pub client: CertFiles,
    dir: PathBuf,
    program: Option<Program>,
}

impl Kinds {
    /// `name` is part of the answers' words and of the directory.
    pub async fn start(dir: &Path, name: &str, pki: &Pki) -> Result<Self> {
        let dir = dir.join(name);
        std::fs::create_dir_all(dir.join("html"))?;
        std::fs::write(dir.join("html/large"), vec![b'x'; LARGE])?;
        let mut kinds = Self {
            http: wait::free_port()?,
            https: wait::free_port()?,
            tls12: wait::free_port()?,
            h2c: wait::free_port()?,
            h2: wait::free_port()?,
            unix: dir.join("socket"),
            client: pki.server(&format!("{name}-client"), &[])?,
            dir,
            program: None,
        };
        let cert = pki.server(&format!("{name}-server"), &["billing.corp"])?;
        std::fs::write(kinds.dir.join("nginx.conf"), kinds.config(name, &cert, &pki.ca_file()))?;
        kinds.come_back().await?;
        Ok(kinds)
    }

    /// Starts it where it was before.
    pub async fn come_back(&mut self) -> Result<()> {
        // A socket that was left behind would be in the way.
        let _ = std::fs::remove_file(&self.unix);
        self.program = Some(nginx::run(&self.dir, self.http).await?);
        Ok(())
    }

    /// Dies without a word.
    pub async fn die(&mut self) -> Result<()> {
        let mut program = self.program.take().context("it is dead already")?;
        program.stop(Signal::KILL).await.map(drop)
    }

    /// `/ping` answers 503 while it is ill.
    pub fn be_ill(&self, ill: bool) -> Result<()> {
        let file = self.dir.join("ill");
        let done = if ill { std::fs::write(file, "") } else { std::fs::remove_file(file) };
        Ok(done?)
    }

    /// The access log so far, oldest first.
    pub fn seen(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.join("access.log")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for the request whose URI is `uri`.
    pub async fn wait_seen(&self, uri: &str) -> Result<Value> {
        wait::until(&format!("nginx logs {uri}"), Duration::from_secs(10), async || {
            self.seen().into_iter().rfind(|line| line["uri"] == uri)
        })
        .await
    }

    fn config(&self, name: &str, cert: &CertFiles, ca: &Path) -> String {
        let tls =
            format!("ssl_certificate {}; ssl_certificate_key {};", cert.cert.display(), cert.key.display());
        let both = format!("{tls} ssl_protocols TLSv1.2 TLSv1.3;");
        let own = format!("{both} ssl_client_certificate {}; ssl_verify_client on;", ca.display());
        let ways = [
            ("plain", format!("listen 127.0.0.1:{};", self.http)),
            ("secure", format!("listen 127.0.0.1:{} ssl; {own}", self.https)),
            ("old", format!("listen 127.0.0.1:{} ssl; {tls} ssl_protocols TLSv1.2;", self.tls12)),
            ("h2c", format!("listen 127.0.0.1:{} http2;", self.h2c)),
            ("h2", format!("listen 127.0.0.1:{} ssl http2; {both}", self.h2)),
            ("unix", format!("listen unix:{};", self.unix.display())),
        ];
        let (dir, plain) = (self.dir.display(), self.http);
        let servers: Vec<_> = ways
            .iter()
            .map(|(way, listen)| {
                // A proxy takes the whole body before it passes it on.
                format!(
                    r#"server {{
        {listen}
        server_name {way};
        root {dir}/html;
        location = /large {{ }}
        location = /upload {{ proxy_pass http://127.0.0.1:{plain}/taken; }}
        location = /moved {{ return 302 http://billing.corp/elsewhere; }}
        location = /ping {{ access_log off; if (-f {dir}/ill) {{ return 503; }} return 200 pong; }}
        location / {{ return 200 '{{"from":"{name}","way":"{way}"}}'; }}
    }}"#
                )
            })
            .collect();
        nginx::config(&self.dir, LOGGED, &servers.join("\n    "))
    }
}
