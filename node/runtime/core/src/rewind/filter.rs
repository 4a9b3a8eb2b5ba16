//! Which system calls of a function whose instances are rewound are told to spryd, and which are refused.
//!
//! A rewinding restores memory, registers, descriptors, the signal mask. What else a process can change about itself, it
//! changes by a system call, and these are told: the instance is replaced after its answer (docs/decisions/0010 has the list by
//! kind of state). What would show how much earlier requests have used is told as well, and answered with zeros.
//!
//! The filter is installed before any code of the function runs, so it can't know addresses of its memory. It needn't:
//! known mappings are sealed (`mseal`), and new ones are unmapped.
//!
//! It also does for frozen memory what `freeze::guard` does in other zygotes, wherever the memory is. For it stays the last filter: one
//! that was added while the function is loaded could pretend that the stub's calls are done, so spryd rewinds no instance
//! that has more.
//!
//! Descriptors below [`FDS`] stay. Whatever would change them is told; so is what would give them second names, by which
//! they could be changed unseen.

use libc::sock_filter as Instruction;
use spry_wire::rewind::{FDS, STUB_ASKS, STUB_AT, STUB_LEN};

use crate::freeze::EMPTYING;

const ARCHITECTURE: u32 = 0xC000_003E;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const IF_EQUAL_X: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_X) as u16;
const IF_ANY: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const TO_X: u16 = (libc::BPF_MISC | libc::BPF_TAX) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const CALLED_FROM: u32 = 8;
const ARGUMENTS: u32 = 16;

const TELL: u32 = libc::SECCOMP_RET_USER_NOTIF;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

