//! The result of a start-up proof, `starts.json` in its backup.
//!
//! Fields may be added: readers ignore unknown ones.

use serde::{Deserialize, Serialize};

use crate::chainweb::start::Verdict;

/// The result of the last start-up proof of a backup: whether a node starts from it, and what it does then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartProof {
    /// Yes, no or unknown, in the field `verdict`, with its fields.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// When the proof began, milliseconds since the epoch.
    pub at_ms: u64,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// The version of this program.
    pub program: String,
}

impl StartProof {
    /// Why a node does not start; `None` if it does, or if that is not known.
    pub fn refutation(&self) -> Option<&str> {
        match &self.verdict {
            Verdict::No { reason } => Some(reason),
            Verdict::Yes(_) | Verdict::Unknown { .. } => None,
        }
    }
}
