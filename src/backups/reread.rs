//! Reads files again that a backup links from an earlier one, a share in each run: a linked file keeps its damage.
//!
//! - Which: the files that were not read for the longest time, until they make up the configured share of all bytes that the
//!   node still has; at least one file. They are sorted by the time in `manifest.json`; a time in the future, from a clock
//!   that was wrong, counts as never. With 4 % in each run, every file is read within 25 daily backups.
//! - When: before the capture, quietly, within the limit of bytes per second, and no longer than [`TIME_LIMIT`].
//! - How: each file is compared with its checksum in `manifest.json`, which was computed during the copy. A file without a
//!   checksum, in a backup of an earlier version, is compared with the node's own, once: `BLAKE2SUMS` may be anyone's.
//! - A file that differs, or that the disk cannot read twice, is damaged: it is not linked but copied from the node again, and the
//!   damage is noted in every backup that has the same inode. One that cannot be read for another reason is only copied again.
//!
//! A backup with known damage can still be the earlier one, without its damaged files.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::backups::catalog::{Catalog, Found};
use crate::backups::damage;
use crate::capture::in_use;
use crate::capture::rocksdb::earlier_backup::{Brought, Earlier};
use crate::capture::rocksdb::version_edit::LiveFile;
use crate::chainweb::{self, ROCKSDB};
use crate::control::Control;
use crate::database_files::immutable_number;
use crate::disk::medium;
use crate::disk::nofollow;
use crate::disk::quiet_reader::PageCache;
use crate::disk::sum::{self, Known};
use crate::error::{Kind, Result};
use crate::fault::Fault;
use crate::format::layout::{self, MANIFEST_FILE};
use crate::format::manifest::{self, Entry};
use crate::format::record::{Method, Record, Status};
use crate::id::BackupId;
use crate::units::total;

/// The longest time that one run reads.
const TIME_LIMIT: Duration = Duration::from_secs(60 * 60);

/// The earlier backup from which a new one links files.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) id: BackupId,
    pub(crate) files: Earlier,
    /// Whether it is finished; otherwise it is a discarded capture of the backup that is being made.
    is_finished: bool,
}

impl Base {
    /// The newest backup of ours whose RocksDB can be used, locked; without the files that are known to be damaged.
    pub(crate) fn find(catalog: &Catalog) -> Result<Option<Base>> {
        for found in catalog.readable()? {
            if let (Status::Done, Some(record)) = (found.status, &found.record)
                && let Some(damaged) = damage::tables(catalog, &found.id)?
                && let Some(mut base) = Base::open(catalog, &found)
            {
                damaged.iter().filter_map(|name| immutable_number(name)).for_each(|n| base.files.give_up(n));
                base.learn(catalog, record)?;
                return Ok(Some(base));
            }
        }
        Ok(None)
    }

    /// A discarded capture of the backup `id`, in `directory`; `None` if it cannot be read.
    pub(crate) fn discarded(id: &BackupId, directory: &Path, brought: &Brought, now_ms: u64) -> Option<Base> {
        let mut files = Earlier::open(directory, None)?;
        brought.known(now_ms).for_each(|(number, known)| files.know(number, known));
        Some(Base { id: id.clone(), files, is_finished: false })
    }

    fn open(catalog: &Catalog, found: &Found) -> Option<Base> {
        let path = catalog.path(&found.id);
        let in_use = in_use::share(&path).ok()??;
        let files = Earlier::open(&layout::directory_in(&path, ROCKSDB), Some(in_use))?;
        Some(Base { id: found.id.clone(), files, is_finished: true })
    }

    /// Reads the checksums in the manifest of the backup. If they cannot be read, its files can still be used: then they are compared.
    fn learn(&mut self, catalog: &Catalog, record: &Record) -> Result<()> {
        let path = catalog.path(&self.id);
        let files = &mut self.files;
        let mut take = |file: Entry<String>| {
            let number = chainweb::name_in(ROCKSDB, &file.path).and_then(immutable_number);
            if let (Some(number), Some(sum)) = (number, file.blake2b) {
                let copied_ms = if file.method == Method::Copied { record.started_ms } else { 0 };
                files.know(number, Known { sum, read_ms: file.read_ms.unwrap_or(copied_ms) });
            }
        };
        let _ = nofollow::open_regular(&path.join(MANIFEST_FILE)).and_then(|file| manifest::read_each(file, &mut take));
        let verified = catalog.verified(&self.id)?.filter(|verified| verified.is_deep() && verified.faults_count == 0);
        verified.into_iter().for_each(|verified| files.read_all_at(verified.at_ms));
        Ok(())
    }

