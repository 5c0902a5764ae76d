//! What the commands print with `--json`, as schemas: docs/schema is made of them. Each is the schema of the very type that its command
//! prints. Left out: what `audit tail` and `audit find` print are the lines of the log, told in docs/reference/audit-events.md.

use postern_base::console::documents::{Document, document};
use postern_gate::policy::{Explanation, TestOutcome};
use postern_gate::token::examine::Examined;

use super::{audit, backup, drain, expand, init, replay, service};
use crate::admin::api::agents::{AgentList, Invited, Removed, Suspended};
use crate::admin::api::ca::Rotated;
use crate::admin::api::status::Status;
use crate::admin::api::{Locked, Reloaded};
use crate::config::diff::Diff;
use crate::enroll::CaReport;
use crate::session::{Lock, StreamView};

/// By name, the program's first; what a command has in common with the other programs is in [`postern_base::console::documents`].
pub fn documents() -> Vec<Document> {
    vec![
        document::<init::InitDocument<'_>>("relay-init"),
        document::<Reloaded>("relay-reload"),
        document::<drain::DrainDocument>("relay-drain"),
        document::<Status>("relay-status"),
        document::<Invited>("relay-agent-invite"),
        document::<AgentList>("relay-agent-ls"),
        document::<Suspended>("relay-agent-suspend"),
        document::<Suspended>("relay-agent-resume"),
        document::<Removed>("relay-agent-remove"),
        document::<CaReport>("relay-ca-show"),
        document::<Rotated>("relay-ca-rotate"),
        document::<service::ServiceAdded<'_>>("relay-service-add"),
        document::<service::ServiceRemoved<'_>>("relay-service-rm"),
        document::<Vec<service::ServiceRow>>("relay-service-ls"),
        document::<Locked>("relay-lock-add"),
        document::<Lock>("relay-lock-rm"),
        document::<Vec<Lock>>("relay-lock-ls"),
        document::<Vec<StreamView>>("relay-session-ls"),
        document::<Examined>("relay-issuer-test"),
        document::<expand::Expanded>("relay-config-expand"),
        document::<Diff>("relay-config-diff"),
        document::<Vec<TestOutcome>>("relay-policy-test"),
        document::<Explanation>("relay-policy-why"),
        document::<replay::Summary>("relay-policy-replay"),
        document::<audit::Verified<'_>>("relay-audit-verify"),
        document::<backup::BackedUp<'_>>("relay-backup"),
        document::<backup::PutBack>("relay-restore"),
    ]
}
