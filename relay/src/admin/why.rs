//! Why a call would be allowed or denied: takes a made-up caller or a real token, and a call; gives the policy's explanation. Used by the
//! running relay for the policy in force, and by the command on a file's.

use std::net::{IpAddr, Ipv4Addr};
use std::time::SystemTime;

use http::StatusCode;
use postern_base::config::Problem;
use postern_gate::path::CanonicalPath;
use postern_gate::policy::{Context, Explanation, Policy, ServiceKind, Target, Tell, TestCaller};
use postern_gate::token::settings::SenderConstrained;
use postern_gate::token::{Issuers, TokenError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::settings::Settings;

/// Who calls what.
#[derive(Serialize, Deserialize)]
pub(crate) struct Question {
    pub(crate) who: Who,
    pub(crate) method: String,
    /// `SERVICE/PATH`, or a TCP service alone.
    pub(crate) target: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Who {
    /// A caller as `[[tests]]` make them up.
    As(Value),
    /// A token, judged as in a request that shows the key or certificate that it is bound to.
    Token(String),
}

/// Why there is no explanation.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WhyError {
    #[error(
        "there is no service {0} in what is in force: look at `postern-relay service ls`, and if it is new, postern-relay reload"
    )]
    NoSuchService(String),
    #[error("the token is not accepted: {0}")]
    Token(#[from] TokenError),
    #[error("{0}")]
    Question(String),
}

impl WhyError {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::NoSuchService(_) => StatusCode::NOT_FOUND,
            Self::Token(_) => StatusCode::UNAUTHORIZED,
            Self::Question(_) => StatusCode::BAD_REQUEST,
        }
    }
}

impl From<Problem> for WhyError {
    fn from(problem: Problem) -> Self {
        Self::Question(format!("{}: {problem}", problem.at.join(".")))
    }
}

pub(crate) async fn explain(
    settings: &Settings,
    policy: &Policy,
    issuers: &Issuers,
    question: &Question,
    now: SystemTime,
    tell: Tell<'_>,
) -> Result<Explanation, WhyError> {
    let Question { who, method, target } = question;
    let (name, path) = target.split_at(target.find('/').unwrap_or(target.len()));
    let service = settings.services.get(name).ok_or_else(|| WhyError::NoSuchService(name.to_owned()))?;
    match who {
        Who::As(caller) => {
            let caller: TestCaller = serde_json::from_value(caller.clone())
                .map_err(|e| WhyError::Question(format!("the caller: {e}")))?;
            Ok(policy.why(&caller, &format!("{method} {target}"), now, tell)?)
        }
        Who::Token(token) => {
            // A proof is for one request, and none comes with a question: what the token is bound to is taken as proved.
            let principal = issuers.confirm(token, service.accept(), now).await?;
            let required =
                issuers.by_name(principal.issuer().as_str()).map(|issuer| issuer.sender_constrained);
            if principal.binding().is_none() && required == Some(SenderConstrained::Required) {
                return Err(TokenError::NotBound.into());
            }
            if service.kind == ServiceKind::Tcp && !path.is_empty() {
                return Err(WhyError::Question(format!("{name} is of kind tcp: ask CONNECT {name}")));
            }
            let path = if path.is_empty() { "/" } else { path };
            let path = CanonicalPath::parse(path, service.paths)
                .map_err(|e| WhyError::Question(format!("the path: {e}")))?;
            let target = Target { service: &service.name, method, path: &path };
            // The caller's address is not known here; rules with `from` then say that they need one.
            let context = Context { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), now };
            Ok(policy.explain_to_operator(&principal, &target, &context, tell))
        }
    }
}
