//! `docs/fidelity.md`: written from the table that the tests run, and held to it. A cell names the test that proves it.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use postern_tests::process;

use super::table::{Cell, ROWS, Row};
use super::{Link, Protocol};

const COLUMNS: [(Protocol, Link); 4] = [
    (Protocol::Http1, Link::Quic),
    (Protocol::Http2, Link::Quic),
    (Protocol::Http1, Link::Tcp),
    (Protocol::Http2, Link::Tcp),
];

const BEFORE: &str = "\
# Faithful HTTP

What a service speaks works through Postern as it does without. Each cell is a test between programs written by others, with relay and
agent between them: the caller's software → the upstream's. What was sent is compared with what arrived at the other end; times are
read at both ends from the same clock.

This table is what the tests run: `tests/e2e/fidelity/table.rs` holds both, and a test fails when they differ. A cell names the test
that proves it, below `fidelity::cells` in `cargo nextest run --workspace --config-file tests/nextest.toml`. The other programs lie in
`tests/stacks`, where their versions are pinned; `tests/run` installs them.

Upstreams are asked over HTTP/1.1 unless the last column says h2c (HTTP/2 without TLS).

";

fn cell(row: &Row, protocol: Protocol, link: Link) -> String {
    match row.cell(protocol) {
        Cell::Proved => format!("yes: `{}`", row.test(protocol, link)),
        Cell::InPart(missing) => format!("in part: `{}`; {missing}", row.test(protocol, link)),
        Cell::Senseless(why) => format!("no: {why}"),
    }
}

fn document() -> String {
    let mut text = BEFORE.to_owned();
    let heads = COLUMNS.map(|(protocol, link)| format!("{} over {}", protocol.name(), link.name()));
    let _ = writeln!(text, "| feature | what is shown | {} | proved with |", heads.join(" | "));
    let _ = writeln!(text, "|{}", "---|".repeat(COLUMNS.len() + 3));
    for row in ROWS {
        let cells = COLUMNS.map(|(protocol, link)| cell(row, protocol, link));
        let _ =
            writeln!(text, "| {} | {} | {} | {} |", row.feature, row.shown, cells.join(" | "), row.between);
    }
    text
}

/// `POSTERN_WRITE_DOCS=1` writes it.
#[test]
fn the_document_is_what_the_tests_prove() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/fidelity.md");
    if std::env::var_os("POSTERN_WRITE_DOCS").is_some() {
        std::fs::write(&path, document())?;
    }
    let written = std::fs::read_to_string(&path).context("docs/fidelity.md")?;
    ensure!(written == document(), "docs/fidelity.md is not the table: POSTERN_WRITE_DOCS=1 writes it anew");
    Ok(())
}

#[tokio::test]
async fn every_cell_has_its_test() -> Result<()> {
    let own = process::command(std::env::current_exe()?, ["--list", "--format", "terse"]);
    let tests = process::run(own, postern_tests::wait::SOON).await?.expect_code(0)?.stdout;
    for row in ROWS {
        for (protocol, link) in COLUMNS {
            if let Cell::Senseless(why) = row.cell(protocol) {
                ensure!(!why.is_empty(), "{}: an empty cell", row.feature);
                continue;
            }
            let name = format!("fidelity::cells::{}: test", row.test(protocol, link));
            ensure!(tests.lines().any(|line| line == name), "{}: there is no test {name}", row.feature);
        }
    }
    Ok(())
}
