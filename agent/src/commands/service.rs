//! `service add|rm|ls`: takes what is typed; changes agent.toml, whose comments and order stay, and only into one that is good. Says what
//! the relay needs, and that the running agent keeps what it began with until it is restarted.

use std::fs;
use std::path::Path;

use postern_base::config::{ConfigError, Source};
use postern_base::console::{self, Done, Exit, Failure};
use postern_base::file;
use postern_base::id::ServiceName;
use schemars::JsonSchema;
use serde::Serialize;
use toml_edit::{Array, DocumentMut, Item, Table, Value};

use super::{Context, identity};
use crate::cli::Service;
use crate::config::{self, Loaded};
use crate::settings::service::Protocol;

const SERVICES: &str = "services";
const RESTART: &str = "to put it in force: systemctl restart postern-agent (or restart it however it runs)";

/// `service add --json`.
#[derive(Serialize, JsonSchema)]
pub(super) struct ServiceAdded<'a> {
    /// The file that has it now.
    file: &'a Path,
    /// What to run at the relay, if it does not have it yet.
    relay_command: &'a str,
    /// Whether it takes a restart of the agent.
    restart: bool,
}

/// `service rm --json`.
#[derive(Serialize, JsonSchema)]
pub(super) struct ServiceRemoved<'a> {
    file: &'a Path,
    restart: bool,
}

/// One of `service ls --json`.
#[derive(Serialize, JsonSchema)]
pub(super) struct ServiceRow {
    name: ServiceName,
    kind: &'static str,
    upstreams: Vec<String>,
    tls: bool,
    /// Whether its upstreams are looked at all the time.
    checked: bool,
    /// Whether this agent decides again.
    verifies: bool,
}

pub(super) fn run(context: &Context, command: Service) -> Done {
    match command {
        Service::Add { name, upstreams } => add(context, &name, upstreams),
        Service::Rm { name } => remove(context, &name),
        Service::Ls => list(context),
    }
}

fn add(context: &Context, name: &ServiceName, upstreams: Vec<String>) -> Done {
    let before = context.load()?;
    if before.settings.services.contains_key(name) {
        let text = format!("service {name} is already in {}: change it there", context.config.display());
        return Err(Failure::new(Exit::Failed, text));
    }
    let mut document = document(context)?;
    let services = document.entry(SERVICES).or_insert_with(|| {
        // No line of its own above [services.NAME].
        let mut table = Table::new();
        table.set_implicit(true);
        Item::Table(table)
    });
    let services = services.as_table_mut().ok_or_else(|| {
        let text = format!("{}: services is not written as tables: add it there", context.config.display());
        Failure::new(Exit::Failed, text)
    })?;
    let mut table = Table::new();
    let upstream = match <[String; 1]>::try_from(upstreams) {
        Ok([one]) => one.into(),
        Err(many) => Value::Array(Array::from_iter(many)),
    };
    table.insert("upstream", upstream.into());
    services.insert(name.as_str(), Item::Table(table));
    let after = change(context, &document)?;
    let agent = identity(&after.settings).map(|identity| identity.name().to_string());
    let agent = agent.unwrap_or_else(|_| "AGENT".to_owned());
    let is_tcp = after.settings.services.get(name).is_some_and(|service| service.protocol == Protocol::Tcp);
    let to = if is_tcp { "CONNECT" } else { "\"GET /**\"" };
    let relay = format!("postern-relay service add {name} --agent {agent} --allow WHO --to {to}");
    if context.output.json {
        let file = &context.config;
        return Ok(console::json(&ServiceAdded { file, relay_command: &relay, restart: true })?);
    }
    context.output.note(format!("service {name} is in {}", context.config.display()));
    context.output.note(RESTART);
    context
        .output
        .note("at the relay, if it does not have it yet (WHO as in role:clerk, group:staff or \"*\"):");
    Ok(console::verbatim(relay)?)
}

fn remove(context: &Context, name: &ServiceName) -> Done {
    let before = context.load()?;
    if !before.settings.services.contains_key(name) {
        let text = format!("there is no service {name}; see: postern-agent service ls");
        return Err(Failure::new(Exit::NoSuchService, text));
    }
    let mut document = document(context)?;
    let services = document.get_mut(SERVICES).and_then(Item::as_table_like_mut);
    services.and_then(|services| services.remove(name.as_str()));
    change(context, &document)?;
    if context.output.json {
        return Ok(console::json(&ServiceRemoved { file: &context.config, restart: true })?);
    }
    context.output.note(format!("service {name} is no longer in {}", context.config.display()));
    context.output.note(RESTART);
    context.output.note(format!("at the relay, if nobody else serves it: postern-relay service rm {name}"));
    Ok(())
}

fn document(context: &Context) -> Result<DocumentMut, Failure> {
    let failed =
        |exit, e: &dyn std::fmt::Display| Failure::new(exit, format!("{}: {e}", context.config.display()));
    let text = fs::read_to_string(&context.config).map_err(|e| failed(Exit::Failed, &e))?;
    text.parse().map_err(|e| failed(Exit::Config, &e))
}

