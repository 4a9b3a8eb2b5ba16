//! The filter on system calls (seccomp): an allow-list, made from tables before the fork, as classic BPF.
//!
//! What a call that isn't allowed gets is chosen per entry:
//!
//! - **`EPERM`** for what the [`table`] names as forbidden: a library that tries it should say "not permitted".
//! - **`ENOSYS`** for everything else, so that a libc or an interpreter newer than the table falls back to what it
//!   did before that call existed. `clone3` is among these: its flags lie in memory, where a filter can't
//!   look, and every libc goes on with `clone`, whose flags it can check.
//! - **Death** for the calls of another architecture (32 bit, x32) only: their numbers mean something else, and no
//!   compiler for this machine makes them. Nothing else is worth a process: libraries try things.
//!
//! The kernel remembers which calls are allowed whatever their arguments (since 5.11), and doesn't run the program for
//! these; the few that depend on arguments come first in it.

mod table;

use crate::sys::confine::Instruction;
pub use table::Profile;
use table::{Check, Rule};

/// `AUDIT_ARCH_*` of this machine: its ELF number, 64 bit, little endian.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;

/// Numbers from here on are x32's.
const X32: u32 = 0x4000_0000;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const IF_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

const fn errno(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

fn instruction(code: u16, k: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, jt: if_true, jf: if_false, k }
}

fn answer(value: u32) -> Instruction {
    instruction(RETURN, value, 0, 0)
}

/// The filter for functions of this kind.
pub fn compile(profile: Profile) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD, ARCH, 0, 0),
        instruction(IF_EQUAL, ARCHITECTURE, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        instruction(LOAD, NUMBER, 0, 0),
        instruction(IF_AT_LEAST, X32, 0, 1),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
    ];
    for rule in table::rules(profile) {
        let body = body(&rule.check);
        // the bodies of argument checks have some twenty instructions
        let past = u8::try_from(body.len()).expect("short");
        program.push(instruction(IF_EQUAL, rule.number(), 0, past));
        program.extend(body);
    }
    program.push(answer(errno(libc::ENOSYS)));
    program
}

/// What is done when the number is the rule's.
fn body(check: &Check) -> Vec<Instruction> {
    match check {
        Check::Allow => vec![answer(libc::SECCOMP_RET_ALLOW)],
        Check::Refuse(code) => vec![answer(errno(*code))],
        Check::OneOf { argument, values, otherwise } => {
            let mut body = vec![load_argument(*argument)];
            for value in *values {
                body.push(instruction(IF_EQUAL, *value, 0, 1));
                body.push(answer(libc::SECCOMP_RET_ALLOW));
            }
            body.push(answer(errno(*otherwise)));
            body
        }
        Check::NoneOf { argument, bits, otherwise } => vec![
            load_argument(*argument),
            instruction(IF_ANY_BIT, *bits, 0, 1),
            answer(errno(*otherwise)),
            answer(libc::SECCOMP_RET_ALLOW),
        ],
        Check::NoneOfNorBoth { argument, bits, both: [one, other], otherwise } => vec![
            load_argument(*argument),
            instruction(IF_ANY_BIT, *bits, 2, 0),
            instruction(IF_ANY_BIT, *one, 0, 2),
            instruction(IF_ANY_BIT, *other, 0, 1),
            answer(errno(*otherwise)),
            answer(libc::SECCOMP_RET_ALLOW),
        ],
        Check::Zero { arguments, otherwise } => {
            let mut body = Vec::new();
            for argument in *arguments {
                body.push(load_argument(*argument));
                body.push(instruction(IF_EQUAL, 0, 1, 0));
                body.push(answer(errno(*otherwise)));
            }
            body.push(answer(libc::SECCOMP_RET_ALLOW));
            body
        }
    }
}

/// The low half: what is checked here is an `int` in the kernel, which ignores the rest as well.
fn load_argument(argument: u32) -> Instruction {
    instruction(LOAD, ARGUMENTS + 8 * argument, 0, 0)
}

impl Rule {
    fn number(&self) -> u32 {
        u32::try_from(self.call).expect("a system call's number")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What the program answers: the kernel's interpreter, for the instructions that are used.
    fn run(program: &[Instruction], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let (mut at, mut accumulator) = (0, 0_u32);
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            let taken = match code {
                LOAD => {
                    accumulator = match k {
                        NUMBER => number,
                        ARCH => arch,
                        offset => arguments[((offset - ARGUMENTS) / 8) as usize] as u32,
                    };
                    continue;
                }
                RETURN => return k,
                IF_EQUAL => accumulator == k,
                IF_AT_LEAST => accumulator >= k,
                IF_ANY_BIT => accumulator & k != 0,
                other => panic!("instruction {other}"),
            };
            at += usize::from(if taken { jt } else { jf });
        }
    }

