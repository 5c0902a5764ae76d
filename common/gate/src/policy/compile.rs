//! Takes what the files say of roles, rules and tests; gives a [`Policy`] in which every name is a number; refuses, at their key
//! paths and all at once, names that mean nothing, selectors that could mean two things, roles in a circle.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use postern_base::config::Problem;
use postern_base::id::{IssuerName, ServiceName};

use super::file::{PolicySource, RoleFile, RuleFile, ServiceRules, WithFile};
use super::index::Rules;
use super::limit::Limit;
use super::role::{ANYONE, Atom, Callers, Kind, Role, Selector};
use super::rule::{ClaimTest, Rule, With, listed, unmapped};
use super::target::Pattern;
use super::test::Test;
use super::{Policy, Service, ServiceKind};

pub(super) fn compile(source: PolicySource) -> Result<Policy, Vec<Problem>> {
    let mut compiler = Compiler {
        issuers: source.issuers,
        roles: source.roles.keys().cloned().collect(),
        numbers: HashMap::new(),
        selectors: Vec::new(),
        rule_names: HashSet::new(),
    };
    let mut problems = Vec::new();
    let mut roles = Vec::new();
    for (name, file) in source.roles {
        let (role, wrong) = compiler.role(&name, file);
        problems.extend(wrong.into_iter().map(|problem| problem.under(&name).under("roles")));
        roles.push(role);
    }
    if problems.is_empty() {
        problems.extend(circle(&roles));
    }
    let mut denials = Vec::new();
    for (index, file) in source.rules.into_iter().enumerate() {
        match compiler.rule(index, file, None) {
            Ok((_, rule)) => denials.push(rule),
            Err(wrong) => problems.extend(wrong.into_iter().map(|p| p.under(index).under("rules"))),
        }
    }
    let mut services = BTreeMap::new();
    for (name, file) in source.services {
        let (service, wrong) = compiler.service(&name, file);
        problems.extend(wrong.into_iter().map(|problem| problem.under(&name).under("services")));
        services.insert(name, service);
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let callers = Callers::new(roles, compiler.selectors);
    let denials = Rules::new(denials);
    let (tests, scopes) = (Vec::new(), BTreeMap::new());
    let mut policy = Policy { issuers: compiler.issuers, callers, services, denials, tests, scopes };
    policy.scopes = policy.issuers.iter().map(|issuer| (issuer.clone(), policy.scopes_of(issuer))).collect();
    for (index, file) in source.tests.into_iter().enumerate() {
        match Test::compile(file, &policy) {
            Ok(test) => policy.tests.push(test),
            Err(problem) => problems.push(problem.under(index).under("tests")),
        }
    }
    if problems.is_empty() { Ok(policy) } else { Err(problems) }
}

struct Compiler {
    issuers: Vec<IssuerName>,
    /// Sorted: a role's place is its atom.
    roles: Vec<String>,
    numbers: HashMap<Selector, Atom>,
    selectors: Vec<Selector>,
    /// Those of this service and of the rules for all.
    rule_names: HashSet<String>,
}

/// Whether a rule allows or denies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    Allow,
    Deny,
}

impl Effect {
    /// What is said by whom a rule names, of one service or of all.
    fn of(allow: &[String], deny: &[String], in_service: bool) -> Result<Self, Problem> {
        let message = match (allow.is_empty(), deny.is_empty()) {
            (false, true) if in_service => return Ok(Self::Allow),
            (true, false) => return Ok(Self::Deny),
            (true, true) if in_service => {
                "says not whom it allows: write allow = \"role:NAME\", or deny = \"*\""
            }
            (true, true) => "says not whom it denies: write deny = \"*\" or the like",
            (false, true) => "rules for all services can only deny: write allow under [services.X]",
            (false, false) => "allows and denies at once: make two rules of it",
        };
        Err(Problem::new(if allow.is_empty() { "" } else { "allow" }, message))
    }
}

