//! Finished backups, and the commit of a new one: the catalog, recovery, verification, restore, retention.

pub(crate) mod below;
pub(crate) mod catalog;
pub(crate) mod commit;
pub(crate) mod damage;
pub(crate) mod details;
pub(crate) mod drill;
pub(crate) mod drill_command;
pub(crate) mod filling;
pub(crate) mod journal;
pub(crate) mod moving;
pub(crate) mod operations;
pub(crate) mod pact_base;
pub(crate) mod pact_pieces;
pub(crate) mod pairs;
pub(crate) mod placement;
pub(crate) mod prune;
pub(crate) mod recover;
pub(crate) mod rehearsal;
pub(crate) mod reread;
pub(crate) mod restore;
pub(crate) mod retention;
pub(crate) mod start_proofs;
pub(crate) mod sums;
pub(crate) mod sums_list;
pub(crate) mod verification;
pub(crate) mod verify;
