//! The HTTP faces: words in, words out. What a request means, and the listener of the program.

pub(crate) mod accept;
pub(crate) mod head;
pub(crate) mod listener;
pub(crate) mod routes;
