//! The names that a directory has through mounts: a bind mount shows a part of a file system under a second name, and `..` does
//! not lead from it to the directories above that part.
//!
//! # Limitations
//! A directory of a file system that is not mounted in this process's mount namespace is not seen. Without `/proc`, no mount is.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A directory that has a second name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    /// The path under which this process sees it.
    pub(crate) visible: PathBuf,
    /// Its path within its file system.
    pub(crate) name: PathBuf,
}

/// A line of `mountinfo`: a part of a file system, and the directory on which it is mounted.
struct Mount {
    device: String,
    root: PathBuf,
    point: PathBuf,
}

/// The directory `path`, which has no links, and the ones above it in its file system, as far as any mount shows them.
pub(crate) fn ancestors(path: &Path) -> Vec<Named> {
    let bytes = fs::read("/proc/self/mountinfo").unwrap_or_default();
    ancestors_in(&bytes, path)
}

fn ancestors_in(mountinfo: &[u8], path: &Path) -> Vec<Named> {
    let mounts: Vec<Mount> = mountinfo.split(|b| *b == b'\n').filter_map(parse).collect();
    // Of several mounts on one directory the last one is visible.
    let own = mounts.iter().filter(|mount| path.starts_with(&mount.point));
    let Some(own) = own.max_by_key(|mount| mount.point.as_os_str().len()) else { return Vec::new() };
    let Ok(below) = path.strip_prefix(&own.point) else { return Vec::new() };
    let within = own.root.join(below);
    let visible_in = |mount: &Mount, name: &Path| Some(mount.point.join(name.strip_prefix(&mount.root).ok()?));
    let of_mount = |mount| {
        let named = |name: &Path| Some(Named { visible: visible_in(mount, name)?, name: name.to_owned() });
        within.ancestors().filter_map(named).collect::<Vec<_>>()
    };
    mounts.iter().filter(|mount| mount.device == own.device).flat_map(of_mount).collect()
}

/// `36 35 98:0 /part /mounted rw,noatime ...`
fn parse(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|b| *b == b' ').skip(2);
    let device = String::from_utf8(words.next()?.to_owned()).ok()?;
    Some(Mount { device, root: unescape(words.next()?), point: unescape(words.next()?) })
}

/// The kernel writes blanks and backslashes as three octal digits.
fn unescape(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_file_system_has_the_names_of_all_its_mounts() {
        let mountinfo = b"1 0 8:1 / / rw - ext4 /dev/a rw\n\
            2 1 8:2 / /node rw - ext4 /dev/b rw\n\
            3 1 8:2 /back\\040ups/17/0 /elsewhere\\134 rw - ext4 /dev/b rw\n";
        let named = |visible: &str, name: &str| Named { visible: visible.into(), name: name.into() };
        let expected = [
            named("/node/back ups/17/0/new", "/back ups/17/0/new"),
            named("/node/back ups/17/0", "/back ups/17/0"),
            named("/node/back ups/17", "/back ups/17"),
            named("/node/back ups", "/back ups"),
            named("/node/", "/"),
            named("/elsewhere\\/new", "/back ups/17/0/new"),
            named("/elsewhere\\/", "/back ups/17/0"),
        ];
        assert_eq!(ancestors_in(mountinfo, Path::new("/elsewhere\\/new")), expected);
        assert_eq!(ancestors_in(b"", Path::new("/a")), []);
    }
}
