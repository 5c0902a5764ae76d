//! What a configuration says, in outline: takes what was read, keeps a print of each part under its name; tells what another one changed,
//! in a line each. Enough for people and the audit log, and small beside what it stands for.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};

use postern_base::id::ServiceName;
use postern_gate::policy::RuleFile;

use super::file::{RelayFile, ServiceFile};
use crate::settings::Settings;

/// The parts of a configuration, each with a print of all that it says.
#[derive(Debug, Default)]
pub struct Outline(BTreeMap<(Part, String), u64>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Issuer,
    Role,
    Service,
    /// The name says of which service.
    Rule,
    /// A table of which there is one.
    Table,
}

impl Outline {
    pub(super) fn of<'a>(
        settings: &Settings,
        file: &RelayFile,
        services: impl Iterator<Item = (&'a ServiceName, &'a ServiceFile)>,
    ) -> Self {
        let mut parts = BTreeMap::new();
        for issuer in &settings.issuers {
            parts.insert((Part::Issuer, issuer.name.to_string()), print(issuer));
        }
        for (name, role) in &file.roles {
            parts.insert((Part::Role, name.clone()), print(role));
        }
        let rules = file.rules.iter().enumerate();
        parts.extend(rules.map(|(index, rule)| rule_part("*", "for all services", index, rule)));
        for (name, service) in services {
            let what = format!("of service {name}");
            let rules = service.rules.iter().enumerate();
            parts.extend(rules.map(|(index, rule)| rule_part(name.as_str(), &what, index, rule)));
            let meaning = (settings.services.get(name), service.hidden);
            parts.insert((Part::Service, name.to_string()), print(&meaning));
        }
        for (name, print) in [("limits", print(&settings.limits)), ("dpop", print(&settings.dpop))] {
            parts.insert((Part::Table, name.to_owned()), print);
        }
        Self(parts)
    }

    /// `service wiki added`, `rule "clerks read" of service wiki changed`: what became of `old`.
    pub fn changes_since(&self, old: &Self) -> Vec<String> {
        let keys = self.0.keys().chain(old.0.keys().filter(|key| !self.0.contains_key(*key)));
        let mut changes: Vec<(&(Part, String), &str)> = keys
            .filter_map(|key| match (old.0.get(key), self.0.get(key)) {
                (None, _) => Some((key, "added")),
                (_, None) => Some((key, "removed")),
                (before, now) => (before != now).then_some((key, "changed")),
            })
            .collect();
        changes.sort_unstable();
        changes.into_iter().map(|((part, name), what)| format!("{}{name} {what}", part.lead())).collect()
    }
}

impl Part {
    fn lead(self) -> &'static str {
        match self {
            Self::Issuer => "issuer ",
            Self::Role => "role ",
            Self::Service => "service ",
            Self::Rule => "rule ",
            Self::Table => "",
        }
    }
}

fn rule_part(of: &str, what: &str, index: usize, rule: &RuleFile) -> ((Part, String), u64) {
    let name = rule.name.clone().unwrap_or_else(|| format!("{of}#{}", index + 1));
    ((Part::Rule, format!("{name:?} {what}")), print(rule))
}

/// Everything here shows all that it says when it is asked to, and of secrets where they are.
fn print(thing: &impl Debug) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{thing:?}").hash(&mut hasher);
    hasher.finish()
}
