//! What a MANIFEST says: the files that a RocksDB consists of. Pure functions over bytes.
//!
//! Source of the format: RocksDB, `db/version_edit.cc` and `db/blob/*.cc`. Each record of the MANIFEST is an edit: tagged
//! fields, numbers as varints. Edits of an atomic group count only when the whole group is there. A tag that RocksDB
//! declares ignorable is skipped by its length; any other tag that is not known here is refused, because the files it may
//! speak of would be missing.
//!
//! Invariants: no input makes this panic; what is returned is what RocksDB itself would find on recovery.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU64;

/// Tags with this bit are followed by a length and may be skipped.
const IGNORABLE_TAG: u32 = 1 << 13;

/// Tags of a new file's own fields with this bit may not be skipped.
const NON_IGNORABLE_FIELD: u32 = 1 << 6;

/// Header and footer of a blob file, which its total does not count.
const BLOB_FRAME_BYTES: u64 = 30 + 32;

/// The deepest level that RocksDB can have.
const MAX_LEVEL: u32 = 1 << 16;

/// A file that the database cannot do without. There may be a hundred thousand: so it has its number, not its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LiveFile {
    /// SSTs and blob files are numbered together: no two files of a database have the same.
    pub(crate) number: u64,
    pub(crate) bytes: u64,
    /// RocksDB's own identity of the file, in MANIFESTs since version 7.3 or so.
    pub(crate) unique_id: Option<[u8; 16]>,
    level: u32,
    is_blob: bool,
}

impl LiveFile {
    pub(crate) fn name(&self) -> String {
        format!("{:06}.{}", self.number, if self.is_blob { "blob" } else { "sst" })
    }

    /// The number in the name of a file that may be live.
    pub(crate) fn number_in(name: &str) -> Option<u64> {
        name.strip_suffix(".sst").or_else(|| name.strip_suffix(".blob"))?.parse().ok()
    }
}

#[derive(Debug, Clone, Default)]
struct Family {
    tables: HashMap<u64, Table>,
    blobs: BTreeMap<u64, Blob>,
}

#[derive(Debug, Clone, Copy)]
struct Table {
    level: u32,
    bytes: u64,
    oldest_blob: Option<NonZeroU64>,
    unique_id: Option<[u8; 16]>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Blob {
    count: u64,
    bytes: u64,
    garbage_count: u64,
}

#[derive(Debug, Default)]
struct Edit {
    family: u32,
    add_family: bool,
    drop_family: bool,
    remaining_in_group: Option<u32>,
    deleted: Vec<u64>,
    added: Vec<(u64, Table)>,
    blobs: Vec<(u64, Blob)>,
    garbage: Vec<(u64, u64)>,
}

/// The state of a database while its MANIFEST is read.
#[derive(Debug)]
pub(crate) struct Versions {
    families: HashMap<u32, Family>,
    group: Vec<Edit>,
}

impl Versions {
    /// A database before its first edit: only the default column family, empty.
    pub(crate) fn new() -> Versions {
        Versions { families: HashMap::from([(0, Family::default())]), group: Vec::new() }
    }

    /// Takes one record of the MANIFEST. The error says what it is that cannot be backed up.
    pub(crate) fn apply(&mut self, record: &[u8]) -> Result<(), String> {
        let edit = decode(record)?;
        match edit.remaining_in_group {
            None if self.group.is_empty() => self.commit(edit),
            None => Err("the MANIFEST has an edit within an atomic group that does not belong to it".to_owned()),
            Some(remaining) => {
                self.group.push(edit);
                if remaining == 0 {
                    for edit in std::mem::take(&mut self.group) {
                        self.commit(edit)?;
                    }
                }
                Ok(())
            }
        }
    }

    fn commit(&mut self, edit: Edit) -> Result<(), String> {
        if edit.drop_family {
            self.families.remove(&edit.family);
            return Ok(());
        }
        if edit.add_family {
            self.families.insert(edit.family, Family::default());
        }
        // Edits of a family that was dropped may follow; RocksDB ignores them too.
        let Some(family) = self.families.get_mut(&edit.family) else { return Ok(()) };
        for number in edit.deleted {
            family.tables.remove(&number);
        }
        family.tables.extend(edit.added);
        family.blobs.extend(edit.blobs);
        for (number, count) in edit.garbage {
            let blob = family.blobs.get_mut(&number).ok_or("the MANIFEST counts garbage in an unknown blob file")?;
            blob.garbage_count = blob.garbage_count.saturating_add(count);
        }
        Ok(())
    }

    /// The live files, level 0 first: those disappear soonest. An incomplete group at the end does not count.
    pub(crate) fn live_files(&self) -> Vec<LiveFile> {
        let mut files = Vec::new();
        for family in self.families.values() {
            for (number, table) in &family.tables {
                let Table { bytes, unique_id, level, .. } = *table;
                files.push(LiveFile { number: *number, bytes, unique_id, level, is_blob: false });
            }
            // As RocksDB's VersionBuilder has it: blob files older than any that a table refers to are gone, and so is
            // one that is all garbage and that no table names as its oldest.
            let Some(oldest) = family.tables.values().filter_map(|t| t.oldest_blob).min() else { continue };
            for (number, blob) in family.blobs.range(oldest.get()..) {
                let linked = family.tables.values().any(|t| t.oldest_blob.is_some_and(|n| n.get() == *number));
                if linked || blob.garbage_count < blob.count {
                    let bytes = blob.bytes.saturating_add(BLOB_FRAME_BYTES);
                    files.push(LiveFile { number: *number, bytes, unique_id: None, level: 0, is_blob: true });
                }
            }
        }
        files.sort_by_key(|file| (file.level, file.number));
        files
    }
}

/// What is left of a record.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for (i, byte) in self.0.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f).checked_shl(7 * i as u32)?;
            if byte & 0x80 == 0 {
                self.0 = &self.0[i + 1..];
                return Some(value);
            }
        }
        None
    }

    fn varint32(&mut self) -> Option<u32> {
        self.varint()?.try_into().ok()
    }

    fn level(&mut self) -> Option<u32> {
        self.varint32().filter(|level| *level <= MAX_LEVEL)
    }

    fn slice(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.varint32()?).ok()?;
        let (slice, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(slice)
    }
}

