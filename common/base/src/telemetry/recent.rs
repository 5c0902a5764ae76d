//! The warnings and errors that this process logged last, for `status` and for what a doctor hands on. Takes log events; gives the newest,
//! bounded in number and in length. What the level of the log leaves out is not here either.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::sync::{Mutex, MutexGuard};
use std::time::SystemTime;

use crate::sync::lock;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Enough to see what led to a failure.
const KEPT: usize = 100;
/// Characters of one.
const LENGTH: usize = 500;

static KEPT_LAST: Mutex<VecDeque<Warning>> = Mutex::new(VecDeque::new());

/// Something that was logged as a warning or an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Warning {
    /// Seconds since the epoch.
    pub time: u64,
    /// Whether it was logged as an error.
    pub is_error: bool,
    pub text: String,
}

fn kept() -> MutexGuard<'static, VecDeque<Warning>> {
    // Every change is one push or pop.
    lock(&KEPT_LAST)
}

/// The oldest first.
pub fn recent() -> Vec<Warning> {
    kept().iter().cloned().collect()
}

/// The newest.
pub fn last() -> Option<Warning> {
    kept().back().cloned()
}

/// Keeps what is worth it.
#[derive(Debug)]
pub(super) struct Recent;

impl<S: Subscriber> Layer<S> for Recent {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        if level > Level::WARN {
            return;
        }
        let mut said = Said::default();
        event.record(&mut said);
        let text = format!("{}{}", said.message, said.fields);
        let text = text.trim().chars().take(LENGTH).map(|c| if c.is_control() { ' ' } else { c }).collect();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let time = now.map_or(0, |since| since.as_secs());
        let mut kept = kept();
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(Warning { time, is_error: level == Level::ERROR, text });
    }
}

#[derive(Default)]
struct Said {
    message: String,
    fields: String,
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn warnings_are_kept_the_newest_last_and_no_more_than_that() {
        let subscriber = tracing_subscriber::registry().with(Recent);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("not this");
            for n in 0..KEPT {
                tracing::warn!(n, "early");
            }
            tracing::error!(error = %"no disk\n", "it \u{1b}[2J failed");
        });
        let all = recent();
        assert_eq!(all.len(), KEPT);
        assert!(all[0].text == "early n=1" && !all[0].is_error, "{:?}", all[0]);
        let newest = last().unwrap();
        assert_eq!((newest.text.as_str(), newest.is_error), ("it  [2J failed error=no disk", true));
        assert!(newest.time > 1_700_000_000);
    }
}