    /// Reads again `percent` of the bytes of the files that this backup has in common with the node's `live` files. Damaged files
    /// are no longer used, and noted; returns the faults.
    pub(crate) fn read_share(
        &mut self,
        live: &[LiveFile],
        percent: u8,
        now_ms: u64,
        catalog: &Catalog,
        control: &Control,
    ) -> Result<Vec<Fault>> {
        let shared = self.files.shared(live);
        let mut due: Vec<(u64, u64, String, Option<Known>)> = Vec::new();
        for (file, known) in self.files.files().filter(|(file, _)| shared.binary_search(&file.number).is_ok()) {
            let read_ms = known.map_or(0, |known| known.read_ms);
            due.push((if read_ms > now_ms { 0 } else { read_ms }, file.bytes, file.name(), known));
        }
        due.sort_unstable_by(|a, b| (a.0, &a.2).cmp(&(b.0, &b.2)));
        let all_bytes = total(due.iter().map(|(_, bytes, ..)| *bytes));
        let mut left_bytes = all_bytes / 100 * u64::from(percent) + all_bytes % 100 * u64::from(percent) / 100;
        let (began, mut read_count, mut faults) = (Instant::now(), 0_u64, Vec::new());
        for (_, bytes, name, known) in due {
            if (read_count > 0 && left_bytes == 0) || began.elapsed() > TIME_LIMIT {
                break;
            }
            control.check()?;
            faults.extend(self.read(&name, known, now_ms, control)?);
            read_count += 1;
            left_bytes = left_bytes.saturating_sub(bytes);
        }
        log::info!("files of an earlier backup read again id={} files={read_count} damaged={}", self.id, faults.len());
        self.note(&faults, catalog, now_ms);
        Ok(faults)
    }

    /// Reads one file again; returns its fault, if it has one.
    fn read(&mut self, name: &str, known: Option<Known>, now_ms: u64, control: &Control) -> Result<Option<Fault>> {
        let Some(number) = immutable_number(name) else { return Ok(None) };
        let Some(known) = known else {
            self.files.doubt(number);
            return Ok(None);
        };
        let file = self.files.directory().join(name);
        let why = match medium::twice(|| sum::of(&file, PageCache::Unchanged, control)) {
            Ok(sum) if sum == known.sum => {
                self.files.know(number, Known { read_ms: now_ms, ..known });
                return Ok(None);
            }
            Ok(_) => "its checksum differs from the recorded one".to_owned(),
            Err(e) if medium::is_lost(&e) => e.chain(),
            Err(e) if e.kind() == Kind::Io => {
                log::warn!("file of an earlier backup not used id={} file={name} reason={:?}", self.id, e.chain());
                self.files.give_up(number);
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        self.files.give_up(number);
        Ok(Some(Fault { file: chainweb::path_in(ROCKSDB, name), why }))
    }

    /// Whether the checksum of a file differs from the known one; `None` if none is known.
    pub(crate) fn is_bad(&mut self, number: u64, control: &Control) -> Result<Option<bool>> {
        let found = self.files.files().find(|(file, _)| file.number == number);
        let Some((name, known)) = found.and_then(|(file, known)| Some((file.name(), known?))) else { return Ok(None) };
        Ok(Some(self.read(&name, Some(known), known.read_ms, control)?.is_some()))
    }

    /// From now on a damaged file is not used; notes the damage.
    pub(crate) fn give_up(&mut self, fault: &Fault, catalog: &Catalog, now_ms: u64) {
        let number = fault.table().and_then(immutable_number);
        number.into_iter().for_each(|number| self.files.give_up(number));
        self.note(std::slice::from_ref(fault), catalog, now_ms);
    }

    fn note(&self, faults: &[Fault], catalog: &Catalog, now_ms: u64) {
        if faults.is_empty() {
            return;
        }
        for fault in faults {
            log::error!("backup damaged id={} reason={:?}", self.id, fault.to_string());
        }
        if !self.is_finished {
            return;
        }
        // The new backup does not use these files in any case.
        if let Err(e) = damage::note_tables(catalog, &self.id, faults, now_ms) {
            log::warn!("damage not noted id={} reason={:?}", self.id, e.chain());
        }
    }

    /// The warning in a new backup about a damaged file of this one, which was copied again.
    pub(crate) fn warning(&self, fault: &Fault) -> String {
        if !self.is_finished {
            return format!("{fault}, in a discarded capture; for this backup the file was copied again from the node");
        }
        format!("backup {} is damaged, {fault}; for this backup the file was copied again from the node", self.id)
    }
}
