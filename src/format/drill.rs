//! The result of a drill, `drill.json` in its backup.
//!
//! Fields may be added: readers ignore unknown ones.

use serde::{Deserialize, Serialize};

use crate::id::BackupId;

/// The result of the last drill of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drill {
    /// The backup: a result of another one is none. Absent in results of versions until 0.2.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<BackupId>,
    /// Whether the restored databases could be used, and the backup is unchanged.
    pub passed: bool,
    /// When it began, milliseconds since the epoch.
    pub at_ms: u64,
    /// How long the databases were used, in milliseconds; the restore and the removal are not included.
    pub used_ms: u64,
    /// How long all of it took, in milliseconds.
    pub duration_ms: u64,
    /// The operator's command; empty if this program opened the databases itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The last lines that the command wrote.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// The version of this program.
    pub version: String,
}
