//! What is typed after `postern-relay audit`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use postern_base::id::{AgentName, ServiceName};
use postern_base::value::Span;

use super::duration;

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Audit {
    /// Show the last lines, and those that come.
    Tail {
        /// What was refused, and nothing else: decisions that said no, answers 401, 403 and 429 of ours, and what an agent refused.
        #[arg(long)]
        denied: bool,
    },
    /// Show what the log has of something, files that were put aside included.
    Find(FindAudit),
    /// Prove that the log is as it was written; exit code 1 where it is not.
    Verify(VerifyAudit),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct FindAudit {
    /// A request, by its id or that of its decision.
    #[arg(long, value_name = "R")]
    pub(crate) request: Option<String>,
    /// A token, by its id: 16 hex digits, as lines and locks have it.
    #[arg(long, value_name = "T")]
    pub(crate) token: Option<String>,
    /// A user, by user name or subject.
    #[arg(long, value_name = "U")]
    pub(crate) user: Option<String>,
    #[arg(long, value_name = "S")]
    pub(crate) service: Option<ServiceName>,
    #[arg(long, value_name = "A")]
    pub(crate) agent: Option<AgentName>,
    /// The answer's status; 0 where there was none.
    #[arg(long, value_name = "N")]
    pub(crate) status: Option<u16>,
    /// How far back, such as 2h.
    #[arg(long, value_name = "D", value_parser = duration)]
    pub(crate) since: Option<Span>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct VerifyAudit {
    /// The log's files, in any order.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// A file with the log's first key, as init showed it.
    #[arg(long, value_name = "F")]
    pub(crate) key_file: Option<PathBuf>,
    /// An agent's audit log: holds this one against the heads in it, and names requests that only one of them has; may be repeated.
    #[arg(long, value_name = "AGENT-FILE")]
    pub(crate) against: Vec<PathBuf>,
    /// Be content with complete numbers, which prove nothing of what the lines say.
    #[arg(long, conflicts_with_all = ["key_file", "against"])]
    pub(crate) numbers_only: bool,
}
