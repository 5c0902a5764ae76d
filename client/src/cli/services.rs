//! The arguments of the commands that look at services: `ls`, `show`, `can`, `token`.

use clap::Args;
use postern_base::id::ServiceName;
use postern_base::value::Span;

use crate::relay_api::address::Target;

#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Only services whose name contains this, or matches it when it has a `*`
    pub(crate) pattern: Option<String>,
    /// All columns, however wide
    #[arg(long)]
    pub(crate) wide: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The service
    pub(crate) service: ServiceName,
}

#[derive(Debug, Args)]
pub(crate) struct Can {
    /// GET, POST, …; CONNECT for a TCP service
    pub(crate) method: String,
    /// The service and the path within it; the service alone for CONNECT
    #[arg(value_name = "SERVICE/PATH")]
    pub(crate) target: Target,
}

#[derive(Debug, Args)]
pub(crate) struct Token {
    /// For this service, when it has an audience of its own
    #[arg(long)]
    pub(crate) service: Option<String>,
    /// As an Authorization header
    #[arg(long)]
    pub(crate) header: bool,
    /// One that lives at least this long, such as 5m, if the issuer gives such tokens
    #[arg(long, value_name = "DURATION", value_parser = |text: &str| text.parse::<Span>())]
    pub(crate) min_ttl: Option<Span>,
}
