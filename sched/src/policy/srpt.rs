//! SRPT by prediction: the least expected time left goes first.
//!
//! **Source**: Schrage: "A Proof of the Optimality of the Shortest Remaining Processing Time Discipline", Operations
//! Research 16(3), 1968. Sizes aren't known here, so what is left is expected from the function's past and what the
//! invocation has used (SERPT; Scully, Harchol-Balter, Scheller-Wolf: "SOAP", SIGMETRICS 2018, section 2).
//!
//! A running task's expectation falls as it runs, one nanosecond a nanosecond. When all of it has been used and the
//! task still runs, the expectation was wrong: the slice ends and a new one is made, of those that lasted so long. A
//! function that lies about being short so loses its place at the moment when the lie is seen.
//!
//! Nothing bounds how long a long task can be passed over: under a load of short ones above 1 it starves. That is
//! [`SrptPlus`](super::SrptPlus)'s business.
//!
//! **Parameters**: none, but the predictor's.

use super::known::Known;
use super::{Class, Decision, Event, Policy};
use crate::FunctionId;
use crate::predict::{Predictor, SHORT_NS};

/// The least expected time left goes first.
#[derive(Clone, Debug, Default)]
pub struct Srpt {
    known: Known,
}

impl Srpt {
    /// With what has been learnt already.
    pub fn new(predictor: Predictor) -> Self {
        Self { known: Known::new(predictor) }
    }
}

impl Policy for Srpt {
    fn forget(&mut self, function: FunctionId) {
        self.known.predictor.forget(function);
    }

    fn on(&mut self, now_ns: u64, event: Event, decisions: &mut Vec<Decision>) {
        let Some((task, known)) = self.known.take(now_ns, event) else { return };
        let rest_ns = self.known.predictor.mean_rest_ns(known.function, known.size_bytes, known.used_ns);
        decisions.push(Decision {
            task,
            class: Class::Fifo,
            rank: rest_ns,
            fall: 1,
            floor: 0,
            // Not asked again for the crumbs at the end of an expectation.
            slice_ns: rest_ns.max(SHORT_NS / 4),
            preempt: true,
        });
    }
}
