//! What keeps running until it is told to stop: takes a command line, waits for what it says, ends it, and has it kept like any run.

use anyhow::{Context, Result};
use postern_tests::process::{Output, Program, Signal};
use postern_tests::{terminal, wait};
use rustix::process::Pid;

use super::seen::{Look, Seen, Who};

pub(super) struct Running {
    look: Look,
    who: Who,
    /// As it is shown.
    line: String,
    program: Program,
}

impl Running {
    /// Starts `line`, which stands in its page as `shown`.
    pub(super) fn start(seen: &mut Seen, look: Look, who: Who, line: &str, shown: &str) -> Result<Self> {
        let command = seen.command(look, who, line)?;
        let command = if look.is_terminal() { terminal::on(&command)? } else { command };
        let log = seen.log();
        Ok(Self { look, who, line: shown.to_owned(), program: Program::start(line, command, &log)? })
    }

    pub(super) async fn says(&mut self, needle: &str) -> Result<()> {
        self.says_again(needle, 1).await
    }

    /// The same for the `count`-th line that has it.
    pub(super) async fn says_again(&mut self, needle: &str, count: usize) -> Result<()> {
        self.program.wait_lines(needle, count, wait::SOON * 2).await.map(drop)
    }

    /// Waits for what follows `key`, up to the next blank.
    pub(super) async fn value(&mut self, key: &str) -> Result<String> {
        self.program.wait_value(key).await
    }

    /// Waits for its own end.
    pub(super) async fn ends(mut self, seen: &mut Seen, code: i32) -> Result<()> {
        let ended = self.program.wait_exit(wait::SOON * 2).await?.code().unwrap_or(-1);
        self.kept(seen, ended, code, None);
        Ok(())
    }

    /// Tells it to end, as Ctrl-C or a service manager does. What it draws again and again begins with `frame`: the first is kept.
    pub(super) async fn stop(
        mut self,
        seen: &mut Seen,
        how: Signal,
        code: i32,
        frame: Option<&str>,
    ) -> Result<()> {
        rustix::process::kill_process(self.pid()?, how).with_context(|| self.line.clone())?;
        let ended = self.program.wait_exit(wait::SOON * 2).await?.code().unwrap_or(-1);
        self.kept(seen, ended, code, frame);
        Ok(())
    }

    /// On a terminal the program is a child of `script`, which would have words of its own for a signal.
    fn pid(&self) -> Result<Pid> {
        let own = self.program.pid().to_string();
        let pid = if self.look.is_terminal() {
            let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children"))?;
            children.split_whitespace().next().context("nothing runs on the terminal")?.to_owned()
        } else {
            own
        };
        Pid::from_raw(pid.parse()?).context("no pid")
    }

    fn prints_data(&self) -> bool {
        self.line.starts_with("audit ") || self.line.starts_with("status ")
    }

    fn kept(self, seen: &mut Seen, ended: i32, code: i32, frame: Option<&str>) {
        let said = self.program.log_text().replace("\r\n", "\n");
        let first = |frame: &str| {
            let second = said.match_indices(frame).nth(1).map(|(at, _)| at);
            said[..second.unwrap_or(said.len())].to_owned()
        };
        let said = frame.map_or_else(|| said.clone(), first);
        let (stdout, stderr) = if self.look == Look::Json { parted(&said) } else { (String::new(), said) };
        let mut output = Output { code: ended, stdout, stderr };
        // Those two print data; the rest talk to people.
        if self.look.is_terminal() || (self.look == Look::Piped && self.prints_data()) {
            std::mem::swap(&mut output.stdout, &mut output.stderr);
        }
        seen.judge(self.look, self.who, &self.line, code, &output);
    }
}

/// Documents, and what is said to people: both outputs are in one file. A document begins with a brace, and ends with one or on its line.
fn parted(said: &str) -> (String, String) {
    let (mut documents, mut rest, mut inside) = (String::new(), String::new(), false);
    for line in said.split_inclusive('\n') {
        let is_data = inside || line.starts_with('{');
        inside = if inside { !line.starts_with('}') } else { line == "{\n" };
        if is_data { documents.push_str(line) } else { rest.push_str(line) }
    }
    (documents, rest)
}

#[test]
fn documents_are_told_from_what_is_said() {
    let said = "draining\n{\n  \"a\": 1\n}\nover\n{\"b\":2}\n";
    let expected = ("{\n  \"a\": 1\n}\n{\"b\":2}\n".to_owned(), "draining\nover\n".to_owned());
    assert_eq!(parted(said), expected);
}
