//! How the relay.toml of every site and stand begins: takes its place, its files and its issuer; gives the text. What is particular to one
//! follows, from the table on that stands last.

use std::path::Path;

use crate::pki::CertFiles;

/// All that a relay needs to run, up to the keys of `[agents]`, of which there may be more.
pub fn begin(dir: &Path, url: &str, listen: &str, cert: &CertFiles) -> String {
    format!(
        r#"version = 1
url = "{url}"

[listen]
https = "{listen}"
quic = "{listen}"
metrics = "127.0.0.1:0"

[tls]
mode = "files"
cert = "{cert}"
key = "{key}"

[state]
dir = "{dir}/relay"

[agents]
trust_domain = "example.com"
"#,
        cert = cert.cert.display(),
        key = cert.key.display(),
        dir = dir.display(),
    )
}

/// The issuer `corp`, of which there may be more keys.
pub fn issuer(url: &str, iss: &str) -> String {
    format!("\n[[issuers]]\nname = \"corp\"\nissuer = \"{iss}\"\naudience = [\"{url}\"]\n")
}
