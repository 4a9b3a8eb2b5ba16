//! The message being sent, as bytes that nobody else can change any more.

use aya_ebpf::{helpers::bpf_msg_pull_data, programs::SkMsgContext};
use spry_ebpf_common::{DESCRIPTOR_LEN, Descriptor};

use crate::maps::SOCKETS;

/// The message, if it is exactly one descriptor.
///
/// Pages that came by splice, sendfile or zero-copy still belong to the sender, who could change them
/// after we have looked. The kernel hides such pages from direct access (`data == data_end`), and
/// `bpf_msg_pull_data` then replaces them by a copy. The same call joins a message that lies in pieces.
#[inline(always)]
pub(crate) fn descriptor(ctx: &SkMsgContext) -> Option<*mut Descriptor> {
    if ctx.size() as usize != DESCRIPTOR_LEN {
        return None;
    }
    if ctx.data() + DESCRIPTOR_LEN > ctx.data_end() {
        // SAFETY: the context is the one that the kernel gave; earlier data pointers are gone.
        if unsafe { bpf_msg_pull_data(ctx.msg, 0, DESCRIPTOR_LEN as u32, 0) } != 0 {
            return None;
        }
        if ctx.data() + DESCRIPTOR_LEN > ctx.data_end() {
            return None;
        }
    }
    Some(ctx.data() as *mut Descriptor)
}

/// Sends the message into the receive queue of the socket at `index`. False: there is none.
#[inline(always)]
pub(crate) fn redirect(ctx: &SkMsgContext, index: u32) -> bool {
    const INGRESS: u64 = aya_ebpf::bindings::BPF_F_INGRESS as u64;
    // SAFETY: context and map are the kernel's.
    let verdict = unsafe { SOCKETS.redirect_msg(ctx, index, INGRESS) };
    verdict as u32 == crate::PASS
}
