//! The rules of headers: the checks of one header, and of a header with its parent.
//!
//! A node makes these when it gets a block from another node, not when it starts (chainweb-node,
//! `Chainweb/BlockHeader/Validation.hs`).
//!
//! Limitation: target, epoch, times and flags are not compared with those that the rules of difficulty and of forks demand.

use std::fmt;

use crate::chainweb::digest::Digest;
use crate::chainweb::header::Header;
use crate::chainweb::number::Number;
use crate::chainweb::version::{Version, Work};

/// What is wrong with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// The Merkle root of its fields is this one, not its hash.
    Hash(Digest),
    /// It is of the version with this code.
    Version(u32),
    /// Its version does not have this chain at its height.
    Chain(u32),
    /// The adjacent chains are not those of the graph.
    Adjacents,
    /// Its hash of work exceeds the target.
    Work,
    /// It has the parent of a genesis block but not its height, or its height but not its parent; or it is a genesis block with
    /// another hash than that of its chain.
    Genesis,
    /// It names another parent.
    Parent,
    /// Its height is not that of the parent and one.
    Height,
    /// Its weight is not that of the parent and its own work.
    Weight,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Flaw::Hash(root) => write!(f, "its hash is not that of its content, which is {root}"),
            Flaw::Version(code) => write!(f, "it is of another version, code {code}"),
            Flaw::Chain(chain) => write!(f, "there is no chain {chain} at its height"),
            Flaw::Adjacents => f.write_str("its adjacent chains are not those of the graph"),
            Flaw::Work => f.write_str("its proof of work is not enough for its target"),
            Flaw::Genesis => f.write_str("it is not the genesis block of its chain"),
            Flaw::Parent => f.write_str("it names another parent"),
            Flaw::Height => f.write_str("its height does not follow that of its parent"),
            Flaw::Weight => f.write_str("its weight is not that of its parent and its own work"),
        }
    }
}

/// The result of a check that a version may not need or permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// It passed.
    Passed,
    /// The version does not demand it, or not of a genesis block.
    NotRequired,
    /// It cannot be done: the version is unknown, or has a form of its own.
    Unknown,
}

/// The checks that a sound header passed beyond that of its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// The proof of work.
    pub work: Check,
    /// The adjacent chains.
    pub adjacents: Check,
}

impl Header {
    /// Checks the header by itself: hash, chain, adjacent chains, proof of work, and the hash of a genesis block as far as known.
    /// Without a version only the hash is checked, and the work if it is in the usual form.
    ///
    /// # Errors
    /// Fails with the first flaw.
    pub fn check(&self, version: Option<&Version>) -> Result<Checked, Flaw> {
        let root = self.merkle_hash();
        if root != self.hash {
            return Err(Flaw::Hash(root));
        }
        let is_ascending = self.adjacents.is_sorted_by(|(a, _), (b, _)| a < b);
        if !is_ascending || self.adjacents.iter().any(|(chain, _)| *chain == self.chain) {
            return Err(Flaw::Adjacents);
        }
        let Some(version) = version else {
            let work = if self.work_is_enough() { Check::Passed } else { Check::Unknown };
            return Ok(Checked { work, adjacents: Check::Unknown });
        };
        if version.code != self.version {
            return Err(Flaw::Version(self.version));
        }
        let graph = version.graph_of_header(self.chain, self.height).ok_or(Flaw::Chain(self.chain))?;
        if !self
            .adjacents
            .iter()
            .map(|(chain, _)| *chain)
            .eq(graph.adjacents(self.chain).ok_or(Flaw::Chain(self.chain))?)
        {
            return Err(Flaw::Adjacents);
        }
        let is_lowest = version.genesis_height(self.chain) == Some(self.height);
        let is_other = is_lowest && version.genesis_hash(self.chain).is_some_and(|known| known != self.hash);
        if is_lowest != self.is_genesis() || is_other {
            return Err(Flaw::Genesis);
        }
        let work = match version.work {
            _ if is_lowest => Check::NotRequired,
            Work::NotRequired => Check::NotRequired,
            Work::Other => Check::Unknown,
            Work::Blake2s if self.work_is_enough() => Check::Passed,
            Work::Blake2s => return Err(Flaw::Work),
        };
        Ok(Checked { work, adjacents: Check::Passed })
    }

