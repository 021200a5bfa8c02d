//! Which clients may use the HTTP interface: the flags, what they mean together with the configuration files, and the refusal to serve other hosts
//! without a token.
//!
//! Invariants
//! - A service that other hosts can reach starts, or goes on with another configuration, only if it asks for a token or the operator has
//!   said that it need not.
//! - Tokens come from a file, never from the command line or the environment, which other users can read.

use std::net::IpAddr;
use std::path::PathBuf;

use chainweb_backup::{
    Access, Error, FileConfig, Finding, Health, Hosts, Kind, OpenEndpoint, Result, parse_host, parse_open_endpoint,
    read_tokens,
};
use clap::Args;

use crate::args::path;
use crate::listen::shown;
use crate::plan::ServePlan;

/// Which clients may use the HTTP interface.
#[derive(Args)]
pub(crate) struct Door {
    /// Require a token that is a line of this file [default: none is required]
    #[arg(long, value_name = "FILE", value_parser = path())]
    auth_token_file: Option<PathBuf>,
    /// No token for: check-backup, health-check or metrics; may be repeated
    #[arg(long, value_name = "NAME", value_parser = |t: &str| parse_open_endpoint(t).map_err(|e| e.chain()))]
    open_endpoint: Vec<OpenEndpoint>,
    /// Answer under this name of the host, too; may be repeated
    #[arg(long, value_name = "NAME", value_parser = |t: &str| parse_host(t).map_err(|e| e.chain()))]
    allowed_host: Vec<String>,
    /// Serve other hosts without a token
    #[arg(long)]
    allow_unauthenticated: bool,
}

/// What of it is not part of the configuration of the service.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Guard {
    /// The file of the tokens.
    pub token_file: Option<PathBuf>,
    /// Whether other hosts are served without a token.
    pub allow_unauthenticated: bool,
}

impl Door {
    /// The values of the flags, or else those of the files. The tokens are not read yet.
    pub(crate) fn decide(self, file: &mut FileConfig) -> std::result::Result<(Guard, Access), String> {
        let Door { auth_token_file, open_endpoint, allowed_host, allow_unauthenticated } = self;
        let token_file = auth_token_file.or(file.auth_token_file.take());
        let open = given(open_endpoint).or(file.open_endpoints.take()).unwrap_or_default();
        if token_file.is_none() && !open.is_empty() {
            return Err("--open-endpoint (`backup.api.open`) names what needs no token, but none is required: add --auth-token-file \
                        FILE, or leave it out"
                .to_owned());
        }
        let names = given(allowed_host).or(file.allowed_hosts.take());
        let allow_unauthenticated = allow_unauthenticated || file.allow_unauthenticated.unwrap_or(false);
        let access = Access { tokens: None, open, hosts: Hosts::Only(names.unwrap_or_default()) };
        Ok((Guard { token_file, allow_unauthenticated }, access))
    }
}

/// The values of a flag that may be repeated, if it was given.
fn given<T>(typed: Vec<T>) -> Option<Vec<T>> {
    if typed.is_empty() { None } else { Some(typed) }
}

/// Reads the tokens into the plan of a service to which clients come at these addresses, or by Unix sockets.
///
/// # Errors
/// [`Kind::Usage`]: the file is not as it should be, or the address is one for other hosts and no token is required.
pub(crate) fn equip(plan: &mut ServePlan, reach: &[IpAddr]) -> Result<()> {
    plan.config.access.tokens = plan.guard.token_file.as_deref().map(read_tokens).transpose()?;
    let Some(interface) = reach.iter().copied().find(|ip| is_for_others(*ip)) else { return Ok(()) };
    if !plan.config.api_enabled || plan.guard.token_file.is_some() {
        return Ok(());
    }
    if !plan.guard.allow_unauthenticated {
        return Err(Error::new(Kind::Usage, unguarded(interface)));
    }
    plan.warnings.push(format!(
        "listening on {interface} without a token: every host that reaches this port can start backups and read paths"
    ));
    Ok(())
}

/// Whether other hosts can reach what listens on this address.
fn is_for_others(interface: IpAddr) -> bool {
    !interface.to_canonical().is_loopback()
}

fn unguarded(interface: IpAddr) -> String {
    format!(
        "on {interface} every host that reaches this port could start backups and read paths: require a token with --auth-token-file FILE \
         (`backup.api.authTokenFile`), or listen on 127.0.0.1; --allow-unauthenticated serves them all the same"
    )
}

/// Which users of this host can reach it.
fn whose(plan: &ServePlan) -> &'static str {
    let has_address = !plan.listening.addresses().is_empty();
    match plan.listening.access.mode & 0o066 {
        0 if !has_address => "the user of the service and root",
        0o040 | 0o020 | 0o060 if !has_address => "the user and the group of the socket, and root,",
        _ => "every user and every program of this host",
    }
}