const fn refuse(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

/// The call says that it is done, and isn't.
const PRETEND: u32 = refuse(0);

/// When a call isn't let through.
#[derive(Debug, Clone, Copy)]
enum When {
    Always,
    /// This argument is one of the descriptors that stay.
    Stays(u32),
    /// The same, and the other argument is none of these.
    StaysUnless(u32, u32, &'static [u32]),
    /// This argument is one of these.
    IsOneOf(u32, &'static [u32]),
    /// The same, and it isn't the stub that calls.
    IsOneOfBesideStub(u32, &'static [u32]),
    /// This argument is none of these.
    IsNoneOf(u32, &'static [u32]),
    /// This argument, a pointer, isn't null.
    Given(u32),
    /// The same, and the first is this.
    GivenWith(u32, u32),
    /// These two arguments, lengths, differ, or a third has this bit.
    DifferOrHas([u32; 2], u32, u32),
}

#[derive(Debug, Clone, Copy)]
struct Rule {
    call: libc::c_long,
    when: When,
    action: u32,
}

const fn tell(call: libc::c_long, when: When) -> Rule {
    Rule { call, when, action: TELL }
}

/// Clocks that everybody shares. All others count what this process has used.
const SHARED_CLOCKS: &[u32] = &[0, 1, 4, 5, 6, 7, 8, 9, 11];
/// Advice that leaves nothing behind once private pages are dropped: `WILLNEED`, `DONTNEED`, `FREE`, `COLD`, `PAGEOUT`, and
/// the two that populate.
const PASSING_ADVICE: &[u32] = &[3, 4, 8, 20, 21, 22, 23];
const ASKING_COMMANDS: &[u32] = &[libc::F_GETFD as u32, libc::F_GETFL as u32, 1032];
/// Requests that only look: bytes in a pipe, a terminal's state, size and owner.
const LOOKING_REQUESTS: &[u32] =
    &[libc::FIONREAD as u32, libc::TCGETS as u32, libc::TIOCGWINSZ as u32, libc::TIOCGPGRP as u32];
const SET_PIPE_SIZE: u32 = libc::F_SETPIPE_SZ as u32;
/// `ARCH_SET_GS`, `ARCH_SET_FS`, `ARCH_GET_FS`, `ARCH_GET_GS`: the stub sets both.
const BASES: &[u32] = &[0x1001, 0x1002, 0x1003, 0x1004];

/// First those that are refused: they come first for a call that has more than one rule.
const RULES: &[Rule] = &[
    // What reads as zeros elsewhere once it is given back or grown holds what was frozen there.
    Rule {
        call: libc::SYS_madvise,
        when: When::IsOneOfBesideStub(2, &EMPTYING),
        action: refuse(libc::EINVAL),
    },
    Rule {
        call: libc::SYS_mremap,
        when: When::DifferOrHas([1, 2], 3, libc::MREMAP_DONTUNMAP as u32),
        action: refuse(libc::EINVAL),
    },
    // Earlier requests' use of the processor, by way of a clock that nobody but this process has.
    Rule {
        call: libc::SYS_timer_create,
        when: When::IsNoneOf(0, SHARED_CLOCKS),
        action: refuse(libc::EINVAL),
    },
    Rule {
        call: libc::SYS_clock_nanosleep,
        when: When::IsNoneOf(0, SHARED_CLOCKS),
        action: refuse(libc::EINVAL),
    },
    Rule {
        call: libc::SYS_prlimit64,
        when: When::GivenWith(2, libc::RLIMIT_CPU),
        action: refuse(libc::EPERM),
    },
    // Counters of the bus's socket.
    Rule { call: libc::SYS_getsockopt, when: When::Stays(0), action: refuse(libc::EPERM) },
    // It would go on with a wait that an earlier request began.
    Rule { call: libc::SYS_restart_syscall, when: When::Always, action: refuse(libc::EINTR) },
    // When the kernel goes back to an instance, it goes on where its area for restartable sequences says, if that is so: from
    // within the stub, too, and before anything is restored. So there is none. The C library ends the process if a new thread's is
    // refused, and does without when the kernel writes nothing there.
    Rule { call: libc::SYS_rseq, when: When::Always, action: PRETEND },
    // Told, and answered with zeros.
    tell(libc::SYS_getrusage, When::Always),
    tell(libc::SYS_times, When::Always),
    tell(libc::SYS_clock_gettime, When::IsNoneOf(0, SHARED_CLOCKS)),
    // Processes and threads.
    tell(libc::SYS_clone, When::Always),
    tell(libc::SYS_fork, When::Always),
    tell(libc::SYS_vfork, When::Always),
    tell(libc::SYS_execve, When::Always),
    tell(libc::SYS_execveat, When::Always),
    tell(libc::SYS_set_tid_address, When::Always),
    tell(libc::SYS_set_robust_list, When::Always),
    // Signals and timers.
    tell(libc::SYS_rt_sigaction, When::Given(1)),
    tell(libc::SYS_sigaltstack, When::Given(0)),
    tell(libc::SYS_setitimer, When::Always),
    tell(libc::SYS_alarm, When::Always),
    tell(libc::SYS_timer_create, When::Always),
    // One that was made before the instance was held is there for each request: what it is set to stays.
    tell(libc::SYS_timer_settime, When::Always),
    tell(libc::SYS_timer_delete, When::Always),
    // Where it is, and who.
    tell(libc::SYS_chdir, When::Always),
    tell(libc::SYS_fchdir, When::Always),
    tell(libc::SYS_umask, When::Always),
    tell(libc::SYS_setpgid, When::Always),
    tell(libc::SYS_setsid, When::Always),
    tell(libc::SYS_setuid, When::Always),
    tell(libc::SYS_setgid, When::Always),
    tell(libc::SYS_setreuid, When::Always),
    tell(libc::SYS_setregid, When::Always),
    tell(libc::SYS_setresuid, When::Always),
    tell(libc::SYS_setresgid, When::Always),
    tell(libc::SYS_capset, When::Always),
    tell(libc::SYS_prctl, When::Always),
    tell(libc::SYS_arch_prctl, When::IsNoneOf(0, BASES)),
    tell(libc::SYS_seccomp, When::Always),
    tell(libc::SYS_landlock_restrict_self, When::Always),
    // Limits and scheduling.
    tell(libc::SYS_prlimit64, When::Given(2)),
    tell(libc::SYS_setrlimit, When::Always),
    tell(libc::SYS_setpriority, When::Always),
    tell(libc::SYS_sched_setaffinity, When::Always),
    tell(libc::SYS_sched_setparam, When::Always),
    tell(libc::SYS_sched_setscheduler, When::Always),
    tell(libc::SYS_membarrier, When::Always),
    // What memory is, rather than what is in it.
    tell(libc::SYS_madvise, When::IsNoneOf(2, PASSING_ADVICE)),
    tell(libc::SYS_mlock, When::Always),
    tell(libc::SYS_mlock2, When::Always),
    tell(libc::SYS_munlock, When::Always),
    tell(libc::SYS_mbind, When::Always),
    tell(libc::SYS_set_mempolicy, When::Always),
    tell(libc::SYS_pkey_alloc, When::Always),
    tell(libc::SYS_pkey_free, When::Always),
    tell(libc::SYS_pkey_mprotect, When::Always),
    // The descriptors that stay: another file in their place, their flags, their second names.
    tell(libc::SYS_close, When::Stays(0)),
    tell(libc::SYS_close_range, When::Stays(0)),
    tell(libc::SYS_dup, When::Stays(0)),
    tell(libc::SYS_dup2, When::Stays(0)),
    tell(libc::SYS_dup2, When::Stays(1)),
    tell(libc::SYS_dup3, When::Stays(0)),
    tell(libc::SYS_dup3, When::Stays(1)),
    tell(libc::SYS_sendmsg, When::Always),
    tell(libc::SYS_sendmmsg, When::Always),
    tell(libc::SYS_fcntl, When::IsOneOf(1, &[SET_PIPE_SIZE])),
    tell(libc::SYS_fcntl, When::StaysUnless(0, 1, ASKING_COMMANDS)),
    tell(libc::SYS_ioctl, When::StaysUnless(0, 1, LOOKING_REQUESTS)),
    tell(libc::SYS_flock, When::Stays(0)),
    tell(libc::SYS_shutdown, When::Stays(0)),
    tell(libc::SYS_connect, When::Stays(0)),
    tell(libc::SYS_bind, When::Stays(0)),
    tell(libc::SYS_listen, When::Stays(0)),
    tell(libc::SYS_setsockopt, When::Stays(0)),
    tell(libc::SYS_epoll_ctl, When::Stays(0)),
    // Who a file belongs to, its mode and its times: nothing here can be written to but what stays.
    tell(libc::SYS_fchmod, When::Always),
    tell(libc::SYS_fchmodat, When::Always),
    tell(libc::SYS_chmod, When::Always),
    tell(libc::SYS_fchown, When::Always),
    tell(libc::SYS_fchownat, When::Always),
    tell(libc::SYS_chown, When::Always),
    tell(libc::SYS_lchown, When::Always),
    tell(libc::SYS_utimensat, When::Always),
    tell(libc::SYS_futimesat, When::Always),
    tell(libc::SYS_utime, When::Always),
    tell(libc::SYS_utimes, When::Always),
];

fn put(code: u16, k: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, jt: if_true, jf: if_false, k }
}

fn argument(index: u32) -> u32 {
    ARGUMENTS + 8 * index
}

/// The filter.
pub(super) fn compile() -> Vec<Instruction> {
    let mut program = vec![
        put(LOAD, ARCH, 0, 0),
        put(IF_EQUAL, ARCHITECTURE, 1, 0),
        put(RETURN, ALLOW, 0, 0), // another architecture's calls are the sandbox's affair
        put(LOAD, NUMBER, 0, 0),
        // The stub asks.
        put(IF_EQUAL, libc::SYS_rt_sigprocmask as u32, 0, 6),
        put(LOAD, CALLED_FROM, 0, 0),
        put(IF_EQUAL, STUB_ASKS as u32, 0, 3),
        put(LOAD, CALLED_FROM + 4, 0, 0),
        put(IF_EQUAL, (STUB_ASKS >> 32) as u32, 0, 1),
        put(RETURN, TELL, 0, 0),
        put(RETURN, ALLOW, 0, 0),
    ];
    let mut calls: Vec<libc::c_long> = RULES.iter().map(|rule| rule.call).collect();
    calls.dedup();
    calls.sort_unstable();
    calls.dedup();
    for call in calls {
        let mut body: Vec<Instruction> = RULES
            .iter()
            .filter(|rule| rule.call == call)
            .flat_map(|rule| check(rule.when, rule.action))
            .collect();
        body.push(put(RETURN, ALLOW, 0, 0));
        let past = u8::try_from(body.len()).expect("the bodies are short");
        program.push(put(IF_EQUAL, call as u32, 0, past));
        program.extend(body);
    }
    program.push(put(RETURN, ALLOW, 0, 0));
    program
}

/// Returns `action` if it is so; else goes on behind.
fn check(when: When, action: u32) -> Vec<Instruction> {
    let act = put(RETURN, action, 0, 0);
    match when {
        When::Always => vec![act],
        When::Stays(fd) => vec![put(LOAD, argument(fd), 0, 0), put(IF_AT_LEAST, FDS, 1, 0), act],
        When::StaysUnless(fd, other, values) => {
            let rest = check(When::IsNoneOf(other, values), action);
            let past = u8::try_from(rest.len()).expect("the lists are short");
            let mut body = vec![put(LOAD, argument(fd), 0, 0), put(IF_AT_LEAST, FDS, past, 0)];
            body.extend(rest);
            body
        }
        When::IsOneOf(at, values) => {
            let mut body = vec![put(LOAD, argument(at), 0, 0)];
            body.extend(values.iter().flat_map(|value| [put(IF_EQUAL, *value, 0, 1), act]));
            body
        }
        When::IsOneOfBesideStub(at, values) => {
            let rest = check(When::IsOneOf(at, values), action);
            let past = u8::try_from(rest.len()).expect("the lists are short");
            let mut body = vec![
                put(LOAD, CALLED_FROM + 4, 0, 0),
                put(IF_EQUAL, (STUB_AT >> 32) as u32, 0, 2),
                put(LOAD, CALLED_FROM, 0, 0),
                put(IF_AT_LEAST, STUB_LEN as u32 + 1, 0, past),
            ];
            body.extend(rest);
            body
        }
        When::IsNoneOf(at, values) => {
            let mut body = vec![put(LOAD, argument(at), 0, 0)];
            for (index, value) in values.iter().enumerate() {
                let past = u8::try_from(values.len() - index).expect("the lists are short");
                body.push(put(IF_EQUAL, *value, past, 0));
            }
            body.push(act);
            body
        }
        When::Given(at) => vec![
            put(LOAD, argument(at), 0, 0),
            put(IF_EQUAL, 0, 0, 2),
            put(LOAD, argument(at) + 4, 0, 0),
            put(IF_EQUAL, 0, 1, 0),
            act,
        ],
        When::GivenWith(at, with) => {
            let rest = check(When::Given(at), action);
            let past = u8::try_from(rest.len()).expect("short");
            let mut body = vec![put(LOAD, argument(1), 0, 0), put(IF_EQUAL, with, 0, past)];
            body.extend(rest);
            body
        }
        When::DifferOrHas([one, other], flags, flag) => vec![
            put(LOAD, argument(one), 0, 0),
            put(TO_X, 0, 0, 0),
            put(LOAD, argument(other), 0, 0),
            put(IF_EQUAL_X, 0, 0, 6),
            put(LOAD, argument(one) + 4, 0, 0),
            put(TO_X, 0, 0, 0),
            put(LOAD, argument(other) + 4, 0, 0),
            put(IF_EQUAL_X, 0, 0, 2),
            put(LOAD, argument(flags), 0, 0),
            put(IF_ANY, flag, 0, 1),
            act,
        ],
    }
}

const _: () = assert!(STUB_AT as u32 == 0, "its low half is compared with its length alone");

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program answers: the kernel's interpreter, for the instructions that are used.
    fn run(program: &[Instruction], number: i64, from: u64, arguments: [u64; 6]) -> u32 {
        let (mut at, mut a, mut x) = (0, 0_u32, 0_u32);
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            let half = |word: u64, place: u32| if place % 8 == 4 { (word >> 32) as u32 } else { word as u32 };
            let taken = match code {
                LOAD => {
                    a = match k {
                        NUMBER => number as u32,
                        ARCH => ARCHITECTURE,
                        8 | 12 => half(from, k),
                        place => half(arguments[((place - ARGUMENTS) / 8) as usize], place),
                    };
                    continue;
                }
                TO_X => {
                    x = a;
                    continue;
                }
                RETURN => return k,
                IF_EQUAL => a == k,
                IF_EQUAL_X => a == x,
                IF_ANY => a & k != 0,
                IF_AT_LEAST => a >= k,
                other => panic!("instruction {other}"),
            };
            at += usize::from(if taken { jt } else { jf });
        }
    }

    #[test]
    fn answers_are_what_the_rules_say() {
        let program = compile();
        assert!(program.len() <= 4096);
        let ask = |number: i64, arguments: [u64; 3]| {
            let [a, b, c] = arguments;
            run(&program, number, 0x5555_0000_0000, [a, b, c, 0, 0, 0])
        };
        let einval = refuse(libc::EINVAL);
        let high = 1 << 40;
        for (number, arguments, action) in [
            (libc::SYS_read, [3, 0, 0], ALLOW),
            (libc::SYS_write, [3, 0, 0], ALLOW),
            (libc::SYS_munmap, [high, 4096, 0], ALLOW),
            (libc::SYS_rt_sigprocmask, [2, high, 0], ALLOW),
            (libc::SYS_rt_sigaction, [10, 0, high], ALLOW),
            (libc::SYS_rt_sigaction, [10, high, 0], TELL),
            (libc::SYS_rt_sigaction, [10, 8, 0], TELL),
            (libc::SYS_prlimit64, [0, 7, 0], ALLOW),
            (libc::SYS_prlimit64, [0, 7, high], TELL),
            (libc::SYS_prlimit64, [0, u64::from(libc::RLIMIT_CPU), high], refuse(libc::EPERM)),
            (libc::SYS_prlimit64, [0, u64::from(libc::RLIMIT_CPU), 0], ALLOW),
            (libc::SYS_close, [4, 0, 0], ALLOW),
            (libc::SYS_close, [3, 0, 0], TELL),
            (libc::SYS_dup2, [7, 3, 0], TELL),
            (libc::SYS_dup2, [3, 7, 0], TELL),
            (libc::SYS_dup2, [8, 7, 0], ALLOW),
            (libc::SYS_fcntl, [1, libc::F_GETFL as u64, 0], ALLOW),
            (libc::SYS_fcntl, [1, libc::F_SETFL as u64, 0], TELL),
            (libc::SYS_fcntl, [1, libc::F_DUPFD_CLOEXEC as u64, 0], TELL),
            (libc::SYS_fcntl, [9, libc::F_SETFL as u64, 0], ALLOW),
            (libc::SYS_fcntl, [9, libc::F_SETPIPE_SZ as u64, 0], TELL),
            (libc::SYS_ioctl, [1, libc::TCGETS, 0], ALLOW),
            (libc::SYS_ioctl, [1, libc::FIONBIO, 0], TELL),
            (libc::SYS_madvise, [high, 4096, 3], ALLOW),
            (libc::SYS_madvise, [high, 4096, 4], einval),
            (libc::SYS_madvise, [high, 4096, 18], TELL),
            (libc::SYS_madvise, [high, 4096, 24], einval),
            (libc::SYS_madvise, [high, 4096, 102], einval),
            (libc::SYS_madvise, [0, 0, 4], einval),
            (libc::SYS_mremap, [high, high + 4096, high + 4096], ALLOW),
            (libc::SYS_mremap, [high, high + 4096, high + 8192], einval),
            (libc::SYS_mremap, [high, 4096, high + 4096], einval),
            (libc::SYS_mremap, [high, 0, 4096], einval),
            (libc::SYS_clock_gettime, [1, 0, 0], ALLOW),
            (libc::SYS_clock_gettime, [2, 0, 0], TELL),
            (libc::SYS_clock_gettime, [0xffff_fff2, 0, 0], TELL),
            (libc::SYS_timer_create, [2, 0, 0], refuse(libc::EINVAL)),
            (libc::SYS_rseq, [high, 32, 0], libc::SECCOMP_RET_ERRNO),
            (libc::SYS_timer_create, [1, 0, 0], TELL),
            (libc::SYS_timer_settime, [0, 0, high], TELL),
            (libc::SYS_timer_delete, [0, 0, 0], TELL),
            (libc::SYS_timer_gettime, [0, high, 0], ALLOW),
            (libc::SYS_getsockopt, [3, 0, 0], refuse(libc::EPERM)),
            (libc::SYS_getsockopt, [5, 0, 0], ALLOW),
            (libc::SYS_restart_syscall, [0, 0, 0], refuse(libc::EINTR)),
            (libc::SYS_arch_prctl, [0x1002, 0, 0], ALLOW),
            (libc::SYS_arch_prctl, [0x1012, 0, 0], TELL),
        ] {
            assert_eq!(ask(number, arguments), action, "call {number} with {arguments:x?}");
        }
    }

    #[test]
    fn the_stub_alone_drops_pages() {
        let program = compile();
        let drop = |from| run(&program, libc::SYS_madvise, from, [1 << 40, 4096, 4, 0, 0, 0]);
        assert_eq!([drop(STUB_AT), drop(STUB_AT + STUB_LEN)], [ALLOW; 2]);
        for from in [STUB_AT - 1, STUB_AT + STUB_LEN + 1, STUB_AT | 1 << 46, 0x80] {
            assert_eq!(drop(from), refuse(libc::EINVAL), "{from:x}");
        }
    }

    #[test]
    fn what_leaves_its_place_mapped_is_not_moved() {
        let program = compile();
        let move_with = |flags| run(&program, libc::SYS_mremap, 0, [1 << 40, 4096, 4096, flags, 0, 0]);
        let fixed = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        assert_eq!(move_with(fixed), ALLOW, "so a layer moves the kernel's own pages");
        assert_eq!(move_with(fixed | libc::MREMAP_DONTUNMAP as u64), refuse(libc::EINVAL));
    }

    #[test]
    fn the_stub_alone_asks() {
        let program = compile();
        let ask = |from| run(&program, libc::SYS_rt_sigprocmask, from, [2, 0, 0, 8, 0, 0]);
        assert_eq!(ask(STUB_ASKS), TELL);
        for from in [STUB_ASKS - 2, STUB_ASKS + 2, STUB_ASKS | 1 << 46, STUB_ASKS ^ 1 << 45, 0] {
            assert_eq!(ask(from), ALLOW, "{from:x}");
        }
    }
}
