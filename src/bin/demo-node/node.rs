//! The writer: one RocksDB, one Pact database per chain, and the blocks it adds to them.
//!
//! One height, for a group of chains at a time (a cut in between has chains of two heights, as on a real node):
//! 1. Commit each chain's block to its Pact database. With some probability this is a block that will be abandoned.
//!    A crash here leaves Pact ahead of RocksDB by one block, which the next start rewinds.
//! 2. Wait a random time.
//! 3. If blocks are abandoned: write them to RocksDB, with a cut that names them, *then* rewind Pact, commit the replacements and
//!    wait again. A crash leaves forks in RocksDB, and Pact on a fork or ahead; the next start goes on with the fork, or rewinds it.
//! 4. Write the blocks to RocksDB, then the cut that names them. A crash between leaves blocks that no cut names.
//!
//! A height is begun when every chain has the one below, so each new block finds its adjacent parents.
//!
//! So a Pact database is never on a block that a *later* state of RocksDB with a cut of that height does not know: what
//! is captured in that order can be brought forward by replaying blocks. That is what [`Node::open`] does at start.

use crate::chain::{Block, Cut, Place, genesis, new_block};
use crate::contract::new_transactions;
use crate::fault::{Context, Result, fault};
use crate::hash::Hash;
use crate::header::Header;
use crate::network::Network;
use crate::pact::Pact;
use crate::rocks;
use crate::start::{History, Report, start};
use chainweb_backup::rocksdb::DB;
use fastrand::Rng;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A height is committed in at most this many groups of chains.
const MAX_GROUPS_COUNT: usize = 3;
/// Cuts of at least this many heights are kept, as the node does.
const KEPT_HEIGHTS_COUNT: u64 = 5000;
/// How often older cuts are deleted, in heights.
const PRUNE_PERIOD_HEIGHTS: u64 = 500;

/// What the blocks are to look like.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub payload_bytes: usize,
    /// How probable it is that a chain first commits a block it abandons; a quarter of that for all chains at once.
    pub fork_percent: f64,
    pub max_delay_ms: u64,
}

/// How to open a node.
pub struct Opening<'a> {
    pub directory: &'a Path,
    /// For a new database; an existing one keeps its own.
    pub chain_count: u32,
    pub write_buffer_bytes: usize,
    pub history: History,
    pub rng: Rng,
}

/// The open databases and the newest cut.
pub struct Node {
    db: Arc<DB>,
    network: Network,
    pacts: BTreeMap<u32, Pact>,
    cut: Cut,
    /// The newest blocks.
    tips: BTreeMap<u32, Header>,
    rng: Rng,
    report: Report,
}

impl Node {
    /// Opens or creates the databases, and brings every Pact database to RocksDB's newest cut.
    pub fn open(opening: Opening<'_>) -> Result<Node> {
        let Opening { directory, chain_count, write_buffer_bytes, history, rng } = opening;
        let sqlite = directory.join("0/sqlite");
        std::fs::create_dir_all(&sqlite).context(|| format!("create {}", sqlite.display()))?;
        let db = rocks::open(directory, write_buffer_bytes)?;
        let network = network_of(&db)?.unwrap_or_else(|| Network::of_chains(chain_count));
        if network != Network::of_chains(chain_count) {
            log::warn!("keep version={} of the existing database, not {chain_count} chains", network.name);
        }
        let started = start(&db, directory, &network, history)?;
        let (mut rewound_count, mut replayed_count) = (0, 0);
        for (chain, moved) in &started.report.chains {
            let (rewound, replayed) = (moved.rewound_count(), moved.replayed_count());
            if rewound + replayed > 0 {
                log::info!("sync chain={chain} rewound_blocks={rewound} replayed_blocks={replayed}");
            }
            rewound_count += rewound;
            replayed_count += replayed;
        }
        log::info!(
            "open database={} version={} chains={} cut_height={} skipped_cuts={} pact_rewound_blocks={rewound_count} \
             pact_replayed_blocks={replayed_count}",
            directory.display(),
            network.name,
            started.cut.tips.len(),
            started.cut.top(),
            started.report.skipped_cuts_count,
        );
        let crate::start::Started { pacts, cut, tips, report } = started;
        Ok(Node { db: Arc::new(db), network, pacts, cut, tips, rng, report })
    }

    /// What the start did, as JSON.
    pub fn start_report(&self) -> serde_json::Value {
        self.report.json(&self.cut)
    }

    /// The open RocksDB, for the backup service.
    pub fn db(&self) -> Arc<DB> {
        self.db.clone()
    }

    /// The height of the highest block of the cut.
    pub fn height(&self) -> u64 {
        self.cut.top()
    }

    pub fn chain_count(&self) -> usize {
        self.tips.len()
    }

    /// Adds a height, and before it what is missing of the one below, and returns the bytes of the transactions.
    pub fn grow(&mut self, shape: &Shape) -> Result<u64> {
        let lowest = self.lowest();
        let rest_bytes = if lowest < self.height() { self.grow_above(lowest, shape)? } else { 0 };
        Ok(rest_bytes + self.grow_above(self.lowest(), shape)?)
    }

    /// The height that every chain of the cut has.
    fn lowest(&self) -> u64 {
        self.tips.values().map(|tip| tip.height).min().unwrap_or(0)
    }

