//! Many runs of a chain, each with an input of its own whose steps each check and seal it (`bench/functions`). There is
//! one right result for each input, so what is lost, doubled or crossed shows.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::{BENCH, Code, Options, apply};
use crate::http1::{CallError, Client};
use crate::load::Target;
use crate::node::{Node, NodeError, Programs};
use crate::random::SplitMix64;
use crate::report::{Bar, Row};
use crate::stop::Stop;
use crate::suite::{SuiteError, TIMEOUT};

/// Steps that check and seal.
const SEALING: usize = 4;
const CONNECTIONS: u64 = 16;
/// Bytes of an input are 8 to this many; one in a hundred is as large as [`LARGE`].
const SMALL: usize = 2048;
const LARGE: usize = 256 * 1024;

/// What became of the runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Tally {
    right: u64,
    /// No whole answer.
    lost: u64,
    /// More bytes than one answer, or a step that ran twice.
    doubled: u64,
    /// The answer to another input.
    crossed: u64,
    /// An answer to nothing that was ever sent, or one that a step is missing from.
    damaged: u64,
    /// Not a 200.
    refused: u64,
}

impl Tally {
    fn plus(self, other: Self) -> Self {
        Self {
            right: self.right + other.right,
            lost: self.lost + other.lost,
            doubled: self.doubled + other.doubled,
            crossed: self.crossed + other.crossed,
            damaged: self.damaged + other.damaged,
            refused: self.refused + other.refused,
        }
    }

    fn wrong(&self) -> u64 {
        self.lost + self.doubled + self.crossed + self.damaged + self.refused
    }

    /// Counts an answer to `payload`.
    fn add(&mut self, payload: &[u8], answer: &[u8]) {
        let id = &payload[..8];
        if answer == bench_functions::sealed(payload, SEALING + 1) {
            self.right += 1;
        } else if !bench_functions::is_sealed(answer) {
            self.damaged += 1;
        } else if !answer.starts_with(id) {
            self.crossed += 1;
        } else if answer.len() > payload.len() + (SEALING + 1) * bench_functions::SEAL_LEN {
            self.doubled += 1;
        } else {
            self.damaged += 1;
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { right, lost, doubled, crossed, damaged, refused } = self;
        write!(
            f,
            "{right} right, {lost} lost, {doubled} doubled, {crossed} crossed, {damaged} damaged, {refused} refused"
        )
    }
}

pub(super) fn run(options: &Options, programs: &Programs, stop: &Stop) -> Result<Vec<Row>, SuiteError> {
    let node = Node::start(programs, stop)?;
    let (sealing, passing) = (Code::Checksum.names(SEALING), Code::Pass.names(1));
    Code::Checksum.deploy(&node, programs, &sealing, &[])?;
    Code::Pass.deploy(&node, programs, &passing, &[])?;
    // In the midst one that passes it on: what comes after it reads what came before it.
    let half = SEALING / 2;
    let steps = [&sealing[..half], &passing, &sealing[half..]].concat();
    apply(&node, "soak", &steps, "1MiB")?;

    let begin = Instant::now();
    let done = AtomicU64::new(0);
    let tally = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CONNECTIONS)
            .map(|caller| {
                let runs = options.soak / CONNECTIONS + u64::from(caller < options.soak % CONNECTIONS);
                let (node, done) = (&node, &done);
                scope.spawn(move || call(node, caller, runs, done, stop))
            })
            .collect();
        let tallies = callers.into_iter().map(|caller| caller.join().expect("a caller does not panic"));
        tallies.fold(Tally::default(), Tally::plus)
    });
    if stop.is_set() {
        return Err(NodeError::Interrupted.into());
    }
    eprintln!("soak: {tally}");
    let case = format!("{} runs of {} steps", options.soak, steps.len());
    let rate = tally.right as f64 / begin.elapsed().as_secs_f64();
    let counted =
        |metric, value: u64, bar| Row::new(BENCH, case.as_str(), metric, value as f64, "").must(bar);
    Ok(vec![
        counted("right", tally.right, Bar::AtLeast(options.soak as f64)),
        counted("wrong", tally.wrong(), Bar::AtMost(0.0)),
        counted("lost", tally.lost, Bar::AtMost(0.0)).shown(false),
        counted("doubled", tally.doubled, Bar::AtMost(0.0)).shown(false),
        counted("crossed", tally.crossed, Bar::AtMost(0.0)).shown(false),
        counted("damaged", tally.damaged, Bar::AtMost(0.0)).shown(false),
        counted("refused", tally.refused, Bar::AtMost(0.0)).shown(false),
        Row::new(BENCH, case.as_str(), "runs per second", rate, "1/s"),
    ])
}

