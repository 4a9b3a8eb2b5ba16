//! Going back: an instance that has answered becomes what it was before, instead of ending (docs/decisions/0010).
//!
//! Who rewinds is a stub that spryd has made ([`spry_wire::rewind`]); what it goes back to, spryd has looked up; whether it may, spryd
//! says each time. The runtime's part is small, and spryd doesn't trust it, for it is in the function's process:
//!
//! - [`prepare`], in the zygote, **before any code of the function runs**: this part is trusted. It maps the stub, puts
//!   `/proc`'s pages about processes out of reach, sees to it that there is no `rseq` area, filters system calls ([`filter`]), and hands over the descriptor by
//!   which the filter asks.
//! - [`hold`], in an instance: it tells spryd where its registers are, and gets the plan; maps it, seals the mappings that
//!   the plan names, and goes to the stub. The first rewinding ends this instance's birth.
//! - [`again`], after each answer: back to where [`hold`] returned.

#[cfg(target_arch = "x86_64")]
mod filter;

use std::os::fd::OwnedFd;

/// What could be done before the function is loaded: the descriptor that the filter asks by.
#[cfg(target_arch = "x86_64")]
pub(crate) fn prepare(stub: &OwnedFd) -> Result<OwnedFd, String> {
    use crate::sys::{self, rewind};
    let at = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    rewind::map_stub(stub).map_err(at("map the stub"))?;
    // It would take a request out of the stub, to where the area says.
    sys::forget_rseq();
    if sys::has_rseq() {
        return Err(
            "the kernel has an area for restartable sequences (rseq) that can't be taken back".to_owned()
        );
    }
    sys::landlock::hide_processes().map_err(at("put /proc out of reach (landlock)"))?;
    rewind::add_asking_filter(&mut filter::compile())
        .map_err(at("filter system calls and be asked about them"))
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn prepare(_stub: &OwnedFd) -> Result<OwnedFd, String> {
    Err("there is a stub for x86-64 only".to_owned())
}

/// Asks the kernel not to make huge pages of what is mapped now: it counts no fault for what becomes an instance's own by that, and
/// spryd would have to look each time. If it doesn't take it, spryd looks.
pub(crate) fn keep_pages_small() {
    #[cfg(target_arch = "x86_64")]
    crate::sys::rewind::keep_pages_small();
}

/// What has come of an instance's wish to be rewound.
#[cfg(target_arch = "x86_64")]
pub(crate) fn hold(control: &OwnedFd) {
    use std::os::fd::AsFd;

    use spry_wire::control::{self, FromInstance, ToInstance};

    use crate::sys::{self, rewind};
    let announce = |registers: u64| {
        if control::send(control.as_fd(), &FromInstance::Hold { registers }, &[]).is_err() {
            sys::exit_now(2);
        }
        let files = match control::receive::<ToInstance>(control.as_fd()) {
            Ok(Some((ToInstance::Plan, fds))) => <[OwnedFd; 3]>::try_from(fds).ok(),
            _ => None,
        };
        let Some([plan, orders, common]) = files else { sys::exit_now(2) };
        if let Err(error) = rewind::seal_by(&plan, &orders, &common) {
            eprintln!("spry: the instance can't be sealed: {error}");
            sys::exit_now(2);
        }
        rewind::go_to_stub()
    };
    if let Err(error) = rewind::hold(announce) {
        eprintln!("spry: the instance can't be held: {error}");
        sys::exit_now(2);
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn hold(_control: &OwnedFd) {
    unreachable!("spryd asks for it only where there is a stub");
}

/// Goes back to where [`hold`] returned. All that happened since is gone then.
pub(crate) fn again() -> ! {
    #[cfg(target_arch = "x86_64")]
    crate::sys::rewind::go_to_stub();
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("spryd asks for it only where there is a stub");
}
