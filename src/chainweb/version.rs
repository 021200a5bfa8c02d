//! The versions of Chainweb, in plain words the networks: their chains, genesis blocks and proof of work.
//!
//! A version that is not in [`VERSIONS`] is unknown, not wrong: of its headers everything is checked that needs no version.
//!
//! Sources: chainweb-node, `Chainweb/Version/*.hs` of kda-community (mainnet01, testnet04, testnet06, the development ones), of
//! kadena-io, branch evm/main (`evm-…`), of stoa-chain (stoa), and of vootaa, branch cw-version (mono, triad, icosa).

use std::fmt;

use crate::chainweb::digest::Digest;
use crate::chainweb::graph::Graph;
use crate::chainweb::merkle;

/// How the headers of a version prove work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// BLAKE2s-256 of the header, which must not exceed the target.
    Blake2s,
    /// In a form of its own, which is not checked here.
    Other,
    /// Its nodes may run without proof of work (`disablePow`).
    NotRequired,
}

/// A version.
#[derive(Debug, PartialEq, Eq)]
pub struct Version {
    /// Its name: in cuts as `instance`, in paths, in the configuration.
    pub name: &'static str,
    /// Its code in headers.
    pub code: u32,
    /// Its proof of work.
    pub work: Work,
    /// Its graphs, each with the first height at which blocks are made in it; ascending from 0.
    graphs: &'static [(u64, Graph)],
    /// The hashes of the genesis blocks of the chains from 0, as far as known.
    genesis: &'static [&'static str],
}

/// Why there is no version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unknown {
    /// No version that we know has this code.
    Code(u32),
    /// Several versions have this code.
    Ambiguous(u32),
    /// No version that we know has this name.
    Name(String),
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unknown::Code(code) => write!(f, "version code {code} is not known"),
            Unknown::Ambiguous(code) => {
                let names: Vec<&str> = with_code(*code).map(|version| version.name).collect();
                write!(f, "version code {code} is that of {}", names.join(" and "))
            }
            Unknown::Name(name) => write!(f, "version {name:?} is not known"),
        }
    }
}

impl Version {
    /// The version of this name.
    ///
    /// # Errors
    /// Fails if there is none that we know.
    pub fn of_name(name: &str) -> Result<&'static Version, Unknown> {
        VERSIONS.iter().find(|version| version.name == name).ok_or_else(|| Unknown::Name(name.to_owned()))
    }

    /// The version of this code.
    ///
    /// # Errors
    /// Fails if there is none that we know, or more than one.
    pub fn of_code(code: u32) -> Result<&'static Version, Unknown> {
        let mut versions = with_code(code);
        match (versions.next(), versions.next()) {
            (Some(version), None) => Ok(version),
            (None, _) => Err(Unknown::Code(code)),
            (Some(_), Some(_)) => Err(Unknown::Ambiguous(code)),
        }
    }

    /// The graph in which blocks are made at this height.
    pub fn graph_at(&self, height: u64) -> Graph {
        let (_, graph) =
            self.graphs.iter().rev().find(|(first, _)| *first <= height).expect("the first graph is from 0");
        *graph
    }

    /// The graph of the adjacent chains that a header names: that of its parent's height, or of its own if it is the genesis
    /// (chainweb-node, `Chainweb/BlockHeader/Internal.hs`). `None` if the version does not have the chain at this height.
    pub fn graph_of_header(&self, chain: u32, height: u64) -> Option<Graph> {
        let genesis = self.genesis_height(chain)?;
        if height == genesis {
            return Some(self.graph_at(height));
        }
        (height > genesis).then(|| self.graph_at(height - 1))
    }

    /// Every chain that there is at some height, ascending.
    pub fn chains(&self) -> std::ops::Range<u32> {
        0..self.graphs.iter().map(|(_, graph)| graph.chains_count()).max().unwrap_or(0)
    }

    /// The height of the first block of a chain; `None` if the version does not have the chain.
    pub fn genesis_height(&self, chain: u32) -> Option<u64> {
        self.graphs.iter().find(|(_, graph)| chain < graph.chains_count()).map(|(first, _)| *first)
    }

    /// The hash of the first block of a chain, if it is known.
    pub fn genesis_hash(&self, chain: u32) -> Option<Digest> {
        let text = self.genesis.get(chain as usize)?;
        Some(Digest::from_base64url(text).expect("a test decodes each"))
    }
}

/// What a genesis block has in the place of its parent's hash: the root of three leaves without tags, which are the text
/// `CHAINWEB_GENESIS`, the code and the chain (chainweb-node, `Chainweb/BlockHeader/Internal.hs`, `genesisParentBlockHash`).
pub fn genesis_parent(code: u32, chain: u32) -> Digest {
    let leaves = [
        merkle::untagged(b"CHAINWEB_GENESIS"),
        merkle::untagged(&code.to_le_bytes()),
        merkle::untagged(&chain.to_le_bytes()),
    ];
    merkle::root(leaves)
}