/// One connection's runs. No input is like another's: it begins with the caller's number and the run's.
fn call(node: &Node, caller: u64, runs: u64, done: &AtomicU64, stop: &Stop) -> Tally {
    let mut random = SplitMix64::new(caller);
    let mut tally = Tally::default();
    let mut client = None;
    let mut answer = Vec::new();
    for run in 0..runs {
        if stop.is_set() {
            break;
        }
        let payload = payload(caller << 48 | run, &mut random);
        let body = bench_functions::sealed(&payload, 1);
        let request =
            Target::new(node.address, "POST", "/function/soak", &body, b"".as_slice().into()).request;
        let connected = client.take().map_or_else(|| Client::connect(node.address, TIMEOUT), Ok);
        let called = connected.and_then(|mut open| {
            let head = open.call(&request, &mut answer)?;
            client = (!head.close).then_some(open);
            Ok(head)
        });
        match called {
            Ok(head) if head.status == 200 => tally.add(&payload, &answer),
            Ok(head) => {
                if tally.refused == 0 {
                    eprintln!("soak: status {}: {}", head.status, String::from_utf8_lossy(&answer));
                }
                tally.refused += 1;
            }
            Err(CallError::Surplus { .. }) => tally.doubled += 1,
            Err(error) => {
                if tally.lost == 0 {
                    eprintln!("soak: {error}");
                }
                tally.lost += 1;
            }
        }
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if done.is_multiple_of(100_000) {
            eprintln!("soak: {done} runs");
        }
    }
    tally
}

fn payload(id: u64, random: &mut SplitMix64) -> Vec<u8> {
    let length = if random.below(100) == 0 { LARGE } else { 8 + random.below(SMALL - 7) };
    let mut payload = id.to_le_bytes().to_vec();
    while payload.len() < length {
        payload.extend_from_slice(&random.next_u64().to_le_bytes());
    }
    payload.truncate(length);
    payload
}

#[cfg(test)]
mod tests {
    use bench_functions::sealed;

    use super::*;

    fn counted(answer: &[u8]) -> Tally {
        let mut tally = Tally::default();
        tally.add(b"12345678 and more", answer);
        tally
    }

    #[test]
    fn every_kind_of_wrong_answer_is_told_from_the_others() {
        let payload = b"12345678 and more".as_slice();
        let (right, none) = (SEALING + 1, Tally::default());
        assert_eq!(counted(&sealed(payload, right)), Tally { right: 1, ..none });
        assert_eq!(counted(&sealed(payload, right + 1)), Tally { doubled: 1, ..none });
        assert_eq!(counted(&sealed(payload, right - 1)), Tally { damaged: 1, ..none });
        assert_eq!(counted(&sealed(b"12345679 and more", right)), Tally { crossed: 1, ..none });
        assert_eq!(counted(&sealed(payload, right)[1..]), Tally { damaged: 1, ..none });
        assert_eq!(counted(b""), Tally { damaged: 1, ..none });
    }

    #[test]
    fn payloads_differ_and_some_are_large() {
        let mut random = SplitMix64::new(3);
        let all: Vec<Vec<u8>> = (0..1000).map(|id| payload(id, &mut random)).collect();
        assert!(all.iter().enumerate().all(|(id, payload)| payload.starts_with(&(id as u64).to_le_bytes())));
        assert!(all.iter().any(|payload| payload.len() == LARGE));
        assert!(all.iter().all(|payload| payload.len() == LARGE || (8..=SMALL).contains(&payload.len())));
    }
}
