//! `service add|ls|rm`: takes what is typed; changes one file, whose comments and order stay, and only into one that is good: the whole
//! configuration is checked, tests included, before anything is written.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use postern_base::config::ConfigError;
use postern_base::console;
use postern_base::file::{Access, rewrite, write_atomic};
use postern_base::id::ServiceName;
use postern_gate::policy::CONNECT;
use schemars::JsonSchema;
use serde::Serialize;
use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, Value};

use super::{Context, Done, Exit, Failure, relay};
use crate::cli::{Service, ServiceAdd};
use crate::config::{self, Edit, Loaded};
use crate::settings::HostPattern;

mod verify;

use verify::Verify;

const SERVICES: &str = "services";

/// `service add --json`.
#[derive(Serialize, JsonSchema)]
pub(super) struct ServiceAdded<'a> {
    /// The file that has it now.
    file: &'a Path,
    /// What its agents need in agent.toml, with the real address.
    agent_toml: &'a str,
}

/// `service rm --json`.
#[derive(Serialize, JsonSchema)]
pub(super) struct ServiceRemoved<'a> {
    file: &'a Path,
    /// Whether the file is gone with it.
    removed: bool,
}

/// One of `service ls --json`.
#[derive(Serialize, JsonSchema)]
pub(super) struct ServiceRow {
    name: ServiceName,
    kind: String,
    about: Option<String>,
    agents: Vec<String>,
    /// Hosts, and the path before it at the relay's own.
    at: Vec<String>,
    /// How many.
    rules: usize,
    file: PathBuf,
}

pub(super) fn run(context: &Context, command: Service) -> Done {
    match command {
        Service::Add(args) => add(context, &args),
        Service::Ls => list(context),
        Service::Rm { name, reload } => remove(context, &name, reload),
    }
}

fn add(context: &Context, args: &ServiceAdd) -> Done {
    let loaded = context.load()?;
    let name = &args.name;
    if let Some(origin) = loaded.origins.get(name) {
        let text = format!("service {name} is already in {}: change it there", origin.display());
        return Err(Failure::new(Exit::Failed, text));
    }
    let invalid = |e: ConfigError| context.invalid(&[e]);
    let path = config::file_of(&context.config, name).map_err(invalid)?;
    let path = path.unwrap_or_else(|| context.config.clone());
    let mut document = document(&path)?;
    let services = document.entry(SERVICES).or_insert_with(|| Item::Table(implicit()));
    let services = services.as_table_mut().ok_or_else(|| {
        Failure::new(Exit::Failed, format!("{}: services is not written as tables", path.display()))
    })?;
    let verify = args.verify.then(|| Verify::new(context, args, &loaded.settings.url)).transpose()?;
    services.insert(name.as_str(), Item::Table(table(args, verify.as_ref())));
    change(context, &path, Some(&document.to_string()))?;
    let upstream = if is_tcp(args) { "tcp://127.0.0.1:5432" } else { "http://127.0.0.1:8080" };
    let mut agent_toml = format!("[services.{name}]\nupstream = \"{upstream}\"");
    if let Some(verify) = &verify {
        agent_toml = format!("{agent_toml}\n{}", verify.lines);
    }
    if context.output.json {
        console::json(&ServiceAdded { file: &path, agent_toml: &agent_toml })?;
    } else {
        let agents: Vec<&str> = args.agents.iter().map(AsRef::as_ref).collect();
        context.output.note(format!("service {name} is in {}", path.display()));
        context.output.note(format!("into agent.toml of {}, with its real address:", agents.join(" and ")));
        console::verbatim(agent_toml)?;
    }
    for note in verify.iter().flat_map(|verify| &verify.notes) {
        context.output.note(note);
    }
    in_force(context, args.reload)
}

fn is_tcp(args: &ServiceAdd) -> bool {
    args.to.iter().any(|to| to == CONNECT)
}

fn rule(args: &ServiceAdd) -> InlineTable {
    let mut rule = InlineTable::new();
    for (key, list) in [("allow", &args.allow), ("to", &args.to)] {
        if let Some(value) = one_or_many(list.iter().cloned()) {
            rule.insert(key, value);
        }
    }
    rule
}

fn table(args: &ServiceAdd, verify: Option<&Verify>) -> Table {
    let mut table = Table::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            table.insert(key, value.into());
        }
    };
    let text = |text: &dyn ToString| text.to_string();
    put("about", args.about.as_ref().map(Value::from));
    put("agent", one_or_many(args.agents.iter().map(|agent| text(agent))));
    if is_tcp(args) {
        put("kind", Some("tcp".into()));
    }
    put("hosts", list_of(args.hosts.iter().map(|host| text(host))));
    put("issuers", list_of(args.issuers.iter().map(|issuer| text(issuer))));
    for (key, value) in verify.into_iter().flat_map(Verify::keys) {
        put(key, value);
    }
    put("rules", Some(Value::Array(Array::from_iter([rule(args)]))));
    table
}

