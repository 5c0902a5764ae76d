//! Takes what went wrong in any room; gives what a person is told and the exit code that scripts see.

use schemars::JsonSchema;
use serde::Serialize;

/// The exit codes of all Postern programs; success is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Other,
    Usage,
    Config,
    LoginNeeded,
    Denied,
    NoSuchService,
    RelayUnreachable,
    UpstreamDown,
    RateLimited,
    Interrupted,
}

impl Exit {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Other => 1,
            Self::Usage => 2,
            Self::Config => 3,
            Self::LoginNeeded => 4,
            Self::Denied => 5,
            Self::NoSuchService => 6,
            Self::RelayUnreachable => 7,
            Self::UpstreamDown => 8,
            Self::RateLimited => 9,
            Self::Interrupted => 130,
        }
    }

    /// For programs: `error.code` of a failure told as JSON.
    fn word(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::Usage => "usage",
            Self::Config => "config",
            Self::LoginNeeded => "login-needed",
            Self::Denied => "denied",
            Self::NoSuchService => "no-such-service",
            Self::RelayUnreachable => "relay-unreachable",
            Self::UpstreamDown => "upstream-down",
            Self::RateLimited => "rate-limited",
            Self::Interrupted => "interrupted",
        }
    }

    /// What a refusal with this status, made by the relay, means to a script.
    pub(crate) fn of_status(status: u16) -> Self {
        match status {
            401 => Self::LoginNeeded,
            // 405 is policy's word too: no rule that names this caller knows the method.
            403 | 405 => Self::Denied,
            404 => Self::NoSuchService,
            429 => Self::RateLimited,
            502..=504 => Self::UpstreamDown,
            _ => Self::Other,
        }
    }
}

/// In the place of the data: what `--json` gives of any command that failed.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Failed<'a> {
    error: Told<'a>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Failure")]
struct Told<'a> {
    /// What happened.
    message: &'a str,
    cause: Option<String>,
    /// What to do about it.
    fix: Option<&'a str>,
    code: &'static str,
    /// The exit code.
    exit: u8,
}

/// What is said when a command fails: what happened, then lines that help, then what to do. Texts from afar are escaped already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) message: String,
    pub(crate) details: Vec<String>,
    pub(crate) fix: Option<String>,
    /// Whether a login of the person at the terminal is all that it takes.
    pub(crate) login_helps: bool,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), details: Vec::new(), fix: None, login_helps: false }
    }

    #[must_use]
    pub(crate) fn detail(mut self, line: impl Into<String>) -> Self {
        self.details.push(line.into());
        self
    }

    #[must_use]
    pub(crate) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    #[must_use]
    pub(crate) fn login_helps(mut self) -> Self {
        self.login_helps = true;
        self
    }

    /// As `--json` gives it, whatever the command.
    pub(crate) fn told(&self) -> Failed<'_> {
        let Self { exit, message, details, fix, .. } = self;
        let cause = (!details.is_empty()).then(|| details.join("\n"));
        let (fix, code, exit) = (fix.as_deref(), exit.word(), exit.code());
        Failed { error: Told { message, cause, fix, code, exit } }
    }

    pub(crate) fn interrupted() -> Self {
        Self::new(Exit::Interrupted, "interrupted")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_become_the_documented_exit_codes() {
        let codes = [401, 403, 404, 405, 429, 502, 503, 504, 400, 413].map(|s| Exit::of_status(s).code());
        assert_eq!(codes, [4, 5, 6, 5, 9, 8, 8, 8, 1, 1]);
    }

    #[test]
    fn a_failure_is_one_document() {
        let failure =
            Failure::new(Exit::Denied, "Denied (403): no").detail("Closest: \"r\" needs x").fix("ask");
        let told = serde_json::json!({ "error": {
            "message": "Denied (403): no", "cause": "Closest: \"r\" needs x", "fix": "ask", "code": "denied", "exit": 5,
        } });
        assert_eq!(serde_json::to_value(failure.told()).unwrap(), told);
        let bare = serde_json::to_value(Failure::new(Exit::Other, "broke").told()).unwrap();
        assert!(bare["error"]["cause"].is_null() && bare["error"]["fix"].is_null(), "{bare}");
    }
}
