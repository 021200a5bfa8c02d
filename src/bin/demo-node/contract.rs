//! What a block does to Pact: rows, as a function of the transactions and of the state before it. No I/O.
//!
//! The coinbase pays the miner, a row whose new value depends on the one before; each transaction writes a row of its own.
//! Each has a txid, in order, the coinbase first. An output has the txid and a hash of what was written. So the
//! same transactions have the same outputs on the same state, and others on another state, as in the real Pact.

use crate::hash::{Hash, base64, sha};
use crate::payload::{Part, Payload};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The table that every block writes to.
pub const TABLE: &str = "coin_coin-table";
/// Tables of Pact itself. The genesis writes a row to each that is named in [`genesis_rows`].
pub const SYSTEM_TABLES: [&str; 5] = ["SYS:KeySets", "SYS:ModuleSources", "SYS:Modules", "SYS:Namespaces", "SYS:Pacts"];
/// The row of the miner.
pub const MINER: &str = "demo-miner";
const REWARD: u64 = 23;

/// Distinct row keys per chain: few enough that rows get newer versions, as accounts do.
const ACCOUNTS_COUNT: u32 = 1000;
/// Rows of one payload are at most this long, so a large payload has many rows.
const MAX_ROW_BYTES: usize = 4096;
/// Shorter rows would not tell two payloads apart.
const MIN_ROW_BYTES: usize = 16;

/// What a block needs to know of those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct State {
    pub next_txid: u64,
    /// Of the miner.
    pub balance: u64,
}

/// One new version of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub table: &'static str,
    pub key: String,
    pub txid: u64,
    pub data: Vec<u8>,
}

/// What a block does.
#[derive(Debug)]
pub struct Effect {
    pub rows: Vec<Row>,
    /// Of the transactions, as the transaction index knows them.
    pub hashes: Vec<Hash>,
    pub outputs: Part,
    pub after: State,
}

/// A transaction, in the form of the real ones.
#[derive(Serialize, Deserialize)]
struct Transaction {
    hash: String,
    sigs: Vec<String>,
    cmd: String,
}

#[derive(Serialize, Deserialize)]
struct Command {
    key: String,
    data: String,
    nonce: u64,
}

#[derive(Deserialize)]
struct Account {
    balance: u64,
}

/// Executes transactions on a state; `is_genesis` adds the rows of a new chain. `None` if one is no transaction of ours.
pub fn execute(transactions: &Part, state: State, genesis: Genesis) -> Option<Effect> {
    let balance = state.balance + REWARD;
    let mut rows = match genesis {
        Genesis::Yes => genesis_rows(state.next_txid),
        Genesis::No => vec![],
    };
    let account = json!({ "balance": balance }).to_string().into_bytes();
    rows.push(Row { table: TABLE, key: MINER.into(), txid: state.next_txid, data: account });
    let coinbase = output(&sha(&[&transactions.extra, &state.next_txid.to_be_bytes()]).to_string(), &rows);
    let (mut hashes, mut outputs) = (Vec::new(), Vec::new());
    for (bytes, txid) in transactions.items.iter().zip(state.next_txid + 1..) {
        let transaction: Transaction = serde_json::from_slice(bytes).ok()?;
        let command: Command = serde_json::from_str(&transaction.cmd).ok()?;
        let hash = hash_of(&transaction.cmd);
        if hash.to_string() != transaction.hash {
            return None;
        }
        rows.push(Row { table: TABLE, key: command.key, txid, data: command.data.into_bytes() });
        outputs.push(output(&transaction.hash, &rows[rows.len() - 1..]));
        hashes.push(hash);
    }
    let next_txid = state.next_txid + 1 + hashes.len() as u64;
    let outputs = Part { items: outputs, extra: coinbase };
    Some(Effect { rows, hashes, outputs, after: State { next_txid, balance } })
}

/// Whether a block is the first of its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Genesis {
    Yes,
    No,
}

/// The balance in a row of the miner.
pub fn balance_in(data: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Account>(data).ok().map(|account| account.balance)
}

fn genesis_rows(txid: u64) -> Vec<Row> {
    let row = |table, key: &str, data: &str| Row { table, key: key.into(), txid, data: data.as_bytes().to_vec() };
    vec![
        row("SYS:KeySets", "ns-admin-keyset", r#"{"pred":"keys-any","keys":[]}"#),
        row("SYS:ModuleSources", "coin", "(module coin GOVERNANCE (defcap GOVERNANCE () (enforce false \"\")))"),
        row("SYS:Modules", "coin", r#"{"name":"coin"}"#),
        row("SYS:Namespaces", "user", r#"{"name":"user"}"#),
    ]
}

fn output(request_key: &str, rows: &[Row]) -> Vec<u8> {
    let parts = rows.iter().flat_map(|row| [row.table.as_bytes(), b"\0", row.key.as_bytes(), b"\0", &row.data[..]]);
    let logs = sha(&parts.collect::<Vec<_>>()).to_string();
    let txid = rows[rows.len() - 1].txid;
    let result = json!({ "status": "success", "data": "Write succeeded" });
    let output = json!({
        "gas": 0, "result": result, "reqKey": request_key, "logs": logs, "metaData": null, "continuation": null, "txId": txid,
    });
    output.to_string().into_bytes()
}

/// Pact's hash of a command is BLAKE2b-256.
fn hash_of(command: &str) -> Hash {
    let hash = blake2b_simd::Params::new().hash_length(32).hash(command.as_bytes());
    Hash::from_slice(hash.as_bytes()).expect("the hash length is set to 32 above")
}

/// Transactions of about `payload_bytes`.
pub fn new_transactions(rng: &mut fastrand::Rng, payload_bytes: usize) -> Part {
    let row_bytes = (payload_bytes / 4).clamp(MIN_ROW_BYTES, MAX_ROW_BYTES);
    let row_count = (payload_bytes / row_bytes).max(1);
    Part { items: (0..row_count).map(|_| new_transaction(rng, row_bytes)).collect(), extra: miner_data() }
}

/// Text that does not compress, so that sizes on disk are the sizes asked for.
fn new_transaction(rng: &mut fastrand::Rng, row_bytes: usize) -> Vec<u8> {
    let mut bytes = vec![0; row_bytes * 3 / 4];
    rng.fill(&mut bytes);
    let key = format!("k:{:08}", rng.u32(0..ACCOUNTS_COUNT));
    let command = Command { key, data: base64(&bytes), nonce: rng.u64(..) };
    let cmd = serde_json::to_string(&command).expect("strings and numbers always encode");
    let transaction = Transaction { hash: hash_of(&cmd).to_string(), sigs: vec![], cmd };
    serde_json::to_vec(&transaction).expect("strings always encode")
}

fn miner_data() -> Vec<u8> {
    json!({ "account": MINER, "predicate": "keys-all", "public-keys": [] }).to_string().into_bytes()
}

/// The transactions of a genesis: none.
pub fn genesis_transactions() -> Part {
    Part { items: vec![], extra: miner_data() }
}

/// A payload of these transactions and what they did.
pub fn payload(transactions: Part, effect: &Effect) -> Payload {
    Payload { transactions, outputs: effect.outputs.clone() }
}