    /// Adds one block to each chain that is at the height `lowest`.
    fn grow_above(&mut self, lowest: u64, shape: &Shape) -> Result<u64> {
        self.extend_graph(lowest);
        let mut chains: Vec<u32> =
            self.tips.iter().filter(|(_, tip)| tip.height == lowest).map(|(chain, _)| *chain).collect();
        self.rng.shuffle(&mut chains);
        let group_count = self.rng.usize(1..=MAX_GROUPS_COUNT);
        let all_fork = self.hits(shape.fork_percent / 4.0);
        let mut written_bytes = 0;
        for group in chains.chunks(chains.len().div_ceil(group_count)) {
            let mut blocks = Vec::with_capacity(group.len());
            let mut abandoned = Vec::new();
            for &chain in group {
                let block = self.commit_to_pact(chain, shape)?;
                let forks = all_fork || self.hits(shape.fork_percent);
                if forks { abandoned.push(block) } else { blocks.push(block) }
            }
            self.wait(shape);
            if !abandoned.is_empty() {
                self.write(&abandoned)?;
                for fork in &abandoned {
                    let chain = fork.header.chain;
                    self.pact(chain).rewind(fork.header.height - 1)?;
                    blocks.push(self.commit_to_pact(chain, shape)?);
                }
                self.wait(shape);
            }
            self.cut = self.write(&blocks)?;
            for block in blocks {
                written_bytes += block.payload.transactions_bytes();
                self.tips.insert(block.header.chain, block.header);
            }
        }
        self.prune()?;
        Ok(written_bytes)
    }

    /// Closes every database as a node that stops cleanly: Pact's WALs are folded, RocksDB's log stays as it is.
    pub fn close(self) -> Result<()> {
        self.pacts.into_values().try_for_each(Pact::close)
    }

    /// Writes blocks, then the cut that they make out of the newest one.
    fn write(&self, blocks: &[Block]) -> Result<Cut> {
        let mut tips: BTreeMap<_, _> = self.tips.iter().map(|(chain, tip)| (*chain, tip.tip())).collect();
        for block in blocks {
            rocks::write_payload(&self.db, block.header.height, &block.payload)?;
            rocks::write_header(&self.db, &block.header)?;
            tips.insert(block.header.chain, block.header.tip());
        }
        let cut = Cut::new(&self.network, tips);
        rocks::write_cut(&self.db, &cut)?;
        Ok(cut)
    }

    /// Takes chains that begin at this height into the cut.
    fn extend_graph(&mut self, height: u64) {
        for chain in 0..self.network.count_at(height) {
            self.tips.entry(chain).or_insert_with(|| genesis(&self.network, chain).header);
        }
    }

    fn commit_to_pact(&mut self, chain: u32, shape: &Shape) -> Result<Block> {
        let transactions = new_transactions(&mut self.rng, shape.payload_bytes);
        let parent = &self.tips[&chain];
        let neighbours = self.network.neighbours(chain, parent.height + 1);
        let adjacents = neighbours.into_iter().map(|other| adjacent_parent(&self.tips[&other], parent.height));
        let adjacents = adjacents.collect::<Result<_>>()?;
        let state = self.pacts[&chain].state();
        let place = Place { network: &self.network, parent, adjacents, state };
        let block = new_block(&mut self.rng, place, transactions);
        self.pact(chain).commit(&block)?;
        Ok(block)
    }

    fn pact(&mut self, chain: u32) -> &mut Pact {
        self.pacts.get_mut(&chain).expect("each chain of the network has a Pact database")
    }

    /// Deletes old cuts now and then.
    fn prune(&self) -> Result<()> {
        let height = self.height();
        if height < KEPT_HEIGHTS_COUNT || !height.is_multiple_of(PRUNE_PERIOD_HEIGHTS) {
            return Ok(());
        }
        let kept_sum = (height - KEPT_HEIGHTS_COUNT) * self.tips.len() as u64;
        rocks::delete_cuts_below(&self.db, kept_sum)
    }

    fn hits(&mut self, percent: f64) -> bool {
        self.rng.f64() * 100.0 < percent
    }

    fn wait(&mut self, shape: &Shape) {
        let delay_ms = self.rng.u64(0..=shape.max_delay_ms);
        if delay_ms > 0 {
            std::thread::sleep(Duration::from_millis(delay_ms));
        }
    }
}

/// The block at `height` of the chain with this tip, which is at that height or one above.
fn adjacent_parent(tip: &Header, height: u64) -> Result<(u32, Hash)> {
    match tip.height.checked_sub(height) {
        Some(0) => Ok((tip.chain, tip.hash)),
        Some(1) => Ok((tip.chain, tip.parent)),
        _ => Err(fault(format!("chain {} is at block {}, too far from {height}", tip.chain, tip.height))),
    }
}

/// The network of an existing database.
pub fn network_of(db: &DB) -> Result<Option<Network>> {
    let (cut, _) = rocks::newest_cut(db, |_| Ok(true))?;
    let Some(cut) = cut else { return Ok(None) };
    let unknown = || fault(format!("RocksDB is of version {}, which is no network of the demo node", cut.instance));
    Network::named(&cut.instance).map(Some).ok_or_else(unknown)
}
