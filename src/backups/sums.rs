//! Checksums as the community publishes them: `BLAKE2SUMS` in a directory, in the format of coreutils' `b2sum`, so that
//! `b2sum -c BLAKE2SUMS` checks the directory.
//!
//! A file whose checksum was computed when it was copied, or is known from another backup of the catalog that has the same inode, is
//! not read again. A list for which no file must be read is a part of the unfinished backup, and is there when its status says done.
//! Every other one is written later, while the service is idle.
//!
//! Invariants: a later list appears by one atomic rename, with every file of the directory in it, and is the only file that is added to
//! a backup after its commit. It appears only in a directory that still has all these files: `rm -rf` fails in a directory that gets a
//! new file after it was listed.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::backups::catalog::{Catalog, shared_identity};
use crate::backups::damage;
use crate::backups::sums_list::{self, Place};
use crate::capture::in_use;
use crate::chainweb::{self, DIRECTORIES, SQLITE};
use crate::clock::now_ms;
use crate::config::Sums;
use crate::control::Control;
use crate::disk;
use crate::disk::fault_gate;
use crate::disk::medium;
use crate::disk::nofollow::{self, is_unfit};
use crate::disk::off_heap;
use crate::disk::quiet_reader::PageCache;
use crate::disk::sum::{self, Sum};
use crate::disk::unsynced::Batch;
use crate::error::{Error, IoContext, Kind, Result};
use crate::fault::Fault;
use crate::format::layout::{self, MANIFEST_FILE, PARTIAL, SUMS_FILE, WHOLE};
use crate::format::manifest::{self, Entry, Manifest};
use crate::format::record::Method;
use crate::id::BackupId;
use crate::units::total;

/// Whether this is the name of the file, or its temporary name while it is written ([`disk::replace`]).
pub(crate) fn is_ours(name: &str) -> bool {
    let temporary = disk::of_temporary(name);
    temporary.unwrap_or(name) == SUMS_FILE
}

/// The directories of a backup that have their `BLAKE2SUMS`.
pub(crate) fn present(path: &Path) -> Result<Vec<&'static str>> {
    let mut present = Vec::new();
    for name in DIRECTORIES {
        let directory = layout::directory_in(path, name);
        present.extend(has_sums(&directory)?.then_some(name));
    }
    Ok(present)
}

/// Whether a directory has its `BLAKE2SUMS`; a link, a FIFO or the like does not count.
pub(crate) fn has_sums(directory: &Path) -> Result<bool> {
    let path = directory.join(SUMS_FILE);
    match nofollow::open_regular(&path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound || is_unfit(&e) => Ok(false),
        Err(e) => Err(Error::io(format!("cannot open {}", path.display()), e)),
    }
}

/// The directories of a finished backup whose `BLAKE2SUMS` must be written.
fn missing(path: &Path, which: Sums) -> Result<Vec<&'static str>> {
    let manifest = path.join(MANIFEST_FILE);
    let prefixes = DIRECTORIES.map(prefix_of);
    let mut linked = DIRECTORIES.map(|_| false);
    let mut look = |file: Entry<String>| {
        if let Some(at) = prefixes.iter().position(|prefix| file.path.starts_with(prefix)) {
            linked[at] |= file.method == Method::Linked;
        }
    };
    let read = nofollow::open_regular(&manifest).and_then(|file| manifest::read_each(file, &mut look));
    require_readable(&manifest, read)?;
    let wanted = DIRECTORIES.into_iter().zip(linked).filter(|(_, linked)| which == Sums::All || !linked);
    let mut missing = Vec::new();
    for (name, _) in wanted {
        let directory = layout::directory_in(path, name);
        let is_there =
            nofollow::is_directory(&directory).context(|| format!("cannot look at {}", directory.display()))?;
        missing.extend((is_there && !has_sums(&directory)?).then_some(name));
    }
    Ok(missing)
}

fn require_readable(manifest: &Path, read: io::Result<bool>) -> Result<()> {
    if read.context(|| format!("cannot read {}", manifest.display()))? {
        return Ok(());
    }
    Err(Error::new(Kind::Damaged, format!("{} is damaged, or of an unknown format", manifest.display())))
}

/// The beginning of the paths of the files in a directory.
pub(crate) fn prefix_of(directory: &str) -> String {
    chainweb::path_in(directory, "") + "/"
}

