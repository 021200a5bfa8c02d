//! The identity of a file, independent of its name: two names with the same identity are one file, as long as it exists.
//!
//! # Limitations
//! The kernel may give the number of a deleted file to a new one. So a stored identity is compared with that of a file that still
//! has its name, and, if it matters, the size and the content are compared, too.

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
