//! Finds rules: takes a path and what holds for a caller; gives the rules that could apply, without looking at the others. Rules hang in
//! a tree of path segments, at each place by whom they name, so that what a decision costs does not grow with the number of rules.

use std::collections::{BTreeMap, HashMap};

use super::CONNECT;
use super::role::{Atom, Held};
use super::rule::{Ask, Rule};
use super::target::{Pattern, Segment};

/// Rules of one kind and one place: a service's allowing or denying ones, or the denials for all.
#[derive(Debug, Default)]
pub(super) struct Rules {
    list: Vec<Rule>,
    root: Node,
    naming: HashMap<Atom, Naming>,
}

/// What rules give one atom.
#[derive(Debug)]
struct Naming {
    rules: Vec<usize>,
    /// By name, in the order of the rules; `None` = all.
    methods: Option<Vec<Box<str>>>,
}

#[derive(Debug, Default)]
struct Node {
    literal: HashMap<Box<str>, Node>,
    /// Behind a `*`.
    one: Option<Box<Node>>,
    /// Rules whose pattern ends here, and those whose pattern goes on with `**`.
    ends: Named,
    rest: Named,
}

/// Rules by whom they name.
#[derive(Debug, Default)]
struct Named(BTreeMap<Atom, Vec<usize>>);

impl Rules {
    pub(super) fn new(list: Vec<Rule>) -> Self {
        let mut rules = Self::default();
        for (number, rule) in list.iter().enumerate() {
            for pattern in &rule.to {
                let named = rules.root.place(pattern);
                for atom in &rule.who {
                    named.0.entry(*atom).or_default().push(number);
                }
            }
            for atom in &rule.who {
                let empty = || Naming { rules: Vec::new(), methods: Some(Vec::new()) };
                let naming = rules.naming.entry(*atom).or_insert_with(empty);
                naming.rules.push(number);
                rule.to.iter().for_each(|pattern| pattern.add_methods(&mut naming.methods));
            }
        }
        rules.list = list;
        rules
    }

    pub(super) fn all(&self) -> &[Rule] {
        &self.list
    }

    pub(super) fn names(&self, held: &Held) -> bool {
        held.atoms().iter().any(|atom| self.naming.contains_key(atom))
    }

    /// The rules that name this caller, in their order.
    pub(super) fn naming(&self, held: &Held) -> Vec<&Rule> {
        let atoms = held.atoms().iter().filter_map(|atom| self.naming.get(atom));
        self.in_order(atoms.flat_map(|naming| naming.rules.iter().copied()).collect())
    }

    /// The methods of all rules that name this caller; `None` where they take all.
    pub(super) fn methods_for(&self, held: &Held) -> Option<Vec<Box<str>>> {
        let mut methods: Vec<Box<str>> = Vec::new();
        for naming in held.atoms().iter().filter_map(|atom| self.naming.get(atom)) {
            for method in naming.methods.as_ref()? {
                if !methods.contains(method) {
                    methods.push(method.clone());
                }
            }
        }
        Some(methods)
    }

    /// Shows `found` every allowing rule that names the caller and covers the path; some of them more than once.
    pub(super) fn naming_here<'r>(&'r self, ask: &Ask<'_>, mut found: impl FnMut(usize, &'r Rule)) {
        self.root.walk(ask.target.path.as_str().split('/').skip(1), &mut |named| {
            named.of(ask.held, &mut |number| found(number, &self.list[number]));
        });
    }

    /// Allowing rules that cover the path, at most so many: first those that name the caller.
    pub(super) fn covering(&self, ask: &Ask<'_>, most: usize) -> Vec<&Rule> {
        let mut numbers = Vec::new();
        self.naming_here(ask, |number, _| {
            if numbers.len() < most && !numbers.contains(&number) {
                numbers.push(number);
            }
        });
        self.root.walk(ask.target.path.as_str().split('/').skip(1), &mut |named| {
            for number in named.0.values().flatten() {
                counted();
                if numbers.len() >= most {
                    break;
                }
                if !numbers.contains(number) {
                    numbers.push(*number);
                }
            }
        });
        self.in_order(numbers)
    }

    /// The first of the denying rules that applies. `lower` is the target's path in lower case, `readings` are its others.
    pub(super) fn denying(&self, ask: &Ask<'_>, lower: &str, readings: &[Vec<String>]) -> Option<&Rule> {
        if self.list.is_empty() {
            return None;
        }
        let mut first: Option<usize> = None;
        let mut found = |number: usize| {
            if first.is_none_or(|first| number < first) && self.list[number].denies(ask, readings) {
                first = Some(number);
            }
        };
        let mut named = |named: &Named| named.of(ask.held, &mut found);
        if ask.target.method == CONNECT {
            // There is no path: only what covers every path covers it.
            named(&self.root.rest);
        } else if readings.is_empty() {
            self.root.walk(lower.split('/').filter(|segment| !segment.is_empty()), &mut named);
        } else {
            for reading in readings {
                self.root.walk(reading.iter().map(String::as_str), &mut named);
            }
        }
        first.map(|first| &self.list[first])
    }

    fn in_order(&self, mut numbers: Vec<usize>) -> Vec<&Rule> {
        numbers.sort_unstable();
        numbers.dedup();
        numbers.into_iter().map(|number| &self.list[number]).collect()
    }
}

impl Node {
    /// Where the rules of a pattern hang.
    fn place(&mut self, pattern: &Pattern) -> &mut Named {
        let end = pattern.segments().iter().fold(self, |node, segment| match segment {
            Segment::Literal(text) => node.literal.entry(text.clone()).or_default(),
            Segment::One => node.one.get_or_insert_default(),
        });
        if pattern.has_rest() { &mut end.rest } else { &mut end.ends }
    }

    /// Shows every place whose patterns match the path. Matches as [`Pattern`] does.
    fn walk<'p>(&self, mut path: impl Iterator<Item = &'p str> + Clone, found: &mut dyn FnMut(&Named)) {
        counted();
        if !self.rest.0.is_empty() {
            found(&self.rest);
        }
        let Some(segment) = path.next() else { return found(&self.ends) };
        if let Some(node) = self.literal.get(segment) {
            node.walk(path.clone(), found);
        }
        if let Some(node) = self.one.as_ref().filter(|_| !segment.is_empty()) {
            node.walk(path, found);
        }
    }
}

impl Named {
    fn of(&self, held: &Held, found: &mut dyn FnMut(usize)) {
        let mut each = |rules: &Vec<usize>| {
            for number in rules {
                counted();
                found(*number);
            }
        };
        if self.0.len() < held.atoms().len() {
            self.0.iter().filter(|(atom, _)| held.any(&[**atom])).for_each(|(_, rules)| each(rules));
        } else {
            held.atoms().iter().filter_map(|atom| self.0.get(atom)).for_each(each);
        }
    }
}

/// A step that a decision took, for the test that counts them.
fn counted() {
    #[cfg(test)]
    work::STEPS.with(|steps| steps.set(steps.get() + 1));
}

#[cfg(test)]
pub(super) mod work {
    std::thread_local! {
        pub(in super::super) static STEPS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
    }
}
