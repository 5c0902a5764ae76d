//! Proves an audit log: takes its lines in order, the first key and the heads that an agent holds, where there are any; finds what was
//! changed, removed, put in, moved or cut off, and what the log itself says it lacks. The first finding is the first bad line.

use std::collections::BTreeMap;

use postern_base::audit::chain::{ChainKey, Head, Mac, Mark, Sealed};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::begin::Late;

mod begin;

/// Findings that are kept; the rest are counted.
const FINDINGS: usize = 1000;
/// A number that is further ahead is not believed: going there would take a minute for each line of somebody's making.
const AHEAD: u64 = 16_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// No line of a chain.
    Malformed,
    /// Not what was written.
    Changed,
    /// Not there, and nothing says why.
    Missing,
    /// Put in, repeated or moved.
    OutOfOrder,
    /// Not there, and the log says so itself.
    Gap,
    /// Not what the head covers that an agent holds.
    Rewritten,
    /// An agent was told one head of a line, and later another.
    TwoHeads,
    /// An agent holds the head of a line behind the last one.
    Truncated,
    /// A request that the relay's log has and the agent's has not.
    RelayOnly,
    /// A request that the agent's log has and the relay's has not, or not as an allowed one.
    AgentOnly,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Finding {
    pub kind: Kind,
    /// The file and the number of the line in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    pub text: String,
}

/// What was found.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct Report {
    pub lines: u64,
    /// Sequence numbers of the first and last line.
    pub first: Option<u64>,
    pub last: Option<u64>,
    /// Lines that the key proved, and heads of the agent's that were met.
    pub proved: u64,
    pub heads_met: u64,
    /// What is as it should be, and worth knowing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    pub findings: Vec<Finding>,
    /// Findings beyond those.
    pub more: u64,
}

impl Report {
    pub fn find(&mut self, finding: Finding) {
        if self.findings.len() < FINDINGS {
            self.findings.push(finding);
        } else {
            self.more += 1;
        }
    }
}

/// What a line says of the chain.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Said {
    event: String,
    after: Option<String>,
    /// Of `file` and `file-removed` lines.
    previous: Option<String>,
    file: Option<String>,
    reason: Option<String>,
    lost: Option<u64>,
    first: Option<u64>,
    last: Option<u64>,
}

/// What the lines so far led to.
#[derive(Debug, Clone)]
struct State {
    /// The next line's number.
    next: Option<u64>,
    mac: Option<Mac>,
    head: Option<Head>,
    /// And of which line it is.
    key: Option<(u64, ChainKey)>,
}

impl State {
    fn key_of(&mut self, sequence: u64) -> Option<&ChainKey> {
        let (at, key) = self.key.as_mut()?;
        while *at < sequence {
            key.ratchet();
            *at += 1;
        }
        (*at == sequence).then_some(key)
    }
}

#[derive(Debug)]
pub struct Verifier {
    state: State,
    /// Before lines that seemed to be missing.
    before_jump: Option<State>,
    held: BTreeMap<u64, Head>,
    /// The last line whose head an agent holds, as it is here.
    held_to: u64,
    /// The last one that has the head that the agent holds.
    met_to: u64,
    late: Option<Late>,
    file: String,
    number: u64,
    report: Report,
}

impl Verifier {
    pub fn new(key: Option<ChainKey>, held: BTreeMap<u64, Head>) -> Self {
        Self {
            state: State { next: None, mac: None, head: None, key: key.map(|key| (1, key)) },
            before_jump: None,
            held,
            held_to: 0,
            met_to: 0,
            late: None,
            file: String::new(),
            number: 0,
            report: Report::default(),
        }
    }

    /// The next lines are of this file.
    pub fn file(&mut self, name: &str) {
        name.clone_into(&mut self.file);
        self.number = 0;
    }

    fn find(&mut self, kind: Kind, seq: Option<u64>, text: String) {
        let finding = Finding {
            kind,
            file: Some(self.file.clone()),
            line: Some(self.number),
            seq,
            request_id: None,
            text,
        };
        self.report.find(finding);
    }

