//! Parses, runs, renders; decides nothing.

use std::process::ExitCode;

fn main() -> ExitCode {
    broker::main(std::env::args_os())
}
