//! What the commands print with `--json`, as schemas: docs/schema is made of them. Each is the schema of the very type that its command prints.

use postern_base::console::documents::{Document, document};

use super::{forward, login, logout, ls, profile, proxy, show, status, token, whoami};
use crate::failure::Failed;
use crate::relay_api::Explained;

/// By name, the program's first; what a command has in common with the other programs is in [`postern_base::console::documents`].
pub fn documents() -> Vec<Document> {
    vec![
        document::<login::LoggedIn<'_>>("postern-login"),
        document::<logout::LoggedOut>("postern-logout"),
        document::<whoami::WhoamiDocument>("postern-whoami"),
        document::<profile::Profiles>("postern-profile-ls"),
        document::<profile::InUse>("postern-profile-use"),
        document::<logout::LoggedOut>("postern-profile-rm"),
        document::<ls::LsDocument>("postern-ls"),
        document::<show::ShowDocument>("postern-show"),
        document::<Explained>("postern-can"),
        document::<forward::Announced<'_>>("postern-forward"),
        document::<proxy::Proxying>("postern-proxy"),
        document::<token::TokenDocument<'_>>("postern-token"),
        document::<status::Status>("postern-status"),
        document::<Failed<'_>>("postern-failure"),
    ]
}