    fn all() -> [Profile; 4] {
        [(false, false), (false, true), (true, false), (true, true)]
            .map(|(python, host_network)| Profile { python, host_network })
    }

    #[test]
    fn every_call_is_named_once_and_the_kernel_takes_the_length() {
        for profile in all() {
            let mut seen = BTreeSet::new();
            for rule in table::rules(profile) {
                assert!(seen.insert(rule.call), "call {} is there twice", rule.call);
            }
            let len = compile(profile).len();
            assert!(len <= 4096, "{len}");
        }
    }

    #[test]
    fn answers_are_what_the_table_says() {
        let allowed = libc::SECCOMP_RET_ALLOW;
        for profile in all() {
            let program = compile(profile);
            let ask = |number: i64, first: u64, second: u64| {
                run(&program, ARCHITECTURE, number as u32, [first, second, 0, 0, 0, 0])
            };
            assert_eq!(ask(libc::SYS_read, 0, 0), allowed);
            assert_eq!(ask(libc::SYS_clone, libc::SIGCHLD as u64, 0), allowed);
            for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET, libc::CLONE_NEWPID] {
                assert_eq!(ask(libc::SYS_clone, (flag | libc::SIGCHLD) as u64, 0), errno(libc::EPERM));
            }
            let (sibling, memory) = (libc::CLONE_PARENT as u64, libc::CLONE_VM as u64);
            assert_eq!(ask(libc::SYS_clone, sibling, 0), allowed, "as instances are made");
            assert_eq!(ask(libc::SYS_clone, memory | libc::CLONE_VFORK as u64, 0), allowed, "posix_spawn");
            assert_eq!(ask(libc::SYS_clone, sibling | memory, 0), errno(libc::EPERM));
            for call in [libc::SYS_sched_setaffinity, libc::SYS_setpriority, libc::SYS_prlimit64] {
                assert_eq!(ask(call, 0, 0), allowed, "its own");
            }
            for call in [libc::SYS_sched_setaffinity, libc::SYS_prlimit64] {
                assert_eq!(ask(call, 0, 8), allowed, "its own");
                assert_eq!(ask(call, 2, 8), errno(libc::EPERM), "another's");
            }
            assert_eq!(ask(libc::SYS_setpriority, libc::PRIO_PROCESS as u64, 2), errno(libc::EPERM));
            assert_eq!(ask(libc::SYS_setpriority, libc::PRIO_USER as u64, 0), errno(libc::EPERM));
            assert_eq!(ask(libc::SYS_unshare, libc::CLONE_THREAD as u64, 0), allowed);
            assert_eq!(ask(libc::SYS_unshare, libc::CLONE_NEWUSER as u64, 0), errno(libc::EPERM));
            assert_eq!(ask(libc::SYS_clone3, 0, 0), errno(libc::ENOSYS));
            let of_others =
                [libc::SYS_ptrace, libc::SYS_mount, libc::SYS_setns, libc::SYS_chroot, libc::SYS_bpf];
            let class = [libc::SYS_sched_setscheduler, libc::SYS_sched_setattr, libc::SYS_sched_setparam];
            for call in of_others.into_iter().chain(class) {
                assert_eq!(ask(call, 0, 0), errno(libc::EPERM), "{call}");
            }
            assert_eq!(ask(4000, 0, 0), errno(libc::ENOSYS), "unknown");
            assert_eq!(ask(libc::SYS_socketpair, libc::AF_UNIX as u64, 0), allowed);
            assert_eq!(ask(libc::SYS_socketpair, libc::AF_INET as u64, 0), errno(libc::EPERM));
            let (socket, connect) = if profile.host_network {
                (allowed, allowed)
            } else {
                (errno(libc::EPERM), errno(libc::EPERM))
            };
            assert_eq!(ask(libc::SYS_socket, libc::AF_INET as u64, 0), socket);
            assert_eq!(ask(libc::SYS_connect, 0, 0), connect);
            assert_ne!(ask(libc::SYS_socket, libc::AF_PACKET as u64, 0), allowed);
            assert_ne!(ask(libc::SYS_socket, libc::AF_VSOCK as u64, 0), allowed);
            assert_eq!(ask(libc::SYS_ioctl, 0, libc::FIONREAD), allowed);
            assert_eq!(ask(libc::SYS_ioctl, 0, libc::TIOCSTI), errno(libc::ENOTTY));
        }
    }

    #[test]
    fn another_architecture_is_death() {
        let program = compile(Profile { python: true, host_network: true });
        let dead = libc::SECCOMP_RET_KILL_PROCESS;
        assert_eq!(run(&program, 0x4000_0003, 0, [0; 6]), dead, "32 bit");
        assert_eq!(run(&program, ARCHITECTURE, X32 | libc::SYS_read as u32, [0; 6]), dead, "x32");
    }
}
