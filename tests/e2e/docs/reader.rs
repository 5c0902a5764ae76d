//! Somebody who follows a page: types its commands in their order into one shell, enters codes, answers questions, leaves what stays in the
//! foreground in a terminal of its own, and holds what is printed against what is shown.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::book::{self, Block, Mark, Run, Step};
use postern_tests::issuer::Issuer;
use postern_tests::machine::Machine;
use postern_tests::process::{self, binary, command};
use postern_tests::shell::Shell;
use postern_tests::stand::say;
use postern_tests::{terminal, wait};
use tokio::net::TcpStream;

/// Who a code is entered as, and where.
pub(super) enum Codes<'a> {
    /// The page shows it: the login waits for that block.
    AsShown,
    /// Ada, at the stand's issuer.
    At(&'a Issuer),
    /// Ada, at the demo's issuer on that machine.
    On(&'a Machine),
}

/// A page being followed.
pub(super) struct Reader<'a> {
    pub(super) shell: Shell,
    /// What the page says, and what it is here.
    pub(super) replaced: Vec<(String, String)>,
    pub(super) codes: Codes<'a>,
    /// A file of the platform's in which each command finds a fresh token.
    pub(super) workload: Option<PathBuf>,
    /// Where ada's session is, if she has one.
    pub(super) sessions: Option<PathBuf>,
    /// Blocks are typed by different people, or on different machines: none finds another's session.
    pub(super) apart: bool,
    /// What is there as long as a browser runs in which somebody logs in.
    pub(super) browser: Option<PathBuf>,
    /// No relay runs, so no agent is told anything.
    pub(super) alone: bool,
    /// A login that waits for its code to be entered, with what is to be printed when it is done.
    login: Option<Step>,
    /// Programs in terminals of their own, by their process ids.
    staying: Vec<String>,
    /// The last invite that was shown.
    invite: Option<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(shell: Shell, replaced: Vec<(String, String)>, codes: Codes<'a>) -> Self {
        let (workload, sessions, browser, login, invite) = (None, None, None, None, None);
        let (apart, alone, staying) = (false, false, Vec::new());
        Self { shell, replaced, codes, workload, sessions, apart, browser, alone, login, staying, invite }
    }

    fn here(&self, text: &str) -> String {
        self.replaced.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
    }

    pub(super) fn is_done(&self) -> bool {
        self.login.is_none()
    }

    /// `cargo` finds everything built, and so does `target` afterwards.
    pub(super) async fn with_cargo(&mut self, dir: &Path) -> Result<()> {
        let programs = binary("postern")?;
        let programs = programs.parent().context("the programs have no directory")?.display().to_string();
        let tools = dir.join("tools");
        std::fs::create_dir_all(&tools)?;
        let text = include_str!("cargo.sh").replace("@PROGRAMS@", &programs);
        process::script(&tools.join("cargo"), &text)?;
        // Our programs are found where the page says that they are, and nowhere else.
        let done = self.shell.run(&format!("PATH='{}':${{PATH#'{programs}:'}}", tools.display())).await?;
        ensure!(done.code == 0, "{}", done.printed);
        Ok(())
    }

    async fn follow(&mut self, step: &Step) -> Result<()> {
        let typed = self.here(&step.command);
        say(&format!("$ {typed}"));
        if let (Some(file), Codes::At(issuer)) = (&self.workload, &self.codes) {
            std::fs::write(file, issuer.clients.assertion("nightly-jwt", issuer.iss())?)?;
        }
        if typed.contains("user_code=") {
            return self.enter_code(&typed).await;
        }
        if typed.starts_with("postern login") && !typed.contains("--client-credentials") {
            return self.log_in(step, &typed).await;
        }
        if typed.starts_with("postern ") && typed.contains(" forward ") {
            self.stop_staying().await?;
            if !typed.contains(" -- ") && !typed.ends_with('&') {
                return self.stay(step, &typed).await;
            }
        }
        if let Codes::On(machine) = self.codes
            && typed.contains("postern-agent join")
        {
            return self.answer(machine, step, &typed).await;
        }
        let done = self.shell.run(&typed).await?;
        self.judge(step, &done.printed, done.code)?;
        let invite = done.printed.lines().find(|line| line.starts_with("pst"));
        self.invite = invite.map(str::to_owned).or(self.invite.take());
        if typed.contains("postern-relay init") && matches!(self.codes, Codes::AsShown) {
            // Other tests run beside this one, and all would have the same port for metrics.
            let file = Path::new(&self.here("/tmp/postern")).join("relay.toml");
            let text = std::fs::read_to_string(&file)?;
            std::fs::write(file, text.replace("127.0.0.1:9440", "127.0.0.1:0"))?;
        }
        if typed.contains("agent resume") {
            self.agent_is_up().await?;
        }
        if typed.contains("ca rotate") && !self.alone {
            // Each agent moves at a moment of its own.
            let moved = async || {
                self.shell.run("postern-relay ca show").await.ok()?.printed.contains("All ").then_some(())
            };
            wait::until("every agent has moved", wait::SOON * 2, moved).await?;
        }
        Ok(())
    }

    /// The relay has its tunnels.
    async fn agent_is_up(&mut self) -> Result<()> {
        let up = async || {
            self.shell.run("postern-relay agent ls").await.ok()?.printed.contains(" up").then_some(())
        };
        wait::until("the agent's tunnels are up", wait::SOON * 2, up).await
    }

    /// In a browser, or by a code: here, or in a block that follows.
    async fn log_in(&mut self, step: &Step, typed: &str) -> Result<()> {
        self.shell.begin(typed)?;
        let asked = async || (self.shell.has_ended() || self.code().is_some()).then_some(());
        wait::until("a code to enter, or the end", wait::SOON * 2, asked).await?;
        match (self.code().filter(|_| !self.shell.has_ended()), &self.codes) {
            (Some(_), Codes::AsShown) => {
                self.login = Some(step.clone());
                return Ok(());
            }
            (Some(code), Codes::At(issuer)) => issuer.approve_device("ada", &code).await?,
            (Some(code), Codes::On(machine)) => {
                let enter =
                    format!("curl -sSf -d user_code={code} -d person=ada http://127.0.0.1:9500/device");
                machine.run(&enter).await?.expect_code(0)?;
            }
            (None, _) => {}
        }
        let done = self.shell.finish().await?;
        // The shell's end would otherwise be node's, and Chromium would be left alone.
        if let Some(runs) = &self.browser {
            let is_gone = async || (!runs.exists()).then_some(());
            wait::until("the browser has ended", wait::SOON * 2, is_gone).await?;
        }
        self.judge(step, &done.printed, done.code)
    }

    /// The code that the login shows.
    fn code(&self) -> Option<String> {
        let text = self.shell.so_far();
        Some(text.split_once("Code: ")?.1.split_whitespace().next()?.to_owned())
    }

    /// Beside the login, as if in another terminal.
    async fn enter_code(&mut self, typed: &str) -> Result<()> {
        let login = self.login.take().context("no login waits for a code")?;
        let code = self.code().context("no code")?;
        let shown =
            typed.split_once("user_code=").map(|(_, rest)| rest.chars().take_while(|c| !c.is_whitespace()));
        let typed = typed.replace(&shown.context("no code is shown")?.collect::<String>(), &code);
        process::run(command("bash", ["-c", &typed]), wait::SOON).await?.expect_code(0)?;
        let done = self.shell.finish().await?;
        self.judge(&login, &done.printed, done.code)
    }

    /// In a terminal of its own, until the next one or the page's end. It is at work when it has said what is shown; nobody tries its port,
    /// for that would be a connection of its own.
    async fn stay(&mut self, step: &Step, typed: &str) -> Result<()> {
        let log = self.shell.home().join(format!("staying-{}.log", self.staying.len()));
        let started = self.shell.run(&format!("{typed} > '{}' 2>&1 & echo $!", log.display())).await?;
        self.staying.push(started.printed.trim().to_owned());
        ensure!(step.shown.iter().any(|line| line != "..."), "the page does not show what {typed} says");
        let says = || self.judge(step, &std::fs::read_to_string(&log).unwrap_or_default(), 0);
        wait::until(typed, wait::SOON, async || says().ok()).await.or_else(|_| says())
    }

    /// On a terminal, where it asks.
    async fn answer(&mut self, machine: &Machine, step: &Step, typed: &str) -> Result<()> {
        let invite = self.invite.take().context("no invite was shown")?;
        let asking = machine.command(typed);
        let limit = Duration::from_mins(1);
        let done = terminal::run(&asking, &[("Invite: ", &format!("{invite}\n"))], limit).await?;
        self.judge(step, &done.stdout, done.code)
    }

    fn judge(&self, step: &Step, printed: &str, code: i32) -> Result<()> {
        let shown: Vec<String> = step.shown.iter().map(|line| self.here(line)).collect();
        let refused = shown.iter().any(|line| line.starts_with("error") || line.starts_with('✗'));
        ensure!(code == 0 || refused, "exit code {code} of {}\n{printed}", step.command);
        // Where nothing is shown it may say what it likes.
        if shown.is_empty() {
            return Ok(());
        }
        book::compare(&shown, printed).with_context(|| step.command.clone())
    }

    /// Between two blocks a reader reads, and goes on when what was started is there. Within one they paste.
    async fn at_work(&self, typed: &str) -> Result<()> {
        for line in typed.lines().filter(|line| line.ends_with('&')) {
            // Not the relay's: the next line is typed at once.
            let port = if line.contains("postern-demo") {
                self.here("9500")
            } else if line.contains("http.server") {
                self.here("8080")
            } else if line.contains("postern forward") {
                self.here("8081")
            } else if line.contains("postern proxy") {
                self.here("1080")
            } else {
                continue;
            };
            let address = format!("127.0.0.1:{port}");
            wait::until(line, wait::SOON * 2, async || TcpStream::connect(&address).await.ok()).await?;
        }
        Ok(())
    }

    /// What stays is stopped as its own words say: by Ctrl-C.
    async fn stop_staying(&mut self) -> Result<()> {
        for pid in std::mem::take(&mut self.staying) {
            let ended = self.shell.run(&format!("kill -INT {pid} && wait {pid}; echo ended $?")).await?;
            ensure!(ended.printed.contains("ended 130"), "{}", ended.printed);
        }
        Ok(())
    }

    /// Before each block: a program has a machine of its own, and so has everybody at a vendor. Who finds no session of anybody's is not told
    /// to keep to it.
    async fn sit_down(&mut self, number: usize, block: &Block) -> Result<()> {
        let Some(sessions) = &self.sessions else { return Ok(()) };
        let is_own = self.apart || block.text.contains("--client-credentials");
        let dir = if is_own { sessions.join(format!("own-{number}")) } else { sessions.clone() };
        let set = format!("export XDG_STATE_HOME='{0}/state' XDG_CONFIG_HOME='{0}/config'", dir.display());
        ensure!(self.shell.run(&set).await?.code == 0);
        Ok(())
    }
}

/// Follows the steps of a page that run there; `postern-agent run` is at work when the relay has its tunnels. `after` judges each block.
pub(super) async fn follow(
    reader: &mut Reader<'_>,
    page: &Path,
    wanted: Run,
    mut after: impl AsyncFnMut(&mut Reader<'_>, &Block) -> Result<()>,
) -> Result<u32> {
    let mut followed = 0;
    for (number, block) in book::blocks(page)?.into_iter().enumerate() {
        let Mark::Commands { run, prompts } = block.mark else { continue };
        if run != wanted {
            continue;
        }
        reader.sit_down(number, &block).await?;
        for step in book::steps(&block, prompts)? {
            reader.follow(&step).await.with_context(|| block.place.clone())?;
            if step.command.contains("postern-agent run") && step.command.ends_with('&') {
                reader.agent_is_up().await?;
            }
            followed += 1;
        }
        after(reader, &block).await.with_context(|| block.place.clone())?;
        reader.at_work(&block.text).await.with_context(|| block.place.clone())?;
    }
    reader.stop_staying().await?;
    Ok(followed)
}
