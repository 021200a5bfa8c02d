//! The sources of a backup: the node's databases, and how we may access them.
//!
//! The sources are closed enums, so that one `match` shows every case.
//!
//! The operator may have put links on the way to the databases, and in place of `0` and the directories below it; the latter must be
//! trusted (see `links`). A service resolves them once, at its start ([`Sources::resolved`]), and from then on uses only the paths
//! without links: a link that the node's user plants later is not followed. Before each job they are resolved again, and if they lead
//! elsewhere now, the job fails: its backup would be of a database that the node does not use any more.
//!
//! Invariant: nothing here changes a source.

use std::collections::HashSet;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::StatFs;
use rustix::process::{Flock, FlockType};

use crate::capture::links::follow_trusted;
use crate::capture::rocksdb::engine::{self, Db};
use crate::chainweb::{self, ROCKSDB};
use crate::database_files::{CURRENT, LOCK};
use crate::disk::file_id::FileId;
use crate::disk::nofollow;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::layout::{PIN_DIRECTORY, RESTORE_MARK};

/// File systems that may show a file from a cache, or show a file of another file system: magic numbers of statfs(2).
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

/// The place of the RocksDB, and whether this process has it open.
#[derive(Clone)]
pub enum RocksSource {
    /// The node's own open handle: the service is embedded in the node.
    Handle(Arc<Db>),
    /// The directory of a database that another process uses; we never open it with RocksDB.
    Directory(PathBuf),
}

/// The directory of the Pact databases, and whether this process has them open. If the directory does not exist, there are none.
#[derive(Debug, Clone)]
pub enum SqliteSource {
    /// Open in this process, through the SQLite that is linked into this crate (`chainweb_backup::rusqlite`). A second
    /// SQLite library in the process would lose its locks when either closes a file.
    Embedded(PathBuf),
    /// Used by another process, or by no process.
    Foreign(PathBuf),
}

