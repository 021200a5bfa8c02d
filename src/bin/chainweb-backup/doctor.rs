//! The command `doctor`: prints what the next backup meets, a line for each finding, and whether the service answers.
//!
//! Invariant: of the service only its metrics are read.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use chainweb_backup::{Finding, Health, Interface, Result, examine};

use crate::action::Output;
use crate::door;
use crate::listen::{self, Listening};
use crate::plan::ServePlan;
use crate::terminal::print;

/// How long the service may take for each step of an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How much of the answer is read at most.
const ANSWER_BYTES: u64 = 64 * 1024;

/// Texts in the answer of every service of this program: in its metrics, or in its refusal to show them without a token.
const OURS: [&str; 2] = ["chainweb_backup_", "realm=\"chainweb-backup\""];

/// Examines the node, the backups and the service of this plan. Returns the exit code: 1 if there is a fault.
pub fn doctor(plan: &ServePlan, output: Output) -> Result<i32> {
    let mut findings = examine(&plan.config, &plan.node.sources());
    findings.extend(plan.warnings.iter().map(|text| Finding {
        about: "settings",
        health: Health::Warning,
        text: text.clone(),
    }));
    findings.push(door::finding(plan));
    findings.extend(services(&plan.listening));
    match output {
        Output::Json => print(&serde_json::to_string(&findings).expect("findings have only string keys"))?,
        Output::Text => {
            let line = |finding: &Finding| {
                let text = finding.text.replace(char::is_control, " ");
                format!("{:<8} {:<10} {text}", finding.health.word(), finding.about)
            };
            print(&findings.iter().map(line).collect::<Vec<_>>().join("\n"))?
        }
    };
    Ok(i32::from(findings.iter().any(|finding| finding.health == Health::Fault)))
}

/// Whether our service answers at each of its places.
fn services(listening: &Listening) -> impl Iterator<Item = Finding> {
    listening.places().into_iter().map(|place| match place {
        Interface::Ip(_) if listening.port == 0 => {
            finding(Health::Ok, "it listens on any free port: not asked".to_owned())
        }
        Interface::Ip(address) => {
            let asked = SocketAddr::new(reachable(address), listening.port);
            let limit = Some(ANSWER_LIMIT);
            let stream = TcpStream::connect_timeout(&asked, ANSWER_LIMIT)
                .and_then(|s| s.set_read_timeout(limit).and_then(|()| s.set_write_timeout(limit)).map(|()| s));
            service(&asked.to_string(), stream.and_then(metrics))
        }
        Interface::Unix(path) => {
            let limit = Some(ANSWER_LIMIT);
            let stream = UnixStream::connect(&path)
                .and_then(|s| s.set_read_timeout(limit).and_then(|()| s.set_write_timeout(limit)).map(|()| s));
            service(&listen::shown(&Interface::Unix(path)), stream.and_then(metrics))
        }
    })
}

fn finding(health: Health, text: String) -> Finding {
    Finding { about: "service", health, text }
}

/// What was answered at this place.
fn service(asked: &str, answer: io::Result<String>) -> Finding {
    match answer {
        Ok(answer) if OURS.iter().any(|ours| answer.contains(ours)) => {
            finding(Health::Ok, format!("a service answers at {asked}"))
        }
        Ok(_) => finding(
            Health::Fault,
            format!("another program answers at {asked}: give the service another port (--service-port) or socket"),
        ),
        Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => finding(
            Health::Warning,
            format!("no service listens on {asked}: start one, unless backups are made with 'make'"),
        ),
        Err(e) => finding(
            Health::Fault,
            format!(
                "the service at {asked} does not answer: {e}; look at its log, and whether another program has the port"
            ),
        ),
    }
}

/// An address at which a service that listens on `ip` is reached from here.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// The beginning of the answer to a request for the metrics.
fn metrics(mut stream: impl Read + Write) -> io::Result<String> {
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
