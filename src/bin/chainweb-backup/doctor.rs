//! The command `doctor`: prints what the next backup meets, a line for each finding, and whether the service answers.
//!
//! Invariant: of the service only its metrics are read.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use chainweb_backup::{Finding, Health, Result, examine};

use crate::action::Output;
use crate::door;
use crate::plan::ServePlan;
use crate::terminal::print;

/// How long the service may take for each step of an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How much of the answer is read at most.
const ANSWER_BYTES: u64 = 64 * 1024;

/// What is in the metrics of every service of this program, or in its refusal to show them without a token.
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
    findings.push(service(SocketAddr::new(plan.interface, plan.port)));
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

/// Whether our service answers at its address.
fn service(address: SocketAddr) -> Finding {
    let finding = |health, text| Finding { about: "service", health, text };
    if address.port() == 0 {
        return finding(Health::Ok, "it listens on any free port: not asked".to_owned());
    }
    let asked = SocketAddr::new(reachable(address.ip()), address.port());
    match metrics(asked) {
        Ok(answer) if OURS.iter().any(|ours| answer.contains(ours)) => {
            finding(Health::Ok, format!("a service answers at {asked}"))
        }
        Ok(_) => finding(
            Health::Fault,
            format!("another program answers at {asked}: give the service another port (--service-port)"),
        ),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => finding(
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
fn metrics(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_LIMIT)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
