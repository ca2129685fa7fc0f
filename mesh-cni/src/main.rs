//! The plug-in's program: environment and standard input in, standard output and exit code out.

use std::io::{Read, Write};
use std::process::ExitCode;

use mesh_cni::config::{CniError, MAX_INPUT};
use mesh_cni::run::{print_error, run};

fn main() -> ExitCode {
    let mut input = Vec::new();
    let read = std::io::stdin().take(MAX_INPUT).read_to_end(&mut input);
    let done = match read {
        Ok(_) => run(|name| std::env::var(name).ok(), &input),
        Err(error) => Err(CniError::new(CniError::IO, format!("standard input: {error}"))),
    };
    let (text, code) = match done {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (print_error(&error, &input), ExitCode::FAILURE),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}
