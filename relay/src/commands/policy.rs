//! `policy test`, `policy why` and `policy replay`: the rules tried out, on the file or by the running relay.

use std::time::SystemTime;

use postern_base::config::{ConfigError, Source};
use postern_base::secret::SecretRef;
use postern_gate::policy::{Allowance, Explanation, TestCaller, uncounted};
use postern_gate::token::Issuers;

use super::{Context, Done, Exit, Failure, answer, block_on, replay};
use crate::admin::api;
use crate::admin::why::{self, Question, Who, WhyError};
use crate::cli::{Policy, Why};
use crate::config;
use postern_base::console;

pub(super) fn run(context: &Context, command: &Policy) -> Done {
    match command {
        Policy::Test => test(context),
        Policy::Why(args) => explain(context, args),
        Policy::Replay { audit } => replay::run(context, audit),
    }
}

/// Those that fail are shown at their places in the file.
fn test(context: &Context) -> Done {
    let (loaded, failing) = config::look(&context.config).map_err(|errors| context.invalid(&errors))?;
    let outcomes = loaded.policy.run_tests();
    if context.output.json {
        console::json(&outcomes)?;
        return if failing.is_empty() { Ok(()) } else { Err(Failure::silent(Exit::Failed)) };
    }
    for outcome in outcomes.iter().filter(|outcome| outcome.passed) {
        console::line(format!("ok  {}: {}", outcome.name, outcome.detail))?;
    }
    if outcomes.is_empty() {
        context.output.note("there are no tests: add [[tests]] to the configuration");
    }
    if failing.is_empty() {
        return Ok(());
    }
    let mut lines = vec![format!("{} of {} test(s) fail", failing.len(), outcomes.len())];
    if !context.output.quiet {
        lines.extend(failing.iter().map(ToString::to_string));
    }
    Err(Failure { exit: Exit::Failed, lines })
}

fn explain(context: &Context, args: &Why) -> Done {
    let question = question(args)?;
    let relay = context.relay()?;
    let called = block_on(relay.post(api::WHY, &serde_json::to_value(&question)?))?;
    let explanation: Explanation = if let Some(explanation) = answer(called)? {
        context.output.note("by the policy that the running relay has in force:");
        explanation
    } else {
        context.output.note(format!("no relay runs here; by {}:", context.config.display()));
        offline(context, &question)?
    };
    let allowed = explanation.allowed;
    if context.output.json {
        console::json(&explanation)?;
    } else {
        console::line(format!("{}: {}", if allowed { "allowed" } else { "denied" }, explanation.detail))?;
        if let Some(closest) = explanation.closest {
            console::line(format!("closest: {closest}"))?;
        }
        for Allowance { limit, left, .. } in explanation.limits {
            let left = left.map_or_else(String::new, |left| format!(", {left} left"));
            console::line(format!("at most: {limit}{left}"))?;
        }
    }
    if allowed { Ok(()) } else { Err(Failure::silent(Exit::Denied)) }
}

fn offline(context: &Context, question: &Question) -> Result<Explanation, Failure> {
    let loaded = context.look()?;
    let settings = &loaded.settings;
    let issuers = Issuers::new(settings.issuers.clone())?;
    let (policy, now) = (&loaded.policy, SystemTime::now());
    let explained = block_on(why::explain(settings, policy, &issuers, question, now, &uncounted))?;
    explained.map_err(|e| {
        let exit = match e {
            WhyError::NoSuchService(_) => Exit::NoSuchService,
            WhyError::Token(_) => Exit::Login,
            WhyError::Question(_) => Exit::Failed,
        };
        Failure::new(exit, e.to_string())
    })
}

fn question(args: &Why) -> Result<Question, Failure> {
    let who = match (&args.caller, &args.token_file) {
        (_, Some(file)) => Who::Token(SecretRef::File(file.clone()).load()?.expose().trim().to_owned()),
        (Some(file), None) => {
            let config = |e: ConfigError| Failure::new(Exit::Config, e.to_string());
            let source = Source::read(file).map_err(config)?;
            // Parsed here for an error that shows the place; sent as it is.
            source.parse::<TestCaller>().map_err(config)?;
            Who::As(source.parse().map_err(config)?)
        }
        (None, None) => return Err(Failure::new(Exit::Usage, "give --as FILE or --token-file F")),
    };
    Ok(Question { who, method: args.method.clone(), target: args.target.clone() })
}
