//! What is typed after `drain`, `doctor`, `backup`, `restore` and `issuer`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use postern_base::id::{IssuerName, ServiceName};

#[derive(Debug, Clone, Args)]
pub(crate) struct Drain {
    /// Wait until the relay has ended, and say how far it is.
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Doctor {
    /// Have this service's agents try its upstream too.
    pub(crate) service: Option<ServiceName>,
    /// Write what was found into a new .tar.gz for others to read: the checks, the status, the configuration and recent warnings, without
    /// tokens, keys, secrets and addresses.
    #[arg(long, value_name = "FILE")]
    pub(crate) bundle: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Backup {
    /// Made anew, 0600; a file that is there is not replaced.
    pub(crate) file: PathBuf,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Restore {
    /// As `backup` wrote it.
    pub(crate) file: PathBuf,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Issuer {
    /// Look at an issuer: its documents, endpoints, keys and clock; and at each step of judging a token of it.
    Test {
        /// As the configuration names it.
        name: IssuerName,
        /// A file with a token; it is not shown.
        #[arg(long, value_name = "F")]
        token_file: Option<PathBuf>,
    },
}
