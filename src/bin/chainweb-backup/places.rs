//! Where the node keeps its databases: as it was named, or where a node keeps them by default.
//!
//! A node without `databaseDirectory` uses `chainweb-node/<version>` in `$XDG_DATA_HOME`, or in `~/.local/share` (XDG Base
//! Directory Specification: a relative value is ignored). That directory is used if nothing was named and exactly one is there, or
//! the one of the configured version. Nothing is guessed: otherwise the error says where it was looked, and what was found.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use chainweb_backup::{RocksSource, Sources, SqliteSource, chainweb};

/// The node's directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The node's database directory; if none was named, the directory that holds its RocksDB.
    pub database_directory: PathBuf,
    /// Its RocksDB, if it is not in the `0` of that.
    pub rocksdb_directory: Option<PathBuf>,
    /// Its Pact databases, if they are not in the `0` of that.
    pub sqlite_directory: Option<PathBuf>,
    /// The directory in which links keep files until they are copied, if it was named.
    pub pin_directory: Option<PathBuf>,
}

impl Node {
    /// Its databases as the library takes them.
    pub fn sources(&self) -> Sources {
        let usual = Sources::directory(&self.database_directory);
        Sources {
            rocksdb: self.rocksdb_directory.clone().map_or(usual.rocksdb, RocksSource::Directory),
            sqlite: self.sqlite_directory.clone().map_or(usual.sqlite, SqliteSource::Foreign),
            pin_directory: self.pin_directory.clone(),
            ..usual
        }
    }
}

/// A database directory that was found.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// The directory.
    pub database_directory: PathBuf,
    /// Its name: the node's version.
    pub version: String,
}

/// Looks for the node's default database directory: of `version`, or of any version if exactly one is there. `list` returns the
/// names of those in a directory. The error is a clause that says where it was looked, and what is there.
pub fn find(
    version: Option<&str>,
    env: &dyn Fn(&str) -> Option<OsString>,
    list: &dyn Fn(&Path) -> Vec<String>,
) -> Result<Found, String> {
    let absolute = |name: &str| env(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data_home = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
    let Some(parent) = data_home.map(|home| chainweb::default_parent_in(&home)) else {
        return Err("neither HOME nor XDG_DATA_HOME is set, so it was looked for in no directory".to_owned());
    };
    let (mut names, at) = (list(&parent), parent.display());
    names.sort();
    let found = |name: &str| Found { database_directory: parent.join(name), version: name.to_owned() };
    match (version, names.as_slice()) {
        (Some(version), names) if names.iter().any(|name| name == version) => Ok(found(version)),
        (None, [only]) => Ok(found(only)),
        (_, []) => Err(format!("{at} has none: was this started as the node's user?")),
        (None, several) => Err(format!("{at} has several: {}", several.join(", "))),
        (Some(version), others) => Err(format!("{at} has none of {version}, but {}", others.join(", "))),
    }
}

/// The names of the database directories in a directory; of those that cannot be read, none.
#[expect(clippy::disallowed_methods, reason = "the node's user made it, and only names are read")]
pub fn list(parent: &Path) -> Vec<String> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let databases = entries.filter(|entry| Sources::are_in(&entry.path()));
    databases.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
