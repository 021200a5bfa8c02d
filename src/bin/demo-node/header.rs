//! Headers of blocks: fields, bytes, hash. No I/O.
//!
//! ```text
//! flags 8 | time µs 8 | parent 32 | n 2 | n × (chain 4, parent 32) | target 32 | payload 32 | chain 4 | weight 32 |
//! height 8 | version 4 | epoch start µs 8 | nonce 8 | hash 32                          numbers are little-endian
//! ```
//! The hash is the root of a Merkle tree over the fields in an order of its own, see [`Header::computed_hash`].

use crate::hash::{Hash, leaf, root};

/// A target that every proof of work meets. A block with it weighs 1.
pub const EASIEST: [u8; 32] = [0xff; 32];

/// A block without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub flags: u64,
    pub time_us: u64,
    pub parent: Hash,
    /// The parents on the adjacent chains, ascending by chain.
    pub adjacents: Vec<(u32, Hash)>,
    /// A little-endian number, as `weight`.
    pub target: [u8; 32],
    pub payload: Hash,
    pub chain: u32,
    pub weight: [u8; 32],
    pub height: u64,
    pub version: u32,
    pub epoch_us: u64,
    pub nonce: u64,
    pub hash: Hash,
}

impl Header {
    /// The bytes that the node stores.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(210 + 36 * self.adjacents.len());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.time_us.to_le_bytes());
        bytes.extend(self.parent.0);
        bytes.extend((self.adjacents.len() as u16).to_le_bytes());
        for (chain, hash) in &self.adjacents {
            bytes.extend(chain.to_le_bytes());
            bytes.extend(hash.0);
        }
        bytes.extend(self.target);
        bytes.extend(self.payload.0);
        bytes.extend(self.chain.to_le_bytes());
        bytes.extend(self.weight);
        bytes.extend(self.height.to_le_bytes());
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.epoch_us.to_le_bytes());
        bytes.extend(self.nonce.to_le_bytes());
        bytes.extend(self.hash.0);
        bytes
    }

    /// From those bytes; `None` if the length is wrong. The hash is not compared.
    pub fn decode(bytes: &[u8]) -> Option<Header> {
        let mut rest = Rest(bytes);
        let (flags, time_us, parent) = (rest.u64()?, rest.u64()?, rest.hash()?);
        let adjacent_count = u16::from_le_bytes(rest.take()?);
        let mut adjacents = Vec::new();
        for _ in 0..adjacent_count {
            adjacents.push((rest.u32()?, rest.hash()?));
        }
        let header = Header {
            flags,
            time_us,
            parent,
            adjacents,
            target: rest.take()?,
            payload: rest.hash()?,
            chain: rest.u32()?,
            weight: rest.take()?,
            height: rest.u64()?,
            version: rest.u32()?,
            epoch_us: rest.u64()?,
            nonce: rest.u64()?,
            hash: rest.hash()?,
        };
        rest.0.is_empty().then_some(header)
    }

    /// The hash that belongs to the other fields. Chains of adjacent parents are not part of it.
    pub fn computed_hash(&self) -> Hash {
        let mut leaves = vec![
            leaf(0x06, &self.flags.to_le_bytes()),
            leaf(0x07, &self.time_us.to_le_bytes()),
            self.parent,
            leaf(0x11, &self.target),
            self.payload,
            leaf(0x02, &self.chain.to_le_bytes()),
            leaf(0x04, &self.weight),
            leaf(0x03, &self.height.to_le_bytes()),
            leaf(0x08, &self.version.to_le_bytes()),
            leaf(0x19, &self.epoch_us.to_le_bytes()),
            leaf(0x20, &self.nonce.to_le_bytes()),
        ];
        leaves.extend(self.adjacents.iter().map(|(_, hash)| *hash));
        root(&leaves)
    }
}

