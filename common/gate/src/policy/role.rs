//! Takes selectors and `[roles]` by number; gives which of them hold for a principal. Resolved once per principal and policy and
//! kept with the principal, so that a warm decision looks up a few numbers, whatever the size of the policy.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use postern_base::id::IssuerName;

use super::rule::With;
use crate::principal::{Principal, Proved};

/// What a rule can ask of a caller's identity, numbered: the roles in their order, then the selectors.
pub(super) type Atom = usize;
/// `*`: holds for every principal.
pub(super) const ANYONE: Atom = usize::MAX;

/// What of a token a selector looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Group,
    User,
    Client,
    Scope,
    TokenRole,
}

impl Kind {
    pub(super) const ALL: [(&'static str, Self); 5] = [
        ("group", Self::Group),
        ("user", Self::User),
        ("client", Self::Client),
        ("scope", Self::Scope),
        ("token-role", Self::TokenRole),
    ];
}

impl Kind {
    /// Lets a made-up token have what a selector of this kind looks for.
    pub(super) fn give(self, proved: &mut Proved, value: String) {
        match self {
            Self::Group => proved.groups.push(value),
            Self::User => proved.user = value,
            Self::Client => proved.client = Some(value),
            Self::Scope => proved.scopes.push(value),
            Self::TokenRole => proved.token_roles.push(value),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|(_, kind)| kind == self).map_or("", |(name, _)| name))
    }
}

/// `<issuer>/<kind>:<value>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Selector {
    pub(super) issuer: IssuerName,
    pub(super) kind: Kind,
    pub(super) value: String,
}

#[derive(Debug)]
pub(super) struct Role {
    pub(super) name: Arc<str>,
    pub(super) any: Vec<Atom>,
    pub(super) with: With,
}

/// What holds for one principal under one policy: kept in the principal's slot.
#[derive(Debug)]
pub(crate) struct Held {
    generation: u64,
    /// Seconds since the epoch after which a role's `max_age` has run out.
    until: u64,
    /// Sorted.
    atoms: Box<[Atom]>,
}

impl Held {
    pub(super) fn atoms(&self) -> &[Atom] {
        &self.atoms
    }

    pub(super) fn any(&self, atoms: &[Atom]) -> bool {
        atoms.iter().any(|atom| self.atoms.binary_search(atom).is_ok())
    }
}

/// The policy's roles that a principal has. Cheap to clone and to iterate.
#[derive(Clone)]
pub struct Roles {
    held: Arc<Held>,
    names: Arc<[Arc<str>]>,
}

impl Roles {
    /// In alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.held.atoms.iter().map_while(|atom| self.names.get(*atom)).map(|name| &**name)
    }
}

impl fmt::Debug for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// All roles and selectors of a policy.
#[derive(Debug)]
pub(super) struct Callers {
    /// Tells this policy's results from those of the policy before a reload.
    generation: u64,
    roles: Vec<Role>,
    names: Arc<[Arc<str>]>,
    selectors: Vec<Selector>,
    index: HashMap<IssuerName, HashMap<Kind, HashMap<String, Atom>>>,
    /// From an atom to the roles whose `any` lists it.
    leads_to: HashMap<Atom, Vec<Atom>>,
}

impl Callers {
    pub(super) fn new(roles: Vec<Role>, selectors: Vec<Selector>) -> Self {
        static GENERATIONS: AtomicU64 = AtomicU64::new(0);
        let mut index: HashMap<_, HashMap<_, HashMap<_, _>>> = HashMap::new();
        for (number, selector) in selectors.iter().enumerate() {
            let of_issuer = index.entry(selector.issuer.clone()).or_default();
            of_issuer.entry(selector.kind).or_default().insert(selector.value.clone(), roles.len() + number);
        }
        let mut leads_to: HashMap<Atom, Vec<Atom>> = HashMap::new();
        for (number, role) in roles.iter().enumerate() {
            for atom in &role.any {
                leads_to.entry(*atom).or_default().push(number);
            }
        }
        let names = roles.iter().map(|role| role.name.clone()).collect();
        let generation = GENERATIONS.fetch_add(1, Ordering::Relaxed);
        Self { generation, roles, names, selectors, index, leads_to }
    }

    /// How many there are; numbers from 0.
    pub(super) fn atoms(&self) -> Atom {
        self.roles.len() + self.selectors.len()
    }

    pub(super) fn role(&self, atom: Atom) -> Option<&Role> {
        self.roles.get(atom)
    }

