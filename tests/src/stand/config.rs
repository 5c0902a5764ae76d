//! Takes what a test wants different; gives the text of relay.toml and agent.toml. The rest is what every stand has: one issuer,
//! agent `dc1`, the service `billing` (nginx, policy by role and scope) and the service `echo` (any good token).

use std::path::Path;

use crate::pki::CertFiles;
use crate::relay_toml;

/// What a stand's configuration adds to the usual. Each is TOML text: keys of the named table, or whole tables for `tables` (relay.toml)
/// and `agent_tables` (agent.toml, where `{nginx}` and `{echo}` become their addresses).
#[derive(Debug, Clone, Default)]
pub struct Extra {
    pub issuer: String,
    pub agents: String,
    pub limits: String,
    pub audit: String,
    pub tables: String,
    pub agent_tables: String,
}

/// The rules of `billing`, as the tests expect them. Ada is in finance, bob is not.
pub const BILLING: &str = r#"
[services.billing]
about = "Legacy invoice API"
agent = "dc1"

[[services.billing.rules]]
name = "clerks read invoices"
allow = ["role:clerk", "role:batch"]
to = "GET /v1/invoices/**"
with = { scope = "invoices:read" }

[[services.billing.rules]]
name = "clerks change invoices"
allow = "role:clerk"
to = "POST,PUT /v1/invoices/*"
with = { scope = "invoices:write" }

[[services.billing.rules]]
name = "strong logins delete invoices"
allow = "role:clerk"
to = "DELETE /v1/invoices/*"
with = { acr = "mfa" }

[[services.billing.rules]]
name = "loopback sees the status page"
allow = "*"
to = "GET /status"
from = ["127.0.0.0/8"]

[[services.billing.rules]]
name = "the office sees reports"
allow = "*"
to = "GET /reports"
from = ["10.0.0.0/8"]
"#;

const ECHO: &str = r#"
[services.echo]
agent = "dc1"
rules = [{ name = "anyone echoes", allow = "*", to = "* /**" }]

[[rules]]
name = "nobody reaches debug pages"
deny = "*"
to = "* /debug/**"
"#;

/// What both files need to know of the stand.
pub(super) struct Facts<'a> {
    pub(super) dir: &'a Path,
    pub(super) url: &'a str,
    pub(super) address: &'a str,
    pub(super) iss: &'a str,
    pub(super) ca: &'a Path,
    pub(super) cert: &'a CertFiles,
    pub(super) nginx: &'a str,
    pub(super) echo: &'a str,
    pub(super) extra: &'a Extra,
}

impl Facts<'_> {
    pub(super) fn relay_toml(&self) -> String {
        let Self { dir, url, address, iss, ca, cert, extra, .. } = self;
        let ca = ca.display();
        format!(
            r#"{begin}{agents}
{issuers}ca = "{ca}"
login = {{ client_id = "postern-cli" }}
{issuer}

[roles]
clerk = {{ any = ["group:finance"] }}
batch = {{ any = ["client:nightly-batch"] }}
{BILLING}{ECHO}{tables}
[limits]
{limits}

[audit]
file = "{dir}/audit.jsonl"
{audit}

[telemetry]
log = "info"
format = "text"
"#,
            begin = relay_toml::begin(dir, url, address, cert),
            issuers = relay_toml::issuer(url, iss),
            dir = dir.display(),
            agents = extra.agents,
            issuer = extra.issuer,
            tables = extra.tables,
            limits = extra.limits,
            audit = extra.audit,
        )
    }

    pub(super) fn agent_toml(&self) -> String {
        let Self { dir, address, nginx, echo, extra, .. } = self;
        format!(
            r#"version = 1
relay = "{address}"
state = "{dir}/agent"

[services.billing]
upstream = "{nginx}"

[services.echo]
upstream = "{echo}"
{tables}
[telemetry]
log = "info"
format = "text"
metrics = "127.0.0.1:0"
"#,
            dir = dir.display(),
            tables = extra.agent_tables.replace("{nginx}", nginx).replace("{echo}", echo),
        )
    }
}
