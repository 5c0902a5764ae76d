//! Takes the table of refusals (relay/src/request/respond/table.rs and cut.rs); gives the page of problem types.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use http::StatusCode;
use syn::visit::{self, Visit};
use syn::{Arm, Expr, ExprCall, ExprStruct, ExprTuple, Local, Member, Pat};

use crate::page::{Page, code};
use crate::source::{self, last_word, literal};

const INTRO: &str = "Every refusal of the relay is `application/problem+json` (RFC 9457) with `type`, `title`, `status`, `detail`, `request_id` and, \
where policy was asked, `decision_id`. Where several rows have one type, what happened decides. What stands in braces is filled in; *in its own words* is what the token, the policy, the issuer or the agent has to say of the case.";

#[derive(Default)]
struct Problem {
    kind: String,
    status: u16,
    title: String,
    detail: String,
    hop: String,
    retry_after: String,
}

/// What a refusal is made of, as it is being read.
#[derive(Default)]
struct Table {
    rows: Vec<Problem>,
    /// `let title = "…"`, used further down.
    title: String,
    hop: String,
    retry_after: String,
}

fn status(expr: &Expr) -> Option<u16> {
    let word = last_word(expr)?;
    let named = |code: &u16| {
        let reason = StatusCode::from_u16(*code).ok().and_then(|status| status.canonical_reason());
        reason.is_some_and(|reason| reason.to_uppercase().replace([' ', '-'], "_") == word)
    };
    (400..600).find(named)
}

impl Table {
    /// `(STATUS, "kind", "title", …)`, as arguments or as a tuple.
    fn take<'e>(&mut self, parts: impl Iterator<Item = &'e Expr>) {
        let parts: Vec<&Expr> = parts.collect();
        let [first, second, third, more @ ..] = &parts[..] else { return };
        let (Some(status), Some(kind)) = (status(first), literal(second)) else { return };
        let title = literal(third).unwrap_or_else(|| self.title.clone());
        // Of the agent's stages the tuple names the hop, and the detail is the agent's.
        let (detail, hop) = match more {
            [name, error] => (String::new(), format!("{}; error={}", text(name), text(error))),
            _ => (more.first().map(|detail| text(detail)).unwrap_or_default(), self.hop.clone()),
        };
        self.rows.push(Problem { kind, status, title, detail, hop, retry_after: self.retry_after.clone() });
    }
}

fn text(expr: &Expr) -> String {
    literal(expr).unwrap_or_default()
}

impl<'ast> Visit<'ast> for Table {
    fn visit_local(&mut self, local: &'ast Local) {
        if let (Pat::Ident(name), Some(init)) = (&local.pat, &local.init)
            && name.ident == "title"
        {
            self.title = text(&init.expr);
        }
        visit::visit_local(self, local);
    }

    fn visit_expr_struct(&mut self, row: &'ast ExprStruct) {
        for field in &row.fields {
            let Member::Named(name) = &field.member else { continue };
            let Expr::Call(call) = &field.expr else { continue };
            if name == "hop" {
                self.hop = call.args.iter().map(text).collect::<Vec<_>>().join("; error=");
            } else if name == "retry_after" {
                let seconds = call.args.first().map(|seconds| match seconds {
                    Expr::Lit(number) => match &number.lit {
                        syn::Lit::Int(number) => number.to_string(),
                        _ => String::new(),
                    },
                    _ => "as it says".to_owned(),
                });
                self.retry_after = seconds.unwrap_or_default();
            }
        }
        visit::visit_expr_struct(self, row);
        self.hop.clear();
        self.retry_after.clear();
    }

    fn visit_expr_call(&mut self, call: &'ast ExprCall) {
        if last_word(&call.func).is_some_and(|name| name == "row") {
            self.take(call.args.iter());
        }
        visit::visit_expr_call(self, call);
    }

    fn visit_expr_tuple(&mut self, tuple: &'ast ExprTuple) {
        self.take(tuple.elems.iter());
        visit::visit_expr_tuple(self, tuple);
    }
}

/// The variants of `Cut`, with what each arm of a `match` says of them.
#[derive(Default)]
struct Arms<'ast>(BTreeMap<String, &'ast Expr>);

impl<'ast> Visit<'ast> for Arms<'ast> {
    fn visit_arm(&mut self, arm: &'ast Arm) {
        let path = match &arm.pat {
            Pat::Path(pat) => Some(&pat.path),
            Pat::TupleStruct(pat) => Some(&pat.path),
            _ => None,
        };
        if let Some(variant) = path.and_then(|path| path.segments.last()) {
            self.0.entry(variant.ident.to_string()).or_insert(&arm.body);
        }
        visit::visit_arm(self, arm);
    }
}

/// What was cut has its type from `Cut::reason`, and its words from the arms of its own table.
fn cuts(root: &Path) -> Result<Vec<Problem>> {
    let reasons = source::file(root, "relay/src/session/running.rs")?;
    let words = source::file(root, "relay/src/request/respond/cut.rs")?;
    let (mut kinds, mut rows) = (Arms::default(), Arms::default());
    kinds.visit_file(&reasons);
    rows.visit_file(&words);
    let rows = rows.0.iter().filter_map(|(variant, body)| {
        let Expr::Tuple(tuple) = body else { return None };
        let kind = kinds.0.get(variant).and_then(|kind| literal(kind))?;
        let parts: Vec<&Expr> = tuple.elems.iter().collect();
        let [code, title, detail] = parts[..] else { return None };
        Some(Problem {
            kind,
            status: status(code)?,
            title: text(title),
            detail: text(detail),
            ..Problem::default()
        })
    });
    Ok(rows.collect())
}

pub(crate) fn page(root: &Path) -> Result<String> {
    let table_file = source::file(root, "relay/src/request/respond/table.rs")?;
    let mut table = Table::default();
    table.visit_file(&table_file);
    table.rows.extend(cuts(root)?);
    table.rows.sort_by(|a, b| (a.status, &a.kind).cmp(&(b.status, &b.kind)));
    let rows: Vec<Vec<String>> = table
        .rows
        .into_iter()
        .map(|row| {
            vec![
                row.status.to_string(),
                code(&format!("urn:postern:{}", row.kind)),
                row.title,
                match row.detail {
                    detail if detail.is_empty() => "*in its own words*".to_owned(),
                    detail if detail.contains('{') => code(&detail),
                    detail => detail,
                },
                code(&row.hop),
                row.retry_after,
            ]
        })
        .collect();
    let mut page = Page::new("Problem types", INTRO);
    page.table(&["Status", "Type", "Title", "Detail", "Proxy-Status", "Retry-After"], &rows);
    Ok(page.done())
}