    /// Checks that it follows `parent`, which is sound: hash, chain, version, height, and weight, which is that of the parent and
    /// the quotient of 2^256 - 1 by its own target (chainweb-node, `Chainweb/BlockHeader/Internal.hs`, `newBlockHeader`).
    ///
    /// # Errors
    /// Fails with the first flaw.
    pub fn follows(&self, parent: &Header) -> Result<(), Flaw> {
        let work = Number::MAX.checked_div(self.target);
        let flaws = [
            (self.parent != parent.hash, Flaw::Parent),
            (self.chain != parent.chain, Flaw::Chain(self.chain)),
            (self.version != parent.version, Flaw::Version(self.version)),
            (Some(self.height) != parent.height.checked_add(1), Flaw::Height),
            (work.is_none_or(|work| self.weight != parent.weight.wrapping_add(work)), Flaw::Weight),
        ];
        flaws.into_iter().find(|(is_wrong, _)| *is_wrong).map_or(Ok(()), |(_, flaw)| Err(flaw))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use data_encoding::BASE64URL_NOPAD;

    use super::*;
    use crate::chainweb::version::VERSIONS;

    /// mainnet01, chain 0: heights 1554651 and 1554652, 1000000 and 1000001 (chainweb-openapi, `chainweb.openapi.yaml`), and the
    /// genesis block, which was made from chainweb-node's sources.
    const REAL: [&str; 5] = [
        "AAAAAAAAAAC46tSFgcAFANxrUMH15DY-83DeKwlvDWsj4DY4Sphc5I82jCVSpSuCAwAFAAAAwdorGxUmrIkWyssvz3oHm3uqurfNd5ywiD6NHsZQEr8KAAAA750C1IKC9doZZKtqCckOF8JmIaHMhDfopNobHeJvmXMPAAAA4pgr0U_1kQxou-NIc42nICYqOgLM1Vawamal-HuhLvfa4wKcHiVawSuP3DULW8CnWwdh36wAF_eSBwAAAAAAANdqRLGXd6y6OGwShrFC7vBrIWf_TLCfaYpLnu-q7A7AAAAAAI5IadugqQ5qowAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA27gXAAAAAAAFAAAAavQWLYHABQBFGVPEmhORyEQpcrsmQGnMLz6Zi1ym08KyEV1nlEo4jYSVT9nrB_Cj",
        "AAAAAAAAAADX5AyHgcAFAEQpcrsmQGnMLz6Zi1ym08KyEV1nlEo4jYSVT9nrB_CjAwAFAAAA4BMlW68KbggSREOGDeH_oFFoUrpZ0zX0hM0TTdYrEAYKAAAARoxLy8ECsIIWebtW8zZsH1xfRGu4NOuSlgH4cAJLFcwPAAAAsHRn1laXo2DK2_85nOH7apQyC6Vr_gEctSElqdrCC03a4wKcHiVawSuP3DULW8CnWwdh36wAF_eSBwAAAAAAAA3PRGZVm8h4aY9cMgXAQf3QbYSNDUnFxjZnr8FwcknXAAAAAIopfw9LdjBqowAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA3LgXAAAAAAAFAAAAavQWLYHABQAOBvq0L1PrvEMRggM-QGNWONZ4dclrYKoSoWfaT4j0WoBXSCjagR--",
        "AAAAAAAAAABRoiLHW7EFAB2lwAatTykipYZ3CZNPzLe-f5S-zUt8COtu0H12f_OZAwAFAAAAMpic85rur2MYf3zli8s8bHxTFjriFoMPTr6ZPs8sjxMKAAAAVBKuhU_hQmuvKlx88A5o-FH0rzNo59NsdxmOGNBQ-ycPAAAAMItdqgHZxf7j6l0oE8X-G9-VyMbnQmZrtSniuRe_EJ9CtyxsSb7daPIIYAaXMgSEsQ3dkxY5GjJjLwAAAAAAABqWlmx5B6wo0YWPIShNKmdVrAQWht2P85BS1drGLpkAAAAAADUJ-ARn7blgHgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAQEIPAAAAAAAFAAAA-na5gFuxBQAFL-3CY4YuAJNGp9KhDkbrKkIPWYyq8WvtAaNPoUFWC16louSx8YN5",
        "AAAAAAAAAAA0slHKW7EFAJNGp9KhDkbrKkIPWYyq8WvtAaNPoUFWC16louSx8YN5AwAFAAAAALcxv1ZiwwQ_QX9eOBZMbzIop6n7XtveS1FqOFwyvGMKAAAAC76ElC60qXSJQCHePpzzJxsCYvvrqvmkoHPyZnex-4QPAAAAKv0sz_rTANjoiJwMrdZFCJNFwdH0U_M5ouwMr3BXBfpCtyxsSb7daPIIYAaXMgSEsQ3dkxY5GjJjLwAAAAAAALJlIg1vY3w_9L63bePn1yk_5agvdEbIBBjm3adxc5xWAAAAAGzpBzdiVL9gHgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAQUIPAAAAAAAFAAAA-na5gFuxBQALiBhXgqaHAb4VWug3oddEVy0X9y_jEkE2Kmi_vyGP5ovr-fDIz_Uf",
        "AAAAAAAAAAAAJ41tFZYFAMCen1Rev76833pqkLFgepws36zMM522bHJ-d_tA6QHCAwACAAAAfJB-vS9h7ByxNHY19WqM8icji9CcATiXn48uouHAMzsDAAAAUsNRCUkMKQBRDVIv0JLDfDllYNg2QO0EXaWcRfMQ6g0FAAAAdTLm0UrocvMNjjz_TMUbWqpZhuBBht_JoNqZpCliaS___________________________________________5NR9w7CJwD7ydFv8z8Z66ZHkjXT1E9EvVPG6gyxu9_aAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAFAAAAACeNbRWWBQAAAAAAAAAAAEjQDFxwb2bQG3ktfcddm2VdqeXdROAWsa4IHHjXVMW8",
    ];

    const PASSED: Checked = Checked { work: Check::Passed, adjacents: Check::Passed };

    fn bytes(text: &str) -> Vec<u8> {
        BASE64URL_NOPAD.decode(text.as_bytes()).unwrap()
    }

    fn real() -> [Header; 5] {
        REAL.map(|text| Header::parse(&bytes(text)).unwrap())
    }

    fn mainnet() -> Option<&'static Version> {
        Some(Version::of_name("mainnet01").unwrap())
    }

