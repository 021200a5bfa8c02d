//! Where the service listens: the flags, what they mean together with the configuration files, and the sockets that they ask for.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use chainweb_backup::{
    Error, FileConfig, Interface, Kind, Listener, Result, SocketAccess, parse_interface, parse_port,
    parse_socket_group, parse_socket_mode,
};
use clap::Args;

use crate::args::path;
use crate::plan::Around;

/// The default port of the service; the node's own is 1848.
const PORT: u16 = 1849;

/// Where the service listens.
#[derive(Args)]
pub(crate) struct Listen {
    /// Port to listen on, 0 for any free one [default: 1849]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = |t: &str| parse_port(t).map_err(|e| e.chain()))]
    service_port: Option<u16>,
    /// IP address, * for all, or unix:PATH; may be repeated [default: 127.0.0.1]
    #[arg(long, value_name = "ADDR", value_parser = |t: &str| parse_interface(t).map_err(|e| e.chain()))]
    service_interface: Vec<Interface>,
    /// Mode of the Unix sockets: 600, 660 for a group, 666 for all [default: 600]
    #[arg(long, value_name = "MODE", value_parser = |t: &str| parse_socket_mode(t).map_err(|e| e.chain()))]
    socket_mode: Option<u32>,
    /// Group of the Unix sockets, a name or number [default: that of the service]
    #[arg(long, value_name = "GROUP", value_parser = |t: &str| parse_socket_group(t).map_err(|e| e.chain()))]
    socket_group: Option<String>,
    /// Write the addresses listened on to this file, one a line
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub(crate) address_file: Option<PathBuf>,
}

/// Where a service listens.
#[derive(Debug, Clone, PartialEq)]
pub struct Listening {
    /// The places that were named; without any, the sockets that were inherited, or else 127.0.0.1.
    pub named: Vec<Interface>,
    /// The port of the IP addresses; 0 takes a free one for each.
    pub port: u16,
    /// Which users can connect to the Unix sockets.
    pub access: SocketAccess,
}

impl Listen {
    /// The values of the flags, or else those of the files.
    pub(crate) fn decide(&self, file: &mut FileConfig, around: &Around) -> std::result::Result<Listening, String> {
        let from_files = file.interfaces.take().unwrap_or_default();
        let named = if self.service_interface.is_empty() { from_files } else { self.service_interface.clone() };
        if let Some(twice) = named.iter().enumerate().find_map(|(n, one)| named[..n].contains(one).then_some(one)) {
            return Err(format!("--service-interface {} is given twice: give it once", shown(twice)));
        }
        let (mode, group) =
            (self.socket_mode.or(file.socket_mode), self.socket_group.clone().or(file.socket_group.take()));
        let has_unix = named.iter().any(|one| matches!(one, Interface::Unix(_)));
        if (self.socket_mode.is_some() || self.socket_group.is_some()) && !has_unix {
            return Err(
                "--socket-mode and --socket-group are for Unix sockets, and there is none: add --service-interface \
                        unix:PATH"
                    .to_owned(),
            );
        }
        let gid = group.map(|group| group_number(&group, around)).transpose()?;
        let mode = mode.unwrap_or(SocketAccess::OWNER.mode);
        let port = self.service_port.or(file.port).unwrap_or(PORT);
        Ok(Listening { named, port, access: SocketAccess { mode, gid } })
    }
}

impl Listening {
    /// The places, if no socket was inherited.
    pub fn places(&self) -> Vec<Interface> {
        self.places_beside(None)
    }

    /// The places to bind: those that were named, or without inherited sockets the default one.
    fn places_beside(&self, adopted: Option<&Listener>) -> Vec<Interface> {
        if self.named.is_empty() && adopted.is_none() {
            return vec![Interface::Ip(Ipv4Addr::LOCALHOST.into())];
        }
        self.named.clone()
    }

