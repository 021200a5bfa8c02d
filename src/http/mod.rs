//! The HTTP interface: who is let in, the routes and their answers, and the listener of the program.

pub(crate) mod accept;
pub(crate) mod connections;
pub(crate) mod door;
pub(crate) mod head;
pub(crate) mod inherited;
pub(crate) mod listener;
pub(crate) mod routes;
pub(crate) mod sockets;
