//! A directory's `BLAKE2SUMS`, compared with the files of the backup.
//!
//! Invariant: a defect of the list is no fault of a file. The list may have been written after the commit, and by another program:
//! it may be empty, cut off or wrong while every file is whole, and it can be made again.

use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::disk::medium;
use crate::disk::nofollow::{self, is_unfit};
use crate::disk::sum::Sum;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::layout::SUMS_FILE;
use crate::format::manifest::Manifest;

/// The longest line that is read: a checksum and a file name are shorter.
const MAX_LINE_BYTES: u64 = 1024;

/// A list with more invalid lines is not read to its end.
const MAX_INVALID: usize = 100;

/// A valid line: a name and its checksum.
type Line<'a> = (&'a str, Sum);

/// Gives each line of a directory's `BLAKE2SUMS` to `take`: its number, and the name and the checksum if it is valid, until `take`
/// returns false; `Ok(false)` if there is no such file. Fails with [`Kind::Damaged`] if it is no file, or if the disk has lost it; the context is
/// the reason alone.
pub(crate) fn each(directory: &Path, take: &mut dyn FnMut(u64, Option<Line<'_>>) -> Result<bool>) -> Result<bool> {
    let path = directory.join(SUMS_FILE);
    let failed = || format!("cannot read {}", path.display());
    let mut lines = match nofollow::open_regular(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) if is_unfit(&e) => return Err(Error::new(Kind::Damaged, "it is not a regular file")),
        other => BufReader::new(other.context(failed)?),
    };
    let lost = |e: Error| if medium::is_lost(&e) { Error::new(Kind::Damaged, e.chain()) } else { e };
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        // What was read before an error is kept.
        let read = || (&mut lines).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).context(failed);
        medium::twice(read).map_err(lost)?;
        if line.is_empty() || !take(number, std::str::from_utf8(&line).ok().and_then(parse))? {
            break;
        }
    }
    Ok(true)
}

/// Parses a line of `b2sum`: the checksum, a blank, a blank or an asterisk, the name. The name must be a plain file name.
fn parse(line: &str) -> Option<Line<'_>> {
    let (sum, name) = line.lines().next()?.split_once(' ')?;
    let name = name.strip_prefix([' ', '*'])?;
    let is_plain = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
    Some((name, Sum::parse(sum)?)).filter(|_| is_plain)
}

/// The files that a list should name.
pub(crate) struct Place<'a> {
    pub(crate) directory: PathBuf,
    /// The beginning of the paths of its files.
    pub(crate) prefix: String,
    /// The existing files of the backup.
    pub(crate) files: &'a Manifest,
    /// Whether a file of the directory is part of the backup.
    pub(crate) belongs: &'a dyn Fn(usize) -> bool,
}

/// The result of comparing a list with the files.
#[derive(Default)]
pub(crate) struct Compared {
    /// Whether there is a list.
    pub(crate) exists: bool,
    /// The defects of the list, in words.
    pub(crate) defects: Vec<String>,
    /// The files whose checksum differs from that in the list, and their checksum.
    pub(crate) differing: Vec<(usize, Sum)>,
    /// Files that the list names more than once.
    pub(crate) repeated: Vec<usize>,
    /// The first of the names in the list of which there is no file.
    pub(crate) absent: Vec<String>,
}

impl Place<'_> {
    /// Compares the list with the files; `sum` tells the checksum of a file, given that in the list.
    pub(crate) fn compare(&self, sum: &mut dyn FnMut(usize, Sum) -> Result<Sum>) -> Result<Compared> {
        let mut compared = Compared::default();
        let mut named = vec![false; self.files.count()];
        let (mut invalid_count, mut first_invalid) = (0, 0);
        let read = each(&self.directory, &mut |number, line| {
            let is_valid = match line {
                None => false,
                Some((name, expected)) => self.compare_line(name, expected, &mut named, &mut compared, sum)?,
            };
            if !is_valid {
                first_invalid = if invalid_count == 0 { number } else { first_invalid };
                invalid_count += 1;
            }
            Ok(invalid_count < MAX_INVALID)
        });
        match read {
            Err(e) if e.kind() == Kind::Damaged => {
                (compared.exists, compared.defects) = (true, vec![e.to_string()]);
                return Ok(compared);
            }
            read => compared.exists = read?,
        }
        if !compared.exists {
            return Ok(compared);
        }
        if invalid_count > 0 {
            let rest = if invalid_count == MAX_INVALID { ", and it was not read to its end" } else { "" };
            let why = "no checksum or name a file again";
            compared.defects.push(format!("{invalid_count} lines are {why}, the first is line {first_invalid}{rest}"));
        }
        let unnamed =
            |at: &usize| !named[*at] && self.files.file(*at).path.starts_with(&self.prefix) && (self.belongs)(*at);
        let mut unnamed = (0..self.files.count()).filter(unnamed);
        if let Some(first) = unnamed.next() {
            let (count, first) = (1 + unnamed.count(), self.files.file(first).path);
            compared.defects.push(format!("it does not name {count} files of the backup, the first is {first}"));
        }
        Ok(compared)
    }

    /// Compares one line; returns false if an earlier line has named the file.
    fn compare_line(
        &self,
        name: &str,
        expected: Sum,
        named: &mut [bool],
        compared: &mut Compared,
        sum: &mut dyn FnMut(usize, Sum) -> Result<Sum>,
    ) -> Result<bool> {
        let path = format!("{}{name}", self.prefix);
        let Some(at) = self.files.find(&path) else {
            if compared.absent.len() < MAX_INVALID {
                compared.absent.push(path);
            }
            return Ok(true);
        };
        if std::mem::replace(&mut named[at], true) {
            compared.repeated.push(at);
            // One line that is right is enough.
            compared.differing.retain(|(differing, actual)| *differing != at || *actual != expected);
            return Ok(false);
        }
        let actual = sum(at, expected)?;
        compared.differing.extend((actual != expected).then_some((at, actual)));
        Ok(true)
    }
}