    /// The IP addresses of the places, if no socket was inherited.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.reach(None)
    }

    /// The addresses at which clients connect, also those of inherited sockets.
    pub fn reach(&self, adopted: Option<&Listener>) -> Vec<IpAddr> {
        let address = |place| if let Interface::Ip(address) = place { Some(address) } else { None };
        let own = self.places_beside(adopted).into_iter().filter_map(address);
        own.chain(adopted.into_iter().flat_map(Listener::addresses)).collect()
    }

    /// Binds the places that were named, beside the inherited sockets; without both 127.0.0.1.
    ///
    /// # Errors
    /// [`Kind::Usage`]: one of them cannot be bound.
    pub fn bind(&self, adopted: Option<Listener>) -> Result<Listener> {
        let places = self.places_beside(adopted.as_ref());
        let bind = |place: &Interface| match place {
            Interface::Ip(address) => Listener::bind(&SocketAddr::new(*address, self.port).to_string()),
            Interface::Unix(path) => Listener::bind_unix(path, self.access),
        };
        let bound = places.iter().map(bind).try_fold(adopted, |all, one| {
            let one = one?;
            Ok::<_, Error>(Some(if let Some(all) = all { Listener::and(all, one) } else { one }))
        })?;
        bound.ok_or_else(|| Error::new(Kind::Usage, "no place to listen: name one with --service-interface"))
    }
}

/// The number of a group of this host.
fn group_number(group: &str, around: &Around) -> std::result::Result<u32, String> {
    // The largest number means "unchanged" to chown(2).
    if let Some(gid) = group.parse().ok().filter(|gid| *gid != u32::MAX) {
        return Ok(gid);
    }
    // group(5): name, password, number, members.
    let groups = (around.read_file)(Path::new("/etc/group")).unwrap_or_default();
    let number = |line: &str| {
        let mut fields = line.split(':');
        (fields.next() == Some(group)).then(|| fields.nth(1)?.parse().ok()).flatten()
    };
    groups
        .lines()
        .find_map(number)
        .ok_or_else(|| format!("there is no group {group} in /etc/group: write its number, or another one"))
}

/// A place as it is written.
pub(crate) fn shown(place: &Interface) -> String {
    match place {
        Interface::Ip(address) => address.to_string(),
        Interface::Unix(path) => format!("unix:{}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::io;

    use super::*;
    use crate::plan::{Exit, Plan, ServePlan, parse};

    const FILES: [(&str, &str); 2] = [
        ("/etc/group", "root:x:0:\nbackup:x:34:a,b\n"),
        (
            "f",
            "databaseDirectory: /d\nbackup: {api: {interface: ['unix:/run/b.sock', 127.0.0.1], socketMode: 660, socketGroup: backup}}",
        ),
    ];

    fn run(line: &str) -> std::result::Result<Plan, Exit> {
        let args = ["chainweb-backup"].into_iter().chain(line.split_whitespace()).map(OsString::from);
        let read_file = |path: &Path| {
            let found = FILES.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, text)| (*text).to_owned()).ok_or_else(|| io::ErrorKind::NotFound.into())
        };
        parse(args, &Around { env: &|_| None, read_file: &read_file, list_databases: &|_| Vec::new() })
    }

    fn serve(line: &str) -> ServePlan {
        match run(line) {
            Ok(Plan::Serve(plan)) => plan,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn where_a_service_listens() {
        let unix = |path: &str| Interface::Unix(path.into());
        let plan = serve("--config-file f");
        assert_eq!(plan.listening.named, [unix("/run/b.sock"), Interface::Ip(Ipv4Addr::LOCALHOST.into())]);
        assert_eq!(plan.listening.access, SocketAccess { mode: 0o660, gid: Some(34) });
        let flags = "--service-interface unix:/x --service-interface ::1 --socket-group 7 --socket-mode 0666";
        let plan = serve(&format!("--config-file f {flags}"));
        assert_eq!(plan.listening.named, [unix("/x"), Interface::Ip("::1".parse().expect("an address"))]);
        assert_eq!(plan.listening.access, SocketAccess { mode: 0o666, gid: Some(7) });
        assert_eq!(plan.listening.reach(None), ["::1".parse::<IpAddr>().expect("an address")]);
        let wrong = "--database-directory /d --service-interface unix:/x --socket-group nobody-has-it";
        let Err(exit) = run(wrong) else { panic!("there is no such group") };
        assert!(exit.text.contains("no group nobody-has-it in /etc/group"), "{}", exit.text);
    }
}
