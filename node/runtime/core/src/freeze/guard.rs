//! Calls that would mean something else on frozen memory are refused, by one more filter on system calls.
//!
//! On anonymous memory `MADV_DONTNEED` leaves zeros behind, and allocators count on it (jemalloc takes memory that it
//! has given back so for zeroed). On a private mapping of a file it brings the file's bytes back. So it fails there:
//! who gives memory back must do without it failing anyway, and then doesn't take it for zeroed. `mremap` could map
//! more of the file than there was; who uses it (`realloc`) copies instead when it fails.
//!
//! The filter is an addition to the sandbox's and answers for these two calls alone; the kernel remembers that all others
//! pass it and doesn't run it for them (since 5.11). Where a zygote's calls are filtered for rewinding, that filter refuses
//! these, too, and there is none of this kind ([`crate::rewind`]).

use std::ops::Range;

use libc::sock_filter as Instruction;
use spry_wire::rewind::{STUB_AT, STUB_LEN};

/// Ranges that are looked at one by one; when there are more, the nearest are taken together. What lies between is then
/// refused, too, which costs memory, and not correctness.
const RANGES_MAX: usize = 96;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const LOAD_SLOT: u16 = (libc::BPF_LD | libc::BPF_MEM) as u16;
const LOAD_X_SLOT: u16 = (libc::BPF_LDX | libc::BPF_MEM) as u16;
const STORE: u16 = libc::BPF_ST as u16;
const ADD_X: u16 = (libc::BPF_ALU | libc::BPF_ADD | libc::BPF_X) as u16;
const ADD: u16 = (libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_ABOVE: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const IF_AT_LEAST_X: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_X) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const CALLED_FROM: u32 = 8;
const ARGUMENTS: u32 = 16;

/// Words of the program's memory.
const START_LOW: u32 = 0;
const START_HIGH: u32 = 1;
const LEN_LOW: u32 = 2;
const END_LOW: u32 = 3;
const END_HIGH: u32 = 4;

/// Advice after which memory is expected to hold zeros.
const DONTNEED_LOCKED: u32 = 24;
const GUARD_INSTALL: u32 = 102;
pub(crate) const EMPTYING: [u32; 3] = [libc::MADV_DONTNEED as u32, DONTNEED_LOCKED, GUARD_INSTALL];

fn put(code: u16, k: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, jt: if_true, jf: if_false, k }
}

fn argument(index: u32) -> u32 {
    ARGUMENTS + 8 * index
}

/// The filter that refuses these calls on any byte of `frozen`, which is sorted.
pub(super) fn compile(frozen: &[Range<usize>]) -> Vec<Instruction> {
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    let mut program = vec![
        put(LOAD, ARCH, 0, 0),
        put(IF_EQUAL, ARCHITECTURE, 1, 0),
        put(RETURN, ALLOW, 0, 0), // another architecture's calls are the sandbox's affair
        // The number first, and nothing else of all other calls: only then does the kernel know that they pass.
        put(LOAD, NUMBER, 0, 0),
        put(IF_EQUAL, libc::SYS_madvise as u32, 0, 5),
        put(LOAD, argument(2), 0, 0),
        put(IF_EQUAL, EMPTYING[0], 5, 0),
        put(IF_EQUAL, EMPTYING[1], 4, 0),
        put(IF_EQUAL, EMPTYING[2], 3, 0),
        put(RETURN, ALLOW, 0, 0),
        put(IF_EQUAL, libc::SYS_mremap as u32, 1, 0),
        put(RETURN, ALLOW, 0, 0),
        // The stub that rewinds an instance drops these pages.
        put(LOAD, CALLED_FROM + 4, 0, 0),
        put(IF_EQUAL, (STUB_AT >> 32) as u32, 0, 4),
        put(LOAD, CALLED_FROM, 0, 0),
        put(IF_AT_LEAST, STUB_AT as u32, 0, 2),
        put(IF_ABOVE, (STUB_AT + STUB_LEN) as u32, 1, 0),
        put(RETURN, ALLOW, 0, 0),
        put(LOAD, argument(1), 0, 0),
        put(STORE, LEN_LOW, 0, 0),
        put(LOAD, argument(0) + 4, 0, 0),
        put(STORE, START_HIGH, 0, 0),
        put(LOAD, argument(0), 0, 0),
        put(STORE, START_LOW, 0, 0),
        // the end is the sum of start and length, by halves: carried, if the low sum is below what was added
        put(LOAD_X_SLOT, LEN_LOW, 0, 0),
        put(ADD_X, 0, 0, 0),
        put(STORE, END_LOW, 0, 0),
        put(IF_AT_LEAST_X, 0, 0, 2),
        put(LOAD, argument(1) + 4, 0, 0),
        put(JUMP, 2, 0, 0),
        put(LOAD, argument(1) + 4, 0, 0),
        put(ADD, 1, 0, 0),
        put(LOAD_X_SLOT, START_HIGH, 0, 0),
        put(ADD_X, 0, 0, 0),
        put(STORE, END_HIGH, 0, 0),
    ];
    for range in merge(frozen, RANGES_MAX) {
        program.extend(refuse_on(&range));
    }
    program.push(put(RETURN, ALLOW, 0, 0));
    program
}

