//! The arguments of `ca`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Ca {
    /// Show roots and issuing CA, when they end, and which agents have not moved to them yet.
    Show,
    /// Replace the issuing CA, or with --root the root, while agents stay enrolled and move by themselves.
    Rotate(Rotate),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Rotate {
    /// Replace the root too: the one before is believed until --finish.
    #[arg(long)]
    pub(crate) root: bool,
    /// The root's key; with --root the new root's key is made beside it, as FILE.new [default: root.key in the state directory's ca, if
    /// nobody has taken it away].
    #[arg(long, value_name = "FILE")]
    pub(crate) root_key: Option<PathBuf>,
    /// End the belief in the root before, when agents have moved.
    #[arg(long, conflicts_with_all = ["root", "root_key"])]
    pub(crate) finish: bool,
    /// With --finish: leave those behind who have not moved; they need new invites.
    #[arg(long, requires = "finish")]
    pub(crate) force: bool,
}