/// Writes the file once it is known to be good.
fn change(context: &Context, document: &DocumentMut) -> Result<Loaded, Failure> {
    let (text, name) = (document.to_string(), context.config.display().to_string());
    let refused = |errors: Vec<ConfigError>| Failure {
        exit: Exit::Config,
        lines: std::iter::once("nothing was written: the configuration would not be good".to_owned())
            .chain(errors.iter().map(ToString::to_string))
            .collect(),
    };
    let loaded = config::check(&Source::from_text(name, text.as_str())).map_err(refused)?;
    file::rewrite(&context.config, text.as_bytes())
        .map_err(|e| Failure::new(Exit::Failed, format!("{}: {e}", context.config.display())))?;
    Ok(loaded)
}

fn list(context: &Context) -> Done {
    let Loaded { settings, .. } = context.load()?;
    let rows = settings.services.values().map(|service| {
        let kind = if service.protocol == Protocol::Tcp { "tcp" } else { "http" };
        let upstreams: Vec<String> = service.addresses.iter().map(ToString::to_string).collect();
        (service, kind, upstreams)
    });
    if context.output.json {
        let rows: Vec<_> = rows
            .map(|(service, kind, upstreams)| {
                let (name, tls, checked) =
                    (service.name.clone(), service.tls.is_some(), service.health.is_some());
                ServiceRow { name, kind, upstreams, tls, checked, verifies: service.verifies }
            })
            .collect();
        return Ok(console::json(&rows)?);
    }
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let rows: Vec<Vec<String>> = rows
        .map(|(service, kind, upstreams)| {
            let (checked, verifies) = (yes(service.health.is_some()), yes(service.verifies));
            vec![service.name.to_string(), kind.to_owned(), upstreams.join(" "), checked, verifies]
        })
        .collect();
    if rows.is_empty() {
        context.output.note("there are no services: add one with: postern-agent service add NAME UPSTREAM");
        return Ok(());
    }
    Ok(console::table(&["SERVICE", "KIND", "UPSTREAM", "CHECKED", "VERIFIES"], &rows, &[0, 2])?)
}

#[cfg(test)]
mod tests {
    use postern_base::console::Output;

    use super::*;

    const BEFORE: &str = "# ours\nversion = 1\nrelay = \"relay.example.com\"   # the relay\nstate = \"state\"\n\n# the wiki\n[services.wiki]\nupstream = \"http://127.0.0.1:8080\" # local\n\n[tunnel]\nconnections = 1\n";

    fn add_to(context: &Context, name: &str, upstreams: &[&str]) -> Done {
        let upstreams = upstreams.iter().map(ToString::to_string).collect();
        run(context, Service::Add { name: name.parse().unwrap(), upstreams })
    }

    #[test]
    fn the_file_changes_only_where_it_must_and_only_into_a_good_one() {
        let dir = tempfile::tempdir().unwrap();
        let output = Output { json: false, quiet: true, verbose: 0 };
        let context = Context { config: dir.path().join("agent.toml"), output };
        fs::write(&context.config, BEFORE).unwrap();
        let now = || fs::read_to_string(&context.config).unwrap();

        let twice = add_to(&context, "wiki", &["http://127.0.0.1:1"]).unwrap_err();
        assert!(twice.lines[0].contains("already in"), "{twice:?}");
        let bad = add_to(&context, "mail", &["ftp://127.0.0.1:1"]).unwrap_err();
        assert_eq!(bad.exit, Exit::Config);
        assert!(
            bad.lines[0].starts_with("nothing was written") && bad.lines[1].contains("services.mail"),
            "{bad:?}"
        );
        let mixed = add_to(&context, "mail", &["tcp://127.0.0.1:1", "http://127.0.0.1:1"]).unwrap_err();
        assert_eq!((mixed.exit, now().as_str()), (Exit::Config, BEFORE));

        add_to(&context, "mail", &["tcp://127.0.0.1:25", "tcp://127.0.0.2:25"]).unwrap();
        add_to(&context, "app", &["unix:/run/app.sock"]).unwrap();
        let after = now();
        assert!(after.starts_with(&BEFORE[..BEFORE.find("[tunnel]").unwrap()]), "{after}");
        assert!(
            after.contains("[services.mail]\nupstream = [\"tcp://127.0.0.1:25\", \"tcp://127.0.0.2:25\"]\n"),
            "{after}"
        );
        assert!(after.contains("[services.app]\nupstream = \"unix:/run/app.sock\"\n"), "{after}");
        assert!(after.ends_with("[tunnel]\nconnections = 1\n"), "{after}");

        let none = run(&context, Service::Rm { name: "none".parse().unwrap() }).unwrap_err();
        assert_eq!(none.exit, Exit::NoSuchService);
        for name in ["mail", "app"] {
            run(&context, Service::Rm { name: name.parse().unwrap() }).unwrap();
        }
        assert_eq!(now(), BEFORE);
    }
}