/// The files of a backup.
struct Files<'a> {
    all: &'a Manifest,
    /// For each of them, whether it is part of the backup.
    named: Vec<bool>,
    /// For each of them, its checksum in the manifest.
    sums: Vec<Option<Sum>>,
}

impl<'a> Files<'a> {
    /// Those of an unfinished backup.
    fn of_unfinished(all: &'a Manifest) -> Files<'a> {
        let mut sums = off_heap::list();
        sums.extend(all.files().map(|file| file.blake2b));
        Files { all, named: vec![true; all.count()], sums }
    }

    /// The files `all` that exist in a finished backup.
    fn of(all: &'a Manifest, backup: &Path) -> Result<Files<'a>> {
        let (mut named, mut sums) = (vec![false; all.count()], off_heap::list());
        sums.resize(all.count(), None);
        let mut look = |file: Entry<String>| {
            if let Some(at) = all.find(&file.path) {
                (named[at], sums[at]) = (true, file.blake2b);
            }
        };
        let manifest = backup.join(MANIFEST_FILE);
        let read = nofollow::open_regular(&manifest).and_then(|file| manifest::read_each(file, &mut look));
        require_readable(&manifest, read)?;
        Ok(Files { all, named, sums })
    }
}

/// The files that no `BLAKE2SUMS` of a backup names because they are not part of it: a publisher may add files.
pub(crate) fn left_out(path: &Path) -> Result<Vec<String>> {
    let (all, _) = Manifest::found(&path.join(WHOLE))?;
    let files = Files::of(&all, path)?;
    let extras = files.all.files().zip(&files.named).filter(|(_, named)| !**named).map(|(file, _)| file.path);
    Ok(extras.filter(|path| !path.rsplit('/').next().is_some_and(is_ours)).map(str::to_owned).collect())
}

/// Writes the `BLAKE2SUMS` of the unfinished backup `id` for which no file must be read, of the directories that have no file of the
/// node's own. That a list cannot be completed now is no error: it is written later.
pub(crate) fn write_known(
    catalog: &Catalog,
    id: &BackupId,
    (manifest, which): (&Manifest, Sums),
    unsynced: &mut Batch,
) -> Result<()> {
    if which == Sums::None {
        return Ok(());
    }
    let (backup, files) = (catalog.path(id), Files::of_unfinished(manifest));
    for name in DIRECTORIES {
        let path = backup.join(PARTIAL).join(name);
        let directory = Directory { path, ..Directory::of(&backup, name, &files) };
        let is_linked = |at: &usize| manifest.file(*at).method == Method::Linked;
        if directory.here.is_empty() || directory.here.iter().any(is_linked) {
            continue;
        }
        // The lists of RocksDB in other backups are long, and its files that are no links have their checksums.
        let sums = if name == SQLITE { directory.look_up(directory.known(), catalog) } else { Ok(directory.known()) };
        if let Some(sums) = sums.ok().filter(|sums| sums.iter().all(Option::is_some)) {
            let write = |to: &mut dyn Write| directory.write_lines(&sums, to);
            unsynced.add(disk::write_new_by(&directory.path.join(SUMS_FILE), catalog.owner(), &write)?)?;
        }
    }
    Ok(())
}

/// Writes the missing `BLAKE2SUMS` of a finished backup; returns how many files were read, `None` if none was missing. Files that
/// are not in its manifest are left out.
pub(crate) fn write(catalog: &Catalog, path: &Path, which: Sums, control: &Control) -> Result<Option<u64>> {
    let missing = missing(path, which)?;
    if missing.is_empty() {
        return Ok(None);
    }
    log::info!("writing checksums of={}", path.display());
    control.begin("writing checksums");
    let (all, _) = Manifest::found(&path.join(WHOLE))?;
    let files = Files::of(&all, path)?;
    let mut read_count = 0;
    for name in missing {
        let directory = Directory::of(path, name, &files);
        read_count += directory.write(directory.known(), catalog, control)?;
    }
    Ok(Some(read_count))
}

/// The result of [`complete`].
#[derive(Debug, Default)]
pub(crate) struct Completed {
    /// How many files were read.
    pub(crate) read_count: u64,
    /// How many lists were written.
    pub(crate) written_count: u64,
    /// The defects of the lists that existed; they are mended.
    pub(crate) mended: Vec<Fault>,
}

/// Writes the missing `BLAKE2SUMS` of a finished backup, and mends those that have defects. A checksum of the manifest replaces
/// another one in the list. A line of a file without a checksum in the manifest is kept: it may be the only evidence that the file
/// was changed.
pub(crate) fn complete(catalog: &Catalog, path: &Path, control: &Control) -> Result<Completed> {
    control.begin("writing checksums");
    let (all, _) = Manifest::found(&path.join(WHOLE))?;
    let files = Files::of(&all, path)?;
    let mut completed = Completed::default();
    for name in DIRECTORIES {
        let directory = Directory::of(path, name, &files);
        let is_there = nofollow::is_directory(&directory.path);
        if !is_there.context(|| format!("cannot look at {}", directory.path.display()))? {
            continue;
        }
        let (known, exists, defects) = directory.listed()?;
        if exists && defects.is_empty() {
            continue;
        }
        completed.read_count += directory.write(known, catalog, control)?;
        completed.written_count += 1;
        let file = chainweb::path_in(name, SUMS_FILE);
        completed.mended.extend(defects.into_iter().map(|why| Fault { file: file.clone(), why }));
    }
    Ok(completed)
}

/// The same for the newest good backup of ours, which is locked meanwhile; `None` if there is nothing to do.
pub(crate) fn write_newest(catalog: &Catalog, which: Sums, control: &Control) -> Result<Option<(BackupId, u64)>> {
    if which == Sums::None {
        return Ok(None);
    }
    let Some(newest) = catalog.newest_good()? else { return Ok(None) };
    let path = catalog.path(&newest.id);
    let read_count = in_use::yielding(&path, control, || write(catalog, &path, which, control))?;
    Ok(read_count.flatten().map(|count| (newest.id, count)))
}

/// A directory whose `BLAKE2SUMS` is written.
struct Directory<'a> {
    backup: &'a Path,
    name: &'a str,
    path: PathBuf,
    prefix: String,
    files: &'a Files<'a>,
    /// The indices of the files in it, sorted.
    here: Vec<usize>,
}

impl<'a> Directory<'a> {
    fn of(backup: &'a Path, name: &'a str, files: &'a Files<'a>) -> Directory<'a> {
        let prefix = prefix_of(name);
        let is_here = |at: &usize| {
            let name = files.all.file(*at).path.strip_prefix(&prefix);
            files.named[*at] && name.is_some_and(|name| !name.contains('/'))
        };
        let here = (0..files.all.count()).filter(is_here).collect();
        Directory { backup, name, path: layout::directory_in(backup, name), prefix, files, here }
    }

