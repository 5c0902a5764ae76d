//! Takes the structs of audit lines and every place where an event is recorded; gives the page of events with their fields.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;
use syn::visit::{self, Visit};
use syn::{
    Block, Expr, ExprCall, ExprIndex, ExprMethodCall, ExprTuple, Fields, ImplItemFn, Item, ItemEnum, ItemFn,
    ItemStruct, Local, Macro, Pat,
};

use crate::page::{Page, code};
use crate::source::{self, doc, json_keys, last_word, literal};

const INTRO: &str = "One JSON object a line; [The audit log](../audit.md) says what it means and how it is proved. Every line has `time` and `event`, \
the relay's also `seq` and `mac`. A field that says nothing is left out.";

/// Events recorded with fields that are put together where they happen.
#[derive(Default)]
struct Events {
    /// Event -> fields.
    found: BTreeMap<String, BTreeSet<String>>,
    /// The file that is being read.
    path: String,
    /// What functions that make fields give: `file:name()` -> keys.
    makers: BTreeMap<String, BTreeSet<String>>,
    /// Of the function that is being read.
    keys: BTreeSet<String>,
    names: BTreeSet<String>,
    texts: BTreeSet<String>,
    /// Variables that can be seen from where it is being read, and what was put into them so far.
    locals: Vec<(String, BTreeSet<String>)>,
}

/// Fields that only another event of the same place has: `chain-head` has no reason.
const NEVER: [(&str, &str); 1] = [("chain-head", "reason")];

fn is_event(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
}

/// The variable that an expression is, or borrows.
fn variable(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Path(path) => path.path.get_ident().map(ToString::to_string),
        Expr::Reference(inner) => variable(&inner.expr),
        _ => None,
    }
}

impl Events {
    /// An event with what it tells: written down here, made by a function, put into a variable before, or else anything of this function.
    fn recorded(&mut self, name: String, detail: &Expr) {
        let local = variable(detail).and_then(|variable| self.local(&variable).cloned());
        let fields = match detail {
            Expr::Macro(call) => json_keys(&call.mac.tokens).into_iter().collect(),
            Expr::MethodCall(made) => BTreeSet::from([self.maker(&made.method.to_string())]),
            _ => {
                let Some(fields) = local else {
                    self.names.insert(name);
                    return;
                };
                fields
            }
        };
        self.found.entry(name).or_default().extend(fields);
    }

    fn maker(&self, function: &str) -> String {
        format!("{}:{function}()", self.path)
    }

    fn local(&mut self, name: &str) -> Option<&mut BTreeSet<String>> {
        self.locals.iter_mut().rev().find(|(local, _)| local == name).map(|(_, fields)| fields)
    }

    /// More fields in a variable.
    fn added(&mut self, to: &Expr, fields: impl IntoIterator<Item = String>) {
        let fields: BTreeSet<String> = fields.into_iter().collect();
        if let Some(local) = variable(to).and_then(|variable| self.local(&variable)) {
            local.extend(fields.iter().cloned());
        } else if self.path.contains("/admin/") {
            // Begun by another function there, and recorded by whoever called this one.
            self.found.entry("admin".to_owned()).or_default().extend(fields.iter().cloned());
        }
        self.keys.extend(fields);
    }

    fn function(&mut self, name: &str, read: impl FnOnce(&mut Self)) {
        read(self);
        let keys = std::mem::take(&mut self.keys);
        for event in std::mem::take(&mut self.names) {
            self.found.entry(event).or_default().extend(keys.iter().cloned());
        }
        let maker = self.maker(name);
        self.makers.entry(maker).or_default().extend(keys);
        self.texts.clear();
    }
}

impl<'ast> Visit<'ast> for Events {
    fn visit_item_fn(&mut self, function: &'ast ItemFn) {
        self.function(&function.sig.ident.to_string(), |events| visit::visit_item_fn(events, function));
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        self.function(&function.sig.ident.to_string(), |events| visit::visit_impl_item_fn(events, function));
    }

    fn visit_expr_tuple(&mut self, tuple: &'ast ExprTuple) {
        self.texts.extend(tuple.elems.first().and_then(literal).filter(|text| is_event(text)));
        visit::visit_expr_tuple(self, tuple);
    }

    fn visit_block(&mut self, block: &'ast Block) {
        let outside = self.locals.len();
        visit::visit_block(self, block);
        self.locals.truncate(outside);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        if call.path.segments.last().is_some_and(|name| name.ident == "json") {
            let keys = json_keys(&call.tokens);
            // Wherever it is put together: what has an action is what an `admin` line tells.
            if keys.iter().any(|key| key == "action") {
                self.found.entry("admin".to_owned()).or_default().extend(keys.iter().cloned());
            }
            self.keys.extend(keys);
        }
    }

    // Where no relay runs, a command records what it did.
    fn visit_expr_call(&mut self, call: &'ast ExprCall) {
        if last_word(&call.func).is_some_and(|name| name == "record") {
            let args: Vec<&Expr> = call.args.iter().collect();
            if let [_, name, detail] = args[..]
                && let Some(name) = literal(name).filter(|text| is_event(text))
            {
                self.recorded(name, detail);
            }
        }
        visit::visit_expr_call(self, call);
    }