    pub fn line(&mut self, line: &[u8]) {
        self.number += 1;
        self.report.lines += 1;
        let said: Option<Said> = serde_json::from_slice(line).ok();
        let Some((sealed, said)) = Sealed::parse(line).zip(said) else {
            return self.find(
                Kind::Malformed,
                None,
                "no line of this log: it has no seq and no mac".to_owned(),
            );
        };
        let sequence = sealed.sequence;
        let told = said.after.as_deref().and_then(Mark::parse);
        let mut is_behind_gap = self.state.next.is_none();
        match self.state.next {
            None if sequence == 1 => self.stand(Some(Mark::START)),
            None => self.begins_late(sequence, &said, told),
            Some(next) if sequence < next => {
                let Some(back) = self.before_jump.take_if(|before| came_back(before, &sealed)) else {
                    let text =
                        format!("seq {sequence} comes behind seq {}: put in, repeated or moved", next - 1);
                    return self.find(Kind::OutOfOrder, Some(sequence), text);
                };
                // What seemed to be missing is here: what stood in front of it does not belong there.
                self.state = back;
                if let Some(wrong) = self.report.findings.iter_mut().rev().find(|f| f.kind == Kind::Missing) {
                    wrong.kind = Kind::OutOfOrder;
                    wrong.text =
                        format!("a line in front of seq {sequence} does not belong there: put in or moved");
                }
            }
            Some(next) if sequence - next > AHEAD => {
                let text = format!("seq {sequence} comes behind seq {}: put in", next - 1);
                return self.find(Kind::OutOfOrder, Some(sequence), text);
            }
            Some(next) if sequence > next => {
                is_behind_gap = true;
                self.before_jump = Some(self.state.clone());
                self.stand(told);
                let is_told = said.event == "gap" && self.proves(&sealed) != Some(false);
                let (kind, why) =
                    if is_told { (Kind::Gap, "; the log says so itself") } else { (Kind::Missing, "") };
                let reason =
                    said.reason.as_deref().filter(|_| is_told).map_or(String::new(), |r| format!(" ({r})"));
                let text =
                    format!("{} missing in front of seq {sequence}{why}{reason}", range(next, sequence - 1));
                self.find(kind, Some(next), text);
            }
            Some(_) => {}
        }
        self.report.first.get_or_insert(sequence);
        let proved = self.proves(&sealed);
        match proved {
            Some(true) => self.report.proved += 1,
            Some(false) => {
                self.find(Kind::Changed, Some(sequence), format!("seq {sequence} is not what was written"));
            }
            None => {}
        }
        self.removed(sequence, &said, proved);
        if said.event == "gap" {
            self.gap(sequence, &said, is_behind_gap);
        }
        self.state.next = Some(sequence + 1);
        self.state.mac = Some(sealed.mac);
        self.state.head = self.state.head.map(|head| sealed.head(head));
        self.report.last = Some(sequence);
        self.compare(sequence);
    }

    fn stand(&mut self, mark: Option<Mark>) {
        self.state.mac = mark.map(|mark| mark.mac);
        self.state.head = mark.map(|mark| mark.head);
    }

    /// Whether the key proves it; nothing where there is no key, or it is not known what stood in front.
    fn proves(&mut self, sealed: &Sealed<'_>) -> Option<bool> {
        let before = self.state.mac?;
        let key = self.state.key_of(sealed.sequence)?;
        Some(sealed.is_proved_by(key, before))
    }

    /// A gap that no missing number shows.
    fn gap(&mut self, sequence: u64, said: &Said, is_shown: bool) {
        if is_shown && said.lost == said.first.zip(said.last).map(|(first, last)| last - first + 1) {
            return;
        }
        let reason = said.reason.as_deref().unwrap_or("gap");
        let text = match (said.lost, said.first.zip(said.last)) {
            (Some(lost), _) => {
                format!("seq {sequence} says that {lost} line(s) were lost before it ({reason})")
            }
            (None, Some((first, last))) => {
                format!("seq {sequence} says that {} are not the relay's ({reason})", range(first, last))
            }
            (None, None) => format!("seq {sequence} says that what was before it is not whole ({reason})"),
        };
        self.find(Kind::Gap, Some(sequence), text);
    }

    /// With the head that an agent holds of this line.
    fn compare(&mut self, sequence: u64) {
        let Some(kept) = self.held.get(&sequence).copied() else { return };
        match self.state.head {
            Some(head) if head == kept => {
                self.report.heads_met += 1;
                self.met_to = sequence;
            }
            Some(_) => {
                let text =
                    format!("{} are not those whose head the agent holds", range(self.held_to + 1, sequence));
                self.find(Kind::Rewritten, Some(self.held_to + 1), text);
            }
            None => {}
        }
        self.held_to = sequence;
        self.state.head = Some(kept);
    }

    /// What was found, when every line was seen.
    pub fn finish(mut self) -> Report {
        self.judge_begin();
        let last = self.report.last.unwrap_or(0);
        if let Some((held, _)) = self.held.last_key_value().filter(|(held, _)| **held > last) {
            let text = format!(
                "the log ends with seq {last}, but the agent holds the head of seq {held}: its end was cut off"
            );
            self.report.find(Finding {
                kind: Kind::Truncated,
                file: None,
                line: None,
                seq: Some(last + 1),
                request_id: None,
                text,
            });
        }
        self.report
    }
}

/// Whether a line is the one that was expected before lines seemed to be missing.
fn came_back(before: &State, sealed: &Sealed<'_>) -> bool {
    let is_next = before.next == Some(sealed.sequence);
    let mut before = before.clone();
    let proved =
        before.mac.zip(before.key_of(sealed.sequence)).map(|(mac, key)| sealed.is_proved_by(key, mac));
    is_next && proved == Some(true)
}

fn range(first: u64, last: u64) -> String {
    if first == last { format!("seq {first}") } else { format!("seq {first} to {last}") }
}

#[cfg(test)]
mod tests;
