//! What a bundle leaves out beyond secrets: whom and where. Takes documents of ours; gives them without people's names, mail addresses and
//! the network addresses of agents, callers and networks, so that what is handed on is no address book.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use ipnet::IpNet;
use serde_json::Value;

use crate::config::files;

const GONE: &str = "[left out]";
/// Whoever has one of these names is a person, mostly.
const PEOPLE: [&str; 5] = ["user", "sub", "subject", "email", "preferred_username"];

/// The text with addresses and people left out.
pub(super) fn text(text: &str) -> String {
    let is_part = |c: char| c.is_alphanumeric() || ".:/@_-%+[]".contains(c);
    let (mut out, mut word) = (String::with_capacity(text.len()), String::new());
    for c in text.chars().chain(['\0']) {
        if is_part(c) {
            word.push(c);
            continue;
        }
        out.push_str(veiled(&word).as_deref().unwrap_or(&word));
        word.clear();
        out.push(c);
    }
    out.pop();
    out
}

/// What stands for a word that tells whom or where; `None` where it does not.
fn veiled(word: &str) -> Option<String> {
    // The end of a sentence is no part of an address.
    let bare = word.trim_end_matches(['.', ':', ',']);
    if let Some((before, _)) = bare.split_once("user:") {
        return Some(format!("{before}user:{GONE}"));
    }
    let host = bare.trim_start_matches('[').trim_end_matches(']');
    let ip = host.parse::<IpAddr>().ok().or_else(|| bare.parse::<SocketAddr>().ok().map(|a| a.ip()));
    let ip = ip.or_else(|| bare.parse::<IpNet>().ok().map(|net| net.addr()));
    if let Some(ip) = ip {
        let ip = ip.to_canonical();
        return (!ip.is_loopback() && !ip.is_unspecified()).then(|| GONE.to_owned());
    }
    let (name, domain) = bare.split_once('@')?;
    (!name.is_empty() && domain.contains('.') && !bare.contains("://")).then(|| GONE.to_owned())
}

pub(super) fn json(value: Value) -> Value {
    match value {
        Value::String(said) => Value::String(text(&said)),
        Value::Array(list) => list.into_iter().map(json).collect(),
        Value::Object(map) => map
            .into_iter()
            .map(|(key, value)| {
                let is_person = PEOPLE.contains(&key.as_str()) && value.is_string();
                let value = if is_person { GONE.into() } else { json(value) };
                (key, value)
            })
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
    }
}

fn toml(value: toml::Value) -> toml::Value {
    match value {
        toml::Value::String(said) => text(&said).into(),
        toml::Value::Array(list) => toml::Value::Array(list.into_iter().map(toml).collect()),
        toml::Value::Table(table) => {
            let one = |(key, value): (String, toml::Value)| {
                let is_person = PEOPLE.contains(&key.as_str()) && value.is_str();
                let value = if is_person { GONE.into() } else { toml(value) };
                (key, value)
            };
            toml::Value::Table(table.into_iter().map(one).collect())
        }
        toml::Value::Integer(_)
        | toml::Value::Float(_)
        | toml::Value::Boolean(_)
        | toml::Value::Datetime(_) => value,
    }
}

/// relay.toml and what it includes, by name.
pub(super) fn configuration(path: &Path) -> Vec<(String, String)> {
    let of = |path: &Path| {
        let name = path.file_name()?.to_str()?.to_owned();
        let table: toml::Table = toml::from_str(&std::fs::read_to_string(path).ok()?).ok()?;
        Some((name, toml::to_string(&toml(table.into())).ok()?))
    };
    files(path).unwrap_or_default().iter().filter_map(|path| of(path)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn people_and_places_are_left_out_and_the_rest_stays() {
        for (said, left) in [
            ("refused 203.0.113.7:4433, try again", "refused [left out], try again"),
            ("from [2001:db8::7]:443.", "from [left out]"),
            (
                "10.0.0.0/8 and 127.0.0.1:9440 and [::1]:1 and 0.0.0.0:443",
                "[left out] and 127.0.0.1:9440 and [::1]:1 and 0.0.0.0:443",
            ),
            ("ask ada@example.com about it", "ask [left out] about it"),
            ("corp/user:root and role:clerk", "corp/user:[left out] and role:clerk"),
            (
                "GET,POST /v1/** at https://relay.example.com:443/x",
                "GET,POST /v1/** at https://relay.example.com:443/x",
            ),
            ("version 1.2.3 since 14:05", "version 1.2.3 since 14:05"),
        ] {
            assert_eq!(text(said), left);
        }
        let veiled = json(json!({ "tunnels": [{ "address": "203.0.113.7:1", "load": 3 }], "user": "ada" }));
        assert_eq!(veiled, json!({ "tunnels": [{ "address": GONE, "load": 3 }], "user": GONE }));
    }
}
