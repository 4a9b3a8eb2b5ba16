//! The bus program: runs in the kernel whenever a bus socket sends, and decides what becomes of it.
//!
//! One sk_msg program, attached to the socket map `SOCKETS`. A sender is known by its socket: local
//! address (`spry_ebpf_common::address_of`) and both TCP ports. From there,
//!
//! - [`port`]: a gateway port hands an invocation to an idle instance,
//! - [`instance`]: an instance answers the invocation that it holds: to the port, or on a chain's [`route`] to an idle
//!   instance of the next function; before that it may emit some values,
//! - everything else is a violation and goes to the socket's real peer, which spryd holds.
//!
//! The verdict is always `SK_PASS`: to the redirect's target where one was chosen, else to the real
//! peer. `SK_DROP` would make every later send on that socket fail.
//!
//! Nothing here waits or allocates. Shared state changes by the atomic instructions in [`atomic`];
//! `spry_ebpf_common::Slot` tells the protocol, user space keeps the other half of it
//! (`shm_bus::transport::sockmap`).
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod atomic;
mod claim;
mod instance;
mod maps;
mod message;
mod pick;
mod port;
mod route;
mod trail;

use aya_ebpf::{bindings::sk_action::SK_PASS, macros::sk_msg, programs::SkMsgContext};
use spry_ebpf_common::{MAX_PORTS, index_of};

/// The verdict on every message.
const PASS: u32 = SK_PASS;

/// Runs once per send call on a bus socket.
#[sk_msg]
pub fn spry_bus(ctx: SkMsgContext) -> u32 {
    // SAFETY: the kernel hands a valid context; the verifier checks each access.
    let (address, local, remote) =
        unsafe { ((*ctx.msg).local_ip4, (*ctx.msg).local_port, (*ctx.msg).remote_port) };
    let index = index_of(u32::from_be(address));
    let connection = remote | local;
    if index < MAX_PORTS {
        port::send(&ctx, index, connection);
    } else {
        instance::send(&ctx, index - MAX_PORTS, connection);
    }
    PASS
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Which helpers a program may call depends on its licence; none of ours needs more than this.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