    /// The name of the n-th file.
    fn file(&self, n: usize) -> &'a str {
        &self.files.all.file(self.here[n]).path[self.prefix.len()..]
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.here.binary_search(&self.files.all.find(&format!("{}{name}", self.prefix))?).ok()
    }

    /// The checksums of the manifest, computed during the copy.
    fn known(&self) -> Vec<Option<Sum>> {
        let mut known = off_heap::list();
        known.extend(self.here.iter().map(|at| self.files.sums[*at]));
        known
    }

    /// The checksums of the manifest and of the existing list, whether there is a list, and its defects.
    fn listed(&self) -> Result<(Vec<Option<Sum>>, bool, Vec<String>)> {
        let mut known = self.known();
        let belongs = |at: usize| self.here.binary_search(&at).is_ok();
        let (directory, prefix) = (self.path.clone(), self.prefix.clone());
        let place = Place { directory, prefix, files: self.files.all, belongs: &belongs };
        let mut compared = place.compare(&mut |at, listed| {
            let Ok(n) = self.here.binary_search(&at) else { return Ok(listed) };
            Ok(*known[n].get_or_insert(listed))
        })?;
        // Which of the lines is right, is unknown.
        for n in compared.repeated.iter().filter_map(|at| self.here.binary_search(at).ok()) {
            known[n] = self.files.sums[self.here[n]];
        }
        if let Some((first, _)) = compared.differing.first() {
            compared.defects.push(differs_from_manifest(compared.differing.len(), self.files.all.file(*first).path));
        }
        Ok((known, compared.exists, compared.defects))
    }

    /// Writes its `BLAKE2SUMS` with the `known` checksums of its files; returns how many of the others were read for it.
    fn write(&self, known: Vec<Option<Sum>>, catalog: &Catalog, control: &Control) -> Result<u64> {
        let mut sums = self.look_up(known, catalog)?;
        let unknown = sums.iter().zip(&self.here).filter(|(sum, _)| sum.is_none());
        control.expect(total(unknown.map(|(_, at)| self.files.all.file(*at).bytes)));
        let mut read_count = 0;
        for (n, sum) in sums.iter_mut().enumerate().filter(|(_, sum)| sum.is_none()) {
            read_count += 1;
            // Quietly, because the page cache is for the node; linked files may be cached because the node reads them.
            let path = self.path.join(self.file(n));
            let read = medium::twice(|| sum::of(&path, PageCache::Unchanged, control));
            *sum = Some(read.inspect_err(|e| self.report(n, e, catalog))?);
        }
        self.require_all()?;
        let write = |to: &mut dyn Write| self.write_lines(&sums, to);
        disk::replace_if(&self.path, SUMS_FILE, catalog.owner(), &write, &|| self.require_all())?;
        Ok(read_count)
    }

    /// Writes the lines of the list, if it is complete.
    fn write_lines(&self, sums: &[Option<Sum>], to: &mut dyn Write) -> io::Result<()> {
        let mut to = BufWriter::new(to);
        for (n, sum) in sums.iter().flatten().enumerate() {
            writeln!(to, "{sum}  {}", self.file(n))?;
        }
        to.flush()
    }

    /// Fails if a file is gone.
    fn require_all(&self) -> Result<()> {
        fault_gate::point("sums-look", &self.path);
        let is_gone = |n: &usize| matches!(nofollow::look(&self.path.join(self.file(*n))), Ok(None));
        match (0..self.here.len()).find(is_gone) {
            None => Ok(()),
            Some(n) => {
                let file = self.path.join(self.file(n));
                let context = format!("{} is gone: the backup is being removed, or is damaged", file.display());
                Err(Error::new(Kind::NotFound, context))
            }
        }
    }

    /// Notes damage if the disk has lost the n-th file.
    fn report(&self, n: usize, e: &Error, catalog: &Catalog) {
        let id = self.backup.file_name().and_then(|name| BackupId::parse(name.to_str()?));
        if let Some(id) = id.filter(|id| medium::is_lost(e) && !catalog.is_damaged(id).unwrap_or(true)) {
            let fault = Fault { file: self.files.all.file(self.here[n]).path.to_owned(), why: e.chain() };
            damage::report(catalog, &id, &fault, now_ms());
        }
    }

    /// Adds the checksums in other backups of the catalog: an SST that several backups link is one file with the same name in each.
    fn look_up(&self, mut known: Vec<Option<Sum>>, catalog: &Catalog) -> Result<Vec<Option<Sum>>> {
        // A file without a second name is in no other backup.
        let is_sought =
            |(n, sum): (usize, &Option<Sum>)| sum.is_none() && shared_identity(&self.path.join(self.file(n))).is_some();
        if !known.iter().enumerate().any(is_sought) {
            return Ok(known);
        }
        let mut others = catalog.readable()?;
        while known.iter().any(Option::is_none)
            && let Some(found) = others.next()
        {
            let other = layout::directory_in(&catalog.path(&found.id), self.name);
            if other == self.path {
                continue;
            }
            let (mut taken, mut is_valid) = (Vec::new(), true);
            let read = sums_list::each(&other, &mut |_, line| {
                if let Some((name, sum)) = line
                    && let Some(n) = self.find(name).filter(|n| known[*n].is_none())
                    && let Some(ours) = shared_identity(&self.path.join(name))
                    && shared_identity(&other.join(name)) == Some(ours)
                {
                    known[n] = Some(sum);
                    taken.push(n);
                }
                is_valid &= line.is_some();
                Ok(is_valid)
            });
            // If a BLAKE2SUMS cannot be read to its end, none of its checksums is used.
            if read.is_err() || !is_valid {
                taken.iter().for_each(|n| known[*n] = None);
            }
        }
        Ok(known)
    }
}

/// The defect of a list of which `count` lines contradict the manifest, the first of them that of the file `first`.
pub(crate) fn differs_from_manifest(count: usize, first: &str) -> String {
    format!("{count} checksums differ from those in {MANIFEST_FILE}, the first is that of {first}")
}
