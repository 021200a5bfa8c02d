//! What is backed up: the node's databases, and how we may reach them.
//!
//! Closed enums: one `match` shows all the ways there are. Invariant: nothing here changes a source.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::StatFs;
use rustix::process::{Flock, FlockType};

use crate::capture::rocksdb::engine::{self, Db};
use crate::disk::nofollow;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::layout::PIN_DIRECTORY;

/// File systems whose view of a file is cached, or is another file system's: magic numbers of statfs(2).
const REFUSED_FILE_SYSTEMS: [(i64, &str); 9] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x6573_5546, "FUSE"),
    (0x794c_7630, "overlay"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "Ceph"),
    (0x0bd0_0bd0, "Lustre"),
];

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
        match fs::metadata(rocksdb.join("CURRENT")) {
            Ok(meta) if meta.is_file() => return Ok(()),
            Err(e) if e.kind() == ErrorKind::PermissionDenied => {
                let context = format!("cannot look into {}: run as the node's user or as root", rocksdb.display());
                return Err(Error::io(context, e));
            }
            _ => {}
        }
        let context = format!(
            "there is no RocksDB in {} (no file CURRENT); --database-directory must name the node's directory that holds 0/rocksDb",
            rocksdb.display()
        );
        Err(Error::new(Kind::Usage, context))
    }

    /// Fails with [`Kind::Usage`] where a backup directory would lie among the node's own files, or ours beside them,
    /// whatever links and mounts its name goes through.
    pub(crate) fn require_apart(&self, directory: &Path) -> Result<()> {
        let node = &self.database_directory;
        let theirs = [&node.join("0"), &node.join(PIN_DIRECTORY), self.rocksdb.path(), self.sqlite.path()];
        let resolved = resolve(directory)?;
        let mut within = is_same(directory, node);
        for own in theirs {
            // What a mount shows has another name; what is not there yet has only its name.
            within |= resolved.ancestors().any(|above| is_same(above, own)) || resolved.starts_with(resolve(own)?);
        }
        if !within {
            return Ok(());
        }
        let context = format!(
            "the backup directory {} lies among the node's own files: name another, like {}",
            directory.display(),
            node.join("backups").display()
        );
        Err(Error::new(Kind::Usage, context))
    }
}

/// Whether both names are there, and of one file.
pub(crate) fn is_same(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    identity(a).is_some_and(|a| Some(a) == identity(b))
}

/// Refuses a path on which no directory can be, because a file stands there or on the way.
pub(crate) fn require_no_file(path: &Path, what: &str, flag: &str) -> Result<()> {
    match path.ancestors().find(|above| above.metadata().is_ok_and(|meta| !meta.is_dir())) {
        None => Ok(()),
        Some(file) => {
            let (path, file) = (path.display(), file.display());
            let context = format!("{path} cannot be the {what}: {file} is a file; name a directory with {flag}");
            Err(Error::new(Kind::Usage, context))
        }
    }
}

/// The absolute name of a path, without links where they can be followed, whether or not it is there.
///
/// # Errors
/// [`Kind::Usage`]: `..` after what is not there, which means nothing.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf> {
    let mut there = std::path::absolute(path).context(|| format!("cannot find out where {} is", path.display()))?;
    let mut missing = Vec::new();
    let mut resolved = loop {
        match there.canonicalize() {
            Ok(resolved) => break resolved,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                match there.components().next_back() {
                    Some(Component::Normal(name)) => missing.push(name.to_owned()),
                    _ => {
                        let context = format!("{} has .. after a directory that is not there", path.display());
                        return Err(Error::new(Kind::Usage, context));
                    }
                }
                there.pop();
            }
            // Where not even root could look, its name must do.
            Err(_) => break there,
        }
    };
    resolved.extend(missing.iter().rev());
    Ok(resolved)
}

/// What a file system is called on which files may not be what they seem.
pub(crate) fn doubtful_name(file_system: &StatFs) -> Option<&'static str> {
    #[allow(clippy::unnecessary_cast)] // its type differs between architectures
    let magic = file_system.f_type as i64;
    REFUSED_FILE_SYSTEMS.iter().find(|(refused, _)| *refused == magic).map(|(_, name)| *name)
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
        Ok(self.lock_seen_on()?.is_some())
    }

    /// The file system (its device) on which another process is seen to hold the LOCK.
    pub(crate) fn lock_seen_on(&self) -> Result<Option<u64>> {
        let RocksSource::Directory(path) = self else { return Ok(None) };
        let path = path.join("LOCK");
        let file = match nofollow::open_of_node(&path) {
            // A database whose LOCK was never made or copied is held by nobody.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.context(|| format!("cannot open {}", path.display()))?,
        };
        let failed = || format!("cannot ask who holds {}", path.display());
        let holder = rustix::process::fcntl_getlk(&file, &Flock::from(FlockType::WriteLock)).context(failed)?;
        let device = file.metadata().context(failed)?.dev();
        Ok(holder.map(|_| device))
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
    #[expect(clippy::disallowed_methods, reason = "the operator may have put links on the way to the node's files")]
    pub(crate) fn databases(&self) -> Result<Vec<PathBuf>> {
        let directory = self.path();
        let failed = || format!("cannot list the Pact databases in {}", directory.display());
        let mut files = Vec::new();
        match fs::read_dir(directory) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(files),
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
