//! Follows the symbolic links in place of a node's `0` and of the directories below it.
//!
//! The node's user may have made such a link while we are root, to a directory that only another user may read: a backup would give
//! its files away. So a link is followed only if it belongs to root, to us or to the owner of the directory to which it leads. That
//! holds for every link on the way, also for one in the path that another link names. The way to the database directory itself is the
//! operator's, and its links are followed whoever made them.
//!
//! Invariants: nothing is changed. Each link is opened before it is read, so it has the owner that was judged. The result has no links;
//! one that is put there later is not followed (see `nofollow`).

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat, readlinkat};

use crate::disk::nofollow;
use crate::error::{Error, IoContext, Kind, Result};

/// How many links may lead to each other, as in Linux.
const MAX_DEPTH: u32 = 40;

/// A symbolic link: its owner and what it names.
struct Link {
    owner: u32,
    target: PathBuf,
}

/// The path without links of `below` in `directory`, which has none. What does not exist keeps its name.
///
/// # Errors
/// [`Kind::Refused`]: a link is not to be trusted, or leads to no directory.
pub(crate) fn follow_trusted(directory: &Path, below: &Path) -> Result<PathBuf> {
    follow(directory, below, 0)
}

fn follow(directory: &Path, below: &Path, depth: u32) -> Result<PathBuf> {
    let mut at = directory.to_owned();
    for component in below.components() {
        match component {
            Component::RootDir => at = PathBuf::from("/"),
            Component::ParentDir => drop(at.pop()),
            Component::CurDir | Component::Prefix(_) => {}
            Component::Normal(name) => {
                let next = at.join(name);
                at = match link_at(&next)? {
                    None => next,
                    Some(_) if depth == MAX_DEPTH => {
                        let context = format!("{} is one of too many links that lead to each other", next.display());
                        return Err(Error::new(Kind::Refused, context));
                    }
                    Some(Link { owner, target }) => {
                        let leads_to = follow(&at, &target, depth + 1)?;
                        require_trusted(&next, owner, &leads_to)?;
                        leads_to
                    }
                };
            }
        }
    }
    Ok(at)
}

/// The link of this name; `None` if it is none, or does not exist.
fn link_at(path: &Path) -> Result<Option<Link>> {
    let failed = || format!("cannot look at {}", path.display());
    let opened = match openat(CWD, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Err(e) if matches!(io::Error::from(e).kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        // Even root could not look there, so the name is used as it is.
        Err(e) if io::Error::from(e).kind() == ErrorKind::PermissionDenied => return Ok(None),
        opened => File::from(opened.context(failed)?),
    };
    let meta = opened.metadata().context(failed)?;
    if !meta.is_symlink() {
        return Ok(None);
    }
    let target = readlinkat(&opened, c"", Vec::new()).context(failed)?;
    Ok(Some(Link { owner: meta.uid(), target: PathBuf::from(OsStr::from_bytes(target.as_bytes())) }))
}

fn require_trusted(link: &Path, owner: u32, leads_to: &Path) -> Result<()> {
    let meta = nofollow::look(leads_to).context(|| format!("cannot follow the link {}", link.display()))?;
    let ours = rustix::process::geteuid().as_raw();
    if meta.is_some_and(|meta| meta.is_dir() && (owner == 0 || owner == ours || owner == meta.uid())) {
        return Ok(());
    }
    let context = format!(
        "the link {} belongs to another user than the directory to which it leads, or leads to no directory: make it anew \
         as root, or name the directory itself",
        link.display()
    );
    Err(Error::new(Kind::Refused, context))
}
