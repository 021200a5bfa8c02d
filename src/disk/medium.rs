//! Tells an error of reading that says that the disk has lost what was to be read from one that says nothing about it.
//!
//! The kernel and the disk have tried several times before they report such an error. But a network file system reports the same while
//! its server is away: so whoever takes the content for lost reads it a second time, later.

use std::io;

use crate::error::{Error, Result};

/// The errors of a lost sector: `EIO`, and what the block layer says of a medium, a target or a protected sector (`ENODATA`,
/// `EREMOTEIO`, `EILSEQ`; Linux, `block/blk-core.c`); and those of a file system that finds a wrong checksum or structure (`EBADMSG`,
/// `EUCLEAN`; ext4 and xfs).
const LOST: [i32; 6] = [libc::EIO, libc::ENODATA, libc::EREMOTEIO, libc::EILSEQ, libc::EBADMSG, libc::EUCLEAN];

/// What `read` returns, or what it returns the second time if the disk seems to have lost the content.
pub(crate) fn twice<T>(read: impl FnMut() -> Result<T>) -> Result<T> {
    twice_if(is_lost, read)
}

/// What `read` returns, or what it returns the second time if its error is doubtful: one that may pass.
pub(crate) fn twice_if<T>(is_doubtful: impl Fn(&Error) -> bool, mut read: impl FnMut() -> Result<T>) -> Result<T> {
    match read() {
        Err(e) if is_doubtful(&e) => read(),
        other => other,
    }
}

/// Whether a library's message has the words of the operating system for such an error.
#[cfg(any(feature = "engine", test))]
pub(crate) fn is_lost_in_words(message: &str) -> bool {
    LOST.into_iter().any(|errno| {
        let words = io::Error::from_raw_os_error(errno).to_string();
        words.split(" (").next().is_some_and(|words| message.contains(words))
    })
}

/// An error of reading that says that the content is lost, from a library that does not say more.
pub(crate) fn lost(context: impl Into<String>) -> Error {
    Error::io(context, io::Error::from_raw_os_error(libc::EIO))
}

/// Whether an error of reading says that the content is lost.
pub(crate) fn is_lost(e: &Error) -> bool {
    e.errno().is_some_and(|errno| LOST.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_of_the_medium_say_that_content_is_lost() {
        let error = |errno| Error::io("cannot read it", io::Error::from_raw_os_error(errno));
        for errno in LOST {
            let words =
                format!("IO error: While pread offset 4 len 4096: 000012.sst: {}", io::Error::from_raw_os_error(errno));
            assert!(is_lost(&error(errno)) && is_lost_in_words(&words), "{words}");
        }
        for errno in [libc::ENOENT, libc::ESTALE, libc::EACCES, libc::EMFILE, libc::ENOMEM, libc::ENOSPC] {
            let words = format!("IO error: While open a file: 000012.sst: {}", io::Error::from_raw_os_error(errno));
            assert!(!is_lost(&error(errno)) && !is_lost_in_words(&words), "{words}");
        }
        assert!(is_lost(&lost("SQLite cannot read it")));
    }
}
