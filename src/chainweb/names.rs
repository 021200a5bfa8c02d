//! The names of the node: files and directories, keys of its configuration file, its addresses.
//!
//! ```text
//! DATABASE/0/rocksDb/                        headers, payloads, cuts
//! DATABASE/0/sqlite/pact-v1-chain-<n>.sqlite the state of Pact, one database per chain
//! DATABASE/backups/                          the backups of the node's own API, and our default backup directory
//! ```
//! A backup has the same `0`, and its lists name each file by its path from there: `0/rocksDb/000012.sst`.

use std::path::{Path, PathBuf};

/// `<database-directory>/0/`: the node's databases.
pub const PLACE: &str = "0";

/// `0/rocksDb/`: the RocksDB.
pub(crate) const ROCKSDB: &str = "rocksDb";

/// `0/sqlite/`: the Pact databases.
pub(crate) const SQLITE: &str = "sqlite";

/// The directories of a node's place.
pub(crate) const DIRECTORIES: [&str; 2] = [ROCKSDB, SQLITE];

/// The extension of a Pact database.
pub(crate) const PACT_EXTENSION: &str = "sqlite";

/// The part of a Pact database's name before the chain.
const BEFORE_CHAIN: &str = "pact-v1-chain-";

/// Before each path of the API: `/chainweb/0.0/{chainwebVersion}/make-backup`.
pub(crate) const API_PREFIX: &str = "/chainweb/0.0/";

/// The version that a node runs by default.
pub const DEFAULT_VERSION: &str = "mainnet01";

/// The flag with which a node starts although old blocks were removed from its Pact databases by compaction.
pub const COMPACTED_FLAG: &str = "--no-full-historic-pact-state";

/// The same in its configuration file.
pub const COMPACTED_SETTING: &str = "fullHistoricPactState: false";

/// The keys of the node's configuration file that we read.
pub mod key {
    /// The database directory.
    pub const DATABASE_DIRECTORY: &str = "databaseDirectory";
    pub(crate) const CHAINWEB: &str = "chainweb";
    pub(crate) const CHAINWEB_VERSION: &str = "chainwebVersion";
    /// At the top, or below `chainweb`.
    pub(crate) const BACKUP: &str = "backup";
    pub(crate) const BACKUP_DIRECTORY: &str = "directory";
    pub(crate) const BACKUP_API: &str = "api";
    pub(crate) const API_ENABLED: &str = "enabled";
    /// The node prints it, as an empty mapping.
    pub(crate) const API_CONFIGURATION: &str = "configuration";
}

/// `<database-directory>/0`.
pub fn place_in(database_directory: &Path) -> PathBuf {
    database_directory.join(PLACE)
}

/// `<database-directory>/0/rocksDb`.
pub(crate) fn rocksdb_in(database_directory: &Path) -> PathBuf {
    place_in(database_directory).join(ROCKSDB)
}

/// `<database-directory>/0/sqlite`.
pub(crate) fn sqlite_in(database_directory: &Path) -> PathBuf {
    place_in(database_directory).join(SQLITE)
}

/// `<database-directory>/backups`: the backup directory if none is configured.
pub fn backups_in(database_directory: &Path) -> PathBuf {
    database_directory.join("backups")
}

/// The directory below which a node of this user keeps its databases by default, one directory for each version; `data_home` is
/// `$XDG_DATA_HOME`.
pub fn default_parent_in(data_home: &Path) -> PathBuf {
    data_home.join("chainweb-node")
}

/// The database directory of a node by default, in the notation of a shell.
pub fn default_database_directory(chainweb_version: &str) -> String {
    format!("~/.local/share/chainweb-node/{chainweb_version}")
}

/// `0/<below>`: a path in the lists of a backup.
pub(crate) fn path_of(below: &str) -> String {
    format!("{PLACE}/{below}")
}

/// `0/<directory>/<name>`; of the directory itself if `name` is empty.
pub(crate) fn path_in(directory: &str, name: &str) -> String {
    let slash = if name.is_empty() { "" } else { "/" };
    format!("{PLACE}/{directory}{slash}{name}")
}

/// The part of such a path after `0/`.
pub(crate) fn below_place(path: &str) -> Option<&str> {
    path.strip_prefix(PLACE)?.strip_prefix('/')
}

/// The part of such a path after `0/<directory>/`.
pub(crate) fn name_in<'a>(directory: &str, path: &'a str) -> Option<&'a str> {
    below_place(path)?.strip_prefix(directory)?.strip_prefix('/')
}

/// Whether a file of this name is a Pact database.
pub(crate) fn is_pact_database(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == PACT_EXTENSION)
}

/// The chain of `pact-v1-chain-<n>.sqlite`. Only the node's own spelling counts: it never opens `pact-v1-chain-01.sqlite`.
pub(crate) fn chain_of(database: &Path) -> Option<u32> {
    let digits = database.file_stem()?.to_str()?.strip_prefix(BEFORE_CHAIN)?;
    digits.parse().ok().filter(|chain: &u32| chain.to_string() == digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_nodes_own_spelling_names_a_chain() {
        let chain = |name: &str| chain_of(Path::new(name));
        assert_eq!((chain("d/pact-v1-chain-0.sqlite"), chain("pact-v1-chain-19.sqlite")), (Some(0), Some(19)));
        for name in ["01", "+1", "-1", "", "1.old", "1-wal", "4294967296", "x"] {
            assert_eq!(chain(&format!("pact-v1-chain-{name}.sqlite")), None, "{name}");
        }
        assert_eq!((chain("copy-of-pact-v1-chain-1.sqlite"), chain("chain-1.sqlite")), (None, None));
    }
}