/// Refuses if the call's start is before the end of `range`, and its end after the start; else goes on behind.
fn refuse_on(range: &Range<usize>) -> [Instruction; 11] {
    let halves = |address: usize| ((address as u64 >> 32) as u32, address as u32);
    let ((start_high, start_low), (end_high, end_low)) = (halves(range.start), halves(range.end));
    [
        put(LOAD_SLOT, START_HIGH, 0, 0),
        put(IF_ABOVE, end_high, 9, 0),
        put(IF_EQUAL, end_high, 0, 2),
        put(LOAD_SLOT, START_LOW, 0, 0),
        put(IF_AT_LEAST, end_low, 6, 0),
        put(LOAD_SLOT, END_HIGH, 0, 0),
        put(IF_ABOVE, start_high, 3, 0),
        put(IF_EQUAL, start_high, 0, 3),
        put(LOAD_SLOT, END_LOW, 0, 0),
        put(IF_ABOVE, start_low, 0, 1),
        put(RETURN, libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32, 0, 0),
    ]
}

/// At most `most` ranges that cover these: those with the least between them become one.
fn merge(ranges: &[Range<usize>], most: usize) -> Vec<Range<usize>> {
    let mut gaps: Vec<usize> = ranges.windows(2).map(|pair| pair[1].start - pair[0].end).collect();
    gaps.sort_unstable_by(|a, b| b.cmp(a));
    // Only gaps larger than this stay. (Equal ones may go, too.)
    let limit = gaps.get(most - 1).copied().unwrap_or(0);
    let mut merged: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start - last.end <= limit => last.end = range.end,
            _ => merged.push(range.clone()),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program answers: the kernel's interpreter, for the instructions that are used.
    fn run_from(from: u64, program: &[Instruction], number: i64, arguments: [u64; 3]) -> u32 {
        let (mut at, mut a, mut x, mut memory) = (0, 0_u32, 0_u32, [0_u32; 16]);
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            let taken = match code {
                LOAD => {
                    a = match k {
                        NUMBER => number as u32,
                        ARCH => ARCHITECTURE,
                        CALLED_FROM => from as u32,
                        12 => (from >> 32) as u32,
                        place => {
                            let argument = arguments[((place - ARGUMENTS) / 8) as usize];
                            if (place - ARGUMENTS) % 8 == 4 {
                                (argument >> 32) as u32
                            } else {
                                argument as u32
                            }
                        }
                    };
                    continue;
                }
                LOAD_SLOT => {
                    a = memory[k as usize];
                    continue;
                }
                LOAD_X_SLOT => {
                    x = memory[k as usize];
                    continue;
                }
                STORE => {
                    memory[k as usize] = a;
                    continue;
                }
                ADD_X => {
                    a = a.wrapping_add(x);
                    continue;
                }
                ADD => {
                    a = a.wrapping_add(k);
                    continue;
                }
                JUMP => {
                    at += k as usize;
                    continue;
                }
                RETURN => return k,
                IF_EQUAL => a == k,
                IF_ABOVE => a > k,
                IF_AT_LEAST => a >= k,
                IF_AT_LEAST_X => a >= x,
                other => panic!("instruction {other}"),
            };
            at += usize::from(if taken { jt } else { jf });
        }
    }

    fn run(program: &[Instruction], number: i64, arguments: [u64; 3]) -> u32 {
        run_from(0x5555_5555_5555, program, number, arguments)
    }

    /// The kernel runs the program once for each number with nothing else known, and doesn't run it again for those that it
    /// allows so: what it loads for them must be the number and the architecture.
    #[test]
    fn all_other_calls_pass_by_their_number_alone() {
        let program = compile(&[0x5_0000_1000..0x5_0000_4000, 0x6_0000_0000..0x6_0000_1000]);
        for number in [libc::SYS_read, libc::SYS_munmap, libc::SYS_recvfrom, libc::SYS_clone] {
            let mut at = 0;
            loop {
                let Instruction { code, jt, jf, k } = program[at];
                let taken = match code {
                    LOAD => {
                        assert!([ARCH, NUMBER].contains(&k), "call {number} is looked at: {k}");
                        at += 1;
                        continue;
                    }
                    RETURN => break assert_eq!(k, libc::SECCOMP_RET_ALLOW),
                    // The architecture is the right one, the number is none of those that are compared.
                    IF_EQUAL => k == ARCHITECTURE,
                    other => panic!("instruction {other}"),
                };
                at += 1 + usize::from(if taken { jt } else { jf });
            }
        }
    }

    #[test]
    fn the_stub_alone_may_drop_pages() {
        let program = compile(&[0x5_0000_1000..0x5_0000_4000, 0x6_0000_0000..0x6_0000_1000]);
        let drop = |from| {
            let arguments = [0x5_0000_1000, 0x1000, libc::MADV_DONTNEED as u64];
            run_from(from, &program, libc::SYS_madvise, arguments)
        };
        assert_eq!(drop(STUB_AT + 0x80), libc::SECCOMP_RET_ALLOW);
        for from in [STUB_AT - 1, STUB_AT + STUB_LEN + 1, STUB_AT | 1 << 46, 0x80, 0x5_0000_2000] {
            assert_ne!(drop(from), libc::SECCOMP_RET_ALLOW, "{from:x}");
        }
    }

    #[test]
    fn every_overlap_is_refused_and_nothing_else() {
        let ranges =
            [0x5_0000_1000..0x5_0000_4000, 0x6_ffff_f000..0x7_0000_2000, 0x7f00_0000_0000..0x7f10_0000_0000];
        let program = compile(&ranges);
        let mut edges: Vec<u64> =
            ranges.iter().flat_map(|range| [range.start as u64, range.end as u64]).collect();
        edges.extend([0, 0x5_0000_2000, 0x7_0000_0000, 0x7f05_1234_5000, 0x7fff_ffff_f000]);
        let starts: Vec<u64> =
            edges.iter().flat_map(|at| [at.saturating_sub(0x1000), *at, at + 0x1000]).collect();
        for &start in &starts {
            for end in starts.iter().filter(|end| **end > start) {
                let overlaps =
                    ranges.iter().any(|range| start < range.end as u64 && *end > range.start as u64);
                let refused = |number: i64, advice: i32| {
                    run(&program, number, [start, end - start, advice as u64]) != libc::SECCOMP_RET_ALLOW
                };
                assert_eq!(refused(libc::SYS_madvise, libc::MADV_DONTNEED), overlaps, "{start:x}-{end:x}");
                assert_eq!(refused(libc::SYS_mremap, 0), overlaps, "{start:x}-{end:x}");
                assert!(!refused(libc::SYS_madvise, libc::MADV_WILLNEED));
                assert!(!refused(libc::SYS_munmap, libc::MADV_DONTNEED));
            }
        }
        for advice in EMPTYING {
            assert_ne!(
                run(&program, libc::SYS_madvise, [0x5_0000_1000, 1, advice.into()]),
                libc::SECCOMP_RET_ALLOW
            );
        }
    }

    #[test]
    fn many_ranges_become_few_and_the_kernel_takes_the_length() {
        let many: Vec<Range<usize>> = (0..5000).map(|i| i << 20..(i << 20) + 0x1000 * (1 + i % 7)).collect();
        let merged = merge(&many, RANGES_MAX);
        assert!(merged.len() <= RANGES_MAX);
        assert!(many.iter().all(|range| merged.iter().any(|m| m.start <= range.start && range.end <= m.end)));
        assert!(compile(&many).len() <= 4096);
        assert_eq!(merge(&many[..5], RANGES_MAX), many[..5]);
        assert!(merge(&[], 3).is_empty());
    }
}
