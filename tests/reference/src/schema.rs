//! Takes a JSON Schema as `config schema` prints it; gives its tables with their keys: type, default, words. A table that is used in
//! several places is told once.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// One table of the configuration.
pub(crate) struct Table {
    /// As people write it: `[listen]`, `[[issuers]]`, `services.NAME.limit`.
    pub(crate) path: String,
    pub(crate) about: String,
    pub(crate) keys: Vec<Key>,
}

pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) default: String,
    pub(crate) about: String,
}

/// A schema with what it refers to.
pub(crate) struct Schema<'a> {
    definitions: &'a Map<String, Value>,
    told: BTreeSet<String>,
    tables: Vec<Table>,
}

/// How a value is written, by the name of its type.
fn well_known(name: &str) -> Option<&'static str> {
    Some(match name {
        "Span" => "duration",
        "Size" => "size",
        "Rate" => "rate",
        "ClaimPath" => "claim",
        "SecretRef" => "secret",
        "AgentName" | "IssuerName" | "ServiceName" | "TrustDomain" => "name",
        _ => return None,
    })
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Without the marks of code, where they are around all of it.
fn plain(text: &str) -> String {
    let inner = text.trim_matches('`');
    if inner.contains('`') { text.to_owned() } else { inner.to_owned() }
}

/// The words of a description without the default that they tell, and that default.
fn split_default(about: &str) -> (String, String) {
    let about = about.split_whitespace().collect::<Vec<_>>().join(" ");
    for (before, after) in [("Default: ", "."), ("; default ", "."), ("; ", " by default.")] {
        if let Some((start, rest)) = about.split_once(before)
            && let Some(end) = rest.find(after)
            && !rest[..end].contains(". ")
        {
            let rest_words = rest[end + after.len()..].trim();
            let start = start.trim().trim_end_matches('.');
            let words = if start.is_empty() { String::new() } else { format!("{start}. ") };
            return (format!("{words}{rest_words}").trim().to_owned(), plain(&rest[..end]));
        }
    }
    (about, String::new())
}

impl<'a> Schema<'a> {
    /// All tables, the file's own keys first.
    pub(crate) fn tables(root: &'a Value, empty: &'a Map<String, Value>) -> Vec<Table> {
        let definitions = root["$defs"].as_object().unwrap_or(empty);
        let mut schema = Self { definitions, told: BTreeSet::new(), tables: Vec::new() };
        schema.table("", root);
        schema.tables
    }

    fn table(&mut self, path: &str, object: &Value) {
        let mut inner = Vec::new();
        let mut keys = Vec::new();
        let required: Vec<&str> =
            object["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let named = object["properties"].as_object().into_iter().flatten();
        let patterns = object["patternProperties"].as_object().into_iter().flatten();
        let patterns = patterns
            .filter(|(pattern, _)| pattern.contains("claims"))
            .map(|(_, value)| ("claims.NAME", value));
        for (name, value) in named.map(|(name, value)| (name.as_str(), value)).chain(patterns) {
            let (about, told) = split_default(text(value, "description"));
            let (kind, nested) = self.kind(value);
            let about = if about.is_empty() { self.described(value) } else { about };
            let default = match &value["default"] {
                _ if required.contains(&name) => "required".to_owned(),
                _ if told.contains([' ', '`']) => told,
                _ if !told.is_empty() => format!("`{told}`"),
                Value::Null => String::new(),
                Value::Array(list) if list.is_empty() => "`[]`".to_owned(),
                Value::Object(map) if map.is_empty() => "`{}`".to_owned(),
                default => format!("`{default}`"),
            };
            keys.push(Key { name: name.to_owned(), kind, default, about });
            inner.extend(nested.map(|(form, name_of, table)| (child(path, name, form), name_of, table)));
        }
        let (about, _) = split_default(text(object, "description"));
        self.tables.push(Table { path: path.to_owned(), about, keys });
        for (path, name, table) in inner {
            if self.told.insert(name) {
                self.table(&path, table);
            }
        }
    }

    /// The words of what a key refers to.
    fn described(&self, value: &Value) -> String {
        let words = self.resolve(value).map(|(_, target)| text(target, "description")).unwrap_or_default();
        split_default(words).0
    }

    fn resolve(&self, value: &Value) -> Option<(&'a str, &'a Value)> {
        let name = text(value, "$ref").rsplit('/').next()?;
        self.definitions.get_key_value(name).map(|(name, target)| (name.as_str(), target))
    }

    /// How a value is written, and the table it is, if it is one.
    fn kind(&self, value: &Value) -> (String, Option<(Form, String, &'a Value)>) {
        if let Some((name, target)) = self.resolve(value) {
            if let Some(word) = well_known(name) {
                return (word.to_owned(), None);
            }
            if target["properties"].is_object() {
                return ("table".to_owned(), Some((Form::One, name.to_owned(), target)));
            }
            return self.kind(target);
        }
        if let Some(choices) = value["anyOf"].as_array().or_else(|| value["oneOf"].as_array()) {
            return self.choices(choices);
        }
        if let Some(values) = value["enum"].as_array() {
            return (values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", "), None);
        }
        if !value["const"].is_null() {
            return (format!("`{}`", value["const"]), None);
        }
        let kinds: Vec<&str> = match &value["type"] {
            Value::Array(list) => {
                list.iter().filter_map(Value::as_str).filter(|kind| *kind != "null").collect()
            }
            one => one.as_str().into_iter().collect(),
        };
        match kinds[..] {
            ["array"] => {
                let (kind, nested) = self.kind(&value["items"]);
                let nested = nested.map(|(_, name, table)| (Form::List, name, table));
                (if nested.is_some() { "tables".to_owned() } else { format!("list of {kind}") }, nested)
            }
            ["object"] => {
                let patterns = value["patternProperties"].as_object();
                let values =
                    patterns.and_then(|map| map.values().next()).unwrap_or(&value["additionalProperties"]);
                let (kind, nested) = self.kind(values);
                let nested = nested.map(|(_, name, table)| (Form::Map, name, table));
                let kind = if kind.is_empty() { "anything".to_owned() } else { kind };
                (
                    if nested.is_some() { "tables by name".to_owned() } else { format!("table of {kind}") },
                    nested,
                )
            }
            _ => (kinds.join(", "), None),
        }
    }

    fn choices(&self, choices: &[Value]) -> (String, Option<(Form, String, &'a Value)>) {
        let mut words: Vec<String> = Vec::new();
        let mut nested = None;
        for choice in choices.iter().filter(|choice| choice["type"] != "null") {
            let (word, table) = self.kind(choice);
            nested = nested.or(table);
            words.push(word);
        }
        // One or many of the same.
        if let [one, many] = &words[..]
            && (*many == format!("list of {one}") || many == "tables")
        {
            return (format!("{one}, or a list"), nested);
        }
        (words.join(", "), nested)
    }
}

/// How a table is written down.
#[derive(Clone, Copy)]
enum Form {
    One,
    List,
    Map,
}

fn child(path: &str, name: &str, form: Form) -> String {
    let plain = path.trim_matches(['[', ']']);
    let joined = if plain.is_empty() { name.to_owned() } else { format!("{plain}.{name}") };
    match form {
        Form::One => format!("[{joined}]"),
        Form::List => format!("[[{joined}]]"),
        Form::Map => format!("[{joined}.NAME]"),
    }
}
