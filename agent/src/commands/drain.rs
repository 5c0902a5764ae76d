//! `drain`: has the running agent take nothing new, finish what it has and end; says how far it is until it is gone.

use std::time::{Duration, Instant};

use postern_base::admin::{Client, ClientError};
use postern_base::console::{self, Done, Exit, Failure};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use super::{Context, answer, block_on};
use crate::admin::status::Status;
use crate::admin::{self, Drained};

/// How often it is asked how far it is.
const EVERY: Duration = Duration::from_millis(250);
/// Goodbyes and the audit log's end come after the grace.
const END: Duration = Duration::from_secs(10);

/// `drain --json`, when it has ended.
#[derive(Serialize, JsonSchema)]
pub(super) struct DrainDocument {
    drained: bool,
    took_ms: u64,
}

pub(super) fn run(context: &Context) -> Done {
    let agent = context.agent()?;
    let began = Instant::now();
    block_on(drain(context, &agent))??;
    let took = began.elapsed();
    if context.output.json {
        return Ok(console::json(&DrainDocument {
            drained: true,
            took_ms: u64::try_from(took.as_millis())?,
        })?);
    }
    context.output.note(format!("drained in {:.1} s: the agent has ended", took.as_secs_f64()));
    Ok(())
}

async fn drain(context: &Context, agent: &Client) -> Done {
    let begun: Drained = answer(agent.post(admin::DRAIN, &json!({})).await)?;
    let mut left = begun.requests_in_flight;
    context.output.note(format!("draining: {}, at most {} s", requests(left), begun.grace));
    let until = Instant::now() + Duration::from_secs(begun.grace) + END;
    while Instant::now() < until {
        tokio::time::sleep(EVERY).await;
        match agent.get(admin::STATUS).await {
            Err(ClientError::NotRunning) => return Ok(()),
            Ok(status) => {
                let status: Status = serde_json::from_value(status)?;
                if !status.draining {
                    // The service manager has started the next one already.
                    return Ok(());
                }
                if status.requests_in_flight != left {
                    left = status.requests_in_flight;
                    context.output.note(format!("draining: {}", requests(left)));
                }
            }
            // It ends while it answers.
            Err(ClientError::Broken(_) | ClientError::Refused { .. }) => {}
            Err(e @ ClientError::NotAllowed { .. }) => return Err(e.into()),
        }
    }
    Err(Failure::new(
        Exit::Failed,
        "the agent has not ended in time: look at its log, or send it SIGTERM twice",
    ))
}

fn requests(count: u64) -> String {
    match count {
        0 => "no requests run".to_owned(),
        1 => "1 request runs".to_owned(),
        count => format!("{count} requests run"),
    }
}
