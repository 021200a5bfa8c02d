//! Parses a MANIFEST, which names the live files of a RocksDB: no I/O but reading its bytes.
//!
//! Source of the format: RocksDB, `db/version_edit.cc` and `db/blob/*.cc`. Each record of the MANIFEST is an edit: tagged
//! fields, numbers as varints. Edits of an atomic group count only if the group is complete. A tag that RocksDB declares
//! ignorable is skipped by its length; any other unknown tag is an error, because it may add files, which the copy would lack.
//!
//! A database may have a hundred thousand files, and one record of its MANIFEST may name them all. So a record is parsed while
//! it is read, and the changes of files are kept in one list of small rows, in the order of the MANIFEST; from time to time the
//! list is reduced to the last row of each live file.
//!
//! Invariants: no input makes this panic; the result is the set of files that RocksDB itself would find on recovery; an
//! incomplete record or group changes nothing.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};

use crate::capture::rocksdb::log_format::{End, Record, Records};
use crate::database_files;
use crate::disk::off_heap;

/// Tags with this bit are followed by a length and may be skipped.
const IGNORABLE_TAG: u32 = 1 << 13;

/// Field tags of a new file with this bit may not be skipped.
const NON_IGNORABLE_FIELD: u32 = 1 << 6;

/// The size of header and footer of a blob file, which the MANIFEST does not count.
const BLOB_FRAME_BYTES: u64 = 30 + 32;

/// The deepest level that RocksDB can have.
const MAX_LEVEL: u32 = 1 << 16;

/// The smallest number of new rows after which the list is reduced.
const MIN_SETTLED: usize = 4096;

/// The state of a file at some point of the MANIFEST.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    /// The first in the order, because an edit deletes files before it adds files.
    Deleted,
    Level0,
    Deeper,
    Blob,
}

/// A live file: the database needs it. It has a number instead of a name, so that many of them need little memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LiveFile {
    /// SSTs and blob files are numbered together: no two files of a database have the same number.
    pub(crate) number: u64,
    pub(crate) bytes: u64,
    /// RocksDB's own identity of the file, in MANIFESTs since about version 7.3.
    pub(crate) unique_id: Option<[u8; 16]>,
    /// The smallest and the largest sequence number in an SST.
    pub(crate) sequences: (u64, u64),
    /// Set by the caller that collects the files: this one is collected. A number that a MANIFEST has named is never given to
    /// another file.
    pub(crate) seen: bool,
    state: State,
    family: u32,
    /// The edit that the row is from, counted since the list was reduced.
    edit: u32,
}

impl LiveFile {
    pub(crate) fn name(&self) -> String {
        if self.is_blob() { database_files::blob(self.number) } else { database_files::sst(self.number) }
    }

    /// Whether it is in level 0, whose files are deleted soonest.
    pub(crate) fn is_level_0(&self) -> bool {
        self.state == State::Level0
    }

    /// Whether it is a blob file, which has no identity but its content.
    pub(crate) fn is_blob(&self) -> bool {
        self.state == State::Blob
    }

    /// A row of an edit that is not complete yet.
    fn said(number: u64, bytes: u64, state: State) -> LiveFile {
        LiveFile { number, bytes, unique_id: None, sequences: (0, 0), seen: false, state, family: 0, edit: 0 }
    }
}

