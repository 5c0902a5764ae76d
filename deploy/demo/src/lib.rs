//! The demonstration: takes nothing but this one binary; gives a development issuer, a "legacy" invoice API, a relay and an agent as
//! processes on loopback, which it starts by starting itself again (`--tied ROLE`), and either waits for Ctrl-C or, with `--once`,
//! plays the main job through. Nothing here is part of a production program.

mod children;
mod guide;
mod issuer;
mod legacy;
mod once;
mod roles;
mod serve;
mod signals;
mod stage;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use children::Children;
use clap::Parser;
use signals::Signals;
use stage::Stage;

/// Shows the whole of Postern on this machine: a development issuer, a legacy API, a relay and an agent.
#[derive(Debug, Parser)]
#[command(name = "postern-demo", version)]
struct Options {
    /// Do the main job unattended, print each step, and exit 0 only if all of it held
    #[arg(long)]
    once: bool,
    /// Use this port and the next six instead of random free ones, so that the printed commands stay the same
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1024..=65529))]
    port: Option<u16>,
}

/// What the program does; `args` begin with the program's own name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    if let Some(code) = roles::dispatch(&args) {
        return code;
    }
    let options = match Options::try_parse_from(args) {
        Ok(options) => options,
        Err(e) => {
            // --help and --version come this way too; a closed terminal is no reason to fail.
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return failed(&e.into()),
    };
    match runtime.block_on(run(&options)) {
        Ok(code) => code,
        Err(e) => failed(&e),
    }
}

async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let stage = Stage::build(options.port).context("preparing a temporary directory")?;
    let mut children = Children::new(&stage)?;
    let played = tokio::select! {
        played = play(options, &stage, &mut children) => played.map(|()| ExitCode::SUCCESS),
        () = signals.next() => Ok(if options.once { ExitCode::from(130) } else { ExitCode::SUCCESS }),
    };
    if played.is_err() {
        children.show_logs();
    }
    let stopped = children.stop(&mut signals).await;
    let removed = stage.remove();
    let code = played?;
    if options.once {
        // What has been reported as a step is not an error to be told again.
        say(&format!(
            "{} programs stopped in order, temporary directory removed",
            mark(stopped && removed.is_ok())
        ));
    }
    removed.context("removing the temporary directory")?;
    Ok(if stopped { code } else { ExitCode::FAILURE })
}

/// Everything between the preparations and the end.
async fn play(options: &Options, stage: &Stage, children: &mut Children) -> anyhow::Result<()> {
    say("Starting a development issuer, an invoice API, a relay and an agent on loopback ...");
    stage.start(children).await?;
    if options.once {
        return once::story(stage, children).await;
    }
    guide::write_environment(stage, children.program())?;
    say(&guide::text(stage));
    children.watch().await
}

/// One line for the person who started the demo.
fn say(line: &str) {
    // A reader that went away is no reason to stop.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn mark(good: bool) -> &'static str {
    if good { "✓" } else { "✗" }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "✗ {error:#}");
    ExitCode::FAILURE
}
