//! `drain`: tells the running relay to finish what runs and end; with `--wait` says how far it is, until it has ended.

use std::time::Duration;

use postern_base::admin::{Client, ClientError};
use postern_base::console::{self, count};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{Context, Done, Exit, Failure, answer, block_on, not_running};
use crate::admin::api;
use crate::admin::api::drain::Drain;
use crate::cli;

/// How often a person wants to hear how far it is.
const LOOK: Duration = Duration::from_millis(500);
/// What the end itself may take after the grace: last packets, the audit log.
const END: Duration = Duration::from_secs(15);

/// `drain --json`.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum DrainDocument {
    /// With `--wait`, when it has ended: how it stood when last asked.
    Ended { ended: bool, last: Option<Drain> },
    /// How it stands; nothing where it was gone before it answered.
    Begun(Option<Drain>),
}

pub(super) fn run(context: &Context, args: &cli::Drain) -> Done {
    let relay = context.relay()?;
    let output = context.output;
    block_on(async {
        let begun: Option<Drain> = match relay.post(api::DRAIN, &json!({})).await {
            // With nothing to finish it may be gone before it has answered.
            Err(ClientError::Broken(_)) if is_gone_soon(&relay).await => None,
            called => Some(answer(called)?.ok_or_else(not_running)?),
        };
        if let Some(begun) = &begun {
            output.note(format!("draining; what still runs in {} s is cut: {}", begun.grace, told(begun)));
        }
        if !args.wait {
            if output.json {
                console::json(&DrainDocument::Begun(begun))?;
            }
            output.note("It ends by itself; to be told when it has: postern-relay drain --wait");
            return Ok(());
        }
        let grace = Duration::from_secs(begun.as_ref().map_or(0, |begun| begun.grace));
        let deadline = Instant::now() + grace + END;
        let mut last_said = begun.as_ref().map(told).unwrap_or_default();
        let mut last = begun;
        while Instant::now() < deadline {
            match relay.get(api::DRAIN).await {
                Ok(value) => {
                    let now: Drain = serde_json::from_value(value)?;
                    let said = told(&now);
                    if said != last_said {
                        output.note(&said);
                        last_said = said;
                    }
                    last = Some(now);
                }
                gone if is_gone(&gone) => {
                    output.note("✓ the relay has ended");
                    if output.json {
                        console::json(&DrainDocument::Ended { ended: true, last })?;
                    }
                    return Ok(());
                }
                // It is just ending, or very busy; the deadline holds either way.
                Err(_) => {}
            }
            sleep(LOOK).await;
        }
        let text = "the relay has not ended in time: see its log, or stop it with its service manager";
        Err(Failure::new(Exit::Failed, text))
    })?
}

async fn is_gone_soon(relay: &Client) -> bool {
    for _ in 0..10 {
        if is_gone(&relay.get(api::DRAIN).await) {
            return true;
        }
        sleep(LOOK).await;
    }
    false
}

fn is_gone(called: &Result<serde_json::Value, ClientError>) -> bool {
    matches!(called, Err(ClientError::NotRunning))
}

fn told(drain: &Drain) -> String {
    let work = &drain.work;
    format!(
        "{} ({}), {}, {}",
        count(work.requests, "request"),
        count(work.streams, "live stream"),
        count(work.tunnels, "tunnel"),
        count(work.connections, "connection")
    )
}
