//! What the doctor found: takes checks as they end; gives the one line that a person sees with what to do below it, and what was not
//! looked at; the document for programs, and the exit code of the first that failed.

use postern_base::console::checks::{Check, Report, State};

use crate::failure::{Exit, Failure};

/// All that was looked at, in order.
#[derive(Debug, Default)]
pub(super) struct Found {
    checks: Vec<Check>,
    /// How much of a good one is shown.
    marks: Vec<String>,
    exit: Option<Exit>,
}

impl Found {
    /// `detail` is for programs; a person sees the name alone.
    pub(super) fn good(&mut self, name: &str, detail: impl Into<String>) {
        self.add(Check::good(name, detail), name.to_owned());
    }

    /// A person sees the detail too: `token 42 min`.
    pub(super) fn measured(&mut self, name: &str, detail: impl Into<String>) {
        let detail = detail.into();
        let mark = format!("{name} {detail}");
        self.add(Check::good(name, detail), mark);
    }

    pub(super) fn bad(&mut self, name: &str, detail: &str, exit: Exit, fix: impl Into<String>) {
        self.exit.get_or_insert(exit);
        self.add(Check::bad(name, detail, fix), format!("{name}: {detail}"));
    }

    /// What a room already knows how to say.
    pub(super) fn failed(&mut self, name: &str, failure: &Failure) {
        let details = failure.details.iter().map(|line| format!("; {line}"));
        let detail = std::iter::once(failure.message.clone()).chain(details).collect::<String>();
        let fix = failure.fix.clone().unwrap_or_else(|| "tell whoever runs the relay".to_owned());
        self.bad(name, &detail, failure.exit, fix);
    }

    pub(super) fn warn(&mut self, name: &str, detail: &str, fix: impl Into<String>) {
        self.add(Check::warn(name, detail, fix), format!("{name}: {detail}"));
    }

    pub(super) fn skipped(&mut self, name: &str, why: &str) {
        self.add(Check::skipped(name, why), format!("{name}: {why}"));
    }

    fn add(&mut self, check: Check, mark: String) {
        self.checks.push(check);
        self.marks.push(mark);
    }

    /// `✓ DNS  ✓ TCP 443  ✗ TLS: …`, then a line for each fix, and for each thing that was not looked at.
    pub(super) fn text(&self) -> String {
        let (mut line, mut skipped) = (Vec::new(), String::new());
        for (check, mark) in self.checks.iter().zip(&self.marks) {
            match check.state {
                State::Good => line.push(format!("✓ {mark}")),
                State::Bad => line.push(format!("✗ {mark}")),
                State::Warn => line.push(format!("! {mark}")),
                State::Skipped => skipped.extend(["\n- ", mark]),
            }
        }
        let fixes = self.checks.iter().filter_map(|check| check.fix.as_ref());
        fixes.fold(line.join("  "), |text, fix| format!("{text}\n  Fix: {fix}")) + &skipped
    }

    pub(super) fn report(&self) -> Report {
        Report { ok: self.exit.is_none(), checks: self.checks.clone() }
    }

    pub(super) fn code(&self) -> u8 {
        self.exit.map_or(0, Exit::code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_and_what_to_do() {
        let mut found = Found::default();
        found.good("DNS", "192.0.2.7");
        found.good("TCP 443", "");
        found.measured("token", "42 min");
        assert_eq!(found.code(), 0);
        found.warn("clock", "2 min ahead of the relay's", "set this machine's clock");
        found.bad(
            "upstream",
            "connection refused (agent dc1)",
            Exit::UpstreamDown,
            "start the service behind agent dc1",
        );
        found.skipped("upstreams", "not tried");
        insta::assert_snapshot!(found.text(), @r"
        ✓ DNS  ✓ TCP 443  ✓ token 42 min  ! clock: 2 min ahead of the relay's  ✗ upstream: connection refused (agent dc1)
          Fix: set this machine's clock
          Fix: start the service behind agent dc1
        - upstreams: not tried
        ");
        found.bad("later", "x", Exit::Other, "y");
        assert_eq!((found.code(), found.report().ok), (8, false));
        let shape = serde_json::to_value(found.report()).unwrap();
        assert_eq!(
            shape["checks"][0],
            serde_json::json!({ "name": "DNS", "state": "good", "detail": "192.0.2.7", "fix": null })
        );
    }
}
