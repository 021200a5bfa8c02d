//! Reads a command line with clap.
//!
//! A flag may be on either side of the command: a container's `ENTRYPOINT` can have the flags, and its command can be `make`. clap's
//! global flags cannot do that: the values of a repeated flag after the command replace those before it. So the command (`serve` if
//! there is none) is moved in front of all flags before clap reads the line. Then values add up in their order; a flag with one value
//! that is on both sides is an error, and so is a flag that the command does not have.

use std::ffi::OsString;

use chainweb_backup::MANUAL;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser};

use crate::args::{ABOUT_VALUES, Child, Command, ID, Line, NAME};

/// A command line, read.
pub(crate) enum Typed {
    /// By a person or a script.
    Person(Box<Command>),
    /// By a process of this program.
    Program(Child),
}

/// The declaration of the command line, as help, completions and man pages are made from it.
pub fn program() -> clap::Command {
    let topics = MANUAL.map(|(topic, _)| topic).chunks(7).map(|some| some.join(", ")).collect::<Vec<_>>().join(",\n  ");
    let after = format!("Pages of the manual, for 'help TOPIC':\n  {topics}\n\n{ABOUT_VALUES}");
    Line::command().after_help(after)
}

/// Reads a command line, which begins with the program's name. An error may be the help that was asked for.
pub(crate) fn read(args: impl IntoIterator<Item = OsString>) -> Result<Typed, clap::Error> {
    let args: Vec<OsString> = args.into_iter().collect();
    if args.get(1).is_some_and(|word| Child::command().find_subcommand(word).is_some()) {
        return Child::try_parse_from(args).map(Typed::Program);
    }
    let mut program = program();
    let args = arrange(args, &program);
    let command = args.get(1).map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let matches = program.try_get_matches_from_mut(args);
    let line = matches.and_then(|matches| Line::from_arg_matches(&matches));
    line.map(|line| Typed::Person(Box::new(line.command))).map_err(|e| with_tip(e, &command, &program))
}

/// The command line with its command first, `serve` if there is none, and all flags after it in their order. Before
/// the command, `--help` and `--version` are the program's. A command without flags, such as `help`, ignores those before it:
/// they may come from an `ENTRYPOINT`.
fn arrange(mut args: Vec<OsString>, program: &clap::Command) -> Vec<OsString> {
    if args.is_empty() {
        args.push(NAME.into());
    }
    let (mut at, mut after_unknown) = (1, false);
    while let Some(word) = args.get(at).map(|word| word.to_string_lossy()) {
        if matches!(&*word, "-h" | "--help" | "-V" | "--version") {
            return vec![args[0].clone(), args[at].clone()];
        }
        if !word.starts_with('-') {
            // After an unknown flag, a word may be its value.
            if !after_unknown || program.find_subcommand(&*word).is_some() {
                break;
            }
            (at, after_unknown) = (at + 1, false);
            continue;
        }
        let takes_value = takes_value(program, word.split('=').next().unwrap_or_default());
        at += if takes_value == Some(true) && !word.contains('=') { 2 } else { 1 };
        after_unknown = takes_value.is_none();
    }
    let command = if at < args.len() { args.remove(at) } else { "serve".into() };
    if program.find_subcommand(&command).is_some_and(|command| command.get_opts().next().is_none()) {
        args.drain(1..at);
    }
    args.insert(1, command);
    args
}

/// The commands that have a flag, given with its dashes.
fn owners<'a>(program: &'a clap::Command, flag: &'a str) -> impl Iterator<Item = (&'a clap::Command, &'a clap::Arg)> {
    let long = flag.strip_prefix("--").unwrap_or_default();
    let arg = |c: &'a clap::Command| Some((c, c.get_arguments().find(|arg| arg.get_long() == Some(long))?));
    program.get_subcommands().filter_map(arg)
}

/// Whether a value follows a flag; `None` for a flag of no command. It is the same in all that have it.
fn takes_value(program: &clap::Command, flag: &str) -> Option<bool> {
    owners(program, flag).map(|(_, arg)| arg.get_action().takes_values()).next()
}

/// Adds to clap's error what its own tips cannot know.
fn with_tip(mut error: clap::Error, command: &str, program: &clap::Command) -> clap::Error {
    let tip = match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(ContextValue::String(flag))) => {
            let owners: Vec<String> = owners(program, flag).map(|(c, _)| format!("'{}'", c.get_name())).collect();
            let default = if command == "serve" { " (the command when none is given)" } else { "" };
            (!owners.is_empty())
                .then(|| format!("{flag} belongs to {}, not to '{command}'{default}", owners.join(" and ")))
        }
        (ErrorKind::MissingRequiredArgument, Some(ContextValue::Strings(missing))) => missing
            .iter()
            .any(|argument| argument.contains(ID))
            .then(|| format!("{command} needs the ID of a backup: 'list' shows them")),
        _ => None,
    };
    if let Some(tip) = tip {
        error.remove(ContextKind::SuggestedArg);
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}