impl Compiler {
    fn role(&mut self, name: &str, file: RoleFile) -> (Role, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut any = Vec::new();
        let issuers = self.issuers.clone();
        for (index, text) in file.any.0.iter().enumerate() {
            match self.atom(text, &issuers, None) {
                Ok(atom) => any.push(atom),
                Err(message) => problems.push(Problem::new(&format!("any.{index}"), message)),
            }
        }
        let with = compile_with(file.with, &mut problems);
        (Role { name: name.into(), any, with }, problems)
    }

    fn service(&mut self, name: &ServiceName, file: ServiceRules) -> (Service, Vec<Problem>) {
        let mut problems = Vec::new();
        for (index, issuer) in file.issuers.iter().enumerate().filter(|(_, i)| !self.issuers.contains(i)) {
            let message = unknown("issuer", issuer.as_str(), self.issuers.iter().map(IssuerName::as_str));
            problems.push(Problem::new(&format!("issuers.{index}"), message));
        }
        let issuers = if file.issuers.is_empty() { self.issuers.clone() } else { file.issuers };
        let (mut allow, mut deny) = (Vec::new(), Vec::new());
        let outside = self.rule_names.clone();
        for (index, rule) in file.rules.into_iter().enumerate() {
            match self.rule(index, rule, Some((name, file.kind, &issuers))) {
                Ok((Effect::Allow, rule)) => allow.push(rule),
                Ok((Effect::Deny, rule)) => deny.push(rule),
                Err(wrong) => problems.extend(wrong.into_iter().map(|p| p.under(index).under("rules"))),
            }
        }
        self.rule_names = outside;
        let (allow, deny) = (Rules::new(allow), Rules::new(deny));
        (Service { kind: file.kind, issuers, hidden: file.hidden, allow, deny }, problems)
    }

    /// A rule of `service`, or of `[[rules]]`.
    fn rule(
        &mut self,
        index: usize,
        file: RuleFile,
        service: Option<(&ServiceName, ServiceKind, &[IssuerName])>,
    ) -> Result<(Effect, Rule), Vec<Problem>> {
        let mut problems = Vec::new();
        let limits = Limit::of_rule(print(&(service, &file)), file.rate, file.quota);
        let name = file.name.unwrap_or_else(|| match service {
            Some((service, ..)) => format!("{service}#{}", index + 1),
            // No service is called `*`.
            None => format!("*#{}", index + 1),
        });
        if name.is_empty() || name.chars().any(char::is_control) {
            problems.push(Problem::new("name", "a rule's name is text on one line, or left out"));
        } else if !self.rule_names.insert(name.clone()) {
            problems.push(Problem::new(
                "name",
                format!("another rule is called {name:?} too: give it a name of its own"),
            ));
        }
        let effect = Effect::of(&file.allow.0, &file.deny.0, service.is_some()).unwrap_or_else(|problem| {
            problems.push(problem);
            Effect::Deny
        });
        let (key, callers) = match effect {
            Effect::Allow => ("allow", file.allow.0),
            Effect::Deny => ("deny", file.deny.0),
        };
        if effect == Effect::Deny && !limits.is_empty() {
            let key = if file.rate.is_some() { "rate" } else { "quota" };
            problems.push(Problem::new(key, "a rule that denies has nothing to count: leave it out"));
        }
        let mut who = Vec::new();
        let file_issuers = self.issuers.clone();
        let issuers = service.map_or(&file_issuers[..], |(.., issuers)| issuers);
        for (at, text) in entries(key, &callers) {
            match self.atom(text, issuers, service.map(|(name, ..)| name)) {
                Ok(atom) => who.push(atom),
                Err(message) => problems.push(Problem::new(&at, message)),
            }
        }
        if file.to.0.is_empty() {
            problems.push(Problem::new("", "says not to what: write to = \"GET /**\" or the like"));
        }
        let mut to = Vec::new();
        for (at, text) in entries("to", &file.to.0) {
            let pattern =
                if effect == Effect::Allow { Pattern::allowing(text) } else { Pattern::denying(text) };
            let fits = |pattern: &Pattern| match service {
                Some((name, kind, _)) if pattern.is_connect() != (kind == ServiceKind::Tcp) => {
                    Err(wrong_kind(name, kind))
                }
                _ => Ok(()),
            };
            match pattern.and_then(|pattern| fits(&pattern).map(|()| pattern)) {
                Ok(pattern) => to.push(pattern),
                Err(message) => problems.push(Problem::new(&at, message)),
            }
        }
        let with = compile_with(file.with, &mut problems);
        let from = file.from.0.into_iter().map(unmapped).collect();
        if problems.is_empty() {
            Ok((effect, Rule { name: name.into(), who, to, with, from, limits: limits.into() }))
        } else {
            Err(problems)
        }
    }

