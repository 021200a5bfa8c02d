//! Reads the file of the tokens, and refuses one that another user can read or change.
//!
//! The path may be a symbolic link, as a secret in a volume of Kubernetes is: the owner and the mode of the file to which it leads decide,
//! and they are those of the file that is read, whatever happens to its name.
//!
//! # Limitations
//! The directories on the way are the operator's, and are not examined. An access control list shows only in the bits of the group.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::config::access::{TOKEN_FILE_BYTES_MAX, Tokens};
use crate::error::{Error, Kind, Result};

/// What others, and the group for writing, may not have.
const OF_OTHERS: u32 = 0o027;

/// Reads the tokens in a file, as [`Tokens::parse`] says.
///
/// # Errors
/// [`Kind::Usage`]: the file cannot be read, is not regular, belongs to another user than root and this one, can be read or changed by
/// others, or has no tokens. The message says what to do, and has nothing of the content.
pub fn read_tokens(path: &Path) -> Result<Tokens> {
    let usage = |what: String| Error::new(Kind::Usage, format!("token file {}{what}", path.display()));
    let failed =
        |e: io::Error| Error::new(Kind::Usage, format!("cannot read token file {}", path.display())).because(e);
    // A FIFO in its place does not make us wait.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?);
    let meta = file.metadata().map_err(failed)?;
    private(&meta, rustix::process::geteuid().as_raw()).map_err(usage)?;
    let mut bytes = Vec::new();
    file.take(TOKEN_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > TOKEN_FILE_BYTES_MAX {
        return Err(usage(format!(" has more than {TOKEN_FILE_BYTES_MAX} bytes: remove what is no token")));
    }
    let text =
        std::str::from_utf8(&bytes).map_err(|_| usage(" is no text: write one token in each line".to_owned()))?;
    Tokens::parse(text).map_err(|e| usage(format!(": {}", e.chain())))
}

/// Whether only root, this user and a group that may read have the file; otherwise the end of a sentence that says what to do.
fn private(meta: &Metadata, us: u32) -> std::result::Result<(), String> {
    let (owner, mode) = (meta.uid(), meta.mode() & 0o777);
    if !meta.is_file() {
        return Err(" is not a regular file".to_owned());
    }
    if owner != us && owner != 0 {
        return Err(format!(" belongs to user {owner}, who can change it: give it to user {us}, or to root (chown)"));
    }
    if mode & OF_OTHERS != 0 {
        let remedy = "set its mode to 600, or to 640 if a group may read it (chmod)";
        return Err(format!(" can be read or changed by other users, its mode is {mode:03o}: {remedy}"));
    }
    Ok(())
}
