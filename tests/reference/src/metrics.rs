//! Takes what relay and agent register with Prometheus (relay/src/metrics.rs, agent/src/observe.rs); gives the page of metrics.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use syn::visit::{self, Visit};
use syn::{Expr, ExprCall, ExprMethodCall, GenericArgument, ItemStruct, Local, Pat, PathArguments, Type};

use crate::page::{Page, code};
use crate::source::{self, doc, last_word, literal};

const INTRO: &str = "In Prometheus' text format at `/metrics` of `listen.metrics` (relay.toml) and `telemetry.metrics` (agent.toml). No label has \
values that a caller can choose.";

struct Metric {
    name: String,
    kind: String,
    labels: String,
    help: String,
}

#[derive(Default)]
struct Finder {
    prefix: String,
    /// `let text = "…"`, used in the next registration.
    text: String,
    /// Field of `Metrics` -> (kind, name of its label struct).
    fields: BTreeMap<String, (String, String)>,
    /// Label struct -> its labels.
    labels: BTreeMap<String, String>,
    /// Name, unit, help, field.
    registered: Vec<[String; 4]>,
}

/// `Family<Labels, Counter>` -> ("Counter", "Labels"); `Counter<u64, AtomicU64>` -> ("Counter", "").
fn kind(field: &Type) -> Option<(String, String)> {
    let Type::Path(path) = field else { return None };
    let segment = path.path.segments.last()?;
    let name = segment.ident.to_string();
    if name != "Family" {
        return ["Counter", "Gauge", "Histogram"].contains(&&*name).then_some((name, String::new()));
    }
    let PathArguments::AngleBracketed(arguments) = &segment.arguments else { return None };
    let words: Vec<String> = arguments
        .args
        .iter()
        .filter_map(|argument| match argument {
            GenericArgument::Type(Type::Path(path)) => path.path.segments.last().map(|s| s.ident.to_string()),
            _ => None,
        })
        .collect();
    match &words[..] {
        [labels, kind, ..] => Some((kind.clone(), labels.clone())),
        _ => None,
    }
}

impl<'ast> Visit<'ast> for Finder {
    fn visit_item_struct(&mut self, item: &'ast ItemStruct) {
        let named = |field: &syn::Field| field.ident.as_ref().map(ToString::to_string).unwrap_or_default();
        for field in &item.fields {
            if let Some(kind) = kind(&field.ty) {
                self.fields.insert(named(field), kind);
            }
        }
        let labels = item.fields.iter().map(|field| match doc(&field.attrs) {
            words if words.is_empty() => code(&named(field)),
            words => format!("{} ({})", code(&named(field)), words.trim_end_matches('.')),
        });
        self.labels.insert(item.ident.to_string(), labels.collect::<Vec<_>>().join(", "));
    }

    fn visit_local(&mut self, local: &'ast Local) {
        if let (Pat::Ident(name), Some(init)) = (&local.pat, &local.init)
            && name.ident == "text"
            && let Some(text) = literal(&init.expr)
        {
            self.text = text;
        }
        visit::visit_local(self, local);
    }

    fn visit_expr_call(&mut self, call: &'ast ExprCall) {
        if last_word(&call.func).is_some_and(|name| name == "with_prefix") {
            self.prefix = call.args.first().and_then(literal).unwrap_or_default();
        }
        visit::visit_expr_call(self, call);
    }

    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        let args: Vec<&Expr> = call.args.iter().collect();
        let found = match (call.method.to_string().as_str(), &args[..]) {
            ("register", [name, help, metric]) => Some((name, String::new(), help, metric)),
            ("register_with_unit", [name, help, unit, metric]) => {
                Some((name, last_word(unit).unwrap_or_default().to_lowercase(), help, metric))
            }
            _ => None,
        };
        if let Some((name, unit, help, metric)) = found
            && let Some(name) = literal(name)
        {
            let field = match metric {
                Expr::MethodCall(clone) => last_word(&clone.receiver),
                other => last_word(other),
            };
            let help = literal(help).unwrap_or_else(|| self.text.clone());
            self.registered.push([name, unit, help, field.unwrap_or_default()]);
        }
        visit::visit_expr_method_call(self, call);
    }
}

fn metrics(root: &Path, path: &str) -> Result<Vec<Metric>> {
    let mut finder = Finder::default();
    let file = source::file(root, path)?;
    finder.visit_file(&file);
    let Finder { prefix, fields, labels, registered, .. } = finder;
    let metrics = registered.into_iter().map(|[name, unit, help, field]| {
        let (kind, labelled) = fields.get(&field).cloned().unwrap_or_default();
        let unit = if unit.is_empty() { unit } else { format!("_{unit}") };
        let total = if kind == "Counter" { "_total" } else { "" };
        Metric {
            name: format!("{prefix}_{name}{unit}{total}"),
            kind: kind.to_lowercase(),
            labels: labels.get(&labelled).cloned().unwrap_or_default(),
            help,
        }
    });
    Ok(metrics.collect())
}

pub(crate) fn page(root: &Path) -> Result<String> {
    let mut page = Page::new("Metrics", INTRO);
    for (heading, path) in [("Relay", "relay/src/metrics.rs"), ("Agent", "agent/src/observe.rs")] {
        page.heading(2, heading);
        let rows: Vec<Vec<String>> = metrics(root, path)?
            .into_iter()
            .map(|metric| vec![code(&metric.name), metric.kind, metric.labels, metric.help])
            .collect();
        page.table(&["Name", "Type", "Labels", "What"], &rows);
    }
    Ok(page.done())
}
