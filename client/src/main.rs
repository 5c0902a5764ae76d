//! Takes the process's arguments; gives its exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    postern_client::main(std::env::args_os())
}
