//! What commands print with `--json`, as schemas for docs/schema: how one is made of the type that is printed, and those that the programs
//! have in common.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};

use super::checks::Report;
use super::shell::Version;
use super::verdict::Verdict;

/// A document's name, which is its file's in docs/schema, and its schema.
pub type Document = (&'static str, Schema);

/// Of what is printed, which is more certain than what would be read: whatever is always there is required.
pub fn document<T: JsonSchema>(name: &'static str) -> Document {
    (name, SchemaSettings::default().for_serialize().into_generator().into_root_schema_for::<T>())
}

/// What is the same in several programs.
pub fn documents() -> Vec<Document> {
    vec![
        document::<Report>("doctor"),
        document::<Verdict>("config-check"),
        document::<Version<'_>>("version"),
    ]
}
