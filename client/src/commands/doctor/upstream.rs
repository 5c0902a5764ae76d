//! The last hop of the way to a service: a harmless request (GET of a path that some rule lets the caller ask for, of which only the head
//! is read; a TCP connection that says nothing) where there is one, else the relay's word.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Collected, Full, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use super::found::Found;
use crate::channel::ChannelError;
use crate::commands::Context;
use crate::commands::forward::{means, public};
use crate::dial::{Dial, innermost};
use crate::failure::{Exit, Failure};
use crate::forward::location::Map;
use crate::output::Output;
use crate::output::text::escape;
use crate::relay_api::problem::{PROBLEM_BYTES, Problem, is_problem};
use crate::relay_api::{RelayError, Service};
use crate::session::pass::Pass;

/// Longer than the relay waits for the first byte, so that its word is heard.
const ANSWER: Duration = Duration::from_secs(40);
const NAME: &str = "upstream";

pub(super) async fn look(
    context: &Context,
    service: &Service,
    found: &mut Found,
    out: &Output,
) -> Result<(), Failure> {
    let means = means(context, out)?;
    if service.kind.raw() == "tcp" {
        let opener = means.opener(service.name.clone(), service.resource.clone());
        match opener.open().await {
            Ok(_) => found.good(NAME, "a connection was made"),
            Err(ChannelError::Relay(RelayError::Refused { problem, .. })) => {
                refused(context, service, &problem, found);
            }
            Err(error) => found.failed(NAME, &opener.failure(error)),
        }
        return Ok(());
    }
    let Some(path) = service.may.iter().find_map(|may| harmless(may.raw())) else {
        found.skipped(NAME, "not tried, no rule lets you GET anything; its agent offers it as working");
        return Ok(());
    };
    let (url, audience) = public(context, service)?;
    let Ok(uri) = path.parse().map_err(drop).and_then(|uri| Map::new(url).outward(&uri).map_err(drop)) else {
        found.skipped(NAME, "not tried: no rule names a path that can be asked for as it is");
        return Ok(());
    };
    let answered: Result<u16, Failure> = {
        let ask = |pass: Pass| {
            let (dial, uri) = (means.dial.clone(), uri.clone());
            async move { get(&dial, &uri, &pass, context).await }
        };
        match context.tokens.shown(audience.as_deref(), Duration::ZERO, ask).await {
            Err(ChannelError::Relay(RelayError::Refused { problem, .. })) => {
                refused(context, service, &problem, found);
                return Ok(());
            }
            Err(ChannelError::Relay(error)) => Err(error.into()),
            Err(ChannelError::Session(error)) => Err(error.into()),
            Ok(status) => Ok(status),
        }
    };
    match answered {
        Ok(status @ 500..) => {
            let fix = format!("the service itself answers so to GET {path}: look at its own log");
            found.warn(NAME, &format!("answers {status}"), fix);
        }
        Ok(status) => found.good(NAME, format!("answers {status} to GET {path}")),
        Err(failure) => found.failed(NAME, &failure),
    }
    Ok(())
}