    pub(super) fn selector(&self, atom: Atom) -> Option<&Selector> {
        self.selectors.get(atom.checked_sub(self.roles.len())?)
    }

    pub(super) fn roles(&self, held: Arc<Held>) -> Roles {
        Roles { held, names: self.names.clone() }
    }

    /// What holds for `principal` at `now` (seconds since the epoch), from its slot if it is there.
    pub(super) fn held(&self, principal: &Principal, now: u64) -> Arc<Held> {
        if let Some(held) = principal.held.load_full()
            && held.generation == self.generation
            && now <= held.until
        {
            return held;
        }
        let mut until = u64::MAX;
        let atoms = self.reached(self.named_by(principal), |role| {
            let holds = role.with.holds(principal, now);
            if holds && let Some((max_age, login)) = role.with.max_age.zip(principal.auth_time()) {
                until = until.min(login.saturating_add(max_age.as_secs()));
            }
            holds
        });
        let held = Arc::new(Held { generation: self.generation, until, atoms: atoms.into() });
        principal.held.store(Some(held.clone()));
        held
    }

    /// The selectors that the token's words satisfy.
    fn named_by(&self, principal: &Principal) -> Vec<Atom> {
        let Some(index) = self.index.get(principal.issuer()) else { return vec![ANYONE] };
        let mut atoms = vec![ANYONE];
        let mut find = |kind, value: &str| {
            atoms.extend(index.get(&kind).and_then(|values| values.get(value)));
        };
        find(Kind::User, principal.user());
        let lists = [
            (Kind::Group, principal.groups()),
            (Kind::Scope, principal.scopes()),
            (Kind::TokenRole, principal.token_roles()),
        ];
        for (kind, value) in lists.into_iter().flat_map(|(kind, list)| list.iter().map(move |v| (kind, v))) {
            find(kind, value);
        }
        if let Some(client) = principal.client() {
            find(Kind::Client, client);
        }
        atoms
    }

    /// `atoms` and all roles that follow from them where `holds` says so of the role's `with`; sorted.
    fn reached(&self, mut atoms: Vec<Atom>, mut holds: impl FnMut(&Role) -> bool) -> Vec<Atom> {
        let mut next = 0;
        while let Some(atom) = atoms.get(next) {
            for role in self.leads_to.get(atom).into_iter().flatten() {
                if !atoms.contains(role) && holds(&self.roles[*role]) {
                    atoms.push(*role);
                }
            }
            next += 1;
        }
        atoms.sort_unstable();
        atoms.dedup();
        atoms
    }

    /// The atoms that some token of `issuer` could hold.
    pub(super) fn possible_for(&self, issuer: &IssuerName) -> BTreeSet<Atom> {
        let of_issuer =
            self.index.get(issuer).into_iter().flat_map(HashMap::values).flat_map(HashMap::values);
        self.reached(of_issuer.copied().chain([ANYONE]).collect(), |_| true).into_iter().collect()
    }

    /// Adds the scopes that lead to `atom` by way of `possible` ones.
    pub(super) fn scopes_behind(&self, atom: Atom, possible: &BTreeSet<Atom>, scopes: &mut BTreeSet<String>) {
        let mut seen = BTreeSet::new();
        let mut open = vec![atom];
        while let Some(atom) = open.pop() {
            if !possible.contains(&atom) || !seen.insert(atom) {
                continue;
            }
            if let Some(role) = self.role(atom) {
                scopes.extend(role.with.scopes());
                open.extend(&role.any);
            } else if let Some(selector) = self.selector(atom).filter(|s| s.kind == Kind::Scope) {
                scopes.insert(selector.value.clone());
            }
        }
    }

    /// What a person would have to have, as [`super::Denial`] says it to `principal`. Names no other user.
    pub(super) fn describe(&self, atom: Atom, principal: &Principal) -> String {
        let Some(selector) = self.selector(atom) else {
            return self
                .role(atom)
                .map_or_else(|| "any token".to_owned(), |role| format!("role {}", role.name));
        };
        let text = match selector.kind {
            Kind::User => "to be one of its users".to_owned(),
            kind @ (Kind::Group | Kind::Client | Kind::Scope | Kind::TokenRole) => {
                format!("{kind} {}", selector.value)
            }
        };
        if selector.issuer == *principal.issuer() {
            text
        } else {
            format!("{text} at issuer {}", selector.issuer)
        }
    }
}
