//! What the commands print with `--json`, as schemas: docs/schema is made of them. Each is the schema of the very type that its command prints.

use postern_base::console::documents::{Document, document};

use super::{drain, join, service};
use crate::admin::status::Status;

/// By name, the program's first; what a command has in common with the other programs is in [`postern_base::console::documents`].
pub fn documents() -> Vec<Document> {
    vec![
        document::<join::Joined<'_>>("agent-join"),
        document::<drain::DrainDocument>("agent-drain"),
        document::<Status>("agent-status"),
        document::<service::ServiceAdded<'_>>("agent-service-add"),
        document::<service::ServiceRemoved<'_>>("agent-service-rm"),
        document::<Vec<service::ServiceRow>>("agent-service-ls"),
    ]
}
