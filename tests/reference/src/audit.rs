//! Takes the structs of audit lines and every place where an event is recorded; gives the page of events with their fields.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;
use syn::visit::{self, Visit};
use syn::{
    Expr, ExprCall, ExprIndex, ExprMethodCall, ExprTuple, Fields, ImplItemFn, Item, ItemEnum, ItemFn,
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
    calls: BTreeSet<String>,
    texts: BTreeSet<String>,
}

fn is_event(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
}

impl Events {
    /// An event with what it tells: written down here, made by a function, or put together before in this one.
    fn recorded(&mut self, name: String, detail: &Expr) {
        match detail {
            Expr::Macro(call) => self.found.entry(name).or_default().extend(json_keys(&call.mac.tokens)),
            Expr::MethodCall(made) => {
                let maker = self.maker(&made.method.to_string());
                self.found.entry(name).or_default().insert(maker);
            }
            _ => drop(self.names.insert(name)),
        }
    }

    fn maker(&self, function: &str) -> String {
        format!("{}:{function}()", self.path)
    }

    fn function(&mut self, name: &str, read: impl FnOnce(&mut Self)) {
        read(self);
        let keys = std::mem::take(&mut self.keys);
        for event in std::mem::take(&mut self.names) {
            let fields = self.found.entry(event).or_default();
            fields.extend(keys.iter().cloned());
            fields.extend(self.calls.iter().map(|call| format!("{}:{call}()", self.path)));
        }
        let maker = self.maker(name);
        self.makers.entry(maker).or_default().extend(keys);
        self.calls.clear();
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

    fn visit_macro(&mut self, call: &'ast Macro) {
        if call.path.segments.last().is_some_and(|name| name.ident == "json") {
            self.keys.extend(json_keys(&call.tokens));
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

    // `let mut detail = made.told();`
    fn visit_local(&mut self, local: &'ast Local) {
        if let (Pat::Ident(name), Some(init)) = (&local.pat, &local.init)
            && name.ident == "detail"
            && let Expr::MethodCall(made) = &*init.expr
        {
            self.calls.insert(made.method.to_string());
        }
        visit::visit_local(self, local);
    }

    fn visit_expr_index(&mut self, index: &'ast ExprIndex) {
        if matches!(&*index.expr, Expr::Path(path) if path.path.is_ident("detail") || path.path.is_ident("told"))
        {
            self.keys.extend(literal(&index.index));
        }
        visit::visit_expr_index(self, index);
    }

    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        visit::visit_expr_method_call(self, call);
        if call.method == "sign" {
            self.keys.extend(["uid", "by"].map(str::to_owned));
        }
        let args: Vec<&Expr> = call.args.iter().collect();
        let [first, detail] = args[..] else { return };
        if call.method != "event" {
            return;
        }
        match literal(first) {
            Some(name) => self.recorded(name, detail),
            // `let (event, reason) = match … { … => ("chain-head", None), … }` above it.
            None => self.names.append(&mut self.texts),
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
    // In the same file, or else wherever there is one of that name.
    let made = |maker: &str| {
        let name = maker.rsplit(':').next().unwrap_or_default();
        let elsewhere =
            || makers.iter().find(|(key, _)| key.rsplit(':').next() == Some(name)).map(|(_, keys)| keys);
        makers.get(maker).or_else(elsewhere).cloned().unwrap_or_default()
    };
    let rows = found.into_iter().map(|(event, fields)| {
        let mut all = BTreeSet::new();
        for field in fields {
            if field.ends_with("()") {
                all.extend(made(&field));
            } else {
                all.insert(field);
            }
        }
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
