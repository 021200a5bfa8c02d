//! The directories of the node's databases: those that were named, or the node's default.
//!
//! A node without `databaseDirectory` uses `chainweb-node/<version>` in `$XDG_DATA_HOME`, or in `~/.local/share` (XDG Base
//! Directory Specification: a relative value is ignored). If no directory was named, we use that of the configured version; without
//! a version, the only one that exists. Otherwise the error says which directory was searched, and what is in it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use chainweb_backup::{RocksSource, Sources, SqliteSource, chainweb};

/// The node's directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The node's database directory; if none was named, the directory that holds its RocksDB.
    pub database_directory: PathBuf,
    /// RocksDB's directory, if it is not in the `0` of the database directory.
    pub rocksdb_directory: Option<PathBuf>,
    /// The directory of the Pact databases, if it is not in the `0` of the database directory.
    pub sqlite_directory: Option<PathBuf>,
    /// The directory in which the pin directory is made, if it was named.
    pub pin_directory: Option<PathBuf>,
}

impl Node {
    /// The same for the library.
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

/// Looks for the node's default database directory: that of `version`, or without one the only one that exists. `list` returns the
/// names of the database directories in a directory. The error is a clause that says which directory was searched, and what is in it.
pub fn find(
    version: Option<&str>,
    env: &dyn Fn(&str) -> Option<OsString>,
    list: &dyn Fn(&Path) -> Vec<String>,
) -> Result<Found, String> {
    let absolute = |name: &str| env(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data_home = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
    let Some(parent) = data_home.map(|home| chainweb::default_parent_in(&home)) else {
        return Err("neither HOME nor XDG_DATA_HOME is set, so no directory was searched".to_owned());
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

/// The names of the database directories in a directory. Those that cannot be read are left out.
#[expect(clippy::disallowed_methods, reason = "the node's user made it, and only names are read")]
pub fn list(parent: &Path) -> Vec<String> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let databases = entries.filter(|entry| Sources::are_in(&entry.path()));
    databases.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
