//! `demo-node verify`: whether a stopped database, or a backup, is a history that a node can continue.
//!
//! 1. RocksDB is read from start to end: each entry is of a known table, each header has its hash, its key and its rank.
//! 2. From the newest cut every chain is followed to its genesis: no header, rank, payload, transactions or outputs are missing, and
//!    each has its hash; adjacent parents are the blocks of the adjacent chains; weight and time grow; the transactions have the
//!    outputs that are stored.
//! 3. Each Pact database is sound, its newest block is canonical or on a canonical block, not above the cut, and every table is
//!    exactly what replaying the blocks up to that one gives (see `verify_pact`).
//!
//! This is more than the start of a node needs: it goes on with an older cut, and rewinds a Pact that is ahead.
//!
//! Invariant: nothing in the directory is changed or created. RocksDB is opened to read only.

use crate::chain::{Block, Cut, Tip, genesis};
use crate::contract::{Genesis, State};
use crate::fault::{Context, Fault, Result, fault};
use crate::hash::Hash;
use crate::header::{EASIEST, Header, wide};
use crate::network::Network;
use crate::pact::path;
use crate::rocks::{self, CUT, OPENED, PAYLOAD_TABLES};
use crate::start::executed;
use crate::verify_pact::{Replayed, open_unchanged};
use chainweb_backup::rocksdb::{DB, IteratorMode};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// A database directory, or a backup: what holds 0/rocksDb and 0/sqlite
    directory: PathBuf,
    /// The backup holds RocksDB only
    #[arg(long)]
    no_pact: bool,
    /// How many chains there must be
    #[arg(long, value_name = "N")]
    expect_chains: Option<u32>,
}

/// The hashes of each chain's canonical blocks, from its genesis to its tip.
type Histories = BTreeMap<u32, Vec<Hash>>;

/// Returns the summary line, or the first fault.
pub fn verify(args: &VerifyArgs) -> Result<String> {
    let directory = &args.directory;
    let db = rocks::open_read_only(directory)?;
    let (cut, _) = rocks::newest_cut(&db, |_| Ok(true))?;
    let cut = cut.ok_or_else(|| fault("RocksDB holds no cut"))?;
    let network = check_cut(&cut, args.expect_chains)?;
    let header_count = scan(&db, &network)?;
    if !args.no_pact {
        check_pact_files(directory, &network)?;
    }
    let mut histories = Histories::new();
    for chain in network.chains() {
        let first = || genesis(&network, chain).header.tip();
        let tip = cut.tips.get(&chain).copied().unwrap_or_else(first);
        histories.insert(chain, history(&db, &network, chain, tip)?);
    }
    let verified = Verified { db: &db, network: &network, histories: &histories };
    let mut most_behind = 0;
    for &chain in histories.keys() {
        let pact = if args.no_pact { None } else { Some(path(directory, chain)) };
        let behind = verified.check_chain(chain, pact.as_deref()).map_err(|e| in_chain(chain, &e))?;
        most_behind = most_behind.max(behind);
    }
    let block_count: u64 = histories.values().map(|history| history.len() as u64).sum();
    let orphan_count = header_count - block_count;
    let chain_count = cut.tips.len();
    let pact = if args.no_pact { "no pact".into() } else { format!("pact at most {most_behind} behind") };
    Ok(format!(
        "ok: cut height {}, {chain_count} chains, {block_count} blocks, {pact}, {orphan_count} orphans",
        cut.top()
    ))
}

fn in_chain(chain: u32, e: &Fault) -> Fault {
    let text = e.to_string();
    if text.starts_with("chain ") { fault(text) } else { fault(format!("chain {chain}: {text}")) }
}

fn check_cut(cut: &Cut, expect_chains: Option<u32>) -> Result<Network> {
    let network = Network::named(&cut.instance)
        .ok_or_else(|| fault(format!("the newest cut is of version {}, which is no network of ours", cut.instance)))?;
    let count = cut.tips.len() as u32;
    let complete =
        [network.count_at(0), network.chains().end].contains(&count) && cut.tips.keys().copied().eq(0..count);
    if !complete {
        return Err(fault("the newest cut does not name the chains 0, 1, 2, … without a gap"));
    }
    if *cut != Cut::new(&network, cut.tips.clone()) {
        return Err(fault("height, weight or id of the newest cut do not fit its blocks"));
    }
    match expect_chains {
        Some(expected) if count != expected => Err(fault(format!("the newest cut has {count} chains, not {expected}"))),
        _ => Ok(network),
    }
}

