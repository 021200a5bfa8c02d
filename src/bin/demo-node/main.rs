//! demo-node: a small node with the layout, schema and formats of a real one, whose history can be checked afterwards.
//!
//! It keeps writing blocks to one RocksDB and one Pact SQLite database per chain, Pact first, with random delays and
//! forks, and embeds the backup library as any node would. `verify` checks a stopped database or a backup, `plant`
//! damages a copy to prove that `verify` notices. It is the writer of the demo, the tests and the benches.
//!
//! Rows, each using only those below it: `main`; `run`, `plant`, `verify`; `verify_pact`, `serve`, `node`; `start`; `rocks`, `pact`; `chain`;
//! `contract`; `network`, `header`, `payload`; `hash`, `fault`. The formats are written here a second time on purpose, apart from
//! those of the library, so that a wrong idea in one of the two shows. (`serve` also takes its addresses from `run`'s flags.) RocksDB,
//! SQLite and rouille come from the library's re-exports, as they must for an embedder.
//!
//! # Limitations
//! Transactions are not real Pact: each writes one row of one table (see `contract`). There is no proof of work, and no network:
//! every block is our own. The genesis blocks are our own, too.

// The library's rule that only one file changes the file system is about backups; these databases are our own.
#![allow(clippy::disallowed_methods)]

mod chain;
mod contract;
mod fault;
mod hash;
mod header;
mod network;
mod node;
mod pact;
mod payload;
mod plant;
mod rocks;
mod run;
mod serve;
mod start;
mod verify;
mod verify_pact;

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
