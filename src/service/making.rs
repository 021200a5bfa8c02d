//! What all steps of one backup have in common: the sources, the catalog, the configuration, and the job's control.

use std::path::Path;

use crate::backups::catalog::Catalog;
use crate::capture::source::Sources;
use crate::config::Config;
use crate::disk::copy::Copier;

/// The context of a backup that is being made.
#[derive(Clone, Copy)]
pub(crate) struct Making<'a> {
    pub(crate) sources: &'a Sources,
    pub(crate) catalog: &'a Catalog,
    pub(crate) config: &'a Config,
    pub(crate) copier: Copier<'a>,
    pub(crate) started_ms: u64,
}

impl<'a> Making<'a> {
    /// The program that reads finished copies of RocksDB in a process of its own, if there is one.
    pub(crate) fn program(&self) -> Option<&'a Path> {
        self.config.heights_program.as_deref()
    }
}
