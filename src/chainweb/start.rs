//! What a node does when it starts from its databases, worked out from the databases alone: the start-up proof.
//!
//! The steps are the node's, in its order, so that the first fault is the one that the node meets first (chainweb-node,
//! `Chainweb/Pact/PactService.hs`, `Chainweb/Pact/PactService/Checkpointer.hs`, `Chainweb/CutDB.hs`):
//! 1. For each chain: from Pact's newest block down to the first whose header and rank RocksDB has.
//! 2. The newest cut of whose blocks RocksDB has all headers and ranks.
//! 3. For each chain: the fork point of Pact's block and that of the cut; Pact must have a row of it. Pact is rewound to it, and
//!    replays the blocks from there to the cut: of each, payload, transactions and outputs must be there.
//!
//! Invariants
//! - Every header, payload, transaction and output is authenticated by its hash. A node that starts checks less: of a header,
//!   not even its hash.
//! - What is not known is [`Verdict::Unknown`], never guessed.
//!
//! Limitations
//! - Nothing is executed: whether a replay has the recorded outputs, and whether Pact's rows are those of its history, is not known.
//! - Nodes of the branch evm/main start in another way, and are unknown.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::chainweb::cut::{Cut, Tip};
use crate::chainweb::digest::Digest;
use crate::chainweb::header::Header;
use crate::chainweb::names::COMPACTED_FLAG;
use crate::chainweb::pact::History;
use crate::chainweb::stored::{self, Block, Entry, Fault, Part, Stop, Tables};
use crate::chainweb::tables::CUTS;
use crate::chainweb::version::Version;

/// The size of the key of a cut.
const CUT_KEY_BYTES: usize = CUTS.len() + 72;

/// The networks of the branch evm/main.
const OTHER_START: &str = "evm-";

/// A row of Pact's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The height of the block.
    pub height: u64,
    /// Its hash; `None` if that does not have 32 bytes.
    pub hash: Option<Digest>,
}

/// The ends of Pact's history of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The newest row.
    pub newest: Row,
    /// The height of the lowest row.
    pub lowest: u64,
}

/// Reads the databases of a node.
pub trait Databases: Tables {
    /// The newest entry, key and value, of the table of cuts whose key is less than this; of all if there is none.
    ///
    /// # Errors
    /// Fails if the database cannot be read. So the others.
    fn cut_below(&mut self, key: Option<&[u8]>) -> Result<Option<Entry>, Self::Error>;

    /// Whether there is any Pact database.
    fn has_pact(&self) -> bool;

    /// The ends of Pact's history of a chain; `None` if its database is missing or has no row.
    fn history(&mut self, chain: u32) -> Result<Option<Ends>, Self::Error>;

    /// The row at a height.
    fn row(&mut self, chain: u32, height: u64) -> Result<Option<Row>, Self::Error>;
}

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The most blocks of a chain that are walked through between Pact and the cut. Beyond that the result is unknown.
    pub blocks_max: u64,
    /// The most blocks of a chain whose payloads are read. If there are more, this many are, evenly spread.
    pub payloads_max: u64,
}

impl Extent {
    /// What takes seconds at most.
    pub const BOUNDED: Extent = Extent { blocks_max: 100_000, payloads_max: 1000 };
    /// All of it.
    pub const WHOLE: Extent = Extent { blocks_max: 2_000_000, payloads_max: u64::MAX };
}

/// Whether a node starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "lowercase")]
pub enum Verdict {
    /// It does.
    Yes(Start),
    /// It does not.
    No {
        /// The first fault that the node meets.
        reason: String,
    },
    /// That is not known.
    Unknown {
        /// Why not.
        reason: String,
    },
}

/// What a node does when it starts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The name of the version.
    pub version: String,
    /// The height of the cut that it takes: the sum over all chains.
    pub cut_height: u64,
    /// How many newer cuts it cannot use and deletes.
    pub skipped_cuts: u64,
    /// Each chain.
    #[serde(deserialize_with = "by_chain")]
    pub chains: BTreeMap<u32, ChainStart>,
    /// The flags that the node needs.
    pub flags: Vec<String>,
    /// How many blocks have their payload, transactions and outputs checked, of all that are replayed.
    pub payloads_checked: u64,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

/// What a node does with a chain when it starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainStart {
    /// The height of the block from which it continues.
    pub height: u64,
    /// How many blocks of Pact are undone.
    pub rewind: u64,
    /// How many blocks are replayed in Pact.
    pub replay: u64,
}