/// A column family without its tables. Most databases have no blob files.
#[derive(Debug, Default)]
struct Family {
    /// The first WAL that may have changes which its tables do not have.
    log_number: u64,
    files: BTreeMap<u64, Blob>,
    /// The oldest blob file that a table refers to, by the table's number.
    oldest_of: HashMap<u64, u64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Blob {
    count: u64,
    bytes: u64,
    garbage_count: u64,
}

/// One record of the MANIFEST, without its rows.
#[derive(Debug, Default)]
struct Edit {
    family: u32,
    add_family: bool,
    drop_family: bool,
    log_number: Option<u64>,
    min_log_number: Option<u64>,
    remaining_in_group: Option<u32>,
    /// How many rows it has, after the rows of the edits before it.
    rows_count: usize,
    blobs: Vec<(u64, Blob)>,
    oldest_blobs: Vec<(u64, u64)>,
    garbage: Vec<(u64, u64)>,
}

/// The state of a database while its MANIFEST is read.
#[derive(Debug)]
pub(crate) struct Versions {
    /// The rows of tables: first the reduced ones (settled), sorted; then those of later edits; last, those of an incomplete edit
    /// or group.
    rows: Vec<LiveFile>,
    settled_count: usize,
    edits_count: u32,
    families: HashMap<u32, Family>,
    min_log_number: u64,
    group: Vec<Edit>,
    complete_bytes: u64,
}

impl Versions {
    /// A database before its first edit: only the default column family, empty.
    pub(crate) fn new() -> Versions {
        Versions {
            rows: off_heap::list(),
            settled_count: 0,
            edits_count: 0,
            families: HashMap::from([(0, Family::default())]),
            min_log_number: 0,
            group: Vec::new(),
            complete_bytes: 0,
        }
    }

    /// The offset up to which the MANIFEST was read: the end of its last complete record.
    pub(crate) fn complete_bytes(&self) -> u64 {
        self.complete_bytes
    }

    /// Reads the MANIFEST from [`Versions::complete_bytes`] on; `manifest` must be positioned at the beginning of the block
    /// ([`block_of`](crate::capture::rocksdb::log_format::block_of)) that contains this offset. A MANIFEST may end
    /// within a record. The inner error says why the database cannot be backed up; after it, this must not be called again.
    pub(crate) fn read(&mut self, manifest: impl Read) -> io::Result<Result<(), String>> {
        let ending = |end| match end {
            End::Clean | End::Torn => Ok(()),
            End::Damaged => Err("the MANIFEST is damaged".to_owned()),
        };
        let mut records = Records::from(manifest, self.complete_bytes);
        loop {
            let mut record = match records.next()? {
                Ok(record) => record,
                Err(end) => return Ok(ending(end)),
            };
            let start = self.rows.len();
            let edit = self.decode(&mut record);
            let end = record.finish();
            if edit.is_err() || !matches!(end, Ok(None)) {
                self.rows.truncate(start);
            }
            if let Some(end) = end? {
                return Ok(ending(end));
            }
            if let Err(why) = edit.and_then(|edit| self.take(edit)) {
                return Ok(Err(why));
            }
            self.complete_bytes = records.complete_bytes();
        }
    }

    /// Applies an edit whose rows are the last ones.
    fn take(&mut self, edit: Edit) -> Result<(), String> {
        match edit.remaining_in_group {
            None if self.group.is_empty() => {
                let start = self.rows.len() - edit.rows_count;
                self.commit(edit, start)?;
            }
            None => return Err("the MANIFEST has an edit within an atomic group that does not belong to it".to_owned()),
            Some(remaining) => {
                self.group.push(edit);
                if remaining > 0 {
                    return Ok(());
                }
                let mut start = self.taken_count();
                for edit in std::mem::take(&mut self.group) {
                    let next = start + edit.rows_count;
                    self.commit(edit, start)?;
                    start = next;
                }
            }
        }
        if self.rows.len() > 2 * self.settled_count + MIN_SETTLED {
            self.settle();
        }
        Ok(())
    }

    /// How many rows count: all except those of an incomplete group.
    fn taken_count(&self) -> usize {
        self.rows.len() - self.group.iter().map(|edit| edit.rows_count).sum::<usize>()
    }