fn with_code(code: u32) -> impl Iterator<Item = &'static Version> {
    VERSIONS.iter().filter(move |version| version.code == code)
}

const fn version(
    name: &'static str,
    code: u32,
    work: Work,
    graphs: &'static [(u64, Graph)],
    genesis: &'static [&'static str],
) -> Version {
    Version { name, code, work, graphs, genesis }
}

const ONE: &[(u64, Graph)] = &[(0, Graph::Singleton)];
const TWO: &[(u64, Graph)] = &[(0, Graph::Pair)];
const THREE: &[(u64, Graph)] = &[(0, Graph::Triangle)];
const TEN: &[(u64, Graph)] = &[(0, Graph::Petersen)];
const TWENTY: &[(u64, Graph)] = &[(0, Graph::Twenty)];
const MANY: &[(u64, Graph)] = &[(0, Graph::D4K4)];

/// The versions that we know. (testnet05 was in chainweb-node 2.27 and 2.28 only; codes 0x0001000b and 0x0001000c are in the evm
/// branch's sources, not among the versions that its nodes can run.)
pub const VERSIONS: [Version; 17] = [
    version("mainnet01", 5, Work::Blake2s, &[(0, Graph::Petersen), (852_054, Graph::Twenty)], &MAINNET01),
    version("testnet04", 7, Work::Blake2s, &[(0, Graph::Petersen), (332_604, Graph::Twenty)], &TESTNET04),
    version("testnet05", 9, Work::Blake2s, TWENTY, &[]),
    version("testnet06", 8, Work::Blake2s, TWENTY, &["hRVDP_io_A8FP5r8KV6To_fvqm30oJ1TWpO_V9znwGQ"]),
    version("stoa", 10, Work::Blake2s, TEN, &["SOL__8tD1492GqpRAVWVmqqLDPt1CVHKQBySzDVjG-I"]),
    version("mono", 16, Work::Other, ONE, &["yW1lDmcIL6yLUtfscWOsf091bkbqPyXIKGxADjF6hDU"]),
    version("triad", 17, Work::Other, THREE, &[]),
    version("icosa", 18, Work::Other, TWENTY, &[]),
    version("mono-dev", 32, Work::NotRequired, ONE, &[]),
    version("triad-dev", 33, Work::NotRequired, THREE, &[]),
    version("icosa-dev", 34, Work::NotRequired, TWENTY, &[]),
    version("recap-development", 1, Work::NotRequired, &[(0, Graph::Petersen), (60, Graph::Twenty)], &[]),
    version("development", 2, Work::NotRequired, TWENTY, &[]),
    version("evm-testnet", 10, Work::NotRequired, MANY, &[]),
    version("evm-development", 11, Work::NotRequired, MANY, &[]),
    version("evm-development-pair", 0x0001_000b, Work::NotRequired, TWO, &[]),
    version("evm-development-singleton", 0x0001_000c, Work::NotRequired, ONE, &[]),
];

/// chainweb-node, `test/golden/mainnet01-block-hashes-expected.txt`.
const MAINNET01: [&str; 20] = [
    "SNAMXHBvZtAbeS19x12bZV2p5d1E4BaxrggceNdUxbw",
    "aVFFqF8PbGu-MZkUhb1Ok4XijgxWUYxBxigBQgZmDFI",
    "Isgjp62lHk0uXgQfu_HZoeuP3udIiwkBlq1hHvXqXCM",
    "tMyy7k6lrQOsGg2oXh20kOC3zudjwsaL9F5Ogx0XNBo",
    "yeWKDE27xM45-LgdwpnVMM6E4pAoYryRrJJFgRiaKgQ",
    "GmCgnnxUtn08N8WtL8Gpn3Hg6AKyP4q0W0u3NLZn0Zo",
    "OXehM2W5YuiV0iWlDGIPMdaRv721zMUbj3caJqZJNBU",
    "CAfkqtRJpdf3rNSKx0SRwgaJlSUBLXwF1OMjn2-eBps",
    "09qk9ulwtq854ogJwlDZKN7NC_Q3lqiy1jdD0_YvWMI",
    "5cwptPDy7u6aMS221qsCr93g6ifDr0WUyvoKhi59-PA",
    "IQyS92QncmVLSPGiwn2taPayS42F5c3EjjL0DUr7keA",
    "G0NiGwj1bY2jYnpJ8aL4IJnsNeOLeb-7HD7AhFnrG_k",
    "OOKvNXgjfmcNzIlcIxAWKZuwEwjLS3Vod-mkhlCRCBY",
    "9PWw97t5czKEiK92LGFK9LkBToPB8A0AvPpoMmXLEoM",
    "55Z7RjqtyrZEoxUaZoB4aJIoA0j8ltkwcuAyprdXCng",
    "gd0FXTl4xqWjybxo4iWcBSZVJ53jV0noteLVwqIh6jA",
    "ZEulY-ffmUaS4JevaWy113CRTch_-Iu2LVDB2nN2xTM",
    "7Dop3iLs0VfejT2a8z3OkTfmGeT-_Soxr33TGr-bGMI",
    "nxSSt7WSfUaxQMmYIjdaoU-EgUHxYUtF449T3K2_Iw0",
    "y76dr78dPJlFDMPzCc-aEz97iRyimv5Ij3psdVlC64c",
];

