//! The ways to copy Pact on the file systems that nodes run on: each in an image of its own, mounted while it is measured.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Scale;
use crate::speed::Copier::{self, Backup, Cp, CpReflink, Ours, OursClone, VacuumInto};

/// A file system can be that small; sparse, so that it takes no more than what is written.
const LEAST_BYTES: u64 = 1 << 30;

/// A new file system in an image, unmounted and removed when it goes out of scope.
pub struct Mounted {
    image: PathBuf,
    at: PathBuf,
    mounted: bool,
}

impl Mounted {
    /// The error says why there is none.
    pub fn new(kind: &str, bytes: u64, below: &Path) -> Result<Mounted, String> {
        let mut new = Mounted { image: below.join(format!("{kind}.img")), at: below.join(kind), mounted: false };
        fs::create_dir_all(&new.at).unwrap();
        File::create(&new.image).unwrap().set_len(bytes).unwrap();
        command(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&new.image))?;
        command(Command::new("mount").args(["-o", "loop"]).args([&new.image, &new.at]))?;
        new.mounted = true;
        Ok(new)
    }

    pub fn path(&self) -> &Path {
        &self.at
    }

    /// What was written to the device since it is there, in MiB, after everything is on it.
    pub fn written_mib(&self) -> f64 {
        rustix::fs::syncfs(File::open(&self.at).unwrap()).unwrap();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let line = mounts.lines().find(|line| line.split(' ').nth(1) == self.at.to_str()).unwrap();
        let device = line.split(' ').next().unwrap().trim_start_matches("/dev/");
        let stat = fs::read_to_string(format!("/sys/block/{device}/stat")).unwrap();
        stat.split_whitespace().nth(6).unwrap().parse::<f64>().unwrap() / 2048.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg(&self.at).status();
        }
        let _ = fs::remove_file(&self.image);
        let _ = fs::remove_dir(&self.at);
    }
}

fn command(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(()).ok_or_else(|| said.lines().next().unwrap_or_default().to_owned())
}

/// Pact on each file system, with what can be cloned there.
pub fn pact(scale: &Scale) {
    let cloning: [Copier; 6] = [Cp, Ours, CpReflink, OursClone, Backup, VacuumInto];
    let copying: [Copier; 4] = [Cp, Ours, Backup, VacuumInto];
    for (kind, copiers) in [("ext4", &copying[..]), ("xfs", &cloning), ("btrfs", &cloning)] {
        if !rustix::process::geteuid().is_root() {
            println!("\n(not run: Pact on {kind}: to mount an image needs root)");
            continue;
        }
        let bytes = scale.pact_bytes * 5 + LEAST_BYTES;
        match Mounted::new(kind, bytes, &scale.dir) {
            Ok(mounted) => {
                let node = mounted.at.join("node");
                crate::fill_node(&node, scale.pact_databases, scale.pact_bytes);
                // One that nobody has open is never cloned.
                let _open = crate::writers::open_as_a_node(&node);
                let written = || mounted.written_mib();
                crate::speed::pact_in(scale, &mounted.at, &format!(" on {kind}"), Some(&written), copiers);
            }
            Err(why) => println!("\n(not run: Pact on {kind}: {why})"),
        }
    }
}
