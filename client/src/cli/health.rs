//! The arguments of the commands that look whether all is well: `status`, `doctor`.

use std::path::PathBuf;

use clap::Args;
use postern_base::id::ServiceName;

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Go on, every two seconds, until interrupted
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Try the way to this service, too
    pub(crate) service: Option<ServiceName>,
    /// Write what was found to this .tar.gz, without tokens or secrets, for others to read
    #[arg(long, value_name = "FILE")]
    pub(crate) bundle: Option<PathBuf>,
}