/// chainweb-node, `test/golden/testnet04-block-hashes-expected.txt`.
const TESTNET04: [&str; 20] = [
    "r21zg8E011awAbEghzNBOI4RtKUZ-wHLkUwio-5dKpE",
    "V1eZWhoceIl7vmfn5h3U4HvpGSs9Nd66ISgKNMLmi_0",
    "FMsDXwQ2OS0NYmDwQsXR4rPyKA9oxJR2XK2OppSCD8E",
    "tqjIgeqKe6q-BM4PeNmjHFgKHIWAziJxcgnrOuYInoc",
    "9oYwQo4x9xiCzlUzrmG0LOQW_rS3zRB4MtiOgpZmoMQ",
    "wXSuR_3WBkrdEV4proOm1YS4pBiX4uZI_KrNQfr24ls",
    "87afzutvMr9I2oZowgQbWBG8VJsN5rWtDB8SU19YaTA",
    "0fnoDkGf2KaY1SBwhrBD_2eXEUlrytKOXTWY0wNZ534",
    "hfRjRAhE8Fn8WJNz0R8Ku-W72RdzgQVXJDvzz5hIi_Q",
    "sM9OUZFlk4GHkBaW3dYG4LsU4TQslPzG6FkO0gr6Kro",
    "lTpiG_9bLbyKp7hmWq8M3jwkCtRUREhWW3nyU1YJAV4",
    "UQ2pi14AbFoY2uRN6a_LLgFQR-o0NpYAEMBlv-6wYys",
    "dRH0yn5kXKnt7gGqJIzQipsIbqkxNDs2RreNYNfknTU",
    "rF1wm-g3QbhPRmsEZZncHxAq0BHsGveN3Tc2gJvi2Ag",
    "zz3XKGns0zhrn3sUo9hul3JA9E_rwYJbDhs54ClQsJ0",
    "Xg5YrIrW8i2Bw2yaK0Hw5qFBNQv5NA5v78Zj5bhXDeI",
    "z8gMvZAtnm4ejpgtkiB5KuMgGs9XtrysVJprGdoHbUQ",
    "tOerMVBv5NcJjh4c40W22FZ89poibtBlz-yQl4NM7lw",
    "VsDfA3fyhpKdPR-KWzBARmh5htuBLnQe7ZXcLIphSaw",
    "ScaDZyeTNseqh6bdbG0bu_2BT83afeMrR9pxf68T8rw",
];

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_and_codes() {
        for version in &VERSIONS {
            assert_eq!(Version::of_name(version.name), Ok(version));
            let chains_count = version.graphs.last().unwrap().1.chains_count();
            for chain in 0..chains_count {
                let genesis = version.genesis_height(chain).unwrap();
                assert!(version.graph_at(genesis).adjacents(chain).is_some());
                assert_eq!(version.graph_of_header(chain, genesis), Some(version.graph_at(genesis)));
            }
            assert!(version.genesis.len() <= chains_count as usize);
            assert_eq!((version.genesis_height(chains_count), version.genesis_hash(chains_count)), (None, None));
            version.genesis.iter().for_each(|text| assert!(Digest::from_base64url(text).is_some(), "{text}"));
            match Version::of_code(version.code) {
                Ok(found) => assert_eq!(found, version),
                Err(e) => assert_eq!(
                    (version.code, e.to_string().as_str()),
                    (10, "version code 10 is that of stoa and evm-testnet")
                ),
            }
        }
        assert_eq!(Version::of_code(21), Err(Unknown::Code(21)));
        assert_eq!(Version::of_name("Mainnet01"), Err(Unknown::Name("Mainnet01".to_owned())));
    }

    #[test]
    fn mainnet_grew() {
        let mainnet = Version::of_code(5).unwrap();
        let genesis: Vec<_> = [0, 9, 10, 19, 20].map(|chain| mainnet.genesis_height(chain)).into();
        assert_eq!(genesis, [Some(0), Some(0), Some(852_054), Some(852_054), None]);
        assert_eq!((mainnet.graph_at(852_053), mainnet.graph_at(852_054)), (Graph::Petersen, Graph::Twenty));
        // The graph of a header is that of its parent, but of a genesis its own.
        let graphs = [(3, 852_054), (3, 852_055), (10, 852_054), (10, 852_053)];
        let graphs: Vec<_> = graphs.map(|(chain, height)| mainnet.graph_of_header(chain, height)).into();
        assert_eq!(graphs, [Some(Graph::Petersen), Some(Graph::Twenty), Some(Graph::Twenty), None]);
    }
}
