//! Takes source files of the programs; gives their items and what a reader of documentation wants of them: doc comments, literals, the
//! keys of `json!`. Tests in them are left out.

use std::path::Path;

use anyhow::{Context, Result};
use proc_macro2::{TokenStream, TokenTree};
use syn::{Attribute, Expr, ExprLit, File, Item, Lit, Meta};

pub(crate) fn file(root: &Path, path: &str) -> Result<File> {
    let text = std::fs::read_to_string(root.join(path)).with_context(|| path.to_owned())?;
    let mut file = syn::parse_file(&text).with_context(|| path.to_owned())?;
    file.items.retain(|item| !matches!(item, Item::Mod(module) if module.attrs.iter().any(is_test)));
    Ok(file)
}

fn is_test(attribute: &Attribute) -> bool {
    matches!(&attribute.meta, Meta::List(list) if list.path.is_ident("cfg") && list.tokens.to_string() == "test")
}

/// All source files under a folder, without those of tests, by name.
pub(crate) fn paths(root: &Path, folder: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(root.join(folder)).with_context(|| folder.to_owned())?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{folder}/{name}");
        if entry.file_type()?.is_dir() {
            found.extend(if name == "tests" { Vec::new() } else { paths(root, &path)? });
        } else if Path::new(&name).extension().is_some_and(|ending| ending == "rs")
            && name != "tests.rs"
            && name != "testing.rs"
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The doc comment, as one paragraph.
pub(crate) fn doc(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => literal(&pair.value),
        _ => None,
    });
    lines.map(|line| line.trim().to_owned()).collect::<Vec<_>>().join(" ")
}

/// A text written down: `"…"`, `&"…"`, `"…".to_owned()`, or the pattern of `format!("…")`.
pub(crate) fn literal(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value()),
        Expr::Reference(inner) => literal(&inner.expr),
        Expr::MethodCall(call) => literal(&call.receiver),
        Expr::Macro(call) if call.mac.path.is_ident("format") => {
            let first = call.mac.tokens.clone().into_iter().next()?;
            syn::parse_str::<syn::LitStr>(&first.to_string()).ok().map(|text| text.value())
        }
        _ => None,
    }
}

/// The last word of a path: `BAD_REQUEST` of `StatusCode::BAD_REQUEST`.
pub(crate) fn last_word(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()),
        _ => None,
    }
}

/// The keys of the object in `json!({ … })`.
pub(crate) fn json_keys(tokens: &TokenStream) -> Vec<String> {
    let Some(TokenTree::Group(object)) = tokens.clone().into_iter().next() else { return Vec::new() };
    let tokens: Vec<TokenTree> = object.stream().into_iter().collect();
    let pairs = tokens.windows(2).filter_map(|pair| match pair {
        [TokenTree::Literal(key), TokenTree::Punct(colon)] if colon.as_char() == ':' => {
            syn::parse_str::<syn::LitStr>(&key.to_string()).ok().map(|text| text.value())
        }
        _ => None,
    });
    pairs.collect()
}