/// The databases of one node.
#[derive(Clone)]
pub struct Sources {
    /// The node's `--database-directory`, which holds `0`. The files that we create get the owner of this directory.
    pub database_directory: PathBuf,
    /// If the backup directory is on another mount: the directory, on RocksDB's mount, in which our pin directory is made. `None`
    /// is the first of these in which that is possible: the database directory, its `0`.
    pub pin_directory: Option<PathBuf>,
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
            pin_directory: None,
            rocksdb: RocksSource::Handle(db),
            sqlite: SqliteSource::Embedded(chainweb::sqlite_in(database_directory)),
        }
    }

    /// The databases below `<database-directory>/0` of a node that is another program.
    pub fn directory(database_directory: &Path) -> Sources {
        Sources {
            database_directory: database_directory.to_owned(),
            pin_directory: None,
            rocksdb: RocksSource::Directory(chainweb::rocksdb_in(database_directory)),
            sqlite: SqliteSource::Foreign(chainweb::sqlite_in(database_directory)),
        }
    }

    /// Whether there is a RocksDB in the `0` of this directory.
    pub fn are_in(database_directory: &Path) -> bool {
        chainweb::rocksdb_in(database_directory).join(CURRENT).is_file()
    }

    /// Fails with [`Kind::Usage`] if there is no RocksDB. The Pact databases may appear later, when the node first starts.
    pub(crate) fn validate(&self) -> Result<()> {
        let rocksdb = self.rocksdb.path();
        match fs::metadata(rocksdb.join(CURRENT)) {
            Ok(meta) if meta.is_file() => return self.require_no_half_restore(),
            Err(e) if e.kind() == ErrorKind::PermissionDenied => {
                let context = format!("cannot read {}: run as the node's user or as root", rocksdb.display());
                return Err(Error::io(context, e));
            }
            _ => {}
        }
        let context = format!(
            "there is no RocksDB in {} (no file CURRENT); --database-directory must name the node's directory that holds {}, or \
             --rocksdb-directory the RocksDB itself",
            rocksdb.display(),
            chainweb::path_of(ROCKSDB)
        );
        Err(Error::new(Kind::Usage, context))
    }

    /// Fails with [`Kind::Refused`] if a restore into the RocksDB is half done.
    pub(crate) fn require_no_half_restore(&self) -> Result<()> {
        let RocksSource::Directory(rocksdb) = &self.rocksdb else { return Ok(()) };
        if !is_half_restored(rocksdb)? {
            return Ok(());
        }
        let context = format!(
            "a restore into {} was interrupted and is half done: finish it with restore --resume --to {1}, or bring the old \
             database back with restore --undo --to {1}",
            rocksdb.display(),
            self.database_directory.display()
        );
        Err(Error::new(Kind::Refused, context))
    }

    /// The same databases, by paths without links. What does not exist yet keeps its name. Fails with [`Kind::Refused`] at a link
    /// below the database directory that is not to be trusted.
    pub(crate) fn resolved(&self) -> Result<Sources> {
        Ok(Sources {
            database_directory: resolve(&self.database_directory)?,
            pin_directory: self.pin_directory.as_deref().map(resolve).transpose()?,
            rocksdb: match &self.rocksdb {
                RocksSource::Handle(db) => RocksSource::Handle(Arc::clone(db)),
                RocksSource::Directory(path) => RocksSource::Directory(self.resolve_trusted(path)?),
            },
            sqlite: match &self.sqlite {
                SqliteSource::Embedded(path) => SqliteSource::Embedded(self.resolve_trusted(path)?),
                SqliteSource::Foreign(path) => SqliteSource::Foreign(self.resolve_trusted(path)?),
            },
        })
    }

    /// A path without links; if it lies below the database directory, only trusted links are followed from there.
    pub(crate) fn resolve_trusted(&self, path: &Path) -> Result<PathBuf> {
        match path.strip_prefix(&self.database_directory) {
            Ok(below) => follow_trusted(&resolve(&self.database_directory)?, below),
            Err(_) => resolve(path),
        }
    }

    fn paths(&self) -> [&Path; 4] {
        let directory = &self.database_directory;
        [directory, self.rocksdb.path(), self.sqlite.path(), self.pin_directory.as_deref().unwrap_or(directory)]
    }

    /// Logs where links lead; `resolved` are these sources without links.
    pub(crate) fn log_links(&self, resolved: &Sources) {
        for (named, path) in self.paths().into_iter().zip(resolved.paths()).skip(1) {
            if std::path::absolute(named).ok() != std::path::absolute(path).ok() {
                log::info!("source directory={} leads_to={}", named.display(), path.display());
            }
        }
    }

    /// Fails with [`Kind::Refused`] if these sources, as they were named, are no longer those that they were at the start.
    pub(crate) fn require_unmoved(&self, at_start: &Sources) -> Result<()> {
        let now = self.resolved()?;
        let moved =
            now.paths().into_iter().zip(at_start.paths()).zip(self.paths()).find(|((now, then), _)| now != then);
        let Some(((now, then), named)) = moved else { return Ok(()) };
        let context = format!(
            "{} led to {} at the start and leads to {} now: restart this program if the node uses the new place",
            named.display(),
            then.display(),
            now.display()
        );
        Err(Error::new(Kind::Refused, context))
    }

    /// The directories in which the pin directory may be made, the first choice first; without links if these sources are
    /// [resolved](Sources::resolved). Not the databases' own directories, unless one was named.
    pub(crate) fn pin_places(&self) -> Result<Vec<PathBuf>> {
        if let Some(named) = &self.pin_directory {
            return Ok(vec![named.clone()]);
        }
        let databases = [resolve(self.rocksdb.path())?, resolve(self.sqlite.path())?];
        let mut places = self.usual_pin_places()?;
        places.retain(|place| !databases.iter().any(|database| place.starts_with(database)));
        Ok(places)
    }

    fn usual_pin_places(&self) -> Result<Vec<PathBuf>> {
        Ok(vec![resolve(&self.database_directory)?, resolve(&chainweb::place_in(&self.database_directory))?])
    }

    /// Whether a place for the pin directory is reached by a link that the owner of the database directory may have made, and
    /// belongs to another user. There only the operator may have it made, by naming it.
    pub(crate) fn is_linked_to_another_user(&self, place: &Path) -> Result<bool> {
        let inside = place.starts_with(resolve(&self.database_directory)?);
        if self.pin_directory.is_some() || inside {
            return Ok(false);
        }
        let uid = |path: &Path| {
            fs::metadata(path).map(|meta| meta.uid()).context(|| format!("cannot look at {}", path.display()))
        };
        Ok(uid(place)? != uid(&self.database_directory)?)
    }

    /// The directories in which an earlier configuration may have made a pin directory, and those of the present one.
    pub(crate) fn all_pin_places(&self) -> Result<Vec<PathBuf>> {
        let mut places = self.pin_places()?;
        places.extend(self.usual_pin_places()?);
        places.push(resolve(self.rocksdb.path())?);
        let mut seen = HashSet::new();
        places.retain(|place| seen.insert(place.clone()));
        Ok(places)
    }

    /// Fails with [`Kind::Usage`] if a backup directory would be the database directory or its `0`, or would lie in a database's
    /// directory or in our pin directory, also through links and mounts. Beside the databases in `0` it may lie.
    pub(crate) fn require_apart(&self, directory: &Path) -> Result<()> {
        let node = &self.database_directory;
        let place = chainweb::place_in(node);
        let pins = self.all_pin_places()?.into_iter().map(|place| place.join(PIN_DIRECTORY));
        let theirs = pins.chain([self.rocksdb.path().to_owned(), self.sqlite.path().to_owned()]);
        let resolved = resolve(directory)?;
        let mut within = [node, &place].iter().any(|own| is_same(directory, own)) || resolved == resolve(&place)?;
        for own in &theirs.collect::<Vec<_>>() {
            // A directory that is also mounted elsewhere has another name; one that does not exist yet has only a name.
            within |= resolved.ancestors().any(|above| is_same(above, own)) || resolved.starts_with(resolve(own)?);
        }
        if !within {
            return Ok(());
        }
        let context = format!(
            "the backup directory {} lies among the node's own files: name another one, such as {}",
            directory.display(),
            chainweb::backups_in(node).display()
        );
        Err(Error::new(Kind::Usage, context))
    }
}

