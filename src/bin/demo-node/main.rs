//! demo-node: a small node with the layout and schema of a real one, whose history can be checked afterwards.
//!
//! It keeps writing blocks to one RocksDB and one Pact SQLite database per chain, Pact first, with random delays and
//! forks, and embeds the backup library as any node would. `verify` checks a stopped database or a backup, `plant`
//! damages a copy to prove that `verify` notices. It is the writer of the demo, the tests and the benches.
//!
//! Rows, each using only those below it: `main`; `run`, `verify`, `plant`; `serve`, `node`; `rocks`, `pact`; `chain`,
//! `fault`. (`serve` also takes its addresses from `run`'s flags.) RocksDB, SQLite and rouille come from the library's
//! re-exports, as they must for an embedder.
//!
//! # Limitations
//! Blocks and payloads are not real Pact: one transaction writes one row of one table. Old cuts are never deleted.

// The library's rule that only one file changes the file system is about backups; these databases are our own.
#![allow(clippy::disallowed_methods)]

mod chain;
mod fault;
mod node;
mod pact;
mod plant;
mod rocks;
mod run;
mod serve;
mod verify;

use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::process::ExitCode;

/// A small node that keeps writing blocks, for trying out and testing backups. Flags without a command mean `run`
#[derive(Debug, Parser)]
#[command(version, subcommand_required = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write blocks, and serve the backup API, until SIGTERM or SIGINT (the default)
    Run(Box<run::RunArgs>),
    /// Check a stopped database or a backup, changing nothing: exit status 0 or 1
    Verify(verify::VerifyArgs),
    /// Damage a copy of a stopped database or of a backup
    Plant(plant::PlantArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse_from(with_default_command(std::env::args_os().collect())).command {
        Command::Run(args) => {
            let config = simplelog::ConfigBuilder::new().set_time_format_rfc3339().build();
            simplelog::WriteLogger::init(log::LevelFilter::Info, config, std::io::stderr())
                .expect("nothing has set a logger before main does");
            run::run(&args)
        }
        Command::Verify(args) => verify::verify(&args).map(|summary| println!("{summary}")),
        Command::Plant(args) => plant::plant(&args).map(|done| println!("{done}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("demo-node: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Puts `run` before flags that stand without a command.
fn with_default_command(mut words: Vec<OsString>) -> Vec<OsString> {
    let is_flag = |word: &OsString| word.as_encoded_bytes().starts_with(b"-");
    let is_general = |word: &OsString| ["-h", "--help", "-V", "--version"].iter().any(|general| word == general);
    if words.get(1).is_some_and(|word| is_flag(word) && !is_general(word)) {
        words.insert(1, "run".into());
    }
    words
}
