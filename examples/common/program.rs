//! What is around a training: help, errors, and what the shell is told.

use std::error::Error;
use std::process::ExitCode;

/// Runs with the options that were parsed, or prints the help where there are none.
pub(crate) fn run<O>(
    options: Result<Option<O>, String>,
    help: &str,
    train: impl FnOnce(&O) -> Result<(), Box<dyn Error>>,
) -> ExitCode {
    match options {
        Ok(Some(options)) => match train(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            }
        },
        Ok(None) => {
            print!("{help}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("error: {message}; `--help` says what there is");
            ExitCode::from(2)
        }
    }
}
