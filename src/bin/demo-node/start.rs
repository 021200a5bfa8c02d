//! What a node does with its databases when it starts.
//!
//! 1. Write every genesis payload again, and genesis headers that are missing.
//! 2. Open each Pact database; with full history its lowest row must be the genesis.
//! 3. Go from Pact's newest row down to the first whose header and rank RocksDB has.
//! 4. Take the newest cut whose tips all have header and rank, and delete every cut of greater height.
//! 5. For each chain: find the fork point of Pact's block and the tip, of which there must be a row; rewind Pact to it, and replay
//!    the blocks from there to the tip. Each needs its payload, transactions and outputs, and the outputs are computed again.
//!
//! Chains that the cut does not have yet go to their genesis.
//!
//! # Limitations
//! A real node tries again for ever after some of the errors here, and hangs; this one ends with a sentence.

use crate::chain::{Block, Cut, Tip, genesis};
use crate::contract::{Effect, Genesis, State, execute};
use crate::fault::{Result, fault};
use crate::header::Header;
use crate::network::Network;
use crate::pact::Pact;
use crate::payload::Payload;
use crate::rocks;
use chainweb_backup::rocksdb::DB;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Whether Pact must reach back to the genesis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum History {
    Full,
    Compacted,
}

/// The databases after the start.
pub struct Started {
    pub pacts: BTreeMap<u32, Pact>,
    pub cut: Cut,
    pub tips: BTreeMap<u32, Header>,
    pub report: Report,
}

/// What the start did.
#[derive(Debug, Default)]
pub struct Report {
    /// Cuts newer than the one taken.
    pub skipped_cuts_count: u64,
    pub chains: BTreeMap<u32, Moved>,
}

/// How one chain's Pact got to its tip.
#[derive(Debug)]
pub struct Moved {
    /// The newest row of BlockHistory, if there was one.
    pub from: Option<Tip>,
    pub fork_point: Tip,
    pub tip: Tip,
}

impl Moved {
    /// Blocks that were undone.
    pub fn rewound_count(&self) -> u64 {
        self.from.map_or(0, |from| from.height - self.fork_point.height)
    }

    /// Blocks that were replayed. The genesis never is one.
    pub fn replayed_count(&self) -> u64 {
        self.tip.height - self.fork_point.height
    }
}

impl Report {
    pub fn json(&self, cut: &Cut) -> Value {
        let named = |tip: &Tip| json!({ "height": tip.height, "hash": tip.hash.to_string() });
        let chain = |(chain, moved): (&u32, &Moved)| {
            let value = json!({
                "from": moved.from.as_ref().map(named), "fork_point": named(&moved.fork_point), "tip": named(&moved.tip),
                "rewound": moved.rewound_count(), "replayed": moved.replayed_count(),
            });
            (chain.to_string(), value)
        };
        json!({
            "version": cut.instance,
            "cut": { "height": cut.height, "id": cut.id.to_string() },
            "skipped_cuts": self.skipped_cuts_count,
            "chains": self.chains.iter().map(chain).collect::<serde_json::Map<_, _>>(),
        })
    }
}

/// Opens the Pact databases and brings them to the newest cut that can be used.
pub fn start(db: &DB, directory: &Path, network: &Network, history: History) -> Result<Started> {
    for chain in network.chains() {
        write_genesis(db, &genesis(network, chain))?;
    }
    let mut pacts = BTreeMap::new();
    let mut found = BTreeMap::new();
    for chain in network.chains() {
        let mut pact = Pact::open(directory, chain)?;
        found.insert(chain, latest_valid(db, network, &mut pact, chain, history)?);
        pacts.insert(chain, pact);
    }
    let (cut, skipped_cuts_count) = take_cut(db, network)?;
    rocks::delete_cuts_above(db, cut.height)?;
    let mut report = Report { skipped_cuts_count, ..Report::default() };
    let mut tips = BTreeMap::new();
    for (chain, pact) in &mut pacts {
        let first = || genesis(network, *chain).header;
        let tip = cut.tips.get(chain).map_or_else(|| Ok(first()), |tip| rocks::known_header(db, *chain, *tip))?;
        let (from, latest) = found.remove(chain).expect("each chain was looked at above");
        let fork_point = sync(db, pact, latest, &tip)?;
        report.chains.insert(*chain, Moved { from, fork_point, tip: tip.tip() });
        if cut.tips.contains_key(chain) {
            tips.insert(*chain, tip);
        }
    }
    Ok(Started { pacts, cut, tips, report })
}