    /// `*`, `role:NAME` or `[ISSUER/]KIND:VALUE`, where `accepted` are the issuers that can be meant.
    fn atom(
        &mut self,
        text: &str,
        accepted: &[IssuerName],
        service: Option<&ServiceName>,
    ) -> Result<Atom, String> {
        if text == "*" {
            return Ok(ANYONE);
        }
        let form = "write \"role:NAME\", \"KIND:VALUE\" or \"ISSUER/KIND:VALUE\"; kinds are group, user, client, scope, token-role";
        let (head, value) = text.split_once(':').ok_or_else(|| format!("{text:?} names nobody: {form}"))?;
        if head == "role" {
            return self
                .roles
                .binary_search_by(|role| role.as_str().cmp(value))
                .map_err(|_| unknown("role", value, self.roles.iter().map(String::as_str)));
        }
        let (issuer, kind) = head.split_once('/').map_or((None, head), |(issuer, kind)| (Some(issuer), kind));
        if kind == "role" {
            return Err(format!(
                "{text:?}: roles are this file's own and have no issuer: write \"role:{value}\""
            ));
        }
        let kinds = Kind::ALL.iter().find(|(name, _)| *name == kind);
        let (_, kind) = kinds.ok_or_else(|| {
            unknown("kind of selector", kind, Kind::ALL.iter().map(|(name, _)| *name).chain(["role"]))
        })?;
        if value.is_empty() || (*kind == Kind::Scope && value.contains(' ')) {
            return Err(format!("{text:?} must have one value behind its colon"));
        }
        let issuer = match (issuer, accepted) {
            (Some(name), _) => accepted.iter().find(|issuer| issuer.as_str() == name).ok_or_else(|| {
                match service.filter(|_| self.issuers.iter().any(|issuer| issuer.as_str() == name)) {
                    Some(service) => {
                        format!("service {service} takes no tokens of issuer {name:?}: add it to its issuers")
                    }
                    None => unknown("issuer", name, self.issuers.iter().map(IssuerName::as_str)),
                }
            })?,
            (None, [only]) => only,
            (None, []) => return Err(format!("{text:?} needs an issuer: add one under [[issuers]]")),
            (None, [first, ..]) => {
                let names = listed(accepted, "or");
                return Err(format!(
                    "{text:?} could mean issuer {names}: write \"{first}/{text}\" or the like"
                ));
            }
        };
        let selector = Selector { issuer: issuer.clone(), kind: *kind, value: value.to_owned() };
        let next = self.roles.len() + self.selectors.len();
        Ok(*self.numbers.entry(selector).or_insert_with_key(|selector| {
            self.selectors.push(selector.clone());
            next
        }))
    }
}

/// Tells things by all that they say.
fn print(thing: &impl std::fmt::Debug) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{thing:?}").hash(&mut hasher);
    hasher.finish()
}

