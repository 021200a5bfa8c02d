//! The node: its names on disk, its tables, its formats, the networks. No I/O; every fact with its source.
//!
//! | to know | see |
//! |---|---|
//! | names and paths on disk, keys of the configuration file | [`names`], all of it also here |
//! | tables of RocksDB, keys in them | [`tables::Table`], [`tables::CutPlace`] |
//! | a cut | [`cut::Cut::parse`] |
//! | a block header: bytes, hash, work | [`header::Header`] |
//! | the checks of a header | [`header::Header::check`], [`header::Header::follows`]; [`rules`] |
//! | the network: chains, graphs, genesis blocks | [`version::Version`]: `of_name`, `of_code`; [`graph::Graph`] |
//! | a payload, its transactions and outputs | [`payload::Payload`], [`payload::Items`] |
//! | tables of a Pact database; whether it has all blocks | [`pact`]; [`pact::History`] |
//! | what a node does when it starts from its databases | [`start::prove`], [`stored`] |
//! | hashes, numbers of 256 bits, Merkle trees | [`digest::Digest`], [`number::Number`], [`merkle`] |
//!
//! ```
//! use chainweb_backup::chainweb::{header::Header, tables::Table, version::Version};
//! # let (value, height, hash) = ([0; 210], 0, chainweb_backup::chainweb::digest::Digest([0; 32]));
//! let key = Table::Headers(7).key(height, &hash);
//! let header = Header::parse(&value)?;
//! let version = Version::of_code(header.version); // unknown is not wrong
//! let checked = header.check(version.ok());
//! # Ok::<(), chainweb_backup::chainweb::header::Malformed>(())
//! ```
//!
//! Sources are named by repository and file: `chainweb-node` is kda-community/chainweb-node 3.2, equal to kadena-io's unless a branch
//! is named.
//!
//! Invariant: no other file of the library or the program spells a name of the node; `tidy` checks that. The demo node and the
//! tests spell the names themselves, so that they would find a wrong name here.

pub mod cut;
pub mod digest;
pub mod graph;
pub mod header;
pub mod merkle;
pub mod names;
pub mod number;
pub mod pact;
pub mod payload;
pub mod rules;
pub mod start;
pub mod stored;
pub mod tables;
pub mod version;

pub use names::*;
