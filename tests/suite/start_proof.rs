//! The start-up proof on a small network that is built in memory: what a node would do, and the first fault that it would meet.

use std::collections::BTreeMap;
use std::convert::Infallible;

use chainweb_backup::chainweb::cut::Cut;
use chainweb_backup::chainweb::digest::Digest;
use chainweb_backup::chainweb::header::Header;
use chainweb_backup::chainweb::number::Number;
use chainweb_backup::chainweb::payload::{Items, Kind, Payload};
use chainweb_backup::chainweb::start::{ChainStart, Databases, Ends, Extent, Row, Start, Verdict, prove};
use chainweb_backup::chainweb::stored::{Entry, Tables};
use chainweb_backup::chainweb::tables::{CUTS, CutPlace, Table};
use chainweb_backup::chainweb::version::{Version, genesis_parent};
use serde_json::json;

/// The databases of a node, with every block that it has.
#[derive(Clone)]
struct Memory {
    version: &'static Version,
    tables: BTreeMap<Vec<u8>, Vec<u8>>,
    pact: BTreeMap<u32, BTreeMap<u64, Digest>>,
    /// The main history, by chain and height.
    blocks: BTreeMap<(u32, u64), Header>,
}

impl Tables for Memory {
    type Error = Infallible;

    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(self.tables.get(key).cloned())
    }
}

impl Databases for Memory {
    fn cut_below(&mut self, key: Option<&[u8]>) -> Result<Option<Entry>, Infallible> {
        let end = key.map_or_else(|| Table::Cuts.end(), <[u8]>::to_vec);
        Ok(self.tables.range(CUTS.to_vec()..end).next_back().map(|(key, value)| (key.clone(), value.clone())))
    }

    fn has_pact(&self) -> bool {
        !self.pact.is_empty()
    }

    fn history(&mut self, chain: u32) -> Result<Option<Ends>, Infallible> {
        let Some(rows) = self.pact.get(&chain) else { return Ok(None) };
        let (Some(lowest), Some((height, hash))) = (rows.keys().next(), rows.last_key_value()) else { return Ok(None) };
        Ok(Some(Ends { newest: Row { height: *height, hash: Some(*hash) }, lowest: *lowest }))
    }

    fn row(&mut self, chain: u32, height: u64) -> Result<Option<Row>, Infallible> {
        let hash = self.pact.get(&chain).and_then(|rows| rows.get(&height));
        Ok(hash.map(|hash| Row { height, hash: Some(*hash) }))
    }
}

impl Memory {
    /// A network with this many blocks above each genesis, a cut for each height, and Pact at the top.
    fn new(version: &str, height: u64) -> Memory {
        let version = Version::of_name(version).unwrap();
        let mut memory = Memory { version, tables: BTreeMap::new(), pact: BTreeMap::new(), blocks: BTreeMap::new() };
        for height in 0..=height {
            for chain in version.chains().filter(|chain| version.genesis_height(*chain).unwrap() <= height) {
                let header = memory.next(chain, height, 0);
                memory.pact.entry(chain).or_default().insert(height, header.hash);
                memory.blocks.insert((chain, height), header);
            }
            memory.add_cut(&memory.tips(height));
        }
        memory
    }

    fn tips(&self, height: u64) -> BTreeMap<u32, Header> {
        let at = self.blocks.iter().filter(|((_, at), _)| *at == height);
        at.map(|((chain, _), header)| (*chain, header.clone())).collect()
    }

    /// Makes and stores a block on top of the main history; `nonce` tells the forks apart.
    fn next(&mut self, chain: u32, height: u64, nonce: u64) -> Header {
        let genesis = self.version.genesis_height(chain) == Some(height);
        let parent = height.checked_sub(1).and_then(|below| self.blocks.get(&(chain, below))).cloned();
        self.on(chain, height, nonce, if genesis { None } else { parent })
    }