/// A small number as a target or a weight.
pub fn wide(number: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn hash(&mut self) -> Option<Hash> {
        self.take().map(Hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::{base64, from_base64};

    fn hash(text: &str) -> Hash {
        Hash::from_text(text).expect("32 bytes")
    }

    fn number(text: &str) -> [u8; 32] {
        hash(text).0
    }

    /// Encoded from its fields a header has the bytes of the node, and decoded from them it has the fields.
    fn is_real(header: &Header, bytes: &str) {
        assert_eq!(header.computed_hash(), header.hash);
        assert_eq!(base64(&header.encode()), bytes);
        assert_eq!(Header::decode(&from_base64(bytes).expect("base64")).as_ref(), Some(header));
        let cut_short = &header.encode()[1..];
        assert_eq!(Header::decode(cut_short), None);
    }

    /// Chain 0 of mainnet at height 1000000.
    fn a() -> Header {
        Header {
            flags: 0,
            time_us: 1602382624629329,
            parent: hash("HaXABq1PKSKlhncJk0_Mt75_lL7NS3wI627QfXZ_85k"),
            adjacents: vec![
                (5, hash("Mpic85rur2MYf3zli8s8bHxTFjriFoMPTr6ZPs8sjxM")),
                (10, hash("VBKuhU_hQmuvKlx88A5o-FH0rzNo59NsdxmOGNBQ-yc")),
                (15, hash("MItdqgHZxf7j6l0oE8X-G9-VyMbnQmZrtSniuRe_EJ8")),
            ],
            target: number("QrcsbEm-3WjyCGAGlzIEhLEN3ZMWORoyYy8AAAAAAAA"),
            payload: hash("GpaWbHkHrCjRhY8hKE0qZ1WsBBaG3Y_zkFLV2sYumQA"),
            chain: 0,
            weight: number("NQn4BGftuWAeAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
            height: 1000000,
            version: 5,
            epoch_us: 1602381443331834,
            nonce: 13095611958898437,
            hash: hash("k0an0qEORusqQg9ZjKrxa-0Bo0-hQVYLXqWi5LHxg3k"),
        }
    }

    #[test]
    fn a_block_of_mainnet() {
        is_real(
            &a(),
            "AAAAAAAAAABRoiLHW7EFAB2lwAatTykipYZ3CZNPzLe-f5S-zUt8COtu0H12f_OZAwAFAAAAMpic85rur2MYf3zli8s8bHxTFjri\
     FoMPTr6ZPs8sjxMKAAAAVBKuhU_hQmuvKlx88A5o-FH0rzNo59NsdxmOGNBQ-ycPAAAAMItdqgHZxf7j6l0oE8X-G9-VyMbnQmZr\
     tSniuRe_EJ9CtyxsSb7daPIIYAaXMgSEsQ3dkxY5GjJjLwAAAAAAABqWlmx5B6wo0YWPIShNKmdVrAQWht2P85BS1drGLpkAAAAA\
     ADUJ-ARn7blgHgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAQEIPAAAAAAAFAAAA-na5gFuxBQAFL-3CY4YuAJNGp9KhDkbrKkIPWYyq\
     8WvtAaNPoUFWC16louSx8YN5",
        );
    }

    #[test]
    fn its_child() {
        let bytes = "AAAAAAAAAAA0slHKW7EFAJNGp9KhDkbrKkIPWYyq8WvtAaNPoUFWC16louSx8YN5AwAFAAAAALcxv1ZiwwQ_QX9eOBZMbzIop6n7\
     XtveS1FqOFwyvGMKAAAAC76ElC60qXSJQCHePpzzJxsCYvvrqvmkoHPyZnex-4QPAAAAKv0sz_rTANjoiJwMrdZFCJNFwdH0U_M5\
     ouwMr3BXBfpCtyxsSb7daPIIYAaXMgSEsQ3dkxY5GjJjLwAAAAAAALJlIg1vY3w_9L63bePn1yk_5agvdEbIBBjm3adxc5xWAAAA\
     AGzpBzdiVL9gHgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAQUIPAAAAAAAFAAAA-na5gFuxBQALiBhXgqaHAb4VWug3oddEVy0X9y_j\
     EkE2Kmi_vyGP5ovr-fDIz_Uf";
        let decoded = Header::decode(&from_base64(bytes).expect("base64")).expect("a header");
        let child = Header {
            flags: 0,
            time_us: 1602382678045236,
            parent: a().hash,
            adjacents: decoded.adjacents,
            target: a().target,
            payload: hash("smUiDW9jfD_0vrdt4-fXKT_lqC90RsgEGObdp3FznFY"),
            chain: 0,
            weight: decoded.weight,
            height: 1000001,
            version: 5,
            epoch_us: a().epoch_us,
            nonce: 110239794631051275,
            hash: hash("vhVa6Deh10RXLRf3L-MSQTYqaL-_IY_mi-v58MjP9R8"),
        };
        is_real(&child, bytes);
    }

    #[test]
    fn the_genesis_of_mainnet() {
        let network_parent = |chain: u32| {
            let (code, chain) = (5_u32.to_le_bytes(), chain.to_le_bytes());
            root(&[&b"CHAINWEB_GENESIS"[..], &code, &chain].map(crate::hash::untagged_leaf))
        };
        let genesis = Header {
            flags: 0,
            time_us: 1572393660000000,
            parent: hash("wJ6fVF6_vrzfemqQsWB6nCzfrMwznbZscn53-0DpAcI"),
            adjacents: [2, 3, 5].map(|chain| (chain, network_parent(chain))).to_vec(),
            target: EASIEST,
            payload: hash("k1H3DsInAPvJ0W_zPxnrpkeSNdPUT0S9U8bqDLG739o"),
            chain: 0,
            weight: wide(0),
            height: 0,
            version: 5,
            epoch_us: 1572393660000000,
            nonce: 0,
            hash: hash("SNAMXHBvZtAbeS19x12bZV2p5d1E4BaxrggceNdUxbw"),
        };
        is_real(
            &genesis,
            "AAAAAAAAAAAAJ41tFZYFAMCen1Rev76833pqkLFgepws36zMM522bHJ-d_tA6QHCAwACAAAAfJB-vS9h7ByxNHY19WqM8icji9Cc\
     ATiXn48uouHAMzsDAAAAUsNRCUkMKQBRDVIv0JLDfDllYNg2QO0EXaWcRfMQ6g0FAAAAdTLm0UrocvMNjjz_TMUbWqpZhuBBht_J\
     oNqZpCliaS___________________________________________5NR9w7CJwD7ydFv8z8Z66ZHkjXT1E9EvVPG6gyxu9_aAAAA\
     AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAFAAAAACeNbRWWBQAAAAAAAAAAAEjQDFxwb2bQG3ktfcdd\
     m2VdqeXdROAWsa4IHHjXVMW8",
        );
    }

    #[test]
    fn a_bit_of_any_field_changes_the_hash() {
        let bytes = a().encode();
        let of_adjacent_chain = |at: usize| [50, 86, 122].iter().any(|from| (*from..from + 4).contains(&at));
        for at in (0..bytes.len() - 32).filter(|at| ![48, 49].contains(at)) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            let header = Header::decode(&flipped).expect("the length is the same");
            assert_eq!(header.computed_hash() == header.hash, of_adjacent_chain(at), "byte {at}");
        }
    }
}
