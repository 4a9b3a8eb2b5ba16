//! Leaves everything to the kernel's fair class.
//!
//! **Source**: Stoica, Abdel-Wahab: "Earliest Eligible Virtual Deadline First", TR-95-22, Old Dominion University, 1995;
//! Linux' fair class since 6.6. The algorithm itself is in the kernel, and in the simulator's model of it
//! (`sim/fair.rs`). This is what the others are compared with.
//!
//! **Parameters**: none.

use super::{Decision, Event, Policy};

/// Leaves everything to the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct Eevdf;

impl Policy for Eevdf {
    fn on(&mut self, _now_ns: u64, event: Event, decisions: &mut Vec<Decision>) {
        match event {
            Event::Arrive { task, .. } | Event::Wake { task } | Event::SliceEnd { task, .. } => {
                decisions.push(Decision::fair(task));
            }
            Event::Start { .. } | Event::Block { .. } | Event::Exit { .. } | Event::Tick => {}
        }
    }
}
