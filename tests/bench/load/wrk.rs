//! Takes a target and what to ask of it; gives what `wrk` saw: 32 keep-alive connections at full speed, over HTTP/1.1. Refuses when wrk
//! is missing. Certificates are not verified: wrk cannot.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use postern_tests::process;
use serde_json::Value;

use super::{CONNECTIONS, Load};

/// An answer that takes longer is an error.
const PATIENCE: Duration = Duration::from_secs(5);
/// What wrk may need beyond the time it measures.
const GRACE: Duration = Duration::from_secs(15);

/// Whether wrk is there at all.
pub(crate) fn check() -> Result<()> {
    // It has no option that only asks for its version: any call exits with 1.
    match Command::new("wrk").arg("-v").output() {
        Ok(_) => Ok(()),
        Err(error) => bail!("wrk cannot be run ({error}): apt-get install wrk"),
    }
}

/// The end of every script: wrk's own summary in a form that is not for people.
const DONE: &str = r#"
done = function(summary, latency, requests)
    local e = summary.errors
    io.write(string.format(
        '\n{"requests":%d,"per_second":%.1f,"p50_us":%.1f,"p99_us":%.1f,"broken":%d,"refused":%d,"bytes_each":%d}\n',
        summary.requests, summary.requests / summary.duration * 1e6,
        latency:percentile(50), latency:percentile(99),
        e.connect + e.read + e.write + e.timeout, e.status,
        summary.bytes / math.max(summary.requests, 1)))
end
"#;

/// The same request each time; the token stays out of the command line that way.
pub(crate) fn script(file: &Path, token: Option<&str>) -> Result<()> {
    let header = token.map(|t| format!("wrk.headers[\"Authorization\"] = \"Bearer {t}\"\n"));
    Ok(std::fs::write(file, header.unwrap_or_default() + DONE)?)
}

/// One of many requests.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) path: String,
    pub(crate) token: String,
}

/// Another request each time; the threads share `asks` out between them. Where they must not be asked twice, a thread that has none left
/// sends what can only be refused, and the run counts as failed.
pub(crate) fn script_many(file: &Path, host: &str, asks: &[Ask], threads: usize, twice: bool) -> Result<()> {
    let list = file.with_extension("asks");
    let mut lines = String::new();
    for Ask { path, token } in asks {
        writeln!(lines, "{path} {token}")?;
    }
    std::fs::write(&list, lines)?;
    let list = list.display();
    let text = format!(
        r#"
local threads = 0
setup = function(thread)
    thread:set("id", threads)
    threads = threads + 1
end
local asks, at = {{}}, 0
init = function(args)
    local line = 0
    for ask in io.lines("{list}") do
        if line % {threads} == id then
            local path, token = ask:match("(%S+) (%S+)")
            asks[#asks + 1] = "GET " .. path .. " HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer " .. token .. "\r\n\r\n"
        end
        line = line + 1
    end
end
request = function()
    at = at + 1
    if {twice} and at > #asks then at = 1 end
    return asks[at] or "GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"
end
{DONE}"#
    );
    Ok(std::fs::write(file, text)?)
}

/// Loads `url` for `seconds`, each of `threads` with its share of the connections.
pub(crate) async fn run(url: &str, script: &Path, threads: usize, seconds: u32) -> Result<Load> {
    let mut command = Command::new("wrk");
    command
        .arg(format!("-t{threads}"))
        .arg(format!("-c{CONNECTIONS}"))
        .arg(format!("-d{seconds}s"))
        .arg(format!("--timeout={}s", PATIENCE.as_secs()))
        .arg("-s")
        .arg(script)
        .arg(url);
    let limit = Duration::from_secs(seconds.into()) + GRACE;
    let output = process::run(command, limit).await?.expect_code(0)?;
    parse(&output.stdout).with_context(|| format!("{url}: {}{}", output.stdout, output.stderr))
}

fn parse(stdout: &str) -> Result<Load> {
    let line = stdout.lines().rfind(|line| line.starts_with('{')).context("wrk printed no summary")?;
    let summary: Value = serde_json::from_str(line)?;
    let float = |name: &str| summary[name].as_f64().with_context(|| format!("no {name}"));
    let count = |name: &str| summary[name].as_u64().with_context(|| format!("no {name}"));
    Ok(Load {
        requests: count("requests")?,
        per_second: float("per_second")?,
        p50_us: Some(float("p50_us")?),
        p99_us: Some(float("p99_us")?),
        broken: count("broken")?,
        refused: count("refused")?,
        bytes_each: Some(count("bytes_each")?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"requests":90,"per_second":30.5,"p50_us":1.0,"p99_us":2.0,"broken":3,"refused":4,"bytes_each":1300}"#;

    #[test]
    fn the_last_line_of_json_counts_and_all_errors_with_it() {
        let load = parse(&format!("Running 3s test\n{{not this}}\n\n{GOOD}\n")).unwrap();
        assert_eq!((load.requests, load.broken, load.refused, load.bytes_each), (90, 3, 4, Some(1300)));
    }

    #[test]
    fn silence_and_missing_counts_are_errors() {
        for text in ["", "Running 3s test\n", &GOOD.replace("\"broken\":3,", "")] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