fn wrong_kind(service: &ServiceName, kind: ServiceKind) -> String {
    match kind {
        ServiceKind::Tcp => {
            format!("service {service} is of kind tcp, which has no methods and paths: write \"CONNECT\"")
        }
        ServiceKind::Http => format!(
            "CONNECT is for services of kind tcp: write \"GET /v1/**\" or the like, or give service {service} kind = \"tcp\""
        ),
    }
}

/// Key paths of a list's entries; a list of one may be written without brackets.
fn entries<'l>(key: &str, list: &'l [String]) -> impl Iterator<Item = (String, &'l str)> {
    let (key, single) = (key.to_owned(), list.len() == 1);
    let at = move |index| if single { key.clone() } else { format!("{key}.{index}") };
    list.iter().enumerate().map(move |(index, text)| (at(index), text.as_str()))
}

fn compile_with(file: Option<WithFile>, problems: &mut Vec<Problem>) -> With {
    let Some(file) = file else { return With::default() };
    let scope: Vec<Vec<String>> =
        file.scope.0.iter().map(|all| all.split_whitespace().map(str::to_owned).collect()).collect();
    if scope.iter().any(Vec::is_empty) {
        problems.push(Problem::new("with.scope", "an empty scope is in every token: leave the key out"));
    }
    if file.acr.0.iter().any(|acr| acr.is_empty() || acr.contains(' ')) {
        problems.push(Problem::new("with.acr", "an acr is one word; write several as a list"));
    }
    let claims = file.claims.into_iter().map(|(name, values)| {
        // A claim whose name is a URL has dots of its own (as in `scope_from` and its kin).
        let whole = name.starts_with("https://");
        let path = if whole { vec![name.clone()] } else { name.split('.').map(str::to_owned).collect() };
        ClaimTest { name, path, values }
    });
    let (max_age, claims) = (file.max_age.map(|span| span.0), claims.collect());
    With { scope, acr: file.acr.0, max_age, claims, bound: file.bound }
}

/// A circle of roles, if there is one, at the entry of its first role that leads into it.
fn circle(roles: &[Role]) -> Option<Problem> {
    let mut grounded = vec![false; roles.len()];
    let open = |grounded: &[bool], role: usize| -> Option<Atom> {
        roles[role].any.iter().copied().find(|atom| grounded.get(*atom) == Some(&false))
    };
    let mut moved = true;
    while std::mem::take(&mut moved) {
        for role in 0..roles.len() {
            if !grounded[role] && open(&grounded, role).is_none() {
                (grounded[role], moved) = (true, true);
            }
        }
    }
    let mut walk = vec![grounded.iter().position(|grounded| !grounded)?];
    let start = loop {
        let next = open(&grounded, *walk.last()?)?;
        if let Some(start) = walk.iter().position(|role| *role == next) {
            break start;
        }
        walk.push(next);
    };
    let circle = &walk[start..];
    let first = &roles[*circle.first()?];
    let entry =
        first.any.iter().position(|atom| Some(*atom) == circle.iter().chain(circle).nth(1).copied())?;
    let names = circle.iter().chain(circle.first()).map(|role| &*roles[*role].name);
    let message = format!("roles in a circle: {}", names.collect::<Vec<_>>().join(" -> "));
    Some(Problem::new(&format!("any.{entry}"), message).under(&first.name).under("roles"))
}

/// `there is no role "clrek": did you mean "clerk"?`
pub(super) fn unknown<'n>(what: &str, name: &str, known: impl Iterator<Item = &'n str>) -> String {
    let scored = known.map(|known| (strsim::jaro_winkler(known, name), known));
    match scored.max_by(|(a, _), (b, _)| a.total_cmp(b)) {
        Some((score, near)) if score > 0.75 => format!("there is no {what} {name:?}: did you mean {near:?}?"),
        Some((_, near)) => format!("there is no {what} {name:?}: write one that there is, such as {near:?}"),
        None => format!("there is no {what} {name:?}, nor any other"),
    }
}
