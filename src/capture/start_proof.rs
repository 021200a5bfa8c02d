//! The start-up proof of a finished copy: reads its RocksDB and the Pact databases beside it, and works out what a node would do.
//!
//! Invariants
//! - Nothing is written.
//! - A copy that cannot be read because its content is damaged, or lost by the disk, at two readings, is refuted; another error of the
//!   operating system is an error. (SQLite calls some read errors, which may pass, damage.)

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::capture::rocksdb::child::{self, Question};
use crate::capture::rocksdb::engine::Entries;
use crate::capture::source::SqliteSource;
use crate::capture::sqlite::history::History;
use crate::chainweb::start::{self, Databases, Ends, Extent, Row, Verdict};
use crate::chainweb::stored::{Entry, Tables};
use crate::chainweb::tables::{CUTS, CUTS_END};
use crate::chainweb::{SQLITE, chain_of};
use crate::control::Control;
use crate::disk::medium;
use crate::error::{Error, Kind, Result};

/// How long the child may take if the caller sets no limit.
const TIME_LIMIT: Duration = Duration::from_secs(14 * 60 * 60);

/// How much longer than its own limit the child may take: it looks at the clock before each reading.
const CHILD_EXTRA: Duration = Duration::from_secs(30);

/// In the arguments of the child: that everything is read.
const WHOLE: &str = "whole";

/// What a proof may read, and how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) extent: Extent,
    pub(crate) time_limit: Option<Duration>,
}

impl Bounds {
    /// Without a limit of time.
    pub(crate) fn of(extent: Extent) -> Bounds {
        Bounds { extent, time_limit: None }
    }
}

/// Works out what a node does when it starts from the RocksDB in `copy` and the Pact databases beside it, in `../sqlite`; `None` if
/// that took too long. With a `program`, a child process does it (`program starts DIR LIMIT_MS EXTENT`).
///
/// # Errors
/// [`Kind::Usage`] if this program was built without RocksDB; [`Kind::Cancelled`]; [`Kind::Io`].
pub(crate) fn prove(copy: &Path, program: Option<&Path>, bounds: Bounds, control: &Control) -> Result<Option<Verdict>> {
    let Some(program) = program else { return prove_here(copy, bounds, control) };
    let limit_ms = bounds.time_limit.map_or(0, |limit| limit.as_millis()).to_string();
    let extent = if bounds.extent == Extent::WHOLE { WHOLE } else { "" };
    let time_limit = bounds.time_limit.map_or(TIME_LIMIT, |limit| limit + CHILD_EXTRA);
    let question = Question { more: &[&limit_ms, extent], ..Question::about("starts", copy, time_limit) };
    child::ask(program, &question, control)
}

/// What the child process of a start-up proof prints: the verdict as JSON, `null` if it was not found within `limit_ms` milliseconds;
/// 0 is no limit. `extent` is `whole`, or something else for the usual bounds.
///
/// # Errors
/// Fails if this program was built without RocksDB, or the databases in and beside `directory` cannot be read.
pub fn starts_json(directory: &Path, limit_ms: u64, extent: &str) -> Result<String> {
    let time_limit = (limit_ms > 0).then(|| Duration::from_millis(limit_ms));
    let extent = if extent == WHOLE { Extent::WHOLE } else { Extent::BOUNDED };
    let verdict = prove_here(directory, Bounds { extent, time_limit }, &Control::default())?;
    Ok(serde_json::to_string(&verdict).expect("a verdict has only string keys"))
}

fn prove_here(copy: &Path, bounds: Bounds, control: &Control) -> Result<Option<Verdict>> {
    let deadline = bounds.time_limit.map(|limit| Instant::now() + limit);
    let prove = || Finished::open(copy, deadline, control).and_then(|mut copy| start::prove(&mut copy, bounds.extent));
    let refutes = |e: &Error| e.kind() == Kind::Damaged || medium::is_lost(e);
    let proved = match prove() {
        Err(Unread::Failed(e)) if refutes(&e) => prove(),
        proved => proved,
    };
    match proved {
        Ok(verdict) => Ok(Some(verdict)),
        Err(Unread::Late) => Ok(None),
        Err(Unread::Failed(e)) if refutes(&e) => Ok(Some(Verdict::No { reason: e.chain() })),
        Err(Unread::Failed(e)) => Err(e),
    }
}

/// Why the databases cannot be read.
enum Unread {
    /// The time is over.
    Late,
    Failed(Error),
}

impl From<Error> for Unread {
    fn from(e: Error) -> Unread {
        Unread::Failed(e)
    }
}

/// The databases of a finished copy.
struct Finished<'a> {
    entries: Entries,
    /// By chain.
    pact: BTreeMap<u32, History>,
    deadline: Option<Instant>,
    control: &'a Control,
}

impl<'a> Finished<'a> {
    fn open(copy: &Path, deadline: Option<Instant>, control: &'a Control) -> std::result::Result<Finished<'a>, Unread> {
        let entries = Entries::open(copy)?;
        let mut pact = BTreeMap::new();
        for database in SqliteSource::Foreign(copy.with_file_name(SQLITE)).databases()? {
            if let Some(chain) = chain_of(&database) {
                pact.insert(chain, History::open(&database)?);
            }
        }
        Ok(Finished { entries, pact, deadline, control })
    }

    fn go_on(&self) -> std::result::Result<(), Unread> {
        self.control.check()?;
        self.control.step();
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) { Err(Unread::Late) } else { Ok(()) }
    }

    fn history_of(&self, chain: u32) -> Option<&History> {
        self.pact.get(&chain)
    }
}

impl Tables for Finished<'_> {
    type Error = Unread;

    fn get(&mut self, key: &[u8]) -> std::result::Result<Option<Vec<u8>>, Unread> {
        self.go_on()?;
        Ok(self.entries.get(key)?)
    }
}

impl Databases for Finished<'_> {
    fn cut_below(&mut self, key: Option<&[u8]>) -> std::result::Result<Option<Entry>, Unread> {
        self.go_on()?;
        Ok(self.entries.newest_in(CUTS, key.unwrap_or(CUTS_END))?)
    }

    fn has_pact(&self) -> bool {
        !self.pact.is_empty()
    }

    fn history(&mut self, chain: u32) -> std::result::Result<Option<Ends>, Unread> {
        self.go_on()?;
        Ok(self.history_of(chain).map(History::ends).transpose()?.flatten())
    }

    fn row(&mut self, chain: u32, height: u64) -> std::result::Result<Option<Row>, Unread> {
        self.go_on()?;
        Ok(self.history_of(chain).map(|history| history.row(height)).transpose()?.flatten())
    }
}