fn list_of(list: impl Iterator<Item = String>) -> Option<Value> {
    let list: Array = list.collect();
    (!list.is_empty()).then_some(Value::Array(list))
}

fn one_or_many(mut list: impl ExactSizeIterator<Item = String>) -> Option<Value> {
    if list.len() == 1 { list.next().map(Value::from) } else { list_of(list) }
}

/// A table that has no line of its own, such as `services` above `[services.wiki]`.
fn implicit() -> Table {
    let mut table = Table::new();
    table.set_implicit(true);
    table
}

fn remove(context: &Context, name: &ServiceName, reload: bool) -> Done {
    let loaded = context.load()?;
    let Some(path) = loaded.origins.get(name) else {
        let text = format!("there is no service {name}; see: postern-relay service ls");
        return Err(Failure::new(Exit::NoSuchService, text));
    };
    let mut document = document(path)?;
    let services = document.get_mut(SERVICES).and_then(Item::as_table_like_mut);
    services.and_then(|services| services.remove(name.as_str()));
    let has_more =
        |(_, item): (&str, &Item)| !item.as_table_like().is_some_and(toml_edit::TableLike::is_empty);
    // A file of its own that says nothing any more goes; what is left of another's comments stays.
    let gone = *path != context.config && !document.iter().any(has_more);
    let text = document.to_string();
    change(context, path, (!gone).then_some(&text))?;
    if context.output.json {
        console::json(&ServiceRemoved { file: path, removed: gone })?;
    } else {
        let what = if gone { "is gone, and its file with it" } else { "is no longer in" };
        context.output.note(format!("service {name} {what}: {}", path.display()));
    }
    in_force(context, reload)
}

fn document(path: &Path) -> Result<DocumentMut, Failure> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
        Err(e) => return Err(Failure::new(Exit::Failed, format!("{}: {e}", path.display()))),
    };
    text.parse().map_err(|e| Failure::new(Exit::Config, format!("{}: {e}", path.display())))
}

/// Writes the file, or takes it away, once the configuration is known to be good with it.
fn change(context: &Context, path: &Path, text: Option<&str>) -> Done {
    let edited = config::load_edited(&context.config, Edit { path, text });
    let _: Loaded = edited.map_err(|errors| Failure {
        exit: Exit::Config,
        lines: std::iter::once("nothing was written: the configuration would not be good".to_owned())
            .chain(errors.iter().map(ToString::to_string))
            .collect(),
    })?;
    let done = || -> std::io::Result<()> {
        let Some(text) = text else { return fs::remove_file(path) };
        if !path.try_exists()? {
            fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
            return write_atomic(path, text.as_bytes(), Access::Public);
        }
        rewrite(path, text.as_bytes())
    };
    done().map_err(|e| Failure::new(Exit::Failed, format!("{}: {e}", path.display())))
}

fn in_force(context: &Context, reload: bool) -> Done {
    if reload {
        return relay::reload(context);
    }
    context.output.note("to put it in force: postern-relay reload");
    Ok(())
}

fn list(context: &Context) -> Done {
    let Loaded { settings, policy, origins, .. } = context.load()?;
    let rows = settings.services.values().map(|service| {
        let host = |host: &HostPattern| match host {
            HostPattern::Exact(host) => host.clone(),
            HostPattern::Wildcard(suffix) => format!("*.{suffix}"),
        };
        let places: Vec<String> = service.hosts.iter().map(host).chain(service.prefix.clone()).collect();
        let agents: Vec<String> = service.agents.iter().map(ToString::to_string).collect();
        let file: PathBuf = origins.get(&service.name).cloned().unwrap_or_default();
        (service, places, agents, policy.rules_of(&service.name), file)
    });
    if context.output.json {
        let rows: Vec<_> = rows
            .map(|(service, places, agents, rules, file)| {
                let (name, kind, about) =
                    (service.name.clone(), service.kind.to_string(), service.about.clone());
                ServiceRow { name, kind, about, agents, at: places, rules, file }
            })
            .collect();
        return Ok(console::json(&rows)?);
    }
    let rows: Vec<Vec<String>> = rows
        .map(|(service, places, agents, rules, file)| {
            let (name, kind) = (service.name.to_string(), service.kind.to_string());
            vec![
                name,
                kind,
                agents.join(" "),
                places.join(" "),
                rules.to_string(),
                file.display().to_string(),
            ]
        })
        .collect();
    if rows.is_empty() {
        context.output.note("there are no services: add one with: postern-relay service add");
        return Ok(());
    }
    Ok(console::table(&["SERVICE", "KIND", "AGENT", "AT", "RULES", "FILE"], &rows, &[2, 3, 5])?)
}

#[cfg(test)]
mod tests;