/// In JSON the keys are texts, and a tagged value does not turn them into numbers by itself.
fn by_chain<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<u32, ChainStart>, D::Error> {
    let named = BTreeMap::<String, ChainStart>::deserialize(from)?;
    let chain = |(name, start): (String, ChainStart)| Ok((name.parse().map_err(de::Error::custom)?, start));
    named.into_iter().map(chain).collect()
}

impl Start {
    /// The blocks that are replayed, of all chains.
    pub fn replay_sum(&self) -> u64 {
        self.sum(|chain| chain.replay)
    }

    /// The blocks that are undone, of all chains.
    pub fn rewind_sum(&self) -> u64 {
        self.sum(|chain| chain.rewind)
    }

    /// The sum; a note that another program wrote may have any numbers.
    fn sum(&self, of: fn(&ChainStart) -> u64) -> u64 {
        self.chains.values().map(of).fold(0, u64::saturating_add)
    }

    /// Whether the payloads of all blocks that are replayed were checked.
    pub fn is_whole(&self) -> bool {
        self.payloads_checked >= self.replay_sum()
    }
}

/// Works out what a node does when it starts from these databases.
///
/// # Errors
/// Fails if a database cannot be read.
pub fn prove<D: Databases>(databases: &mut D, extent: Extent) -> Result<Verdict, D::Error> {
    match (Proof { databases, extent, start: Start::default() }).run() {
        Ok(start) => Ok(Verdict::Yes(start)),
        Err(Stop::Fault(fault)) => Ok(Verdict::No { reason: fault.to_string() }),
        Err(Stop::Unknown(reason)) => Ok(Verdict::Unknown { reason }),
        Err(Stop::Unread(e)) => Err(e),
    }
}

struct Proof<'a, D> {
    databases: &'a mut D,
    extent: Extent,
    start: Start,
}

/// Pact's newest row and the block of its chain at which it stands after step 1; `None` if it has no row, and begins at the genesis.
type Standing = Option<(Row, Place)>;

/// The headers of a cut's blocks, by chain.
type Tips = BTreeMap<u32, Header>;

type Stopped<D> = Stop<<D as Tables>::Error>;