    /// Applies an edit whose rows begin at `start`.
    fn commit(&mut self, edit: Edit, start: usize) -> Result<(), String> {
        if edit.drop_family || edit.add_family {
            for row in self.rows[..start].iter_mut().filter(|row| row.family == edit.family) {
                row.state = State::Deleted;
                // These rows may be settled ones, which must be reduced again although this edit has no rows for them.
                self.settled_count = 0;
            }
        }
        if edit.drop_family {
            self.families.remove(&edit.family);
        } else if edit.add_family {
            self.families.insert(edit.family, Family::default());
        }
        // Neither number ever decreases.
        self.min_log_number = self.min_log_number.max(edit.min_log_number.unwrap_or(0));
        self.edits_count += u32::from(edit.rows_count > 0);
        let rows = &mut self.rows[start..start + edit.rows_count];
        for row in &mut *rows {
            (row.family, row.edit) = (edit.family, self.edits_count);
        }
        let Some(family) = self.families.get_mut(&edit.family) else {
            // Edits of a dropped family may follow; RocksDB ignores them too.
            rows.iter_mut().for_each(|row| row.state = State::Deleted);
            return Ok(());
        };
        family.log_number = family.log_number.max(edit.log_number.unwrap_or(0));
        if !family.oldest_of.is_empty() {
            for row in rows {
                family.oldest_of.remove(&row.number);
            }
        }
        family.oldest_of.extend(edit.oldest_blobs);
        family.files.extend(edit.blobs);
        for (number, count) in edit.garbage {
            let blob = family.files.get_mut(&number).ok_or("the MANIFEST counts garbage in an unknown blob file")?;
            blob.garbage_count = blob.garbage_count.saturating_add(count);
        }
        Ok(())
    }

    /// Reduces the list to the last row of each file, without the deleted files.
    fn settle(&mut self) {
        let mut open = self.rows.split_off(self.taken_count());
        self.rows.sort_unstable_by_key(|row| (row.family, row.number, row.edit, row.state));
        self.rows.dedup_by(|later, earlier| {
            let same = (later.family, later.number) == (earlier.family, earlier.number);
            if same {
                *earlier = *later;
            }
            same
        });
        self.rows.retain(|row| row.state != State::Deleted);
        self.rows.iter_mut().for_each(|row| row.edit = 0);
        (self.settled_count, self.edits_count) = (self.rows.len(), 0);
        self.rows.append(&mut open);
    }

    /// The first WAL that RocksDB reads when it opens the database: each column family has the changes of all older ones in its
    /// tables.
    pub(crate) fn oldest_wal(&self) -> u64 {
        let oldest = self.families.values().map(|family| family.log_number).min().unwrap_or(0);
        oldest.max(self.min_log_number)
    }

    /// The largest WAL number of which some column family has all older changes in its tables. An open database has a WAL with
    /// this number or a larger one.
    pub(crate) fn newest_settled_wal(&self) -> u64 {
        self.families.values().map(|family| family.log_number).max().unwrap_or(0)
    }

    /// The live SSTs at this point. An incomplete group at the end does not count.
    pub(crate) fn tables(&mut self) -> &mut [LiveFile] {
        if self.taken_count() > self.settled_count {
            self.settle();
        }
        &mut self.rows[..self.settled_count]
    }

    /// The live blob files at this point, by the rules of RocksDB's VersionBuilder: a blob file is not live if it is older than
    /// every one that a table refers to, or if it is all garbage and no table names it as its oldest.
    pub(crate) fn blobs(&mut self) -> Vec<LiveFile> {
        self.tables();
        let tables = &self.rows[..self.settled_count];
        let mut files = Vec::new();
        for (id, family) in &self.families {
            let is_live =
                |table: u64| tables.binary_search_by_key(&(*id, table), |row| (row.family, row.number)).is_ok();
            let linked: Vec<u64> =
                family.oldest_of.iter().filter(|(table, _)| is_live(**table)).map(|(_, oldest)| *oldest).collect();
            let Some(oldest) = linked.iter().min() else { continue };
            for (number, blob) in family.files.range(oldest..) {
                if blob.garbage_count < blob.count || linked.contains(number) {
                    files.push(LiveFile::said(*number, blob.bytes.saturating_add(BLOB_FRAME_BYTES), State::Blob));
                }
            }
        }
        files
    }

