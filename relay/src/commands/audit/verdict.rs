//! What `audit verify` may say of a log: takes what was found and what it was held against; gives whether the log is good, and what the
//! reader has to know beside that. What nothing proved is never called good.

use crate::audit::verify::{Kind, Report};

/// What the log was held against.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Given {
    pub(super) key: bool,
    pub(super) agents: bool,
    /// The caller wants no more than the numbers.
    pub(super) numbers_only: bool,
}

/// Whether it is good: nothing where nothing wrong was found and nothing was proved either.
pub(super) fn ok(report: &Report) -> Option<bool> {
    let is_proved = report.proved > 0 || report.heads_met > 0;
    if report.findings.is_empty() { is_proved.then_some(true) } else { Some(false) }
}

impl Given {
    /// In words.
    pub(super) fn verdict(self, report: &Report) -> &'static str {
        match ok(report) {
            Some(true) => "nothing wrong",
            Some(false) => "NOT as it was written",
            None if self.numbers_only => "numbers complete; contents NOT proved",
            None if self.agents => "numbers complete; contents NOT proved: give --key-file",
            None => "numbers complete; contents NOT proved: give --key-file or --against",
        }
    }

    /// What the verdict leaves open.
    pub(super) fn notes(self, report: &Report) -> Vec<String> {
        let found = |kinds: &[Kind]| report.findings.iter().any(|finding| kinds.contains(&finding.kind));
        let mut notes = Vec::new();
        if self.key && report.proved == 0 && found(&[Kind::Changed]) {
            notes.push("! the first line already fails: is this the key of this log?".to_owned());
        }
        if self.agents && report.heads_met == 0 {
            let text = if found(&[Kind::Rewritten, Kind::Truncated]) {
                "! the first head already fails: is this the agent of this log?"
            } else {
                "! no head in the agent's log is one of these lines: is this the agent of this log?"
            };
            notes.push(text.to_owned());
        }
        match (self.key, self.agents, report.last) {
            (true, false, Some(last)) => notes.push(format!(
                "! what may be missing after line {last} is not proved: add --against AGENT-FILE"
            )),
            (false, true, _) => notes.push(
                "! without --key-file (the key that init showed) only the numbers were looked at, and what heads of --against cover"
                    .to_owned(),
            ),
            _ => {}
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::verify::Finding;

    fn report(proved: u64, heads_met: u64, kinds: &[Kind]) -> Report {
        let finding = |kind: &Kind| Finding {
            kind: *kind,
            file: None,
            line: None,
            seq: Some(1),
            request_id: None,
            text: String::new(),
        };
        let findings = kinds.iter().map(finding).collect();
        Report { lines: 9, first: Some(1), last: Some(9), proved, heads_met, findings, ..Report::default() }
    }

    #[test]
    fn what_nothing_proved_is_not_called_good() {
        let nothing = Given::default();
        let numbers = Given { numbers_only: true, ..nothing };
        assert_eq!(ok(&report(0, 0, &[])), None);
        assert_eq!(ok(&report(0, 0, &[Kind::Missing])), Some(false));
        assert_eq!(ok(&report(0, 1, &[])), Some(true), "heads need no key");
        assert_eq!(ok(&report(9, 0, &[])), Some(true));
        assert_eq!(ok(&report(8, 0, &[Kind::Changed])), Some(false));
        assert!(nothing.verdict(&report(0, 0, &[])).ends_with("give --key-file or --against"));
        assert!(numbers.verdict(&report(0, 0, &[])).ends_with("contents NOT proved"));
    }

    #[test]
    fn what_is_left_open_is_said() {
        let key = Given { key: true, ..Given::default() };
        let agents = Given { agents: true, ..Given::default() };
        let both = Given { key: true, ..agents };
        let end = "! what may be missing after line 9 is not proved: add --against AGENT-FILE";
        assert_eq!(key.notes(&report(9, 0, &[])), [end]);
        assert!(both.notes(&report(9, 1, &[])).is_empty());
        let wrong = key.notes(&report(0, 0, &[Kind::Changed, Kind::Changed]));
        assert!(wrong[0].ends_with("is this the key of this log?"), "{wrong:?}");
        assert_eq!(key.notes(&report(7, 0, &[Kind::Changed])), [end], "the key is the right one");
        for kinds in [&[][..], &[Kind::Rewritten], &[Kind::Truncated]] {
            let notes = agents.notes(&report(0, 0, kinds));
            assert!(notes[0].ends_with("is this the agent of this log?"), "{notes:?}");
        }
        assert!(Given::default().notes(&report(0, 0, &[])).is_empty());
    }
}