/// The path without links of `path`, which lies below a database directory: of the links below that, only trusted ones are followed.
///
/// # Errors
/// [`Kind::Refused`] if one is not.
pub fn resolve_trusted(database_directory: &Path, path: &Path) -> Result<PathBuf> {
    Sources::directory(database_directory).resolve_trusted(path)
}

/// Whether both names exist and belong to the same file.
pub(crate) fn is_same(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|meta| FileId::from(&meta));
    identity(a).is_some_and(|a| Some(a) == identity(b))
}

/// Fails if `path`, or a part of it, is a file, so that it cannot be a directory.
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

/// The absolute name of a path, with links resolved as far as possible. The path need not exist.
///
/// # Errors
/// [`Kind::Usage`] if `..` follows a directory that does not exist.
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
                        let context = format!("{} has .. after a directory that does not exist", path.display());
                        return Err(Error::new(Kind::Usage, context));
                    }
                }
                there.pop();
            }
            // Even root could not look there, so the name is used as it is.
            Err(_) => break there,
        }
    };
    resolved.extend(missing.iter().rev());
    Ok(resolved)
}

/// The name of a file system that may not show a file as it is; `None` for any other.
pub(crate) fn doubtful_name(file_system: &StatFs) -> Option<&'static str> {
    #[allow(clippy::unnecessary_cast)] // its type differs between architectures
    let magic = file_system.f_type as i64;
    REFUSED_FILE_SYSTEMS.iter().find(|(refused, _)| *refused == magic).map(|(_, name)| *name)
}

/// Fails with [`Kind::Refused`] if a restore into this database directory was interrupted and is half done: no node can open the
/// database, and no backup of it can be made.
///
/// # Errors
/// Also [`Kind::Io`].
pub fn require_no_half_restore(database_directory: &Path) -> Result<()> {
    Sources::directory(database_directory).require_no_half_restore()
}

/// Whether a restore into this directory of a RocksDB is half done: no node can open it.
pub(crate) fn is_half_restored(rocksdb: &Path) -> Result<bool> {
    let path = rocksdb.join(CURRENT);
    let mut bytes = [0; RESTORE_MARK.len()];
    let read = nofollow::open_of_node(&path).and_then(|mut file| file.read_exact(&mut bytes));
    match read {
        Ok(()) => Ok(bytes == RESTORE_MARK.as_bytes()),
        Err(e) if nofollow::is_unfit(&e) => Ok(false),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => Ok(false),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            Err(Error::io(format!("cannot read {}: run as the node's user or as root", path.display()), e))
        }
        Err(e) => Err(Error::io(format!("cannot read {}", path.display()), e)),
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

    /// Whether another process has the database open. This asks for the holder of its LOCK, and takes no lock.
    pub(crate) fn is_held_by_another(&self) -> Result<bool> {
        Ok(self.lock_seen_on()?.is_some())
    }

    /// The file system (its device) on which another process is seen to hold the LOCK.
    pub(crate) fn lock_seen_on(&self) -> Result<Option<u64>> {
        let RocksSource::Directory(path) = self else { return Ok(None) };
        let path = path.join(LOCK);
        let file = match nofollow::open_of_node(&path) {
            // No process holds a database that has no LOCK: none was made, or it was not copied.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.context(|| format!("cannot open {}", path.display()))?,
        };
        let failed = || format!("cannot find out which process holds {}", path.display());
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

    /// The database files, `*.sqlite`, by chain; none if the directory does not exist. Its path must have no links.
    pub(crate) fn databases(&self) -> Result<Vec<PathBuf>> {
        let directory = self.path();
        let failed = || format!("cannot list the Pact databases in {}", directory.display());
        let mut files = Vec::new();
        match nofollow::entries(directory) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(files),
            entries => {
                for entry in entries.context(failed)? {
                    let path = directory.join(entry.context(failed)?.0);
                    if chainweb::is_pact_database(&path) {
                        files.push(path);
                    }
                }
            }
        }
        files.sort_by_key(|p| (chainweb::chain_of(p), p.clone()));
        Ok(files)
    }
}
