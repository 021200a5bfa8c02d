//! Which file it is, whatever its name: two names with one identity are one file, as long as it exists.
//!
//! # Limitations
//! The number of a deleted file is given to another one: an identity that was kept is compared with that of a file that still
//! has its name, and where that matters with its size and content, too.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use rustix::fs::Stat;

/// The identity of a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileId {
    /// The file system.
    device: u64,
    /// The number of the file there.
    inode: u64,
}

impl From<&Metadata> for FileId {
    fn from(meta: &Metadata) -> FileId {
        FileId { device: meta.dev(), inode: meta.ino() }
    }
}

impl From<&Stat> for FileId {
    fn from(stat: &Stat) -> FileId {
        FileId { device: stat.st_dev, inode: stat.st_ino }
    }
}