    fn on(&mut self, chain: u32, height: u64, nonce: u64, parent: Option<Header>) -> Header {
        let graph = self.version.graph_of_header(chain, height).unwrap();
        let below = |chain: u32| {
            let found = height.checked_sub(1).and_then(|below| self.blocks.get(&(chain, below)));
            found.map_or_else(|| genesis_parent(self.version.code, chain), |header| header.hash)
        };
        let adjacents = graph.adjacents(chain).unwrap().into_iter().map(|chain| (chain, below(chain))).collect();
        let mut header = Header {
            flags: 0,
            time_us: height * 1000,
            parent: parent.as_ref().map_or_else(|| genesis_parent(self.version.code, chain), |parent| parent.hash),
            adjacents,
            target: Number::MAX,
            payload: self.add_payload(chain, height, nonce),
            chain,
            weight: Number::from(height),
            height,
            version: self.version.code,
            epoch_us: 0,
            nonce,
            hash: Digest([0; 32]),
        };
        header.hash = header.merkle_hash();
        self.tables.insert(Table::Headers(chain).key(height, &header.hash).unwrap(), header.encode());
        self.tables.insert(Table::Ranks(chain).key(height, &header.hash).unwrap(), height.to_le_bytes().to_vec());
        header
    }

    fn add_payload(&mut self, chain: u32, height: u64, nonce: u64) -> Digest {
        let text = |what: &str| format!("{what} {chain} {height} {nonce}").into_bytes();
        let items = |kind, items, first: &str| {
            let mut items = Items { kind, hash: Digest([0; 32]), items, first: text(first) };
            items.hash = items.root();
            items
        };
        let transactions = items(Kind::Transactions, vec![text("transfer")], "miner");
        let outputs = items(Kind::Outputs, vec![text("result")], "coinbase");
        let (transactions_hash, outputs_hash) = (transactions.hash, outputs.hash);
        let mut payload = Payload { hash: Digest([0; 32]), transactions_hash, outputs_hash };
        payload.hash = payload.root();
        let mut put = |table: Table, hash, value| self.tables.insert(table.key(height, &hash).unwrap(), value);
        put(Table::Transactions, transactions_hash, transactions.encode());
        put(Table::Outputs, outputs_hash, outputs.encode());
        put(Table::Payloads, payload.hash, [payload.hash.0, transactions_hash.0, outputs_hash.0].concat());
        payload.hash
    }

    fn add_cut(&mut self, tips: &BTreeMap<u32, Header>) -> Vec<u8> {
        let height = tips.values().map(|tip| tip.height).sum();
        let weight = tips.values().fold(Number::default(), |sum, tip| sum.wrapping_add(tip.weight));
        let place = CutPlace { height, weight, id: Digest([7; 32]) };
        let hashes: serde_json::Map<_, _> = tips
            .iter()
            .map(|(chain, tip)| (chain.to_string(), json!({ "height": tip.height, "hash": tip.hash.to_string() })))
            .collect();
        let value = json!({
            "hashes": hashes, "origin": null, "weight": weight.to_string(), "height": height,
            "instance": self.version.name, "id": place.id.to_string(),
        });
        let value = value.to_string().into_bytes();
        Cut::parse(&place.key(), &value).unwrap();
        self.tables.insert(place.key(), value);
        place.key()
    }

    fn header(&self, chain: u32, height: u64) -> &Header {
        &self.blocks[&(chain, height)]
    }

    /// Pact of a chain goes back to this height.
    fn truncate(&mut self, chain: u32, height: u64) {
        self.pact.get_mut(&chain).unwrap().retain(|at, _| *at <= height);
    }

    fn remove(&mut self, table: Table, height: u64, hash: &Digest) {
        self.tables.remove(&table.key(height, hash).unwrap()).expect("it was there");
    }

    fn verdict(&self) -> Verdict {
        prove(&mut self.clone(), Extent::BOUNDED).unwrap()
    }