    // `let detail = json!({ … });`, `let mut detail = made.told();`
    fn visit_local(&mut self, local: &'ast Local) {
        visit::visit_local(self, local);
        if let (Pat::Ident(name), Some(init)) = (&local.pat, &local.init) {
            let fields = match &*init.expr {
                Expr::Macro(call) => json_keys(&call.mac.tokens).into_iter().collect(),
                Expr::MethodCall(made) if name.ident == "detail" => {
                    BTreeSet::from([self.maker(&made.method.to_string())])
                }
                _ => return,
            };
            self.locals.push((name.ident.to_string(), fields));
        }
    }

    fn visit_expr_index(&mut self, index: &'ast ExprIndex) {
        if variable(&index.expr).is_some_and(|name| ["detail", "told"].contains(&name.as_str())) {
            self.added(&index.expr, literal(&index.index));
        }
        visit::visit_expr_index(self, index);
    }

    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        visit::visit_expr_method_call(self, call);
        let args: Vec<&Expr> = call.args.iter().collect();
        if let ("sign", [detail]) = (call.method.to_string().as_str(), &args[..]) {
            self.added(detail, ["uid", "by"].map(str::to_owned));
        }
        let [first, detail] = args[..] else { return };
        if call.method != "event" {
            return;
        }
        match literal(first) {
            Some(name) => self.recorded(name, detail),
            // `let (event, reason) = match … { … => ("chain-head", None), … }` above it.
            None => self.texts.clone().into_iter().for_each(|name| self.recorded(name, detail)),
        }
    }
}

/// Events of a program's sources.
fn events(root: &Path, folder: &str) -> Result<Vec<Vec<String>>> {
    let mut events = Events::default();
    for path in source::paths(root, folder)? {
        let file = source::file(root, &path)?;
        events.path = path;
        events.visit_file(&file);
    }
    let Events { found, makers, .. } = events;
    let rows = found.into_iter().map(|(event, fields)| {
        // In the same file; what is made elsewhere is read there.
        let made = |field: String| {
            if field.ends_with("()") {
                makers.get(&field).cloned().unwrap_or_default()
            } else {
                BTreeSet::from([field])
            }
        };
        let mut all: BTreeSet<String> = fields.into_iter().flat_map(made).collect();
        all.retain(|field| !NEVER.contains(&(event.as_str(), field)));
        vec![code(&event), all.iter().map(|field| code(field)).collect::<Vec<_>>().join(", ")]
    });
    Ok(rows.collect())
}

fn fields(fields: &Fields) -> Vec<Vec<String>> {
    let named = fields.iter().filter_map(|field| {
        let name = field.ident.as_ref()?.to_string();
        let implied = ["time", "event", "detail", "who"].contains(&name.as_str());
        (!implied).then(|| vec![code(&name), doc(&field.attrs)])
    });
    named.collect()
}

fn structure<'a>(items: &'a [Item], name: &str) -> Option<&'a ItemStruct> {
    items.iter().find_map(|item| match item {
        Item::Struct(found) if found.ident == name => Some(found),
        _ => None,
    })
}

fn enumeration<'a>(items: &'a [Item], name: &str) -> Option<&'a ItemEnum> {
    items.iter().find_map(|item| match item {
        Item::Enum(found) if found.ident == name => Some(found),
        _ => None,
    })
}

/// `FileRemoved` -> `file-removed`.
fn kebab(name: &str) -> String {
    let mut text = String::new();
    for (at, letter) in name.chars().enumerate() {
        if letter.is_ascii_uppercase() && at > 0 {
            text.push('-');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

pub(crate) fn page(root: &Path) -> Result<String> {
    let mut page = Page::new("Audit events", INTRO);
    let relay = source::file(root, "relay/src/audit/record.rs")?.items;
    page.heading(2, "Relay");
    for (event, name) in [("decision", "Decision"), ("", "Who"), ("end", "End")] {
        let Some(found) = structure(&relay, name) else { continue };
        if event.is_empty() {
            page.text("What a verified token told, in the same line:");
        } else {
            page.heading(3, &code(event));
            page.text(&doc(&found.attrs));
        }
        page.table(&["Field", "What"], &fields(&found.fields));
    }
    page.heading(3, "Everything else");
    page.table(&["Event", "Fields"], &events(root, "relay/src")?);
    page.heading(2, "Agent");
    let agent = source::file(root, "agent/src/audit.rs")?.items;
    page.heading(3, &code("request"));
    if let Some(line) = structure(&agent, "Line") {
        page.table(&["Field", "What"], &fields(&line.fields));
    }
    page.heading(3, "Everything else of the agent");
    page.table(&["Event", "Fields"], &events(root, "agent/src")?);
    page.heading(2, "Both, of their own files");
    let own = source::file(root, "common/base/src/audit/own.rs")?.items;
    for variant in enumeration(&own, "Own").into_iter().flat_map(|own| &own.variants) {
        page.heading(3, &code(&kebab(&variant.ident.to_string())));
        page.text(&doc(&variant.attrs));
        page.table(&["Field", "What"], &fields(&variant.fields));
    }
    Ok(page.done())
}
