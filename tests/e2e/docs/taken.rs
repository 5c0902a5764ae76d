//! An agent's instance is taken: takes a stand; somebody who has the issuing CA's key signs a certificate for the agent that is there, and
//! renews it, so that the relay has it on record. Gives the instance, and says whether the agent has its place back.

use anyhow::{Context, Result};
use postern_tests::agents_ca::AgentsCa;
use postern_tests::process::Signal;
use postern_tests::stand::Stand;
use serde_json::Value;

use crate::rotation::thief::Thief;

/// The instance that pages about it name.
pub(super) const SHOWN: &str = "01m80f3xmqy7gq8dwqxgsagdbs";

pub(super) async fn take(stand: &mut Stand) -> Result<String> {
    let listed = stand.relay_command(&["agent", "ls", "--json"]).await?.expect_code(0)?;
    let listed: Value = serde_json::from_str(&listed.stdout)?;
    let instance = listed["agents"][0]["instance"].as_str().context("no instance")?.to_owned();
    let stolen = AgentsCa::of(&stand.path("relay"))?;
    Thief::renews(stand, &stolen, &instance).await?;
    let unrecorded =
        |line: &Value| line["event"] == "certificate-unrecorded" && line["instance"] == *instance;
    stand.wait_audit(1, unrecorded).await?;
    Ok(instance)
}

/// The agent works again, as an instance that nobody else holds.
pub(super) async fn is_over(stand: &mut Stand, before: &str) -> Result<()> {
    stand.stop_agent(Signal::TERM).await?;
    stand.start_agent().await?;
    let opened = |line: &Value| line["event"] == "tunnel-open" && line["instance"] != *before;
    stand.wait_audit(1, opened).await.map(drop)
}