    fn start(&self) -> Start {
        match self.verdict() {
            Verdict::Yes(start) => start,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn refuted(&self, words: &[&str]) {
        let Verdict::No { reason } = self.verdict() else { panic!("{:?}", self.verdict()) };
        words.iter().for_each(|word| assert!(reason.contains(word), "{reason:?} has no {word:?}"));
    }
}

fn moved(height: u64, rewind: u64, replay: u64) -> ChainStart {
    ChainStart { height, rewind, replay }
}

#[test]
fn pact_replays_what_it_is_behind() {
    let mut memory = Memory::new("triad-dev", 9);
    memory.truncate(1, 6);
    let start = memory.start();
    assert_eq!((start.version.as_str(), start.cut_height, start.skipped_cuts), ("triad-dev", 27, 0));
    assert_eq!(start.chains, [(0, moved(9, 0, 0)), (1, moved(9, 0, 3)), (2, moved(9, 0, 0))].into());
    assert_eq!((start.payloads_checked, start.flags.len(), start.warnings.len()), (3, 0, 0));
    let text = serde_json::to_string(&Verdict::Yes(start.clone())).unwrap();
    assert_eq!(serde_json::from_str::<Verdict>(&text).unwrap(), Verdict::Yes(start));
    // Without a database the node replays all blocks from the genesis block, which it writes itself.
    memory.pact.remove(&2);
    assert_eq!(memory.start().chains[&2], moved(9, 0, 9));
}

#[test]
fn pact_on_a_fork_or_ahead_is_rewound() {
    let mut memory = Memory::new("triad-dev", 9);
    let fork = memory.next(0, 8, 1);
    memory.pact.get_mut(&0).unwrap().extend([(8, fork.hash)]);
    memory.truncate(0, 8);
    let ahead = memory.next(1, 10, 0);
    memory.pact.get_mut(&1).unwrap().insert(10, ahead.hash);
    let start = memory.start();
    assert_eq!((start.chains[&0], start.chains[&1]), (moved(9, 1, 2), moved(9, 1, 0)));
    // A block of Pact that RocksDB never got, and one whose rank is missing: the node goes down to one that it has.
    memory.pact.get_mut(&1).unwrap().insert(11, Digest([9; 32]));
    memory.remove(Table::Ranks(1), 10, &ahead.hash);
    assert_eq!(memory.start().chains[&1], moved(9, 2, 0));
    // The row of the fork point is gone.
    memory.pact.get_mut(&0).unwrap().remove(&7);
    memory.refuted(&["rewound to block 7", "of chain 0", "no row"]);
}

#[test]
fn a_fork_between_the_cut_and_pact_of_any_length_is_walked() {
    for (below, pact_blocks) in [(0, 1), (3, 2), (3, 9), (8, 1), (8, 4)] {
        let mut memory = Memory::new("mono-dev", 9);
        let mut parent = memory.header(0, below).clone();
        memory.truncate(0, below);
        for height in below + 1..=below + pact_blocks {
            parent = memory.on(0, height, 1, Some(parent));
            memory.pact.get_mut(&0).unwrap().insert(height, parent.hash);
        }
        assert_eq!(memory.start().chains[&0], moved(9, pact_blocks, 9 - below), "{below} {pact_blocks}");
    }
}

#[test]
fn what_the_node_needs_and_does_not_find_is_named() {
    let mut memory = Memory::new("triad-dev", 9);
    memory.truncate(2, 5);
    let Header { hash, payload, .. } = memory.header(2, 7).clone();
    let stored = Payload::parse(&memory.tables[&Table::Payloads.key(7, &payload).unwrap()]).unwrap();
    for (table, hash, words) in [
        (Table::Headers(2), hash, "the header of block 7"),
        (Table::Ranks(2), hash, "the rank of block 7"),
        (Table::Payloads, payload, "the payload of block 7"),
        (Table::Transactions, stored.transactions_hash, "the transactions of block 7"),
        (Table::Outputs, stored.outputs_hash, "the outputs of block 7"),
    ] {
        let mut faulty = memory.clone();
        faulty.remove(table, 7, &hash);
        faulty.refuted(&[words, "of chain 2", "missing"]);
        // The node does not read blocks that it does not need.
        faulty.truncate(2, 3);
        faulty.pact.insert(2, memory.pact[&1].clone());
        faulty.refuted(&["Pact does not connect", "of chain 2"]);
    }
    // If there are two faults, the one that the node meets first is named.
    memory.remove(Table::Payloads, 7, &payload);
    memory.remove(Table::Payloads, 8, &memory.header(2, 8).payload.clone());
    memory.refuted(&["the payload of block 7"]);
    memory.pact.insert(1, memory.pact[&0].clone());
    memory.refuted(&["Pact does not connect", "of chain 1"]);
}

#[test]
fn a_cut_without_its_blocks_is_passed_over() {
    let mut memory = Memory::new("triad-dev", 9);
    memory.truncate(0, 8);
    memory.remove(Table::Ranks(1), 9, &memory.header(1, 9).hash.clone());
    let start = memory.start();
    assert_eq!((start.cut_height, start.skipped_cuts), (24, 1));
    assert_eq!(start.chains, [(0, moved(8, 0, 0)), (1, moved(8, 1, 0)), (2, moved(8, 1, 0))].into());
    assert_eq!(start.warnings.len(), 1);
    assert!(start.warnings[0].contains("the rank of block 9") && start.warnings[0].contains("of chain 1"));
    for height in 0..9 {
        memory.remove(Table::Headers(2), height, &memory.header(2, height).hash.clone());
    }
    memory.refuted(&["no cut can be used", "the rank of block 9", "of chain 1"]);
}

#[test]
fn every_flipped_bit_is_found() {
    let mut memory = Memory::new("triad-dev", 6);
    memory.truncate(0, 4);
    let expected = memory.start();
    let mut flips_count = 0;
    for (key, value) in memory.tables.clone() {
        let (table, _) = Table::parse(&key).unwrap();
        // At this start a node reads the tips, the ancestors of the tip of chain 0 down to Pact, and their payloads.
        let needed = match table {
            Table::Headers(0) | Table::Ranks(0) => {
                (4..=6).any(|height| key.ends_with(&memory.header(0, height).hash.0))
            }
            Table::Headers(chain) | Table::Ranks(chain) => key.ends_with(&memory.header(chain, 6).hash.0),
            _ => false,
        };
        let of_replay = (5..=6).any(|height| {
            let header = memory.header(0, height);
            let payload =
                Payload::parse(&memory.tables[&Table::Payloads.key(height, &header.payload).unwrap()]).unwrap();
            [payload.hash, payload.transactions_hash, payload.outputs_hash].iter().any(|hash| key.ends_with(&hash.0))
        });
        for bit in 0..value.len() * 8 {
            memory.tables.get_mut(&key).unwrap()[bit / 8] ^= 1 << (bit % 8);
            let verdict = prove(&mut memory, Extent::BOUNDED).unwrap();
            memory.tables.get_mut(&key).unwrap()[bit / 8] ^= 1 << (bit % 8);
            if needed || of_replay {
                assert!(matches!(verdict, Verdict::No { .. }), "{table:?} bit {bit}: {verdict:?}");
                flips_count += 1;
            } else if table != Table::Cuts {
                assert_eq!(verdict, Verdict::Yes(expected.clone()), "{table:?} bit {bit}");
            }
            // A flipped bit of a cut may be in the name of a field that nothing reads; if the start is another one, it has a warning.
            if let (Table::Cuts, Verdict::Yes(start)) = (table, verdict) {
                assert!(start == expected || !start.warnings.is_empty(), "bit {bit} of a cut: {start:?}");
            }
        }
    }
    assert!(flips_count > 10_000, "{flips_count}");
}

#[test]
fn a_node_with_compacted_pact_needs_a_flag() {
    let mut memory = Memory::new("triad-dev", 9);
    memory.pact.get_mut(&1).unwrap().retain(|height, _| *height >= 5);
    let start = memory.start();
    assert_eq!(start.flags, ["--no-full-historic-pact-state"]);
    // Compacted headers: only a window of them; no header below is read.
    for height in 0..7 {
        memory.remove(Table::Headers(0), height, &memory.header(0, height).hash.clone());
    }
    assert_eq!(memory.start(), start);
}

#[test]
fn a_network_that_grows_has_pact_of_the_chains_to_come() {
    let memory = Memory::new("recap-development", 59);
    let start = memory.start();
    assert_eq!((start.chains[&9], start.chains[&10]), (moved(59, 0, 0), moved(60, 0, 0)));
    let memory = Memory::new("recap-development", 62);
    let start = memory.start();
    assert_eq!((start.chains.len(), start.chains[&19]), (20, moved(62, 0, 0)));
    assert_eq!((start.warnings.len(), start.flags.len()), (0, 0));
}

#[test]
fn a_missing_genesis_header_is_written_by_the_node() {
    let mut memory = Memory::new("mono-dev", 4);
    memory.remove(Table::Headers(0), 0, &memory.header(0, 0).hash.clone());
    for height in [4, 1, 0] {
        memory.truncate(0, height);
        assert_eq!(memory.start().chains[&0], moved(4, 0, 4 - height));
    }
    memory.pact.insert(0, BTreeMap::from([(0, Digest([3; 32]))]));
    memory.refuted(&["Pact does not connect", "block 0"]);
    memory.pact.get_mut(&0).unwrap().insert(1, Digest([4; 32]));
    memory.refuted(&["Pact does not connect", "block 0"]);
}

#[test]
fn what_is_not_known_is_said() {
    let unknown = |memory: &Memory, words: &str| match memory.verdict() {
        Verdict::Unknown { reason } => assert!(reason.contains(words), "{reason}"),
        other => panic!("{other:?}"),
    };
    let memory = Memory::new("mono-dev", 3);
    let mut other = memory.clone();
    other.pact.clear();
    unknown(&other, "no Pact databases");
    other.tables.retain(|key, _| !key.starts_with(CUTS));
    unknown(&other, "no table of cuts");
    other.tables.insert([CUTS, &[0; 48]].concat(), b"{}".to_vec());
    unknown(&other, "not in the form");
    let mut other = memory.clone();
    let key = other.cut_below(None).unwrap().unwrap().0;
    let value = String::from_utf8(other.tables[&key].clone()).unwrap().replace("mono-dev", "another");
    other.tables.insert(key.clone(), value.into_bytes());
    unknown(&other, "\"another\" is not known");
    other.tables.insert(key, b"{".to_vec());
    other.refuted(&["the cut of height 3 cannot be used"]);
    // Too long a distance is not walked. If there are too many payloads, a sample is read, and the result says so.
    let mut behind = Memory::new("mono-dev", 30);
    behind.truncate(0, 5);
    let within = |blocks_max, payloads_max| prove(&mut behind.clone(), Extent { blocks_max, payloads_max }).unwrap();
    assert!(matches!(within(24, 100), Verdict::Unknown { reason } if reason.contains("more than 24 blocks")));
    let Verdict::Yes(start) = within(25, 10) else { panic!() };
    assert!((5..=10).contains(&start.payloads_checked), "{}", start.payloads_checked);
    assert!(start.warnings[0].contains("of 25 blocks to replay"), "{:?}", start.warnings);
}

#[test]
fn blocks_that_do_not_belong_together_are_a_warning() {
    let mut memory = Memory::new("triad-dev", 9);
    let mut tips = memory.tips(9);
    // A sound block of a fork at the same height, with the parent's fork below.
    let below = memory.next(1, 8, 5);
    let forked = memory.on(1, 9, 5, Some(below));
    tips.insert(1, forked);
    memory.tables.retain(|key, _| !key.starts_with(CUTS));
    memory.add_cut(&tips);
    let start = memory.start();
    assert_eq!(start.chains[&1], moved(9, 2, 2));
    assert!(start.warnings[0].contains("do not belong together"), "{:?}", start.warnings);
    // Tips that differ by one block belong together.
    let mut memory = Memory::new("triad-dev", 9);
    let mut tips = memory.tips(9);
    tips.insert(2, memory.header(2, 8).clone());
    memory.tables.retain(|key, _| !key.starts_with(CUTS));
    memory.add_cut(&tips);
    assert_eq!(memory.start().warnings, Vec::<String>::new());
}
