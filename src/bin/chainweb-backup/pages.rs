//! What the program prints about itself: help, the pages of the manual, completion scripts for shells, man pages. All but the manual are
//! made from the declaration in `args`, so that they cannot differ from what it accepts.

use chainweb_backup::{MANUAL, suggest};
use clap_complete::shells::{Bash, Fish, Zsh};

use crate::args::{NAME, Shell};
use crate::line::program;

/// The mark of the blocks in the manual that a test runs.
const TEST_MARK: &str = "<!-- test -->\n";

/// The help of the program, of a command, or a page of the manual.
pub(crate) fn help(topic: Option<&str>) -> Result<String, String> {
    let mut program = program();
    program.build();
    let Some(topic) = topic else { return Ok(program.render_help().to_string()) };
    if let Some(command) = program.find_subcommand_mut(topic) {
        return Ok(command.render_help().to_string());
    }
    if let Some((_, page)) = MANUAL.iter().find(|(name, _)| *name == topic) {
        return Ok(page.replace(TEST_MARK, ""));
    }
    let pages = MANUAL.map(|(name, _)| name);
    let commands = program.get_subcommands().map(clap::Command::get_name);
    let all: Vec<&str> = pages.into_iter().chain(commands).collect();
    let tip = suggest(topic, &all).map_or(String::new(), |name| format!("did you mean '{name}'? "));
    Err(format!("no topic {topic:?}: {tip}(topics: {}, and each command)", pages.join(", ")))
}

/// The completion script for a shell.
pub(crate) fn completions(shell: Shell) -> String {
    let (mut program, mut script) = (program(), Vec::new());
    match shell {
        Shell::Bash => clap_complete::generate(Bash, &mut program, NAME, &mut script),
        Shell::Zsh => clap_complete::generate(Zsh, &mut program, NAME, &mut script),
        Shell::Fish => clap_complete::generate(Fish, &mut program, NAME, &mut script),
    }
    // clap_complete spells the hyphen of the program's name in two ways, so that bash would complete no flag of a command
    // (clap-rs/clap#6421).
    let (first, second) = NAME.split_once('-').expect("the name has a hyphen");
    text(script).replace(&format!("{first}__subcmd__{second}__"), &format!("{first}__{second}__"))
}

/// The man page of the program or of a command, as roff.
pub(crate) fn man(command: Option<&str>) -> Result<String, String> {
    let mut program = program();
    program.build();
    let version = format!("{NAME} {}", program.get_version().unwrap_or_default());
    let page = match command {
        None => program,
        Some(name) => program.find_subcommand(name).cloned().ok_or_else(|| {
            let names: Vec<&str> = program.get_subcommands().map(clap::Command::get_name).collect();
            let tip = suggest(name, &names).map_or(String::new(), |c| format!("did you mean '{c}'? "));
            format!("no command {name:?}: {tip}(commands: {})", names.join(", "))
        })?,
    };
    let mut roff = Vec::new();
    clap_mangen::Man::new(page).source(version).render(&mut roff).expect("a vector takes all that is written");
    // The examples and the exit codes are tables: their lines are not to be filled.
    Ok(text(roff).replace(".SH EXTRA\n", ".SH EXTRA\n.nf\n").replace(".SH VERSION\n", ".fi\n.SH VERSION\n"))
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("the declaration is UTF-8")
}
