//! Our own names and durable formats: pure, no I/O.

pub(crate) mod layout;
pub(crate) mod manifest;
pub(crate) mod record;
pub(crate) mod seal;