    /// The same header with the hash of its content.
    fn sealed(mut header: Header) -> Header {
        header.hash = header.merkle_hash();
        header
    }

    #[test]
    fn real_headers_pass() {
        for (header, text) in real().into_iter().zip(REAL) {
            assert_eq!(header.encode(), bytes(text));
            let work = if header.height == 0 { Check::NotRequired } else { Check::Passed };
            assert_eq!(header.check(mainnet()), Ok(Checked { work, ..PASSED }));
            assert_eq!(header.check(None), Ok(Checked { adjacents: Check::Unknown, ..PASSED }));
            assert_eq!(header.is_genesis(), header.height == 0);
        }
    }

    #[test]
    fn children_follow_their_parents() {
        let [a, b, c, d, genesis] = real();
        assert_eq!([a.height, b.height, c.height, d.height], [1_554_651, 1_554_652, 1_000_000, 1_000_001]);
        assert_eq!((b.follows(&a), d.follows(&c)), (Ok(()), Ok(())));
        assert_eq!(
            (c.follows(&d), d.follows(&genesis), b.follows(&c)),
            (Err(Flaw::Parent), Err(Flaw::Parent), Err(Flaw::Parent))
        );
        let with = |change: fn(&mut Header)| {
            let mut child = d.clone();
            change(&mut child);
            child.follows(&c).unwrap_err()
        };
        assert_eq!(with(|child| child.height += 1), Flaw::Height);
        assert_eq!(with(|child| child.chain = 1), Flaw::Chain(1));
        assert_eq!(with(|child| child.version = 7), Flaw::Version(7));
        assert_eq!(with(|child| child.weight = child.weight.wrapping_add(Number::from(1))), Flaw::Weight);
        assert_eq!(with(|child| child.target = Number::default()), Flaw::Weight);
    }

