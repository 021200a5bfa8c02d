//! The networks: versions of Chainweb, with their graphs and genesis heights. No I/O.
//!
//! | `--chains` | version | code | graph |
//! |---|---|---|---|
//! | 1 | mono-dev | 32 | one chain |
//! | 3 | triad-dev | 33 | triangle |
//! | 10 | recap-development | 1 | Petersen; the graph of twenty chains from height 60, as mainnet from 852054 |
//! | 20 | development | 2 | twenty chains |
//! | other N | demo-ring-N | 0x0de00000 + N | ring; a version that nothing else knows |
//!
//! None has proof of work. Our genesis blocks are our own: their headers have the form of real ones, their payloads not.

use crate::hash::{Hash, root, untagged_leaf};

/// The most chains of a network.
pub const MAX_CHAINS: u32 = 97;
/// The codes of the rings are above this.
const RING_CODE: u32 = 0x0de0_0000;
const RING_NAME: &str = "demo-ring-";

const PETERSEN: [[u32; 3]; 10] =
    [[2, 3, 5], [3, 4, 6], [0, 4, 7], [0, 1, 8], [1, 2, 9], [0, 6, 9], [1, 5, 7], [2, 6, 8], [3, 7, 9], [4, 5, 8]];
/// The chains 5 to 9 of the graph of twenty, among each other.
const TWENTY_MIDDLE: [[u32; 2]; 5] = [[7, 8], [8, 9], [5, 9], [5, 6], [6, 7]];

/// A version of Chainweb.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub name: String,
    pub code: u32,
    first_count: u32,
    /// The height from which there are more chains, and how many then.
    later: Option<(u64, u32)>,
}

impl Network {
    /// The network that begins with this number of chains.
    pub fn of_chains(count: u32) -> Network {
        let (name, code, later) = match count {
            1 => ("mono-dev", 32, None),
            3 => ("triad-dev", 33, None),
            10 => ("recap-development", 1, Some((60, 20))),
            20 => ("development", 2, None),
            _ => {
                return Network {
                    name: format!("{RING_NAME}{count}"),
                    code: RING_CODE + count,
                    first_count: count,
                    later: None,
                };
            }
        };
        Network { name: name.into(), code, first_count: count, later }
    }

    /// The network of this name; `None` if we write no such.
    pub fn named(name: &str) -> Option<Network> {
        (1..=MAX_CHAINS).map(Network::of_chains).find(|network| network.name == name)
    }

    /// Every chain that there will ever be.
    pub fn chains(&self) -> std::ops::Range<u32> {
        0..self.later.map_or(self.first_count, |(_, count)| count)
    }

    /// How many chains have a block at this height.
    pub fn count_at(&self, height: u64) -> u32 {
        self.later.filter(|(from, _)| height >= *from).map_or(self.first_count, |(_, count)| count)
    }

    /// The height of a chain's first block.
    pub fn genesis_height(&self, chain: u32) -> u64 {
        self.later.filter(|_| chain >= self.first_count).map_or(0, |(from, _)| from)
    }

    /// The chains whose blocks a header of this height names, ascending: those of the graph one lower.
    pub fn neighbours(&self, chain: u32, height: u64) -> Vec<u32> {
        let of_height = if height == self.genesis_height(chain) { height } else { height - 1 };
        neighbours(self.count_at(of_height), chain)
    }

    /// The parent of a chain's first block.
    pub fn genesis_parent(&self, chain: u32) -> Hash {
        genesis_parent(self.code, chain)
    }
}

fn genesis_parent(code: u32, chain: u32) -> Hash {
    root(&[untagged_leaf(b"CHAINWEB_GENESIS"), untagged_leaf(&code.to_le_bytes()), untagged_leaf(&chain.to_le_bytes())])
}

fn neighbours(count: u32, chain: u32) -> Vec<u32> {
    let mut found = match count {
        1 => vec![],
        2 => vec![1 - chain],
        10 => PETERSEN[chain as usize].to_vec(),
        20 => match chain {
            0..5 => vec![chain + 5, chain + 10, chain + 15],
            5..10 => [&TWENTY_MIDDLE[chain as usize - 5][..], &[chain - 5]].concat(),
            _ => vec![chain % 5, 10 + (chain + 1) % 10, 10 + (chain + 9) % 10],
        },
        _ => vec![(chain + 1) % count, (chain + count - 1) % count],
    };
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_of_the_genesis_of_mainnet() {
        assert_eq!(genesis_parent(5, 0).to_string(), "wJ6fVF6_vrzfemqQsWB6nCzfrMwznbZscn53-0DpAcI");
        assert_eq!(genesis_parent(5, 2).to_string(), "fJB-vS9h7ByxNHY19WqM8icji9CcATiXn48uouHAMzs");
    }

    #[test]
    fn graphs_are_symmetric_and_regular() {
        for count in 1..=MAX_CHAINS {
            let degree = neighbours(count, 0).len();
            for chain in 0..count {
                let found = neighbours(count, chain);
                assert_eq!(found.len(), degree, "{chain} of {count}");
                assert!(found.is_sorted_by(|a, b| a < b) && !found.contains(&chain));
                assert!(found.iter().all(|other| neighbours(count, *other).contains(&chain)), "{chain} of {count}");
            }
        }
        // Real headers of mainnet: chain 0 of Petersen at height 0, of twenty at height 1000000.
        assert_eq!((neighbours(10, 0), neighbours(20, 0)), (vec![2, 3, 5], vec![5, 10, 15]));
    }

    #[test]
    fn a_header_at_a_change_of_graphs() {
        let network = Network::of_chains(10);
        assert_eq!((network.neighbours(0, 60), network.neighbours(0, 61)), (vec![2, 3, 5], vec![5, 10, 15]));
        assert_eq!((network.genesis_height(9), network.genesis_height(10)), (0, 60));
        assert_eq!(network.neighbours(10, 60), [0, 11, 19]);
        assert_eq!(Network::named("recap-development"), Some(network));
    }
}