/// The status that the upstream gave.
async fn get(dial: &Dial, uri: &http::Uri, pass: &Pass, context: &Context) -> Result<u16, RelayError> {
    let relay = &context.relay.url;
    let lost = |reason: String| RelayError::Unreachable { relay: relay.clone(), reason: escape(&reason) };
    let https = HttpsConnectorBuilder::new().with_tls_config(dial.tls_config()).https_only();
    let client: Client<_, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).build(https.enable_http1().wrap_connector(dial.clone()));
    let ask = async || {
        let mut request = Request::get(uri.clone()).body(Full::default()).map_err(|e| lost(e.to_string()))?;
        pass.show(request.headers_mut(), "GET", &uri.to_string())?;
        let answered = tokio::time::timeout(ANSWER, client.request(request)).await;
        answered.map_err(|_| lost(format!("no answer within {ANSWER:?}")))?.map_err(|e| lost(innermost(&e)))
    };
    let mut answer = ask().await?;
    if pass.wants_nonce(answer.status(), answer.headers()) {
        answer = ask().await?;
    }
    let (head, body) = answer.into_parts();
    let status = head.status.as_u16();
    if !is_problem(&head.headers) {
        return Ok(status);
    }
    let body = tokio::time::timeout(ANSWER, Limited::new(body, PROBLEM_BYTES).collect()).await;
    let body = body.ok().and_then(Result::ok).map(Collected::to_bytes).unwrap_or_default();
    match Problem::ours(&body) {
        Some(problem) => Err(RelayError::Refused {
            relay: relay.clone(),
            status,
            problem: Box::new(problem.challenged(&head.headers)),
        }),
        None => Ok(status),
    }
}

/// What a refusal says of the upstream: a relay or agent that cannot reach it, or a policy that does not let this be found out.
fn refused(context: &Context, service: &Service, problem: &Problem, found: &mut Found) {
    let relay = context.relay.url.to_string();
    let failure = problem.explain(None, &relay);
    if failure.exit != Exit::UpstreamDown {
        let why = format!("not tried: {}; its agent offers it as working", failure.message);
        return found.skipped(NAME, &why);
    }
    let said = problem.detail.as_ref().unwrap_or(&problem.title).to_string();
    let (detail, agent) = agents_word(&said, service.name.as_str());
    // What to do has a line of its own here.
    let detail = detail.split_once(": start the service").map_or(detail, |(detail, _)| detail);
    let only = match &service.agents[..] {
        [only] => Some(only.to_string()),
        _ => None,
    };
    if let Some(agent) = agent.map(str::to_owned).or(only) {
        let fix = format!("start the service behind agent {agent}, or look at `postern-agent status` there");
        found.bad(NAME, &format!("{detail} (agent {agent})"), Exit::UpstreamDown, fix);
    } else {
        let fix =
            failure.fix.unwrap_or_else(|| "see whether it is up: postern ls; then try again".to_owned());
        found.bad(NAME, detail, Exit::UpstreamDown, fix);
    }
}

/// `service billing behind agent dc1: connection refused` in its parts.
fn agents_word<'a>(said: &'a str, service: &str) -> (&'a str, Option<&'a str>) {
    let rest = said.strip_prefix("service ").and_then(|rest| rest.strip_prefix(service));
    let rest = rest.and_then(|rest| rest.strip_prefix(" behind agent "));
    rest.and_then(|rest| rest.split_once(": ")).map_or((said, None), |(agent, detail)| (detail, Some(agent)))
}

/// A path that `GET /v1/invoices/**` covers. A single `*` could be anything: it is `-` here.
fn harmless(may: &str) -> Option<String> {
    let (methods, pattern) = may.split_once(' ')?;
    let reads = methods.split(',').any(|method| matches!(method.trim(), "*" | "GET"));
    let path = pattern.trim().replace("**", "").replace('*', "-");
    (reads && path.starts_with('/')).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_gives_a_path_that_may_be_read() {
        for (may, path) in [
            ("GET /v1/invoices/**", Some("/v1/invoices/")),
            ("PUT,GET /v1/*/lines", Some("/v1/-/lines")),
            ("* /**", Some("/")),
            ("GET /status", Some("/status")),
            ("POST,PUT /v1/**", None),
            ("CONNECT", None),
        ] {
            assert_eq!(harmless(may).as_deref(), path, "{may}");
        }
    }

    #[test]
    fn the_agents_word_is_taken_apart() {
        let said = "service billing behind agent dc1: connection refused: start it";
        assert_eq!(agents_word(said, "billing"), ("connection refused: start it", Some("dc1")));
        assert_eq!(agents_word("no agent serves this", "billing"), ("no agent serves this", None));
    }
}