    #[test]
    fn the_fields_are_those_of_the_text() {
        let [_, _, header, ..] = real();
        let digest = |text| Digest::from_base64url(text).unwrap();
        assert_eq!((header.flags, header.time_us, header.epoch_us), (0, 1_602_382_624_629_329, 1_602_381_443_331_834));
        assert_eq!((header.chain, header.height, header.version), (0, 1_000_000, 5));
        assert_eq!(header.nonce, 13_095_611_958_898_437);
        assert_eq!(header.weight.to_string(), "NQn4BGftuWAeAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
        assert_eq!(header.target.to_string(), "QrcsbEm-3WjyCGAGlzIEhLEN3ZMWORoyYy8AAAAAAAA");
        assert_eq!(header.parent, digest("HaXABq1PKSKlhncJk0_Mt75_lL7NS3wI627QfXZ_85k"));
        assert_eq!(header.payload, digest("GpaWbHkHrCjRhY8hKE0qZ1WsBBaG3Y_zkFLV2sYumQA"));
        assert_eq!(header.hash, digest("k0an0qEORusqQg9ZjKrxa-0Bo0-hQVYLXqWi5LHxg3k"));
        let adjacents = [
            (5, digest("Mpic85rur2MYf3zli8s8bHxTFjriFoMPTr6ZPs8sjxM")),
            (10, digest("VBKuhU_hQmuvKlx88A5o-FH0rzNo59NsdxmOGNBQ-yc")),
            (15, digest("MItdqgHZxf7j6l0oE8X-G9-VyMbnQmZrtSniuRe_EJ8")),
        ];
        assert_eq!(header.adjacents, adjacents);
    }

    /// Every single flipped bit of every real header is found, by its size, its hash or, if only the number of an adjacent chain is
    /// another, by the graph; without a graph, the proof of work finds those.
    #[test]
    fn every_flipped_bit_is_found() {
        for text in REAL {
            let sound = bytes(text);
            let mut found: BTreeMap<&str, usize> = BTreeMap::new();
            for bit in 0..sound.len() * 8 {
                let mut flipped = sound.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let by = match Header::parse(&flipped) {
                    Err(_) => "size",
                    Ok(header) => match header.check(mainnet()).unwrap_err() {
                        Flaw::Hash(_) => "hash",
                        Flaw::Adjacents => {
                            assert!(!header.work_is_enough() || header.height == 0, "{bit}");
                            "adjacents"
                        }
                        other => panic!("{bit}: {other}"),
                    },
                };
                *found.entry(by).or_default() += 1;
            }
            let expected = [("adjacents", 3 * 32), ("hash", (318 - 2 - 3 * 4) * 8), ("size", 16)];
            assert_eq!(found, BTreeMap::from(expected));
        }
    }

    /// A header that somebody else made and gave the hash of its content is found by what the hash does not cover.
    #[test]
    fn forged_headers_are_found() {
        let [_, _, real, _, genesis] = real();
        let with = |header: &Header, change: fn(&mut Header)| {
            let mut forged = header.clone();
            change(&mut forged);
            sealed(forged).check(mainnet())
        };
        assert_eq!(with(&real, |header| header.nonce += 1), Err(Flaw::Work));
        assert_eq!(with(&real, |header| header.height = 0), Err(Flaw::Adjacents));
        assert_eq!(with(&real, |header| header.chain = 20), Err(Flaw::Chain(20)));
        assert_eq!(with(&real, |header| header.version = 7), Err(Flaw::Version(7)));
        assert_eq!(with(&real, |header| header.adjacents.truncate(2)), Err(Flaw::Adjacents));
        assert_eq!(with(&genesis, |header| header.nonce += 1), Err(Flaw::Genesis));
        assert_eq!(with(&genesis, |header| header.parent = Digest([0; 32])), Err(Flaw::Genesis));
        assert_eq!(
            with(&real, |header| header.parent =
                Digest::from_base64url("wJ6fVF6_vrzfemqQsWB6nCzfrMwznbZscn53-0DpAcI").unwrap()),
            Err(Flaw::Genesis)
        );
        // Without a version, adjacent chains in another order than the node writes are found, and the work is not known.
        let mut other = real.clone();
        other.adjacents.swap(0, 1);
        assert_eq!(sealed(other).check(None), Err(Flaw::Adjacents));
        let unknown = sealed(Header { version: 21, ..real.clone() });
        assert_eq!(unknown.check(None), Ok(Checked { work: Check::Unknown, adjacents: Check::Unknown }));
        let own_work =
            sealed(Header { version: 17, chain: 0, adjacents: [1, 2].map(|c| (c, real.hash)).into(), ..real });
        let triad = Version::of_name("triad").ok();
        assert_eq!(own_work.check(triad), Ok(Checked { work: Check::Unknown, ..PASSED }));
    }

    /// Genesis headers are a function of their version, but for the payload, time and target.
    #[test]
    fn the_first_header_of_every_chain() {
        let [.., first] = real();
        let mut count = 0;
        for version in &VERSIONS {
            for chain in 0..version.graph_at(u64::MAX).chains_count() {
                let height = version.genesis_height(chain).unwrap();
                let adjacents = version.graph_at(height).adjacents(chain).unwrap();
                let genesis = |chain| crate::chainweb::version::genesis_parent(version.code, chain);
                let header = sealed(Header {
                    chain,
                    height,
                    version: version.code,
                    parent: genesis(chain),
                    adjacents: adjacents.into_iter().map(|chain| (chain, genesis(chain))).collect(),
                    ..first.clone()
                });
                let expected = match version.genesis_hash(chain) {
                    Some(hash) if hash != header.hash => Err(Flaw::Genesis),
                    _ => Ok(Checked { work: Check::NotRequired, ..PASSED }),
                };
                assert_eq!(header.check(Some(version)), expected, "{} {chain}", version.name);
                count += 1;
            }
        }
        assert_eq!(count, 377);
    }
}