fn decode(record: &[u8]) -> Result<Edit, String> {
    let mut input = Input(record);
    let mut edit = Edit::default();
    while !input.0.is_empty() {
        let tag = input.varint32().ok_or("the MANIFEST has a broken tag")?;
        field(tag, &mut input, &mut edit)?.ok_or_else(|| format!("the MANIFEST has a broken field of tag {tag}"))?;
    }
    Ok(edit)
}

/// Reads one field; `Ok(None)` where it is cut off.
fn field(tag: u32, input: &mut Input<'_>, edit: &mut Edit) -> Result<Option<()>, String> {
    let done = match tag {
        // Comparator: length-prefixed.
        1 => input.slice().map(|_| ()),
        // Log number, next file number, last sequence, previous log number, minimal log number, maximal family.
        2..=4 | 9 | 10 | 203 => input.varint().map(|_| ()),
        // Compaction cursor: level and key.
        5 => input.level().and_then(|_| input.slice()).map(|_| ()),
        6 => input.level().and_then(|_| input.varint()).map(|number| edit.deleted.push(number)),
        7 | 100 | 102 | 103 => return new_file(tag, input, edit),
        200 => input.varint32().map(|family| edit.family = family),
        201 => input.slice().map(|_| edit.add_family = true),
        202 => {
            edit.drop_family = true;
            Some(())
        }
        300 => input.varint32().map(|remaining| edit.remaining_in_group = Some(remaining)),
        // Blob files, by their final tags and by their first, ignorable ones, which carry no length.
        400 | 8194 => return blob_file(input, edit),
        401 | 8195 => return blob_garbage(input, edit),
        // The first forms of WAL addition and deletion carry no length either.
        8196 => return Ok(wal_addition(input)),
        8197 => input.varint().map(|_| ()),
        _ if tag & IGNORABLE_TAG != 0 => input.slice().map(|_| ()),
        _ => {
            return Err(format!(
                "the MANIFEST has an unknown tag {tag}: the node's RocksDB is newer than this program"
            ));
        }
    };
    Ok(done)
}

fn new_file(tag: u32, input: &mut Input<'_>, edit: &mut Edit) -> Result<Option<()>, String> {
    let mut fixed = || {
        let (level, number) = (input.level()?, input.varint()?);
        let path = if tag == 102 { input.varint()? } else { 0 };
        let bytes = input.varint()?;
        // The smallest and the largest key, then from the second form on their sequence numbers.
        input.slice().and_then(|_| input.slice())?;
        if tag != 7 {
            input.varint().and_then(|_| input.varint())?;
        }
        Some((number, path, Table { level, bytes, oldest_blob: None, unique_id: None }))
    };
    let Some((number, mut path, mut table)) = fixed() else { return Ok(None) };
    loop {
        if tag != 103 {
            break;
        }
        let Some(custom) = input.varint32() else { return Ok(None) };
        if custom == 1 {
            break;
        }
        let Some(value) = input.slice() else { return Ok(None) };
        match custom {
            4 => table.oldest_blob = Input(value).varint().and_then(NonZeroU64::new),
            12 => table.unique_id = value.try_into().ok(),
            65 => path = value.first().copied().map_or(0, u64::from),
            _ if custom & NON_IGNORABLE_FIELD != 0 => {
                return Err(format!("the MANIFEST has an unknown file field {custom}: the node's RocksDB is too new"));
            }
            _ => {}
        }
    }
    if path > 0 {
        return Err("some of its files are in another directory (db_paths or cf_paths)".to_owned());
    }
    edit.added.push((number, table));
    Ok(Some(()))
}

/// The fields that later versions may have appended to a blob record; `Ok(None)` where they are cut off.
fn custom_fields(input: &mut Input<'_>) -> Result<Option<()>, String> {
    loop {
        match input.varint32() {
            None => return Ok(None),
            Some(0) => return Ok(Some(())),
            Some(custom) if custom & NON_IGNORABLE_FIELD != 0 => {
                return Err(format!("the MANIFEST has an unknown blob field {custom}: the node's RocksDB is too new"));
            }
            Some(_) if input.slice().is_none() => return Ok(None),
            Some(_) => {}
        }
    }
}

fn blob_file(input: &mut Input<'_>, edit: &mut Edit) -> Result<Option<()>, String> {
    let mut fixed = || {
        let (number, count, bytes) = (input.varint()?, input.varint()?, input.varint()?);
        // The checksum's method and value.
        input.slice().and_then(|_| input.slice())?;
        Some((number, Blob { count, bytes, garbage_count: 0 }))
    };
    let Some(blob) = fixed() else { return Ok(None) };
    edit.blobs.push(blob);
    custom_fields(input)
}

fn blob_garbage(input: &mut Input<'_>, edit: &mut Edit) -> Result<Option<()>, String> {
    let mut fixed = || Some((input.varint()?, input.varint()?, input.varint()?));
    let Some((number, count, _bytes)) = fixed() else { return Ok(None) };
    edit.garbage.push((number, count));
    custom_fields(input)
}

fn wal_addition(input: &mut Input<'_>) -> Option<()> {
    input.varint()?;
    // Tag 1 ends it; tag 2 is a size.
    while input.varint32()? != 1 {
        input.varint()?;
    }
    Some(())
}
