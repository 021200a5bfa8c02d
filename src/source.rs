//! What is backed up: the node's databases, and how we may reach them.
//!
//! Closed enums: one `match` shows all the ways there are. Invariant: nothing here changes a source.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::{Flock, FlockType};

use crate::engine::{self, Db};
use crate::error::{Error, IoContext, Kind, Result};

/// Where the RocksDB is, and whether we hold it open.
#[derive(Clone)]
pub enum RocksSource {
    /// The node's own open handle: the service is embedded in the node.
    Handle(Arc<Db>),
    /// The directory of a database that a program of its own process uses; it is never opened with RocksDB.
    Directory(PathBuf),
}

/// Where the Pact databases are, and in whose process they are open. A missing directory means that there are none.
#[derive(Debug, Clone)]
pub enum SqliteSource {
    /// Open in this process, through the SQLite that is linked into this crate (`chainweb_backup::rusqlite`). A second
    /// SQLite library in the process would lose its locks when either closes a file.
    Embedded(PathBuf),
    /// Used by another process, or by none.
    Foreign(PathBuf),
}

/// The databases of one node.
#[derive(Clone)]
pub struct Sources {
    /// The node's `--database-directory`, which holds `0`. Our pin directory is made here when the backup directory is
    /// on another file system, and what we create follows its owner.
    pub database_directory: PathBuf,
    /// The RocksDB.
    pub rocksdb: RocksSource,
    /// The Pact databases.
    pub sqlite: SqliteSource,
}

impl Sources {
    /// The databases of a node that embeds this library: its open RocksDB, and the directory that holds `0/sqlite`.
    pub fn embedded(db: Arc<Db>, database_directory: &Path) -> Sources {
        Sources {
            database_directory: database_directory.to_owned(),
            rocksdb: RocksSource::Handle(db),
            sqlite: SqliteSource::Embedded(database_directory.join("0").join("sqlite")),
        }
    }

    /// The databases below `<database-directory>/0` of a node that is another program.
    pub fn directory(database_directory: &Path) -> Sources {
        Sources {
            database_directory: database_directory.to_owned(),
            rocksdb: RocksSource::Directory(database_directory.join("0").join("rocksDb")),
            sqlite: SqliteSource::Foreign(database_directory.join("0").join("sqlite")),
        }
    }

    /// Fails with [`Kind::Usage`] where there is no RocksDB. The Pact databases may come later, with the node's first start.
    pub(crate) fn validate(&self) -> Result<()> {
        let rocksdb = self.rocksdb.path();
        if rocksdb.join("CURRENT").is_file() {
            return Ok(());
        }
        let context = format!(
            "there is no RocksDB in {} (no file CURRENT); --database-directory must name the node's directory that holds 0/rocksDb",
            rocksdb.display()
        );
        Err(Error::new(Kind::Usage, context))
    }
}

impl RocksSource {
    /// The directory of the database.
    pub fn path(&self) -> &Path {
        match self {
            RocksSource::Handle(db) => engine::path(db),
            RocksSource::Directory(path) => path,
        }
    }

    /// Whether another process holds the database open: asked of its LOCK, which is not taken.
    pub(crate) fn is_held_by_another(&self) -> Result<bool> {
        let RocksSource::Directory(path) = self else { return Ok(false) };
        let path = path.join("LOCK");
        let file = match fs::File::open(&path) {
            // A database whose LOCK was never made or copied is held by nobody.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            other => other.context(|| format!("cannot open {}", path.display()))?,
        };
        let holder = rustix::process::fcntl_getlk(&file, &Flock::from(FlockType::WriteLock));
        Ok(holder.context(|| format!("cannot ask who holds {}", path.display()))?.is_some())
    }
}

impl SqliteSource {
    /// The directory of the databases.
    pub fn path(&self) -> &Path {
        match self {
            SqliteSource::Embedded(path) | SqliteSource::Foreign(path) => path,
        }
    }

    /// The database files, `*.sqlite`, by chain; none where the directory is missing.
    pub(crate) fn databases(&self) -> Result<Vec<PathBuf>> {
        let directory = self.path();
        let failed = || format!("cannot list the Pact databases in {}", directory.display());
        let mut files = Vec::new();
        match fs::read_dir(directory) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(files),
            entries => {
                for entry in entries.context(failed)? {
                    let path = entry.context(failed)?.path();
                    if path.extension().is_some_and(|e| e == "sqlite") {
                        files.push(path);
                    }
                }
            }
        }
        files.sort_by_key(|p| (chain_of(p), p.clone()));
        Ok(files)
    }
}

/// The chain of `pact-v1-chain-N.sqlite`.
pub(crate) fn chain_of(database: &Path) -> Option<u32> {
    database.file_stem()?.to_str()?.rsplit_once("chain-")?.1.parse().ok()
}

/// The file that SQLite keeps beside a database: `-wal`, `-shm`, `-journal`.
pub(crate) fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