fn check_pact_files(directory: &Path, network: &Network) -> Result<()> {
    let sqlite = directory.join("0/sqlite");
    if !sqlite.is_dir() {
        return Err(fault(format!("no Pact databases: {} does not exist", sqlite.display())));
    }
    for chain in network.chains() {
        let path = path(directory, chain);
        if !path.is_file() {
            return Err(fault(format!("chain {chain}: no Pact database: {} does not exist", path.display())));
        }
    }
    Ok(())
}

/// Reads every entry, orphans too, so that RocksDB checks every block of every file; returns the number of headers.
fn scan(db: &DB, network: &Network) -> Result<u64> {
    let tables = |name: fn(u32) -> String| network.chains().map(|chain| (chain, name(chain))).collect::<Vec<_>>();
    let (headers, ranks) = (tables(rocks::header_table), tables(rocks::rank_table));
    let mut header_count = 0;
    for item in db.iterator(IteratorMode::Start) {
        let (key, value) = item.context(|| "read RocksDB from start to end".into())?;
        let in_table = |tables: &[(u32, String)]| {
            let found = tables.iter().find(|(_, table)| key.starts_with(table.as_bytes()));
            found.map(|(chain, table)| (*chain, key[table.len()..].to_vec()))
        };
        if let Some((chain, name)) = in_table(&headers) {
            check_header(db, network, chain, (&name, &value))?;
            header_count += 1;
        } else if let Some((chain, name)) = in_table(&ranks) {
            check_rank(db, chain, (&name, &value))?;
        } else if key.starts_with(CUT) {
            rocks::decode_cut(&key, &value)?;
        } else if *key != *OPENED && !PAYLOAD_TABLES.iter().any(|table| key.starts_with(table)) {
            return Err(fault(format!("RocksDB holds a key of no table: {}", key.escape_ascii())));
        }
    }
    Ok(header_count)
}

/// Whether a header is what its key says, of this network, and has a rank.
fn check_header(db: &DB, network: &Network, chain: u32, (name, value): (&[u8], &[u8])) -> Result<()> {
    let tip = name
        .split_first_chunk()
        .and_then(|(height, hash)| Some(Tip { height: u64::from_be_bytes(*height), hash: Hash::from_slice(hash)? }));
    let tip = tip.ok_or_else(|| fault(format!("chain {chain}: the key of a header has a wrong length")))?;
    let header = Header::decode(value).filter(|header| {
        header.computed_hash() == header.hash && (header.version, header.chain) == (network.code, chain)
    });
    if header.is_none_or(|header| header.tip() != tip) {
        return Err(fault(format!(
            "chain {chain}: the header of block {} ({}) does not have that hash",
            tip.height, tip.hash
        )));
    }
    rocks::missing(db, chain, tip)?.map_or(Ok(()), Err)
}

/// Whether a rank has the header that it names.
fn check_rank(db: &DB, chain: u32, (name, value): (&[u8], &[u8])) -> Result<()> {
    let height = value.try_into().ok().map(u64::from_le_bytes);
    let (Some(height), Some(hash)) = (height, Hash::from_slice(name)) else {
        return Err(fault(format!("chain {chain}: a rank has a wrong length")));
    };
    rocks::missing(db, chain, Tip { height, hash })?.map_or(Ok(()), Err)
}

/// The hashes of one chain from the genesis to `tip`.
fn history(db: &DB, network: &Network, chain: u32, tip: Tip) -> Result<Vec<Hash>> {
    let first = genesis(network, chain).header;
    let mut header = rocks::known_header(db, chain, tip)?;
    let mut hashes = vec![header.hash];
    while header.height > first.height {
        header = rocks::known_header(db, chain, header.parent_tip())?;
        hashes.push(header.hash);
    }
    if header != first {
        return Err(fault(format!("chain {chain}: the lowest block is not the genesis of version {}", network.name)));
    }
    hashes.reverse();
    Ok(hashes)
}

/// What is known when the chains are checked one by one.
struct Verified<'a> {
    db: &'a DB,
    network: &'a Network,
    histories: &'a Histories,
}

