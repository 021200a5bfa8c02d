//! The fault gate: every change that `disk` makes to the file system passes here first.
//!
//! Compiled to nothing unless the private feature `gate` is on. With it, a test arms a [`Plan`] for the operations below
//! one directory: the N-th of them fails with EIO, or the process kills itself before it. The names of the operations are
//! kept, so that a test can also check their order. Invariant: an operation that the gate refuses has not happened.

use std::io;
use std::path::Path;

#[cfg(not(feature = "gate"))]
pub(crate) fn pass(_operation: &'static str, _path: &Path) -> io::Result<()> {
    Ok(())
}

/// A named moment of a protocol, about the source in `_path`: a test may act there.
#[cfg(not(feature = "gate"))]
pub(crate) fn point(_name: &'static str, _path: &Path) {}

/// Whether a test wants the simpler protocol of this name for the source in `_path`, to see it fail.
#[cfg(not(feature = "gate"))]
pub(crate) const fn simpler(_name: &'static str, _path: &Path) -> bool {
    false
}

#[cfg(feature = "gate")]
pub use armed::{Plan, arm, at_point, disarm, forget_points, weaken};
#[cfg(feature = "gate")]
pub(crate) use armed::{pass, point, simpler};

#[cfg(feature = "gate")]
mod armed {
    use super::{Path, io};
    use parking_lot::Mutex;
    use std::path::PathBuf;

    /// Which of the operations below `root` fail, or kill the process; counted from 1.
    #[derive(Debug, Clone, Default)]
    pub struct Plan {
        /// Only operations whose path lies below this directory count.
        pub root: PathBuf,
        /// The operations that fail with EIO.
        pub fail_at: Vec<u64>,
        /// The operation before which the process kills itself with SIGKILL.
        pub kill_at: Option<u64>,
        /// The operations so far, oldest first: name and path.
        pub log: Vec<(&'static str, PathBuf)>,
    }

    static PLANS: Mutex<Vec<Plan>> = Mutex::new(Vec::new());

    /// Puts a plan into force.
    pub fn arm(plan: Plan) {
        PLANS.lock().push(plan);
    }

    /// Removes the plan of `root`, and returns it with its log.
    pub fn disarm(root: &Path) -> Plan {
        let mut plans = PLANS.lock();
        let at = plans.iter().position(|p| p.root == root).expect("a plan is disarmed once, after it was armed");
        plans.remove(at)
    }

    type Act = Box<dyn FnMut(&'static str) + Send>;

    static ACTS: Mutex<Vec<(PathBuf, Act)>> = Mutex::new(Vec::new());

    /// Calls `act` with the name of each moment that a protocol reaches with the source in `path`.
    pub fn at_point(path: &Path, act: impl FnMut(&'static str) + Send + 'static) {
        ACTS.lock().push((path.to_owned(), Box::new(act)));
    }

    static WEAKENED: Mutex<Vec<(PathBuf, &'static str)>> = Mutex::new(Vec::new());

    /// Makes the live copy of the source in `path` use a simpler protocol that is known to be wrong.
    pub fn weaken(path: &Path, name: &'static str) {
        WEAKENED.lock().push((path.to_owned(), name));
    }

    pub(crate) fn simpler(name: &'static str, path: &Path) -> bool {
        WEAKENED.lock().iter().any(|(p, n)| p == path && *n == name)
    }

    /// Undoes [`at_point`] and [`weaken`] for `path`.
    pub fn forget_points(path: &Path) {
        ACTS.lock().retain(|(p, _)| p != path);
        WEAKENED.lock().retain(|(p, _)| p != path);
    }

    pub(crate) fn point(name: &'static str, path: &Path) {
        // Taken out while they act: they may reach such moments themselves, and the list must not be locked then.
        let mut acts = ACTS.lock();
        let (mut here, others): (Vec<_>, Vec<_>) = std::mem::take(&mut *acts).into_iter().partition(|(p, _)| p == path);
        *acts = others;
        drop(acts);
        here.iter_mut().for_each(|(_, act)| act(name));
        ACTS.lock().append(&mut here);
    }

    pub(crate) fn pass(operation: &'static str, path: &Path) -> io::Result<()> {
        let mut plans = PLANS.lock();
        let Some(plan) = plans.iter_mut().find(|p| path.starts_with(&p.root)) else { return Ok(()) };
        plan.log.push((operation, path.to_owned()));
        let number = plan.log.len() as u64;
        if plan.kill_at == Some(number) {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
        if plan.fail_at.contains(&number) { Err(rustix::io::Errno::IO.into()) } else { Ok(()) }
    }
}