    /// All live files, by number.
    pub(crate) fn into_live_files(mut self) -> Vec<LiveFile> {
        let blobs = self.blobs();
        self.rows.truncate(self.settled_count);
        self.rows.extend(blobs);
        self.rows.sort_unstable_by_key(|file| file.number);
        self.rows
    }
}

/// Decodes the fields of a record.
impl<R: Read> Record<'_, R> {
    fn varint(&mut self) -> Option<u64> {
        varint(|| self.byte())
    }

    fn varint32(&mut self) -> Option<u32> {
        self.varint()?.try_into().ok()
    }

    fn level(&mut self) -> Option<u32> {
        self.varint32().filter(|level| *level <= MAX_LEVEL)
    }

    /// Skips a value that is preceded by its length.
    fn skip_slice(&mut self) -> Option<()> {
        let length = self.varint32()?;
        self.skip(length as usize)
    }

    /// The length of such a value, and its first bytes.
    fn value(&mut self) -> Option<(usize, [u8; 16])> {
        let length = self.varint32()? as usize;
        let mut first = [0; 16];
        for byte in first.iter_mut().take(length) {
            *byte = self.byte()?;
        }
        self.skip(length.saturating_sub(first.len()))?;
        Some((length, first))
    }
}

fn varint(mut byte: impl FnMut() -> Option<u8>) -> Option<u64> {
    let mut value = 0_u64;
    for i in 0..10 {
        let byte = byte()?;
        value |= u64::from(byte & 0x7f).checked_shl(7 * i)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

impl Versions {
    /// Reads an edit, and appends its rows to the list.
    fn decode<R: Read>(&mut self, input: &mut Record<'_, R>) -> Result<Edit, String> {
        let mut edit = Edit::default();
        let start = self.rows.len();
        while !input.is_empty() {
            let tag = input.varint32().ok_or("the MANIFEST has a broken tag")?;
            self.field(tag, input, &mut edit)?
                .ok_or_else(|| format!("the MANIFEST has a broken field of tag {tag}"))?;
        }
        edit.rows_count = self.rows.len() - start;
        Ok(edit)
    }

    /// Reads one field; `Ok(None)` if the record ends within it.
    fn field<R: Read>(&mut self, tag: u32, input: &mut Record<'_, R>, edit: &mut Edit) -> Result<Option<()>, String> {
        let done = match tag {
            // Comparator: length-prefixed.
            1 => input.skip_slice(),
            2 => input.varint().map(|number| edit.log_number = Some(number)),
            10 => input.varint().map(|number| edit.min_log_number = Some(number)),
            // Next file number, last sequence, previous log number, maximal family.
            3 | 4 | 9 | 203 => input.varint().map(|_| ()),
            // Compaction cursor: level and key.
            5 => input.level().and_then(|_| input.skip_slice()),
            6 => input
                .level()
                .and_then(|_| input.varint())
                .map(|number| self.rows.push(LiveFile::said(number, 0, State::Deleted))),
            7 | 100 | 102 | 103 => return self.new_file(tag, input, edit),
            200 => input.varint32().map(|family| edit.family = family),
            201 => input.skip_slice().map(|()| edit.add_family = true),
            202 => {
                edit.drop_family = true;
                Some(())
            }
            300 => input.varint32().map(|remaining| edit.remaining_in_group = Some(remaining)),
            // Blob files, by their final tags and by their first, ignorable ones, which have no length.
            400 | 8194 => return blob_file(input, edit),
            401 | 8195 => return blob_garbage(input, edit),
            // The first forms of WAL addition and deletion have no length either.
            8196 => wal_addition(input),
            8197 => input.varint().map(|_| ()),
            _ if tag & IGNORABLE_TAG != 0 => input.skip_slice(),
            _ => {
                return Err(format!(
                    "the MANIFEST has an unknown tag {tag}: the node's RocksDB is newer than this program"
                ));
            }
        };
        Ok(done)
    }

    fn new_file<R: Read>(
        &mut self,
        tag: u32,
        input: &mut Record<'_, R>,
        edit: &mut Edit,
    ) -> Result<Option<()>, String> {
        let mut fixed = || {
            let (level, number) = (input.level()?, input.varint()?);
            let path = if tag == 102 { input.varint()? } else { 0 };
            let bytes = input.varint()?;
            // The smallest and the largest key, then from the second form on their sequence numbers.
            input.skip_slice().and_then(|()| input.skip_slice())?;
            let sequences = if tag == 7 { (0, 0) } else { (input.varint()?, input.varint()?) };
            let state = if level == 0 { State::Level0 } else { State::Deeper };
            Some((path, LiveFile { sequences, ..LiveFile::said(number, bytes, state) }))
        };
        let Some((mut path, mut table)) = fixed() else { return Ok(None) };
        loop {
            if tag != 103 {
                break;
            }
            let Some(custom) = input.varint32() else { return Ok(None) };
            if custom == 1 {
                break;
            }
            let Some((length, first)) = input.value() else { return Ok(None) };
            match custom {
                4 => {
                    let mut bytes = first.into_iter().take(length);
                    let oldest = varint(|| bytes.next()).filter(|number| *number != 0);
                    edit.oldest_blobs.extend(oldest.map(|oldest| (table.number, oldest)));
                }
                12 => table.unique_id = (length == first.len()).then_some(first),
                65 => path = u64::from(first[0]),
                _ if custom & NON_IGNORABLE_FIELD != 0 => {
                    let why = "the node's RocksDB is newer than this program";
                    return Err(format!("the MANIFEST has an unknown file field {custom}: {why}"));
                }
                _ => {}
            }
        }
        if path > 0 {
            return Err("some of its files are in another directory (db_paths or cf_paths)".to_owned());
        }
        self.rows.push(table);
        Ok(Some(()))
    }
}

/// Skips the fields that later versions may have appended to a blob record; `Ok(None)` if the record ends within one.
fn custom_fields<R: Read>(input: &mut Record<'_, R>) -> Result<Option<()>, String> {
    loop {
        match input.varint32() {
            None => return Ok(None),
            Some(0) => return Ok(Some(())),
            Some(custom) if custom & NON_IGNORABLE_FIELD != 0 => {
                return Err(format!(
                    "the MANIFEST has an unknown blob field {custom}: the node's RocksDB is newer than this program"
                ));
            }
            Some(_) if input.skip_slice().is_none() => return Ok(None),
            Some(_) => {}
        }
    }
}

fn blob_file<R: Read>(input: &mut Record<'_, R>, edit: &mut Edit) -> Result<Option<()>, String> {
    let mut fixed = || {
        let (number, count, bytes) = (input.varint()?, input.varint()?, input.varint()?);
        // The checksum's method and value.
        input.skip_slice().and_then(|()| input.skip_slice())?;
        Some((number, Blob { count, bytes, garbage_count: 0 }))
    };
    let Some(blob) = fixed() else { return Ok(None) };
    edit.blobs.push(blob);
    custom_fields(input)
}

fn blob_garbage<R: Read>(input: &mut Record<'_, R>, edit: &mut Edit) -> Result<Option<()>, String> {
    let mut fixed = || Some((input.varint()?, input.varint()?, input.varint()?));
    let Some((number, count, _bytes)) = fixed() else { return Ok(None) };
    edit.garbage.push((number, count));
    custom_fields(input)
}

fn wal_addition<R: Read>(input: &mut Record<'_, R>) -> Option<()> {
    input.varint()?;
    // Tag 1 ends it; tag 2 is a size.
    while input.varint32()? != 1 {
        input.varint()?;
    }
    Some(())
}
