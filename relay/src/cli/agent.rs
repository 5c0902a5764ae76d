//! What is typed of `agent`: invites, and who of those that are enrolled stays in. An agent is named as `NAME`, and one of its instances as
//! `NAME/INSTANCE`, as `agent ls` shows both.

use clap::Subcommand;
use postern_base::id::{AgentName, ServiceName};
use postern_base::value::Span;

use super::duration;
use crate::enroll::Who;

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Agent {
    /// Print a one-time invite for an agent.
    Invite {
        /// The agent's name, as relay.toml's services give it.
        name: AgentName,
        /// Let it serve only this one of its services; may be repeated.
        #[arg(long = "service", value_name = "S")]
        services: Vec<ServiceName>,
        /// How long the invite is good, such as 1h [default: `invite_ttl` under `[agents]`, which is 15m unless set].
        #[arg(long, value_name = "D", value_parser = duration)]
        ttl: Option<Span>,
    },
    /// List enrolled agents and open invites.
    Ls,
    /// Keep an agent out until it is resumed, and cut its tunnels: all its instances, also such as join later, or one of them.
    Suspend {
        #[arg(value_name = "NAME[/INSTANCE]")]
        who: Who,
        /// Why, for the audit log, for whoever finds it later, and for the agent's own log.
        #[arg(long, value_name = "R", default_value = "no reason given")]
        reason: String,
    },
    /// Let a suspended agent, or one suspended instance, in again.
    Resume {
        #[arg(value_name = "NAME[/INSTANCE]")]
        who: Who,
    },
    /// Put an agent, or one of its instances, out for good and cut its tunnels; to come back it needs a new invite.
    Remove {
        #[arg(value_name = "NAME[/INSTANCE]")]
        who: Who,
    },
}
