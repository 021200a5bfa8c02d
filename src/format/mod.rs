//! Our own names on the disk, and our durable formats.

pub(crate) mod drill;
pub(crate) mod hooks;
pub(crate) mod layout;
pub(crate) mod manifest;
pub(crate) mod pact_sums;
pub(crate) mod record;
pub(crate) mod seal;
pub(crate) mod start_proof;
