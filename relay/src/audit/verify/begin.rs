//! Where a log begins: takes the first line that there is, and what the log says of files that it removed; gives a note where the relay
//! itself removed what was before, and the chain proves that. Everything else is a finding: a log's beginning is cut off as easily as its end.

use postern_base::audit::chain::Mark;

use super::{Finding, Kind, Said, Verifier, range};

/// A log that does not begin with its first line.
#[derive(Debug)]
pub(super) struct Late {
    first: u64,
    /// Whether its first line is that of a file, says what stood before, and is not known to be another's.
    is_file: bool,
    /// The file that was before it.
    previous: Option<String>,
    /// The line that says that the relay itself removed that file, and whether the key proves it.
    removed: Option<(u64, bool)>,
}

impl Verifier {
    /// The first line there is, where it is not the log's first.
    pub(super) fn begins_late(&mut self, first: u64, said: &Said, told: Option<Mark>) {
        self.stand(told);
        let is_file = said.event == "file" && told.is_some();
        self.late = Some(Late { first, is_file, previous: said.previous.clone(), removed: None });
        let Some((kept, told)) = self.held.get(&(first - 1)).copied().zip(told) else { return };
        self.held_to = first - 1;
        if told.head == kept {
            self.report.heads_met += 1;
        } else {
            let text = format!("seq {first} names another head of what is before it than the agent holds");
            self.find(Kind::Rewritten, Some(first - 1), text);
            self.state.head = Some(kept);
        }
    }

    /// Whether the relay itself removed what is before the first line, as the chain proves: by the key, or by a head that an agent holds.
    pub(super) fn judge_begin(&mut self) {
        let Some(late) = self.late.take() else { return };
        let before = range(1, late.first - 1);
        let is_proved = late.removed.is_some_and(|(at, by_key)| by_key || at <= self.met_to);
        if late.is_file && is_proved {
            return self.report.notes.push(format!(
                "begins at line {}; lines 1 to {} were removed by rotation (file-removed lines say so)",
                late.first,
                late.first - 1
            ));
        }
        let unmet = self.held.range(..late.first - 1).count();
        let heads = if unmet > 0 {
            format!(", among them {unmet} line(s) whose heads the agent holds")
        } else {
            String::new()
        };
        let why = match late.removed {
            Some(_) => "and neither a key nor a head proves the line that says that rotation removed them",
            None => "and no line says that rotation removed them",
        };
        let text = format!("{before} missing{heads}, {why}: verify the older files too");
        // It is the first of what is wrong.
        self.report.findings.insert(
            0,
            Finding { kind: Kind::Missing, file: None, line: None, seq: Some(1), request_id: None, text },
        );
    }

    /// A line that may say why there is nothing before the first.
    pub(super) fn removed(&mut self, sequence: u64, said: &Said, proved: Option<bool>) {
        if let Some(late) = &mut self.late
            && said.event == "file-removed"
            && said.file.is_some()
            && said.file == late.previous
        {
            late.removed = Some((sequence, proved == Some(true)));
        }
    }
}

#[cfg(test)]
mod tests;
