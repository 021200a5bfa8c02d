//! Finds out what a restore would do, without doing it.
//!
//! Invariant: nothing is written that has a name. A file that may be linked is counted as linked if the backup and the place of the new
//! file are on the same mount. Whether the file system permits links is not tried, so a restore may have to copy such a file. Whether
//! it can clone is tried, with a file without a name.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::backups::below;
use crate::backups::filling::{self, Filling, Item, Means, Part};
use crate::backups::pairs::Databases;
use crate::backups::placement::{Placement, Way};
use crate::backups::restore::{self, RestoreOptions};
use crate::capture::source::resolve;
use crate::chainweb::pact::History;
use crate::chainweb::{COMPACTED_FLAG, DIRECTORIES};
use crate::control::Control;
use crate::disk;
use crate::disk::copy::Copier;
use crate::disk::nofollow;
use crate::error::{Error, IoContext, Result};
use crate::format::layout::{self, WHOLE};
use crate::format::record::Record;
use crate::format::start_proof::StartProof;

/// What a restore would do.
#[derive(Debug, Serialize)]
pub struct Rehearsal {
    /// The database directory into which the backup would be restored.
    pub database_directory: PathBuf,
    /// How the new database would be put in place.
    pub way: Way,
    /// Why `0` would not be exchanged as a whole; `None` if it would be.
    pub below_because: Option<String>,
    /// What would be brought into each directory.
    pub parts: Vec<PartRehearsal>,
    /// The directories to which the present database would be moved; none if there is no database. `<time>` stands for the time of
    /// the restore.
    pub kept_in: Vec<String>,
    /// The flags that the node needs to start on it, in addition to its database directory.
    pub flags: Vec<&'static str>,
    /// Whether Pact in the backup has all blocks.
    pub pact_history: History,
    /// Whether a node starts from the backup.
    pub starts: Option<StartProof>,
    /// What would make the restore fail.
    #[serde(serialize_with = "as_text")]
    pub obstacle: Option<Error>,
}

/// What would be brought into one directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartRehearsal {
    /// The directory.
    pub directory: PathBuf,
    /// Files that would be links to the backup's.
    pub linked_count: u64,
    /// The sum of their sizes.
    pub linked_bytes: u64,
    /// Files that would be clones, which share blocks with the backup's and take no space.
    pub cloned_count: u64,
    /// The sum of their sizes.
    pub cloned_bytes: u64,
    /// Files that would be copied.
    pub copied_count: u64,
    /// The sum of their sizes.
    pub copied_bytes: u64,
    /// The free bytes of the file system of the directory.
    pub free_bytes: u64,
}

fn as_text<S: serde::Serializer>(obstacle: &Option<Error>, to: S) -> std::result::Result<S::Ok, S::Error> {
    obstacle.as_ref().map(Error::chain).serialize(to)
}

/// Finds out what a restore of the backup in `backup` would do; its start-up proof is left out.
pub(crate) fn rehearse(
    backup: &Path,
    record: Option<&Record>,
    options: RestoreOptions<'_>,
    control: &Control,
) -> Result<Rehearsal> {
    let whole = backup.join(WHOLE);
    let placement = Placement::of(&resolve(options.target)?)?;
    let databases = Databases::of(backup, record);
    let copier = Copier { owner: restore::owner_of(&placement)?, control };
    let filling = Filling { copier, copy: options.copy, databases: &databases };
    let mut parts = Vec::new();
    let mut needs = Vec::new();
    for (name, place) in DIRECTORIES.into_iter().zip([&placement.rocksdb, &placement.sqlite]) {
        let from = whole.join(name);
        if !nofollow::is_directory(&from).context(|| format!("cannot look at {}", from.display()))? {
            continue;
        }
        // A new `0` is filled beside the old one.
        let near = if placement.way() == Way::Whole { &placement.target } else { place };
        let near = restore::nearest_directory(near)?.to_owned();
        let part = rehearse_part(&Part { from, to: place.clone() }, &near, &filling)?;
        needs.push((near, part.copied_bytes));
        parts.push(part);
    }
    let needs: Vec<(&Path, u64)> = needs.iter().map(|(path, bytes)| (path.as_path(), *bytes)).collect();
    let pact_history = restore::pact_history(&whole, record, options.program, control)?;
    // In the order of a restore, so that the exit code is the same.
    let obstacle = restore::require_no_node(&placement.place)
        .and_then(|()| restore::require_no_other(&placement.target))
        .and_then(|()| below::require_settleable(&placement))
        .and_then(|()| if options.replace { Ok(()) } else { restore::require_free(&placement) })
        .and_then(|()| filling::require_room(&needs));
    Ok(Rehearsal {
        database_directory: options.target.to_owned(),
        way: placement.way(),
        kept_in: if placement.is_occupied()? { kept_in(&placement) } else { Vec::new() },
        below_because: placement.below_because,
        parts,
        flags: if pact_history == History::Compacted { vec![COMPACTED_FLAG] } else { Vec::new() },
        pact_history,
        starts: None,
        obstacle: obstacle.err(),
    })
}

/// What would be brought into one directory; `near` is the nearest directory that exists.
fn rehearse_part(part: &Part, near: &Path, filling: &Filling<'_>) -> Result<PartRehearsal> {
    let files = filling.list(part)?;
    let is_here = is_same_mount(&part.from, near)?;
    let clones = filling.can_clone(&files, near);
    let means = |file: &Item| match (is_here && file.may_link, clones) {
        (true, _) => Means::Link,
        (false, true) if !file.is_pair => Means::Clone,
        (false, _) => Means::Copy,
    };
    let sum = |by: Means| {
        let of_these = files.iter().filter(|file| means(file) == by);
        of_these.fold((0, 0), |(count, bytes), file| (count + 1, bytes + file.bytes))
    };
    let [(linked_count, linked_bytes), (cloned_count, cloned_bytes), (copied_count, copied_bytes)] =
        [Means::Link, Means::Clone, Means::Copy].map(sum);
    Ok(PartRehearsal {
        directory: part.to.clone(),
        linked_count,
        linked_bytes,
        cloned_count,
        cloned_bytes,
        copied_count,
        copied_bytes,
        free_bytes: disk::free_bytes(near)?.0,
    })
}

fn kept_in(placement: &Placement) -> Vec<String> {
    let in_directory = |directory: &Path| directory.join(layout::replaced("<time>")).display().to_string();
    match placement.way() {
        Way::Whole => vec![in_directory(&placement.target)],
        Way::Below => [&placement.rocksdb, &placement.sqlite].map(|directory| in_directory(directory)).to_vec(),
    }
}

fn is_same_mount(a: &Path, b: &Path) -> Result<bool> {
    let mount = |path: &Path| nofollow::mount_of(path).context(|| format!("cannot look at {}", path.display()));
    Ok(mount(a)? == mount(b)?)
}
