//! The kernel carries: TCP loopback sockets in a socket map, and a program that decides what becomes of each
//! message (`ebpf/programs`).
//!
//! ```text
//!   port P  ══send══►┌───────────┐══redirect══► instance's end  ─ recv, blocking
//!   (spryd)          │  sk_msg   │
//!   port P  ◄redirect│  program  │◄═══send════  instance's end
//!                    └─────┬─────┘
//!          SK_PASS: no idle│instance; a message against the rules
//!                          ▼
//!        the sender's real TCP peer, which spryd holds: P' of a port, the watched end of an instance
//! ```
//!
//! Each of these sockets is one end of a TCP connection within a network namespace that has nothing else in
//! it ([`network`]); both ends are made here. The program knows a sender by its connection: the local address
//! says which entry of the tables it is, both TCP ports that it is the very connection made here. What an
//! instance may do to its socket is bounded by that: disconnected, it finds nobody to connect to (and the hub
//! sees the end of file); bound to another instance's address it isn't that instance's connection, whose port
//! is taken. (A disconnected socket stays in the map since Linux 5.16, so the address alone would not do.)
//!
//! Who is idle and who serves what lies in BPF arrays that this process maps ([`tables`]), as a
//! [`Table`](super::table::Table): the program and the hub change the same words by the same rules.
//!
//! What a message needs is in `ebpf/common`; the life of a slot is drawn there, too. Three points are the
//! transport's own:
//!
//! - A socket enters the map before anybody can wait on it: a receiver that already sleeps in a plain TCP
//!   `recv` would not be woken by a redirect.
//! - A bounced message is known as such when the send returns ([`port`]), so `Event::Bounced` never comes.
//! - Slots are given out in turn, so that a program which was about to deliver to the previous owner of a
//!   slot, and was interrupted there, has long been through when the next owner comes.

mod endpoint;
#[cfg(feature = "hub")]
mod hub;
#[cfg(feature = "hub")]
mod log;
#[cfg(feature = "hub")]
mod network;
#[cfg(feature = "hub")]
mod port;
#[cfg(feature = "hub")]
mod probe;
#[cfg(feature = "hub")]
mod program;
#[cfg(feature = "hub")]
mod sys;
#[cfg(feature = "hub")]
mod tables;
#[cfg(all(test, feature = "hub"))]
mod tests;
#[cfg(feature = "hub")]
mod watch;

pub use endpoint::{SockmapEndpoint, open};
#[cfg(feature = "hub")]
pub use hub::{Sockmap, transport};