impl Verified<'_> {
    /// The hash of a canonical block.
    fn hash_at(&self, chain: u32, height: u64) -> Option<Hash> {
        let index = height.checked_sub(self.network.genesis_height(chain))?;
        self.histories.get(&chain)?.get(usize::try_from(index).ok()?).copied()
    }

    /// Follows a chain from its genesis, and its Pact with it; returns how many blocks Pact is behind.
    fn check_chain(&self, chain: u32, pact: Option<&Path>) -> Result<u64> {
        let opened = pact.map(open_unchanged).transpose()?;
        let mut pact = opened.as_ref().map(|(connection, _)| Replayed::new(connection)).transpose()?;
        let last = pact.as_ref().map(|pact| self.last_of_pact(chain, pact.head)).transpose()?;
        let (mut state, mut parent) = (State::default(), None);
        let mut height = self.network.genesis_height(chain);
        while let Some(hash) = self.hash_at(chain, height) {
            let block = self.block(chain, Tip { height, hash }, state)?;
            self.check_parents(&block.header, parent.as_ref())?;
            if let (Some(pact), Some(last)) = (&mut pact, &last) {
                if height < last.height || *last == block.header.tip() {
                    pact.check(&block)?;
                } else if height == last.height {
                    pact.check(&self.block(chain, *last, state)?)?;
                }
            }
            state = block.effect.after;
            parent = Some(block.header);
            height += 1;
        }
        if let Some(pact) = pact {
            pact.finish()?;
        }
        Ok(last.map_or(0, |last| height - 1 - last.height))
    }

    fn block(&self, chain: u32, tip: Tip, state: State) -> Result<Block> {
        let header = rocks::known_header(self.db, chain, tip)?;
        let payload = rocks::payload(self.db, &header)?;
        let is_genesis = tip.height == self.network.genesis_height(chain);
        let effect = executed(&header, &payload, state, if is_genesis { Genesis::Yes } else { Genesis::No })?;
        Ok(Block { header, payload, effect })
    }

    /// Target, weight, time and adjacent parents.
    fn check_parents(&self, header: &Header, parent: Option<&Header>) -> Result<()> {
        let (chain, height) = (header.chain, header.height);
        let wrong = |what: &str| Err(fault(format!("chain {chain}: {what} of block {height} is wrong")));
        let Some(parent) = parent else { return Ok(()) };
        if header.target != EASIEST {
            return wrong("the target");
        }
        if header.weight != wide(height - self.network.genesis_height(chain)) {
            return wrong("the weight");
        }
        if header.time_us <= parent.time_us {
            return wrong("the time");
        }
        let named = header.adjacents.iter().map(|(other, _)| *other);
        if !named.eq(self.network.neighbours(chain, height)) {
            return wrong("the set of adjacent chains");
        }
        for (other, hash) in &header.adjacents {
            if self.hash_at(*other, height - 1) != Some(*hash) {
                return Err(fault(format!(
                    "chain {chain}: block {height} is on block {} ({hash}) of chain {other}, which is not in the history of the cut",
                    height - 1
                )));
            }
        }
        Ok(())
    }

    /// Pact's newest block, if a node could have gone there from the canonical blocks.
    fn last_of_pact(&self, chain: u32, head: Tip) -> Result<Tip> {
        let Tip { height, hash } = head;
        let cut_height = self.network.genesis_height(chain) + self.histories[&chain].len() as u64 - 1;
        if self.hash_at(chain, height) == Some(hash) {
            return Ok(head);
        }
        for other in self.network.chains().filter(|other| *other != chain) {
            if rocks::header(self.db, other, head)?.is_some() {
                return Err(fault(format!(
                    "Pact is that of chain {other}: its block {height} ({hash}) is of that chain"
                )));
            }
        }
        if height > cut_height {
            return Err(fault(format!(
                "Pact is ahead of RocksDB: at block {height} ({hash}), the cut at {cut_height}"
            )));
        }
        let Some(orphan) = rocks::header(self.db, chain, head)? else {
            let place = if height == cut_height { "on a fork at the height of the cut" } else { "on a fork" };
            return Err(fault(format!(
                "Pact is ahead of RocksDB, {place}: its block {height} ({hash}) is not in RocksDB"
            )));
        };
        if self.hash_at(chain, orphan.parent_tip().height) != Some(orphan.parent) {
            return Err(fault(format!("Pact's block {height} ({hash}) is not on a canonical block")));
        }
        Ok(head)
    }
}
