//! Takes the programs' own definitions of their command lines; gives a page for each, the page of exit codes, and whether a line that
//! somebody shows would be understood.

use clap::{Arg, Command};

use crate::page::{Page, code};

/// Each program with its definition.
fn programs() -> [(&'static str, Command); 3] {
    [
        ("postern", postern_client::definition()),
        ("postern-relay", postern_relay::definition()),
        ("postern-agent", postern_agent::definition()),
    ]
}

/// Whether a program would understand these arguments, the program's name first.
pub(crate) fn parse(args: &[String]) -> Result<(), String> {
    let name = args.first().map(String::as_str).unwrap_or_default();
    let Some((_, definition)) = programs().into_iter().find(|(program, _)| *program == name) else {
        return Err(format!("{name:?} is no program of ours"));
    };
    // All that follows `curl` is curl's, as the client has it.
    let curl = args.iter().position(|arg| arg == "curl").filter(|_| name == "postern");
    let mut args = args.to_vec();
    if let Some(at) = curl {
        args.insert(at + 1, "--".to_owned());
    }
    definition.try_get_matches_from(args).map(drop).map_err(|error| error.to_string())
}

fn page(mut program: Command, intro: &str) -> String {
    program.build();
    let mut page = Page::new(&code(program.get_name()), intro);
    page.text(&about(&program));
    page.block(&program.render_usage().to_string());
    page.text("Everywhere:");
    let globals = |arg: &&Arg| arg.is_global_set() && !arg.is_hide_set();
    page.table(&HEADING, &program.get_arguments().filter(globals).map(row).collect::<Vec<_>>());
    sections(&mut page, &program);
    page.done()
}

const HEADING: [&str; 3] = ["Argument", "Default", "What"];

fn sections(page: &mut Page, parent: &Command) {
    for command in parent.get_subcommands().filter(|command| !command.is_hide_set()) {
        if command.get_name() == "help" {
            continue;
        }
        let mut shown = command.clone();
        let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
        page.heading(2, &code(name));
        page.text(&about(command));
        if !command.is_subcommand_required_set() {
            page.block(&shown.render_usage().to_string());
        }
        let own = |arg: &&Arg| {
            !arg.is_global_set() && !arg.is_hide_set() && arg.get_id() != "help" && arg.get_id() != "version"
        };
        page.table(&HEADING, &command.get_arguments().filter(own).map(row).collect::<Vec<_>>());
        sections(page, command);
    }
}

fn about(command: &Command) -> String {
    let text = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    let text = text.trim_end_matches('.');
    if text.is_empty() { String::new() } else { format!("{text}.") }
}

fn row(arg: &Arg) -> Vec<String> {
    let flags =
        [arg.get_short().map(|short| format!("-{short}")), arg.get_long().map(|long| format!("--{long}"))];
    let flags: Vec<String> = flags.into_iter().flatten().collect();
    let values = arg.get_value_names().unwrap_or_default();
    let takes = arg.get_num_args().is_some_and(|count| count.takes_values());
    let values = if takes {
        values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    } else {
        String::new()
    };
    let name =
        if flags.is_empty() { values } else { format!("{} {values}", flags.join(", ")).trim().to_owned() };
    let defaults = arg.get_default_values().iter().map(|value| value.to_string_lossy());
    let default =
        if takes { defaults.map(|value| code(&value)).collect::<Vec<_>>().join(" ") } else { String::new() };
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let env = arg.get_env().map(|name| format!(" (`{}`)", name.to_string_lossy())).unwrap_or_default();
    vec![code(&name), default, format!("{help}{env}")]
}

pub(crate) fn client() -> String {
    page(postern_client::definition(), "The client: what people and programs type to reach services.")
}

pub(crate) fn relay() -> String {
    page(postern_relay::definition(), "The relay's program, for whoever runs it.")
}

pub(crate) fn agent() -> String {
    page(postern_agent::definition(), "The agent's program, beside the services.")
}

/// From the line at the end of each `--help`.
pub(crate) fn exit_codes() -> String {
    let intro = "All three programs use the same codes; each shows its own at the end of `--help`. `forward … -- CMD` exits with the code of CMD.";
    let mut page = Page::new("Exit codes", intro);
    for (name, definition) in programs() {
        page.heading(2, &code(name));
        let help = definition.get_after_help().map(ToString::to_string).unwrap_or_default();
        let codes = help.split_once("Exit codes: ").map(|(_, codes)| codes).unwrap_or_default();
        let rows = codes.split(" · ").filter_map(|entry| entry.trim().split_once(' '));
        let rows: Vec<Vec<String>> =
            rows.map(|(code, what)| vec![code.to_owned(), what.to_owned()]).collect();
        page.table(&["Code", "What"], &rows);
    }
    page.done()
}
