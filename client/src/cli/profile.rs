//! The arguments of `profile`.

use clap::Subcommand;

use crate::session::profile::ProfileName;

#[derive(Debug, Subcommand)]
pub(crate) enum Profile {
    /// List them
    Ls,
    /// Make this one the one that is used when none is named
    Use {
        /// A name from `postern profile ls`
        name: ProfileName,
    },
    /// Forget this one, after logging out of its session
    Rm {
        /// A name from `postern profile ls`
        name: ProfileName,
    },
}