impl<D: Databases> Proof<'_, D> {
    fn run(mut self) -> Result<Start, Stopped<D>> {
        let newest = self.databases.cut_below(None).map_err(Stop::Unread)?;
        let (key, value) = newest.ok_or_else(|| Stop::Unknown("RocksDB has no table of cuts".to_owned()))?;
        if key.len() != CUT_KEY_BYTES {
            return Err(Stop::Unknown("the cuts in RocksDB are not in the form of chainweb-node".to_owned()));
        }
        let newest = parsed(&key, &value)?;
        let version = Version::of_name(&newest.instance).map_err(|unknown| Stop::Unknown(unknown.to_string()))?;
        if version.name.starts_with(OTHER_START) {
            let reason = format!("a node of {} starts in a way that is not known here", version.name);
            return Err(Stop::Unknown(reason));
        }
        self.start.version = version.name.to_owned();
        let mut standings = BTreeMap::new();
        if self.databases.has_pact() {
            for chain in version.chains() {
                standings.insert(chain, self.stand(version, chain)?);
            }
        }
        let (cut, tips) = self.take_cut(version, key, newest)?;
        self.start.cut_height = cut.place.height;
        if !self.databases.has_pact() {
            let reason = "the backup has no Pact databases: a node would replay every block from the genesis";
            return Err(Stop::Unknown(reason.to_owned()));
        }
        for (chain, standing) in standings {
            let moved = match tips.get(&chain) {
                Some(tip) => self.sync(version, standing, tip)?,
                None => self.rewind_to_genesis(version, chain, standing)?,
            };
            self.start.chains.insert(chain, moved);
        }
        self.warn(&tips);
        Ok(self.start)
    }

    /// Step 1.
    fn stand(&mut self, version: &Version, chain: u32) -> Result<Standing, Stopped<D>> {
        let Some(Ends { newest, lowest }) = self.databases.history(chain).map_err(Stop::Unread)? else {
            let warning = format!("Pact of chain {chain} has no history: all blocks of the chain are replayed");
            self.start.warnings.push(warning);
            return Ok(None);
        };
        if History::of(Some(lowest), Some(chain), Some(version)) != History::Whole && self.start.flags.is_empty() {
            self.start.flags.push(COMPACTED_FLAG.to_owned());
        }
        let genesis = version.genesis_height(chain).unwrap_or(0);
        let mut row = newest;
        let mut walked_count = 0;
        loop {
            let hash = row.hash.ok_or(Fault::Row(chain, row.height))?;
            let block = Block { chain, height: row.height, hash };
            if let Ok(header) = stored::header(self.databases, version, block)? {
                return Ok(Some((newest, Place::of(&header))));
            }
            // The node writes a genesis header that is missing. Whether it is this one shows in what is above it, at the latest.
            let known = version.genesis_hash(chain).map_or(row == newest, |known| known == hash);
            if row.height == genesis && known {
                return Ok(Some((newest, Place::genesis(genesis, hash))));
            }
            let below = row.height.checked_sub(1).map(|height| self.databases.row(chain, height).map_err(Stop::Unread));
            row = below.transpose()?.flatten().ok_or(Fault::NotConnected(block))?;
            walked_count += 1;
            self.require_bound(chain, walked_count)?;
        }
    }

    fn require_bound(&self, chain: u32, walked_count: u64) -> Result<(), Stopped<D>> {
        if walked_count <= self.extent.blocks_max {
            return Ok(());
        }
        let reason =
            format!("there are more than {} blocks between Pact and the cut, on chain {chain}", self.extent.blocks_max);
        Err(Stop::Unknown(reason))
    }

    /// Step 2: the cut, and the headers of its blocks.
    fn take_cut(&mut self, version: &Version, mut key: Vec<u8>, newest: Cut) -> Result<(Cut, Tips), Stopped<D>> {
        let mut cut = newest;
        let mut first_missing = None;
        loop {
            match self.tips(version, &cut)? {
                Ok(tips) => return Ok((cut, tips)),
                Err((block, part)) => first_missing.get_or_insert((block, part)),
            };
            let next = self.databases.cut_below(Some(&key)).map_err(Stop::Unread)?;
            let Some((below, value)) = next else {
                let (block, part) = first_missing.expect("it was set above");
                return Err(Fault::NoCut(block, part).into());
            };
            if self.start.skipped_cuts == 0 {
                let (block, part) = first_missing.expect("it was set above");
                let warning = format!("the newest cut cannot be used: {}", Fault::Missing(block, part));
                self.start.warnings.push(warning);
            }
            self.start.skipped_cuts += 1;
            cut = parsed(&below, &value)?;
            key = below;
        }
    }

    /// The headers of a cut's blocks; or the first that is missing.
    fn tips(&mut self, version: &Version, cut: &Cut) -> Result<Result<Tips, (Block, Part)>, Stopped<D>> {
        let mut tips = BTreeMap::new();
        for (chain, Tip { height, hash }) in &cut.tips {
            let block = Block { chain: *chain, height: *height, hash: *hash };
            match stored::header(self.databases, version, block)? {
                Ok(header) => tips.insert(*chain, header),
                Err(part) => return Ok(Err((block, part))),
            };
        }
        Ok(Ok(tips))
    }

    /// Step 3.
    fn sync(&mut self, version: &Version, standing: Standing, tip: &Header) -> Result<ChainStart, Stopped<D>> {
        let chain = tip.chain;
        let genesis = version.genesis_height(chain).unwrap_or(0);
        let mut ours = standing.as_ref().map(|(_, place)| *place);
        let (mut theirs, mut replay, mut walked_count) = (Place::of(tip), Vec::new(), 0);
        loop {
            let is_met = match ours {
                Some(ours) => ours.hash == theirs.hash,
                None => theirs.height == genesis,
            };
            if is_met {
                break;
            }
            if let Some(ours) = ours.filter(|ours| ours.is_assumed() && theirs.height == genesis) {
                return Err(Fault::NotConnected(ours.block(chain)).into());
            }
            walked_count += 1;
            self.require_bound(chain, walked_count)?;
            let ours_height = ours.map_or(genesis, |ours| ours.height);
            let ours_is_higher = ours_height > theirs.height;
            if let Some(at) = ours.filter(|at| at.height >= theirs.height) {
                ours = Some(self.parent(version, chain, at)?);
            }
            if !ours_is_higher {
                replay.push((theirs.block(chain), theirs.payload));
                theirs = self.parent(version, chain, theirs)?;
            }
        }
        let rewind = match &standing {
            None => 0,
            Some((newest, _)) => self.rewind(chain, *newest, theirs)?,
        };
        self.check_payloads(&mut replay)?;
        Ok(ChainStart { height: tip.height, rewind, replay: replay.len() as u64 })
    }

    /// How many blocks are undone to rewind Pact to the fork point.
    fn rewind(&mut self, chain: u32, newest: Row, fork_point: Place) -> Result<u64, Stopped<D>> {
        let row = self.databases.row(chain, fork_point.height).map_err(Stop::Unread)?;
        if row.and_then(|row| row.hash) != Some(fork_point.hash) {
            return Err(Fault::NoRow(fork_point.block(chain)).into());
        }
        Ok(newest.height.saturating_sub(fork_point.height))
    }

    /// The start of a chain that the cut does not have yet.
    fn rewind_to_genesis(
        &mut self,
        version: &Version,
        chain: u32,
        standing: Standing,
    ) -> Result<ChainStart, Stopped<D>> {
        let height = version.genesis_height(chain).unwrap_or(0);
        let Some((newest, _)) = standing else { return Ok(ChainStart { height, ..ChainStart::default() }) };
        let row = self.databases.row(chain, height).map_err(Stop::Unread)?;
        row.ok_or(Fault::NothingInCommon(chain))?;
        Ok(ChainStart { height, rewind: newest.height.saturating_sub(height), replay: 0 })
    }

    /// The parent of a block. The node writes a genesis header that is missing.
    fn parent(&mut self, version: &Version, chain: u32, child: Place) -> Result<Place, Stopped<D>> {
        let genesis = version.genesis_height(chain).unwrap_or(0);
        if child.height <= genesis {
            return Err(Fault::NothingInCommon(chain).into());
        }
        let block = Block { chain, height: child.height - 1, hash: child.parent };
        match stored::header(self.databases, version, block)? {
            Ok(header) => Ok(Place::of(&header)),
            Err(_)
                if block.height == genesis && version.genesis_hash(chain).is_none_or(|known| known == block.hash) =>
            {
                Ok(Place::genesis(genesis, block.hash))
            }
            Err(part) => Err(Fault::Missing(block, part).into()),
        }
    }

    /// Checks the payloads of the blocks that are replayed, from the lowest; of too many, some that are evenly spread.
    fn check_payloads(&mut self, replay: &mut [(Block, Digest)]) -> Result<(), Stopped<D>> {
        replay.reverse();
        let stride = (replay.len() as u64).div_ceil(self.extent.payloads_max).max(1);
        let last = replay.len().saturating_sub(1);
        for (at, (block, payload)) in replay.iter().enumerate() {
            if (at as u64).is_multiple_of(stride) || at == last {
                stored::check_payload(self.databases, *block, *payload)?;
                self.start.payloads_checked += 1;
            }
        }
        Ok(())
    }

    /// Warns of blocks of the cut that do not belong together: neighbours differ by one block at most, and name each other's
    /// (chainweb-node, `Chainweb/Cut.hs`, `isBraidingOfCutPair`). A node that starts does not look at that.
    fn warn(&mut self, tips: &Tips) {
        let is_apart = |tip: &Header| {
            let is_genesis = |header: &Header| header.is_genesis();
            let other = tip.adjacents.iter().filter_map(|(chain, hash)| Some((tips.get(chain)?, hash)));
            let apart = |(other, hash): (&Header, &Digest)| match other.height.checked_sub(tip.height) {
                Some(0) => other.parent != *hash,
                Some(1) => false,
                Some(_) => true,
                None => other.height + 1 != tip.height || other.hash != *hash,
            };
            other.filter(|(other, _)| !is_genesis(tip) && !is_genesis(other)).any(apart)
        };
        if let Some(tip) = tips.values().find(|tip| is_apart(tip)) {
            let warning =
                format!("the blocks of the cut do not belong together: that of chain {} names others", tip.chain);
            self.start.warnings.push(warning);
        }
        if self.start.payloads_checked < self.start.replay_sum() {
            let (checked, all) = (self.start.payloads_checked, self.start.replay_sum());
            self.start.warnings.push(format!("of {all} blocks to replay, the payloads of {checked} were checked"));
        }
    }
}

/// What is needed of a header on the way to the fork point.
#[derive(Debug, Clone, Copy)]
struct Place {
    height: u64,
    hash: Digest,
    parent: Digest,
    payload: Digest,
}

impl Place {
    fn of(header: &Header) -> Place {
        Place { height: header.height, hash: header.hash, parent: header.parent, payload: header.payload }
    }

    /// A genesis block of which only the hash is known; nothing else of it is needed.
    fn genesis(height: u64, hash: Digest) -> Place {
        Place { height, hash, parent: hash, payload: hash }
    }

    /// Whether it is one of these.
    fn is_assumed(self) -> bool {
        self.parent == self.hash
    }

    fn block(self, chain: u32) -> Block {
        Block { chain, height: self.height, hash: self.hash }
    }
}

fn parsed<E>(key: &[u8], value: &[u8]) -> Result<Cut, Stop<E>> {
    let height = key.strip_prefix(CUTS).and_then(|rest| rest.first_chunk()).map(|height| u64::from_be_bytes(*height));
    Cut::parse(key, value).map_err(|malformed| Fault::Cut(height, malformed).into())
}
