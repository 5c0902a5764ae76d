//! Links in the book and the README lead somewhere: to pages, and to headings that are there. The book's summary has every page.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use postern_tests::book::{self, ROOT};

/// The anchors that a page offers, as GitHub and mdBook make them of headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let words = line.trim_start_matches('#').trim().to_lowercase();
            let kept = words.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// The targets of Markdown links outside of blocks and code.
fn links(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        let plain: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        found.extend(
            plain.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(to, _)| to.to_owned()),
        );
    }
    found
}

#[test]
fn links_lead_somewhere_and_the_book_has_every_page() -> Result<()> {
    let root = Path::new(ROOT);
    let mut pages: BTreeMap<PathBuf, String> = BTreeMap::new();
    for page in book::pages()? {
        pages.insert(page.clone(), book::read(&page)?);
    }
    let mut broken = Vec::new();
    for (page, text) in &pages {
        for link in
            links(text).into_iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:"))
        {
            let (path, anchor) = link.split_once('#').unwrap_or((link.as_str(), ""));
            let folder = page.parent().unwrap_or(Path::new(""));
            let to = if path.is_empty() { root.join(page) } else { root.join(folder).join(path) };
            let Ok(to) = to.canonicalize() else {
                broken.push(format!("{}: {link}", page.display()));
                continue;
            };
            // What is outside of docs is not in the book.
            if page.starts_with("docs") && !to.starts_with(root.join("docs").canonicalize()?) {
                broken.push(format!("{}: {link} leads out of the book", page.display()));
            }
            if !anchor.is_empty() && !anchors(&std::fs::read_to_string(&to)?).contains(anchor) {
                broken.push(format!("{}: {link}: no such heading", page.display()));
            }
        }
    }
    let summary = pages.get(Path::new("docs/SUMMARY.md")).context("no docs/SUMMARY.md")?;
    let listed: BTreeSet<PathBuf> =
        links(summary).into_iter().map(|link| Path::new("docs").join(link)).collect();
    let missing = pages
        .keys()
        .filter(|page| page.starts_with("docs") && !page.ends_with("SUMMARY.md") && !listed.contains(*page));
    broken.extend(missing.map(|page| format!("{} is not in docs/SUMMARY.md", page.display())));
    ensure!(broken.is_empty(), "{}", broken.join("\n"));
    Ok(())
}
