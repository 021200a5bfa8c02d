//! The result of a start-up proof, `starts.json` in its backup.
//!
//! Fields may be added: readers ignore unknown ones.

use serde::{Deserialize, Serialize};

use crate::chainweb::start::Verdict;
use crate::id::BackupId;

/// The result of the last start-up proof of a backup: whether a node starts from it, and what it does then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartProof {
    /// Yes, no or unknown, in the field `verdict`, with its fields.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// The backup: a note of another one is none.
    pub id: BackupId,
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

    /// Whether this result takes the place of an earlier one of the same backup, which may have looked at more: what is not known
    /// replaces nothing, and blocks that were only sampled refute no refutation.
    pub(crate) fn replaces(&self, earlier: &StartProof) -> bool {
        match &self.verdict {
            Verdict::No { .. } => true,
            Verdict::Yes(start) => start.is_whole() || earlier.refutation().is_none(),
            Verdict::Unknown { .. } => false,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::chainweb::start::{ChainStart, Start};

    fn proof(verdict: Verdict) -> StartProof {
        let id = BackupId::parse("1600000000000").unwrap();
        StartProof { verdict, id, at_ms: 0, duration_ms: 0, program: String::new() }
    }

    fn yes(replay: u64, payloads_checked: u64) -> StartProof {
        let chains = BTreeMap::from([(0, ChainStart { replay, ..ChainStart::default() })]);
        proof(Verdict::Yes(Start { chains, payloads_checked, ..Start::default() }))
    }

    #[test]
    fn a_sample_does_not_replace_a_refutation_and_the_unknown_replaces_nothing() {
        let reason = || "why".to_owned();
        let (no, unknown) = (proof(Verdict::No { reason: reason() }), proof(Verdict::Unknown { reason: reason() }));
        assert!(!yes(2000, 1000).replaces(&no) && yes(2000, 1000).replaces(&yes(5, 5)));
        assert!(yes(2000, 2000).replaces(&no) && no.replaces(&yes(2000, 2000)));
        assert!([&no, &unknown, &yes(1, 1)].into_iter().all(|earlier| !unknown.replaces(earlier)));
    }

    #[test]
    fn any_numbers_have_a_sum() {
        let StartProof { verdict: Verdict::Yes(mut start), .. } = yes(u64::MAX, 0) else { panic!() };
        start.chains.insert(1, ChainStart { replay: 1 << 63, rewind: u64::MAX, height: 0 });
        assert_eq!((start.replay_sum(), start.rewind_sum(), start.is_whole()), (u64::MAX, u64::MAX, false));
    }
}