/// What doctor says about it.
pub(crate) fn finding(plan: &ServePlan) -> Finding {
    let finding = |health, text| Finding { about: "access", health, text };
    let addresses = plan.listening.addresses();
    let others = addresses.iter().copied().find(|ip| is_for_others(*ip));
    let places: Vec<String> = plan.listening.places().iter().map(shown).collect();
    let (reach, whose) = match others {
        Some(interface) => (format!("other hosts can reach it on {interface}"), "every host that reaches this port"),
        None => (format!("only this host reaches it, on {}", places.join(" and ")), whose(plan)),
    };
    let tokens = match plan.guard.token_file.as_deref().map(read_tokens) {
        Some(Err(e)) => return finding(Health::Fault, e.chain()),
        Some(Ok(tokens)) => Some(tokens.count()),
        None => None,
    };
    if let Some(count) = tokens {
        let open: Vec<&str> = plan.config.access.open.iter().map(|endpoint| endpoint.word()).collect();
        let except = if open.is_empty() { String::new() } else { format!(", except for {}", open.join(", ")) };
        return finding(Health::Ok, format!("{reach}; a request needs one of {count} tokens{except}"));
    }
    if !plan.config.api_enabled {
        return finding(Health::Ok, format!("{reach}; the backup API is off, health and metrics need no token"));
    }
    match (others, plan.guard.allow_unauthenticated) {
        (Some(interface), false) => finding(Health::Fault, format!("serve does not start: {}", unguarded(interface))),
        (Some(_), true) => finding(
            Health::Warning,
            format!(
                "{reach}, and no token is required: {whose} can start backups; require one with --auth-token-file FILE"
            ),
        ),
        (None, _) => finding(
            Health::Ok,
            format!(
                "{reach}, and no token is required: {whose} can start backups; --auth-token-file FILE requires one"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::path::Path;

    use super::*;
    use crate::plan::{Around, Plan, parse};

    const FILE: &str = "databaseDirectory: /d\nbackup: {api: {authTokenFile: /t, open: [metrics], allowedHosts: [a.example, b], \
                        allowUnauthenticated: true}}";

    fn serve(line: &str) -> ServePlan {
        let args = ["chainweb-backup"].into_iter().chain(line.split_whitespace()).map(OsString::from);
        let read_file = |_: &Path| Ok(FILE.to_owned());
        match parse(args, &Around { env: &|_| None, read_file: &read_file, list_databases: &|_| Vec::new() }) {
            Ok(Plan::Serve(plan)) => plan,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn who_may_come_in() {
        use OpenEndpoint::{CheckBackup, Metrics};
        let door = |line: &str| {
            let plan = serve(line);
            (plan.guard, plan.config.access)
        };
        let guard = |file: Option<&str>, allow_unauthenticated| Guard {
            token_file: file.map(PathBuf::from),
            allow_unauthenticated,
        };
        let access = |open: &[OpenEndpoint], names: &[&str]| Access {
            tokens: None,
            open: open.to_vec(),
            hosts: Hosts::Only(names.iter().map(|name| (*name).to_owned()).collect()),
        };
        assert_eq!(door("--database-directory /d"), (guard(None, false), access(&[], &[])));
        assert_eq!(door("--config-file f"), (guard(Some("/t"), true), access(&[Metrics], &["a.example", "b"])));
        let flags =
            "--auth-token-file /u --open-endpoint check-backup --open-endpoint metrics --allowed-host C.Example";
        assert_eq!(
            door(&format!("--config-file f {flags}")),
            (guard(Some("/u"), true), access(&[CheckBackup, Metrics], &["c.example"]))
        );
        assert_eq!(door(&format!("--database-directory /d {flags}")).0, guard(Some("/u"), false));

        // Without a token only this host is served, unless that is what was wanted.
        let equipped = |line: &str, interface: &str| {
            let mut plan = serve(&format!("--database-directory /d {line}"));
            let warnings_count = plan.warnings.len();
            let outcome = equip(&mut plan, &[interface.parse().expect("an address")]);
            outcome.map(|()| plan.warnings.len() - warnings_count).map_err(|e| (e.kind(), e.chain()))
        };
        for interface in ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(equipped("--enable-backup-api", interface), Ok(0), "{interface}");
        }
        for interface in ["0.0.0.0", "::", "10.0.0.1", "fe80::1", "::ffff:10.0.0.1"] {
            let Err((Kind::Usage, message)) = equipped("--enable-backup-api", interface) else { panic!("{interface}") };
            for word in [interface, "--auth-token-file FILE", "listen on 127.0.0.1", "--allow-unauthenticated"] {
                assert!(message.contains(word), "no {word} in {message}");
            }
            assert_eq!(equipped("--enable-backup-api --allow-unauthenticated", interface), Ok(1), "with a warning");
            assert_eq!(equipped("", interface), Ok(0), "with the API off, health and metrics tell little");
        }
        let Err((Kind::Usage, message)) = equipped("--auth-token-file /nosuch/token", "127.0.0.1") else {
            panic!("no file")
        };
        assert!(message.contains("cannot read token file /nosuch/token: No such file"), "{message}");
    }
}
