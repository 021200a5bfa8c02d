//! The permissions of files and directories that we created. Each change passes the fault gate, and follows no symbolic link.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::Mode;

use crate::disk::fault_gate::pass;
use crate::disk::nofollow;
use crate::error::{IoContext, Result, failed};

/// Gives a directory that we created the permissions of `mode`; its owner may always use it.
pub(crate) fn set_of_directory(path: &Path, mode: u32) -> Result<()> {
    set_exactly(path, mode | 0o700)
}

/// The same, but its owner has no other permissions than those.
pub(crate) fn set_exactly(path: &Path, mode: u32) -> Result<()> {
    let directory = nofollow::open_directory(path).context(|| failed("open directory", path))?;
    set(&directory, path, mode)
}

/// Gives a file that we created the permissions of `mode`. Does not change a file with a second name: it is a hard link to a
/// file of the node.
pub(crate) fn set_of_file(path: &Path, mode: u32) -> Result<()> {
    let file = nofollow::open_regular(path).context(|| failed("open", path))?;
    let meta = file.metadata().context(|| failed("look at", path))?;
    if meta.nlink() == 1 { set(&file, path, mode) } else { Ok(()) }
}

/// Gives an open file or directory the permissions of `mode`, unless it has them already.
pub(crate) fn set(file: &File, path: &Path, mode: u32) -> Result<()> {
    let current = file.metadata().context(|| failed("look at", path))?.mode();
    if current & 0o777 == mode & 0o777 {
        return Ok(());
    }
    pass("chmod", path).context(|| failed("change the mode of", path))?;
    rustix::fs::fchmod(file, Mode::from_bits_truncate(mode & 0o777)).context(|| failed("change the mode of", path))
}
