//! Takes a target; gives what `wrk` saw of it: requests, rate, latency, and everything that went wrong. Refuses when wrk is missing, or
//! got not one answer.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use postern_tests::process;
use serde_json::{Value, json};

/// Keep-alive connections, in all modes.
pub(crate) const CONNECTIONS: u32 = 32;
/// An answer that takes longer is an error.
const PATIENCE: Duration = Duration::from_secs(5);
/// What wrk may need beyond the time it measures.
const GRACE: Duration = Duration::from_secs(15);

/// One run's outcome.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// Answers that came whole.
    pub(crate) requests: u32,
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Connections, reads and writes that failed, and answers that came too late.
    pub(crate) broken: u32,
    /// Answers with a status of 400 or more.
    pub(crate) refused: u32,
    /// Bytes received per answer, heads included.
    pub(crate) bytes_each: u32,
}

impl Load {
    pub(crate) fn errors(&self) -> u32 {
        self.broken + self.refused
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "requests": self.requests,
            "per_second": self.per_second,
            "p50_us": self.p50_us,
            "p99_us": self.p99_us,
            "errors": { "broken": self.broken, "status": self.refused },
            "bytes_each": self.bytes_each,
        })
    }
}

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

/// Writes the script of one target; the token stays out of the command line that way.
pub(crate) fn script(file: &Path, token: Option<&str>) -> Result<()> {
    let header = token.map(|t| format!("wrk.headers[\"Authorization\"] = \"Bearer {t}\"\n"));
    Ok(std::fs::write(file, header.unwrap_or_default() + DONE)?)
}

/// Loads `url` for `seconds`, each of `threads` with its share of the connections. Certificates are not verified: wrk cannot.
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
    let count = |name: &str| -> Result<u32> {
        Ok(u32::try_from(summary[name].as_u64().with_context(|| format!("no {name}"))?)?)
    };
    let load = Load {
        requests: count("requests")?,
        per_second: float("per_second")?,
        p50_us: float("p50_us")?,
        p99_us: float("p99_us")?,
        broken: count("broken")?,
        refused: count("refused")?,
        bytes_each: count("bytes_each")?,
    };
    anyhow::ensure!(load.requests > 0, "not one answer");
    Ok(load)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"requests":90,"per_second":30.5,"p50_us":1.0,"p99_us":2.0,"broken":3,"refused":4,"bytes_each":1300}"#;

    #[test]
    fn the_last_line_of_json_counts_and_all_errors_with_it() {
        let load = parse(&format!("Running 3s test\n{{not this}}\n\n{GOOD}\n")).unwrap();
        assert_eq!((load.requests, load.errors(), load.bytes_each), (90, 7, 1300));
    }

    #[test]
    fn silence_and_zero_answers_are_errors() {
        for text in ["", "Running 3s test\n", &GOOD.replace("90", "0"), &GOOD.replace("\"broken\":3,", "")] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
