//! A file system whose files can share blocks, in an image, for one test: xfs and btrfs. As root only.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::fixture::{scratch_on_disk, skip};

pub const KINDS: [&str; 2] = ["xfs", "btrfs"];

/// The size of an image, which has holes: the smallest xfs.
const IMAGE_BYTES: u64 = 320 * 1024 * 1024;

/// A mounted file system, unmounted at the end.
pub struct Volume {
    scratch: TempDir,
}

impl Volume {
    /// `None`, and a word about it, where none can be mounted.
    pub fn mount(kind: &str) -> Option<Volume> {
        let scratch = scratch_on_disk();
        let image = scratch.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(IMAGE_BYTES).unwrap();
        let volume = Volume { scratch };
        std::fs::create_dir(volume.path()).unwrap();
        let make = format!("mkfs.{kind}");
        let is_done = run(&make, &["-q".as_ref(), &image])
            && run("mount", &["-o".as_ref(), "loop".as_ref(), &image, &volume.path()]);
        if !is_done {
            skip(&format!("no {kind} can be mounted here"));
        }
        is_done.then_some(volume)
    }

    /// Both kinds, as far as they can be mounted.
    pub fn each() -> impl Iterator<Item = (&'static str, Volume)> {
        KINDS.into_iter().filter_map(|kind| Some((kind, Volume::mount(kind)?)))
    }

    pub fn path(&self) -> PathBuf {
        self.scratch.path().join("mounted")
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let mounted = self.path();
        for _ in 0..50 {
            if run("umount", &[&mounted]) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        run("umount", &["-l".as_ref(), &mounted]);
    }
}

fn run(program: &str, arguments: &[&Path]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
