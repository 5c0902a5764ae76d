//! Takes a target and a token; gives what `h2load` saw: 8 HTTP/2 connections with 4 requests in flight on each, at full speed. Refuses
//! when h2load is missing. It says no quantiles of latency, and verifies no certificates.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use postern_tests::process;

use super::{CONNECTIONS, Load};

/// Requests in flight on each connection, so that as many are in flight as `wrk` has.
pub(crate) const STREAMS: usize = 4;
const GRACE: Duration = Duration::from_secs(15);

pub(crate) fn check() -> Result<()> {
    match Command::new("h2load").arg("--version").output() {
        Ok(_) => Ok(()),
        Err(error) => bail!("h2load cannot be run ({error}): apt-get install nghttp2-client"),
    }
}

/// Loads `url` for `seconds`; a plain one is spoken to in HTTP/2 at once.
pub(crate) async fn run(url: &str, token: Option<&str>, threads: usize, seconds: u32) -> Result<Load> {
    let mut command = Command::new("h2load");
    command
        .arg(format!("--threads={threads}"))
        .arg(format!("--clients={}", CONNECTIONS / STREAMS))
        .arg(format!("--max-concurrent-streams={STREAMS}"))
        .arg(format!("--duration={seconds}"));
    if let Some(token) = token {
        command.arg(format!("--header=authorization: Bearer {token}"));
    }
    command.arg(url);
    let limit = Duration::from_secs(seconds.into()) + GRACE;
    let output = process::run(command, limit).await?.expect_code(0)?;
    parse(&output.stdout, seconds).with_context(|| format!("{url}: {}{}", output.stdout, output.stderr))
}

fn parse(stdout: &str, seconds: u32) -> Result<Load> {
    let line = |start: &str| {
        stdout.lines().find_map(|line| line.strip_prefix(start)).with_context(|| format!("no line {start:?}"))
    };
    // "12 total, 34 started, ...": the number before a word.
    let count = |line: &str, word: &str| -> Result<u64> {
        let part = line.split(',').map(str::trim).find_map(|part| part.strip_suffix(word));
        Ok(part.with_context(|| format!("no {word}"))?.trim().parse()?)
    };
    let requests = line("requests: ")?;
    let statuses = line("status codes: ")?;
    let succeeded = count(requests, "succeeded")?;
    // Requests that the end of the time cut off are started and not done, and no errors.
    let mut broken = 0;
    for word in ["errored", "timeout"] {
        broken += count(requests, word)?;
    }
    let good = count(statuses, "2xx")?;
    let mut refused = 0;
    for word in ["3xx", "4xx", "5xx"] {
        refused += count(statuses, word)?;
    }
    // "traffic: 1.2MB (123456) total, ...": the exact number in parentheses.
    let bytes = line("traffic: ")?.split(['(', ')']).nth(1).context("no traffic")?.parse::<u64>()?;
    Ok(Load {
        requests: good,
        #[expect(clippy::cast_precision_loss, reason = "far from 2^53 requests")]
        per_second: good as f64 / f64::from(seconds),
        broken: broken.saturating_sub(count(requests, "total")?.saturating_sub(count(requests, "done")?)),
        refused: refused.max(succeeded.saturating_sub(good)),
        bytes_each: Some(bytes / good.max(1)),
        ..Load::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "starting benchmark...
finished in 3.00s, 30.00 req/s, 12.00MB/s
requests: 90 total, 122 started, 90 done, 88 succeeded, 2 failed, 0 errored, 0 timeout
status codes: 88 2xx, 0 3xx, 2 4xx, 0 5xx
traffic: 1.20MB (117000) total, 1.00KB (1000) headers (space savings 95.00%), 1.00MB (1000000) data
";

    #[test]
    fn good_answers_count_and_the_others_are_refusals() {
        let load = parse(TEXT, 3).unwrap();
        assert_eq!((load.requests, load.refused, load.broken, load.bytes_each), (88, 2, 0, Some(1329)));
        assert!((load.per_second - 88.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn what_is_not_its_summary_is_an_error() {
        assert!(parse("", 3).is_err());
        assert!(parse(&TEXT.replace("status codes", "codes"), 3).is_err());
    }
}
