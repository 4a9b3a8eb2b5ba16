//! The command line and the control API together: the real `spry`, over a real socket and hyper, to the real
//! router and store.
//!
//! What is left out is function processes: [`shelf::Shelf`] stores functions and answers questions about them, but
//! starts none. The tests with spryd itself start where these end.

mod api;
mod chains;
mod commands;
mod server;
mod shelf;
mod usage;
