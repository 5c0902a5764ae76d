//! The arguments of `login`, and of a program that logs in by itself.

use std::path::PathBuf;

use clap::Args;

use crate::relay_api::address::RelayUrl;

#[derive(Debug, Args)]
pub(crate) struct Login {
    /// The relay: host, host:port or its https URL [default: the one last logged in to]
    #[arg(value_name = "RELAY")]
    pub(crate) to: Option<RelayUrl>,
    /// Which of the relay's logins, when it has several
    #[arg(long, value_name = "NAME")]
    pub(crate) issuer: Option<String>,
    /// Enter a code on another device (the default over SSH and without a display)
    #[arg(long, conflicts_with_all = ["no_browser", "client_credentials"])]
    pub(crate) device: bool,
    /// Print the address instead of opening a browser
    #[arg(long, conflicts_with = "client_credentials")]
    pub(crate) no_browser: bool,
    /// Ask for this scope too; as a program, for this one instead of those that the relay names
    #[arg(long = "scope", value_name = "S")]
    pub(crate) scopes: Vec<String>,
    /// Log in anew, and accept that the relay's issuer or client id changed
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) client: Identity,
}

/// A program's own login: no person, no browser.
#[derive(Debug, Default, Args)]
pub(crate) struct Identity {
    /// Log in as a program, by client credentials
    #[arg(long)]
    pub(crate) client_credentials: bool,
    /// The client that the program is [default: `POSTERN_CLIENT_ID`]
    #[arg(long, value_name = "ID", requires = "client_credentials")]
    pub(crate) client_id: Option<String>,
    /// Its secret [default: `POSTERN_CLIENT_SECRET_FILE`]
    #[arg(long, value_name = "FILE", requires = "client_credentials", group = "proof")]
    pub(crate) client_secret_file: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, value_name = "FILE", requires = "client_credentials", group = "proof")]
    pub(crate) client_key: Option<PathBuf>,
    /// A token of the platform that it runs on, by which the issuer knows it; read anew for each login
    #[arg(long, value_name = "FILE", requires = "client_credentials", group = "proof")]
    pub(crate) token_file: Option<PathBuf>,
}

/// The same for one command alone: nothing of it is kept.
#[derive(Debug, Args)]
pub(crate) struct Program {
    #[command(flatten)]
    pub(crate) client: Identity,
    /// Which of the relay's logins, when it has several
    #[arg(long, value_name = "NAME", requires = "client_credentials")]
    pub(crate) issuer: Option<String>,
    /// Ask for this scope instead of those that the relay names
    #[arg(long = "scope", value_name = "S", requires = "client_credentials")]
    pub(crate) scopes: Vec<String>,
}