fn write_genesis(db: &DB, block: &Block) -> Result<()> {
    let header = &block.header;
    rocks::write_payload(db, header.height, &block.payload)?;
    match rocks::header(db, header.chain, header.tip())? {
        Some(_) => Ok(()),
        None => rocks::write_header(db, header),
    }
}

/// The newest row of BlockHistory, and the block to which Pact was rewound because RocksDB does not have those above it.
fn latest_valid(
    db: &DB,
    network: &Network,
    pact: &mut Pact,
    chain: u32,
    history: History,
) -> Result<(Option<Tip>, Header)> {
    let genesis_height = network.genesis_height(chain);
    let Some(newest) = pact.head()? else {
        let block = genesis(network, chain);
        pact.commit(&block)?;
        return Ok((None, block.header));
    };
    let lowest = pact.lowest()?.unwrap_or(newest.height);
    if history == History::Full && lowest != genesis_height {
        return Err(fault(format!(
            "chain {chain}: FullHistoryRequired: Pact's lowest block is {lowest}, not {genesis_height}: start with \
             --no-full-historic-pact-state if it was compacted"
        )));
    }
    let mut latest = newest;
    let header = loop {
        if let Some(header) = rocks::header(db, chain, latest)? {
            break header;
        }
        let below = latest.height.checked_sub(1);
        let row = below.map(|height| pact.hash_at(height).map(|hash| hash.map(|hash| Tip { height, hash })));
        latest = row.transpose()?.flatten().ok_or_else(|| {
            fault(format!(
                "chain {chain}: Pact does not connect: RocksDB lacks its block {}, and BlockHistory has no row below",
                latest.height
            ))
        })?;
    };
    if latest != newest {
        pact.rewind(latest.height)?;
    }
    Ok((Some(newest), header))
}

/// The newest cut whose tips all are there, else that of the genesis blocks.
fn take_cut(db: &DB, network: &Network) -> Result<(Cut, u64)> {
    let (cut, skipped_count) = rocks::newest_cut(db, |cut| {
        for (chain, tip) in &cut.tips {
            if rocks::header(db, *chain, *tip)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    let first = || {
        let tips = (0..network.count_at(0)).map(|chain| (chain, genesis(network, chain).header.tip()));
        let cut = Cut::new(network, tips.collect());
        rocks::write_cut(db, &cut)?;
        Ok(cut)
    };
    Ok((cut.map_or_else(first, Ok)?, skipped_count))
}

/// Brings Pact from the block that it is at to `tip`, and returns the fork point.
fn sync(db: &DB, pact: &mut Pact, latest: Header, tip: &Header) -> Result<Tip> {
    let chain = tip.chain;
    let mut replay = Vec::new();
    let (mut ours, mut theirs) = (latest.clone(), tip.clone());
    while ours.hash != theirs.hash {
        let ours_is_higher = ours.height > theirs.height;
        if ours.height >= theirs.height {
            ours = parent(db, &ours)?;
        }
        if !ours_is_higher {
            let below = parent(db, &theirs)?;
            replay.push(std::mem::replace(&mut theirs, below));
        }
    }
    if pact.hash_at(ours.height)? != Some(ours.hash) {
        return Err(fault(format!(
            "chain {chain}: BlockHeaderLookupFailure: Pact must be rewound to block {} ({}), but BlockHistory has no row of it",
            ours.height, ours.hash
        )));
    }
    if ours.hash != latest.hash {
        pact.rewind(ours.height)?;
    }
    for header in replay.into_iter().rev() {
        let payload = rocks::payload(db, &header)?;
        let effect = executed(&header, &payload, pact.state(), Genesis::No)?;
        pact.commit(&Block { header, payload, effect })?;
    }
    Ok(ours.tip())
}

fn parent(db: &DB, header: &Header) -> Result<Header> {
    if header.height == 0 {
        return Err(fault(format!("chain {}: Pact and the cut have no block in common", header.chain)));
    }
    rocks::known_header(db, header.chain, header.parent_tip())
}

/// Executes a payload of RocksDB; what it does must have the outputs that it names.
pub fn executed(header: &Header, payload: &Payload, state: State, genesis: Genesis) -> Result<Effect> {
    let (chain, height) = (header.chain, header.height);
    let effect = execute(&payload.transactions, state, genesis)
        .ok_or_else(|| fault(format!("chain {chain}: a transaction of block {height} cannot be executed")))?;
    if effect.outputs != payload.outputs {
        return Err(fault(format!("chain {chain}: the replay of block {height} has other outputs than its payload")));
    }
    Ok(effect)
}
