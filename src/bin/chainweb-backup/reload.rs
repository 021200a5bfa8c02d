//! SIGHUP: the configuration is read again, and what has changed in it applies from now on.
//!
//! Invariant: if a file cannot be read, or anything in it is wrong, nothing changes. An empty one is perhaps being written.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use chainweb_backup::{Config, Service, chainweb};

use crate::door;
use crate::listen::Listening;
use crate::places::Node;
use crate::plan::{self, MakePlan, Plan, ServePlan};

/// What was read at the start, as far as it cannot change later.
pub struct Started {
    node: Node,
    backup_directory: PathBuf,
    /// Where the service listens; `make` does not.
    listening: Option<Listening>,
    /// The addresses at which clients come, also those of inherited sockets.
    reach: Vec<IpAddr>,
    /// Whether a token is required.
    has_token: bool,
    /// The warnings and notes that are in the log already.
    told: Vec<String>,
}

impl Started {
    /// Of a service.
    pub fn serving(plan: &ServePlan, reach: Vec<IpAddr>) -> Started {
        let started = Started::new(&plan.node, &plan.config, Some(&plan.listening), [&plan.warnings, &plan.notes]);
        Started { reach, has_token: plan.guard.token_file.is_some(), ..started }
    }

    /// Of one backup.
    pub fn making(plan: &MakePlan) -> Started {
        Started::new(&plan.node, &plan.config, None, [&plan.warnings, &plan.notes])
    }

    fn new(node: &Node, config: &Config, listening: Option<&Listening>, told: [&Vec<String>; 2]) -> Started {
        let told = told.into_iter().flatten().cloned().collect();
        Started {
            node: node.clone(),
            backup_directory: config.backup_directory.clone(),
            listening: listening.cloned(),
            reach: Vec::new(),
            has_token: false,
            told,
        }
    }

    /// What differs and applies only after a restart.
    fn fixed(&self, now: &Started) -> Vec<&'static str> {
        let each = [
            (chainweb::key::DATABASE_DIRECTORY, self.node.database_directory != now.node.database_directory),
            ("rocksdbDirectory", self.node.rocksdb_directory != now.node.rocksdb_directory),
            ("sqliteDirectory", self.node.sqlite_directory != now.node.sqlite_directory),
            ("pinDirectory", self.node.pin_directory != now.node.pin_directory),
            ("backup.directory", self.backup_directory != now.backup_directory),
            ("backup.api.interface", differs(self, now, |listening| &listening.named)),
            ("backup.api.port", differs(self, now, |listening| &listening.port)),
            ("backup.api.socketMode, backup.api.socketGroup", differs(self, now, |listening| &listening.access)),
        ];
        each.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
    }
}

/// Whether a part of where the service listens differs.
fn differs<T: PartialEq>(started: &Started, now: &Started, part: impl Fn(&Listening) -> &T) -> bool {
    started.listening.as_ref().map(&part) != now.listening.as_ref().map(&part)
}

/// Reads command line, environment and configuration files again, and applies what can change.
pub fn reload(service: &Service, started: &mut Started) {
    let read_file = |path: &Path| {
        let text = plan::read_file(path)?;
        if text.trim().is_empty() { Err(io::Error::other("it is empty")) } else { Ok(text) }
    };
    let (now, config, warnings, log_level) = match crate::parse(&read_file) {
        Ok(Plan::Serve(mut plan)) => {
            // The addresses are those of the start, whatever is configured now.
            if let Err(e) = door::equip(&mut plan, &started.reach) {
                return refused(&e.chain());
            }
            (Started::serving(&plan, started.reach.clone()), plan.config, plan.warnings, plan.log_level)
        }
        Ok(Plan::Make(plan)) => (Started::making(&plan), plan.config, plan.warnings, plan.log_level),
        Ok(_) => return,
        Err(exit) => return refused(exit.text.lines().next().unwrap_or_default()),
    };
    let limit = config.limit_bytes_per_second.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
    let changed = match service.reconfigure(config) {
        Ok(changed) => changed.join(" "),
        Err(e) => return refused(&e.chain()),
    };
    log::set_max_level(log_level);
    log::info!("configuration read again limit_bytes_per_second={limit} changed={changed:?}");
    if started.has_token && !now.has_token {
        log::warn!("no token is required any more note=\"every program that reaches the service can use it\"");
    }
    started.has_token = now.has_token;
    let fixed = started.fixed(&now).join(" ");
    if !fixed.is_empty() {
        log::warn!("configuration applies only after a restart keys={fixed:?}");
    }
    for line in now.told.iter().filter(|line| !started.told.contains(line)) {
        if warnings.contains(line) { log::warn!("{line}") } else { log::info!("{line}") }
    }
    started.told = now.told;
}

fn refused(reason: &str) {
    log::error!("configuration not read again reason={reason:?} note=\"everything is as before\"");
}
