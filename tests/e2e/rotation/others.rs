//! Authorities that are not Postern's: an issuing CA of the operator's, and certificates that are made elsewhere.

use anyhow::{Result, ensure};
use postern_tests::process::Signal;
use postern_tests::replica::Replica;
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;

use super::made::{Authority, write};
use super::{Load, PATH, authority, chain, count, rotate};

const DOMAIN: &str = "trust_domain = \"example.com\"";

/// The name of the issuing CA that `ca show` tells.
fn issuing(shown: &Value) -> Option<&str> {
    let mut rows = shown["certificates"].as_array()?.iter();
    rows.find(|row| row["what"] == "issuing")?["name"].as_str()
}

#[tokio::test]
async fn an_issuing_ca_of_ones_own_signs_and_is_read_again_when_it_changes() -> Result<()> {
    let mut stand = Stand::relay_only(Extra::default()).await?;
    stand.stop_relay(Signal::TERM).await?;
    let root = Authority::root("Example Corp root")?;
    let (first, second) = (root.issuing("Example Corp agents 1")?, root.issuing("Example Corp agents 2")?);
    let (cert, key) = (stand.path("own.pem"), stand.path("own.key"));
    let put = |issuing: &Authority, mode: u32| -> Result<()> {
        write(&key, &issuing.key.serialize_pem(), mode)?;
        write(&cert, &format!("{}{}", issuing.pem, root.pem), 0o644)
    };
    put(&first, 0o644)?;
    stand.edit(
        "relay.toml",
        DOMAIN,
        &format!("{DOMAIN}\nca = {{ cert = \"own.pem\", key = \"own.key\" }}"),
    )?;
    say("a key that others may read is refused at the start");
    let loose = stand.relay_command(&["run"]).await?;
    ensure!(loose.code == 1 && loose.stderr.contains("chmod 600"), "{loose:?}");
    put(&first, 0o600)?;
    stand.start_relay().await?;
    let invite = stand.invite("dc1", &[]).await?;
    stand.join(&invite).await?.expect_code(0)?;
    stand.start_agent().await?;
    let identity = stand.path("agent/identity.pem");
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes());
    let found = chain(&identity)?;
    ensure!(
        found.last() == Some(&der(&root.pem)?) && found[1] == der(&first.pem)?,
        "another authority signed"
    );
    let shown = authority(&stand).await?;
    ensure!(shown["source"] == "own" && shown["root_key"].is_null(), "{shown}");
    ensure!(issuing(&shown) == Some("Example Corp agents 1"), "{shown}");
    let sleeper = Replica::new(&stand, "sleeper")?;
    sleeper.join(&stand.invite("dc1", &[]).await?).await?.expect_code(0)?;
    let refused = rotate(&stand, &[]).await?;
    ensure!(refused.code == 1 && refused.stderr.contains("your own"), "{refused:?}");

    say("the operator's tools put the next one in place, under load");
    let load = Load::start(&stand).await?;
    let next = der(&second.pem)?;
    put(&second, 0o600)?;
    wait::until("the agent has a certificate of the next one", wait::SOON, async || {
        chain(&identity).ok().filter(|chain| chain[1] == next)
    })
    .await?;
    stand.wait_audit(1, |line| line["event"] == "ca-changed").await?;
    let shown = authority(&stand).await?;
    ensure!(issuing(&shown) == Some("Example Corp agents 2"), "{shown}");

    say(
        "who was off meanwhile comes back and moves; without an epoch `ca show` cannot tell, and claims nothing",
    );
    let text = stand.relay_command(&["ca", "show"]).await?.expect_code(0)?.stdout;
    ensure!(text.contains("bears no epoch") && !text.contains("All 2"), "{text}");
    let mut woken = sleeper.run()?;
    wait::until("the one that was off has a certificate of the next one", wait::SOON, async || {
        chain(&stand.path("sleeper/identity.pem")).ok().filter(|chain| chain[1] == next)
    })
    .await?;
    woken.stop(Signal::TERM).await?;

    say("what cannot be used changes nothing, and is said once");
    let changed = count(&stand, "ca-changed")?;
    let stranger = Authority::root("Somebody else")?;
    write(&cert, &format!("{}{}", second.pem, stranger.pem), 0o644)?;
    stand.relay()?.wait_line("nobody would believe what it signs", wait::SOON).await?;
    put(&first, 0o600)?;
    stand.wait_audit(changed + 1, |line| line["event"] == "ca-changed").await?;
    let said = stand.relay()?.log_text().matches("nobody would believe").count();
    ensure!(said == 1, "said {said} times");
    load.end().await?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn certificates_that_are_made_elsewhere_change_with_their_roots() -> Result<()> {
    let mut stand = Stand::relay_only(Extra::default()).await?;
    stand.stop_relay(Signal::TERM).await?;
    let (old, new) = (Authority::root("Mesh root 1")?, Authority::root("Mesh root 2")?);
    let bundle = stand.path("bundle.pem");
    let files = |name: &str| (stand.path(&format!("{name}.crt")), stand.path(&format!("{name}.key")));
    let (relay_files, agent_files) = (files("mesh-relay"), files("mesh-agent"));
    let put = |root: &Authority,
               files: &(std::path::PathBuf, std::path::PathBuf),
               uri: &str,
               usage|
     -> Result<()> {
        let (cert, key) = root.leaf(uri, usage)?;
        write(&files.1, &key, 0o600)?;
        write(&files.0, &cert, 0o644)
    };
    let relay = "spiffe://example.com/relay/relay";
    let agent = "spiffe://example.com/agent/dc1/01jd0000000000000000000000";
    write(&bundle, &old.pem, 0o644)?;
    put(&old, &relay_files, relay, ServerAuth)?;
    put(&old, &agent_files, agent, ClientAuth)?;
    let pair = |files: &(std::path::PathBuf, std::path::PathBuf)| {
        format!("cert = \"{}\", key = \"{}\"", files.0.display(), files.1.display())
    };
    let bundle_text = bundle.display();
    let own = format!("{DOMAIN}\nbundle = \"{bundle_text}\"\nidentity = {{ {} }}", pair(&relay_files));
    stand.edit("relay.toml", DOMAIN, &own)?;
    let own = format!("version = 1\nidentity = {{ {}, bundle = \"{bundle_text}\" }}", pair(&agent_files));
    stand.edit("agent.toml", "version = 1", &own)?;
    stand.start_relay().await?;
    stand.start_agent().await?;
    let invite = stand.relay_command(&["agent", "invite", "dc1"]).await?;
    ensure!(invite.code == 1 && invite.stderr.contains("made elsewhere"), "{invite:?}");
    let shown = authority(&stand).await?;
    ensure!(shown["source"] == "elsewhere" && shown["certificates"][1]["what"] == "relay", "{shown}");

    say("a second root comes, everybody gets certificates of it, the first one goes: under load");
    let load = Load::start(&stand).await?;
    write(&bundle, &format!("{}{}", old.pem, new.pem), 0o644)?;
    stand.wait_audit(1, |line| line["event"] == "ca-changed").await?;
    let again = "the certificate was read again";
    stand.agent()?.wait_lines(again, 1, wait::SOON).await?;
    put(&new, &agent_files, agent, ClientAuth)?;
    stand.agent()?.wait_lines(again, 2, wait::SOON).await?;
    put(&new, &relay_files, relay, ServerAuth)?;
    stand.wait_audit(2, |line| line["event"] == "ca-changed").await?;
    let opened = count(&stand, "tunnel-open")?;
    write(&bundle, &new.pem, 0o644)?;
    say("tunnels that were proved under the first root alone are proved anew");
    stand.wait_audit(opened + 2, |line| line["event"] == "tunnel-open").await?;
    load.end().await?;

    say("and whoever has a certificate of the first one alone is nobody");
    put(&old, &agent_files, agent, ClientAuth)?;
    stand.stop_agent(Signal::TERM).await?;
    let denied = stand.agent_command(&["run"]).await?;
    ensure!(denied.code != 0, "{denied:?}");
    let token = stand.issuer.token("ada").await?;
    ensure!(stand.http.get(&stand.at(PATH), Some(&token)).await?.status != 200);
    stand.passed();
    Ok(())
}
