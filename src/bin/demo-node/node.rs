//! The writer: one RocksDB, one Pact database per chain, and the blocks it adds to them.
//!
//! One height, for a group of chains at a time (a cut in between has chains of two heights, as on a real node):
//! 1. Commit each chain's block to its Pact database. With some probability this is a block that will be abandoned.
//!    A crash here leaves Pact ahead of RocksDB by one block, which the next start rewinds.
//! 2. Wait a random time.
//! 3. Where blocks are abandoned: write them to RocksDB, *then* rewind Pact, commit the replacements and wait again.
//!    A crash leaves orphans in RocksDB, and Pact on an orphan or ahead; the next start rewinds it.
//! 4. Write the blocks to RocksDB, then the cut that names them. A crash between leaves blocks that no cut names.
//!
//! So a Pact database is never on a block that a *later* state of RocksDB with a cut of that height does not know: what
//! is captured in that order can be brought forward by replaying blocks. That is what [`Node::open`] does at start.

use crate::chain::{Block, Cut, Tip, new_block};
use crate::fault::{Context, Result};
use crate::pact::Pact;
use crate::rocks;
use chainweb_backup::rocksdb::DB;
use fastrand::Rng;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A height is committed in at most this many groups of chains.
const MAX_GROUPS_COUNT: usize = 3;

/// What the blocks are to look like.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub payload_bytes: usize,
    /// How probable it is that a chain first commits a block it abandons; a quarter of that for all chains at once.
    pub fork_percent: f64,
    pub max_delay_ms: u64,
}

/// The open databases and the newest cut.
pub struct Node {
    db: Arc<DB>,
    pacts: Vec<Pact>,
    cut: Cut,
    rng: Rng,
}

impl Node {
    /// Opens or creates the databases, and brings every Pact database to RocksDB's newest cut.
    /// An existing database keeps its number of chains; `chain_count` is for a new one.
    pub fn open(directory: &Path, chain_count: u8, write_buffer_bytes: usize, mut rng: Rng) -> Result<Node> {
        let sqlite = directory.join("0/sqlite");
        std::fs::create_dir_all(&sqlite).context(|| format!("create {}", sqlite.display()))?;
        let db = rocks::open(directory, write_buffer_bytes)?;
        let cut = match rocks::newest_cut(&db)? {
            Some(cut) => cut,
            None => write_genesis(&db, chain_count, &mut rng)?,
        };
        if cut.hashes.len() != usize::from(chain_count) {
            log::warn!("keep chains={} of the existing database, not {chain_count}", cut.hashes.len());
        }
        let mut pacts = Vec::new();
        let (mut rewound_count, mut replayed_count) = (0, 0);
        for (&chain, &tip) in &cut.hashes {
            let mut pact = Pact::open(directory, chain)?;
            let (rewound, replayed) = catch_up(&db, &mut pact, chain, tip)?;
            rewound_count += rewound;
            replayed_count += replayed;
            pacts.push(pact);
        }
        log::info!(
            "open database={} chains={} cut_height={} pact_rewound_blocks={rewound_count} \
             pact_replayed_blocks={replayed_count}",
            directory.display(),
            pacts.len(),
            cut.height
        );
        Ok(Node { db: Arc::new(db), pacts, cut, rng })
    }

    /// The open RocksDB, for the backup service.
    pub fn db(&self) -> Arc<DB> {
        self.db.clone()
    }

    /// The committed cut height.
    pub fn height(&self) -> u64 {
        self.cut.height
    }

    pub fn chain_count(&self) -> usize {
        self.pacts.len()
    }

    /// Adds one block to every chain and returns the bytes of their payloads.
    pub fn grow(&mut self, shape: &Shape) -> Result<u64> {
        let mut chains: Vec<u8> = self.cut.hashes.keys().copied().collect();
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
                for orphan in &abandoned {
                    rocks::write_block(&self.db, orphan)?;
                    let chain = orphan.header.chain;
                    self.pacts[usize::from(chain)].rewind(orphan.header.height.checked_sub(1))?;
                    blocks.push(self.commit_to_pact(chain, shape)?);
                }
                self.wait(shape);
            }
            let mut hashes = self.cut.hashes.clone();
            for block in &blocks {
                rocks::write_block(&self.db, block)?;
                written_bytes += block.payload_json.len() as u64;
                hashes.insert(block.header.chain, tip_of(block));
            }
            let cut = Cut::new(hashes);
            rocks::write_cut(&self.db, &cut)?;
            self.cut = cut;
        }
        Ok(written_bytes)
    }

    /// Closes every database as a node that stops cleanly: Pact's WALs are folded, RocksDB's log stays as it is.
    pub fn close(self) -> Result<()> {
        self.pacts.into_iter().try_for_each(Pact::close)
    }

    fn commit_to_pact(&mut self, chain: u8, shape: &Shape) -> Result<Block> {
        let pact = &mut self.pacts[usize::from(chain)];
        let parent = self.cut.hashes[&chain];
        let block = new_block(&mut self.rng, chain, Some(parent), pact.next_txid(), shape.payload_bytes);
        pact.commit(&block)?;
        Ok(block)
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

/// A new database starts in RocksDB alone; Pact then is brought forward to it as after any other start.
fn write_genesis(db: &DB, chain_count: u8, rng: &mut Rng) -> Result<Cut> {
    const PAYLOAD_BYTES: usize = 400;
    let mut hashes = BTreeMap::new();
    for chain in 0..chain_count {
        let block = new_block(rng, chain, None, 0, PAYLOAD_BYTES);
        rocks::write_block(db, &block)?;
        hashes.insert(chain, tip_of(&block));
    }
    let cut = Cut::new(hashes);
    rocks::write_cut(db, &cut)?;
    Ok(cut)
}

/// Brings one Pact database to `tip`: rewinds it to the newest block of `tip`'s history that it has, replays the rest.
/// Returns how many blocks it undid and how many it replayed.
fn catch_up(db: &DB, pact: &mut Pact, chain: u8, tip: Tip) -> Result<(u64, u64)> {
    let mut replay = Vec::new();
    let mut next = Some(tip);
    while let Some(tip) = next {
        if pact.hash_at(tip.height)? == Some(tip.hash) {
            break;
        }
        let header = rocks::known_header(db, chain, tip)?;
        replay.push(header);
        next = tip.height.checked_sub(1).map(|height| Tip { height, hash: header.parent });
    }
    let mut rewound_count = 0;
    let common = next.map(|tip| tip.height);
    if let Some(head) = pact.head()?
        && Some(head.height) > common
    {
        rewound_count = common.map_or(head.height + 1, |height| head.height - height);
        pact.rewind(common)?;
    }
    for header in replay.iter().rev() {
        pact.commit(&rocks::block(db, *header)?)?;
    }
    Ok((rewound_count, replay.len() as u64))
}

fn tip_of(block: &Block) -> Tip {
    Tip { height: block.header.height, hash: block.header.hash }
}
