//! The `postern-demo` program: see the library for what it does.

fn main() -> std::process::ExitCode {
    postern_demo::main(std::env::args_os())
}
