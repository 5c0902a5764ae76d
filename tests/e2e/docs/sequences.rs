//! The sequences of the book run: the tutorial and the README from nothing, as somebody types them, and what other pages show beside a
//! relay and an agent that are at work. What is printed is what is shown.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::book::{self, Mark, Run, Step};
use postern_tests::issuer::BATCH;
use postern_tests::process::{self, binary, command};
use postern_tests::shell::Shell;
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use tokio::net::TcpStream;

/// Ports that pages name.
const PORTS: [u16; 4] = [8443, 9500, 8080, 8081];

/// A page being followed.
struct Reader {
    shell: Shell,
    /// What the page says, and what it is here.
    replaced: Vec<(String, String)>,
    /// A login that waits for its code to be entered, with what is to be printed when it is done.
    login: Option<Step>,
}

impl Reader {
    fn here(&self, text: &str) -> String {
        self.replaced.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
    }

    async fn follow(&mut self, step: &Step) -> Result<()> {
        let typed = self.here(&step.command);
        say(&format!("$ {typed}"));
        if typed.contains("postern login") && typed.contains("--device") && self.login.is_none() {
            self.shell.begin(&typed)?;
            self.login = Some(step.clone());
            return wait::until("a code to enter", wait::SOON, async || self.code()).await.map(drop);
        }
        if typed.contains("user_code=") {
            return self.enter_code(&typed).await;
        }
        let done = self.shell.run(&typed).await?;
        self.judge(step, &done.printed, done.code)?;
        if typed.contains("postern-relay init") {
            // Other tests run beside this one, and all would have the same port for metrics.
            let file = Path::new(&self.here("/tmp/postern")).join("relay.toml");
            let text = std::fs::read_to_string(&file)?;
            std::fs::write(file, text.replace("127.0.0.1:9440", "127.0.0.1:0"))?;
        }
        if typed.contains("ca rotate") {
            // Each agent moves at a moment of its own.
            let moved = async || {
                self.shell.run("postern-relay ca show").await.ok()?.printed.contains("All ").then_some(())
            };
            wait_shell("every agent has moved", moved).await?;
        }
        Ok(())
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

    fn judge(&self, step: &Step, printed: &str, code: i32) -> Result<()> {
        let shown: Vec<String> = step.shown.iter().map(|line| self.here(line)).collect();
        let refused = shown.iter().any(|line| line.starts_with("error") || line.starts_with('✗'));
        ensure!(code == 0 || refused, "exit code {code} of {}\n{printed}", step.command);
        // A script that shows nothing may say what it likes.
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
}

/// Follows the steps of a page; `postern-agent run` is at work when the relay has its tunnels.
async fn follow(reader: &mut Reader, page: &Path, wanted: Run) -> Result<u32> {
    let mut followed = 0;
    for block in book::blocks(page)? {
        let Mark::Commands { run, prompts } = block.mark else { continue };
        if run != wanted {
            continue;
        }
        let steps = if prompts {
            book::steps(&block, true)?
        } else {
            vec![Step { command: block.text.trim_end().to_owned(), shown: Vec::new() }]
        };
        for step in steps {
            reader.follow(&step).await.with_context(|| block.place.clone())?;
            if step.command.contains("postern-agent run") && step.command.ends_with('&') {
                let up = async || {
                    reader
                        .shell
                        .run("postern-relay agent ls")
                        .await
                        .ok()?
                        .printed
                        .contains(" up")
                        .then_some(())
                };
                wait_shell("the agent's tunnels are up", up).await?;
            }
            followed += 1;
        }
        reader.at_work(&block.text).await.with_context(|| block.place.clone())?;
    }
    Ok(followed)
}

async fn wait_shell(what: &str, is_so: impl AsyncFnMut() -> Option<()>) -> Result<()> {
    wait::until(what, wait::SOON * 2, is_so).await
}

async fn from_nothing(page: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let home = dir.path().join("postern");
    let mut replaced = vec![("/tmp/postern".to_owned(), home.display().to_string())];
    for port in PORTS {
        replaced.push((port.to_string(), wait::free_port()?.to_string()));
    }
    let shell = Shell::start(dir.path(), &[])?;
    let mut reader = Reader { shell, replaced, login: None };
    let steps = follow(&mut reader, Path::new(page), Run::FromNothing).await?;
    ensure!(steps > 8 && reader.login.is_none(), "{steps} steps");
    Ok(())
}

#[tokio::test]
async fn the_tutorial_holds() -> Result<()> {
    from_nothing("docs/tutorial.md").await
}

#[tokio::test]
async fn the_readme_holds() -> Result<()> {
    let demo = command(binary("postern-demo")?, ["--once"]);
    process::run(demo, Duration::from_secs(90)).await?.expect_code(0)?;
    from_nothing("README.md").await
}

const SERVICES: &str = r#"
[services.wiki]
agent = "dc1"
rules = [{ name = "finance reads the wiki", allow = "group:finance", to = "GET /**" }]
"#;

const UPSTREAMS: &str = r#"
[services.wiki]
upstream = "{nginx}"
"#;

/// A page's commands beside a stand of its own, where ada is logged in.
async fn at_a_stand(page: &Path) -> Result<u32> {
    let blocks = book::blocks(page)?;
    let at_stand = |mark: Mark| matches!(mark, Mark::Commands { run: Run::Stand, .. });
    if !blocks.iter().any(|block| at_stand(block.mark)) {
        return Ok(0);
    }
    say(&format!("== {}", page.display()));
    let extra = Extra { tables: SERVICES.to_owned(), agent_tables: UPSTREAMS.to_owned(), ..Extra::default() };
    let stand = Stand::start_with(extra).await?;
    let ada = stand.cli("ada")?;
    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    let token = stand.issuer.token("ada").await?;
    stand.wait_status("/wiki/", &token, 200, wait::SOON).await?;
    std::fs::write(stand.path("token"), &token)?;
    std::fs::write(stand.path("nightly"), BATCH.1)?;
    std::fs::write(stand.path("nightly.sh"), "curl -sf \"$POSTERN_URL/v1/invoices/7\"\n")?;
    for block in blocks.iter().filter(|block| block.mark == Mark::Caller) {
        std::fs::write(stand.path("ada.toml"), &block.text)?;
    }
    for (from, to) in
        [("relay.toml", "new.toml"), ("audit-key.txt", "key.txt"), ("relay/ca/root.key", "root.key")]
    {
        std::fs::copy(stand.path(from), stand.path(to)).context(from)?;
    }
    std::os::unix::fs::symlink(stand.path("agent/audit.jsonl"), stand.path("agent.jsonl"))?;
    let state = ada.state_dir();
    let text = |path: &Path| path.display().to_string();
    let env = [
        ("POSTERN_RELAY_CONFIG", text(&stand.path("relay.toml"))),
        ("POSTERN_AGENT_CONFIG", text(&stand.path("agent.toml"))),
        ("POSTERN_CA", text(&stand.pki.ca_file())),
        ("POSTERN_KEYRING", "file".to_owned()),
        ("XDG_STATE_HOME", text(state.parent().context("no state directory")?)),
        ("XDG_CONFIG_HOME", text(&state.with_file_name("config"))),
    ];
    let shell = Shell::start(stand.dir(), &env)?;
    let replaced = vec![
        ("1080".to_owned(), wait::free_port()?.to_string()),
        ("relay.example.com".to_owned(), format!("127.0.0.1:{}", stand.port)),
        ("/var/log/postern".to_owned(), text(stand.dir())),
        ("/etc/postern".to_owned(), text(stand.dir())),
        ("/run/secrets".to_owned(), text(stand.dir())),
    ];
    let mut reader = Reader { shell, replaced, login: None };
    let steps = follow(&mut reader, page, Run::Stand).await?;
    drop(reader);
    stand.passed();
    Ok(steps)
}

/// The pages of a folder of the book.
async fn folder_at_stands(folder: &str) -> Result<u32> {
    let mut steps = 0;
    for page in book::pages()?.into_iter().filter(|page| page.parent() == Some(Path::new(folder))) {
        steps += at_a_stand(&page).await.with_context(|| page.display().to_string())?;
    }
    Ok(steps)
}

#[tokio::test]
async fn what_the_guides_show_happens() -> Result<()> {
    let steps = folder_at_stands("docs/guides").await?;
    ensure!(steps >= 10, "{steps} steps");
    Ok(())
}

#[tokio::test]
async fn what_operations_show_happens() -> Result<()> {
    let steps = folder_at_stands("docs/operations").await?;
    ensure!(steps >= 25, "{steps} steps");
    Ok(())
}

#[tokio::test]
async fn what_other_pages_show_happens() -> Result<()> {
    let steps = folder_at_stands("docs").await? + folder_at_stands("docs/issuers").await?;
    ensure!(steps >= 3, "{steps} steps");
    Ok(())
}
