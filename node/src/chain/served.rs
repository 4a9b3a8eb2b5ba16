//! One applied version of a chain, as all threads share it: its domain, its members, its routes.
//!
//! Calls hold it by [`Arc`]. When a newer version has taken over, the last call to end drops it, and with it go the members'
//! last user (so that their tenders end them) and its routes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use parking_lot::Mutex;
use shm_bus::ids::RouteIndex;
use shm_bus::transport::Transport;

use super::bucket::Bucket;
use super::domain::Domain;
use super::plan::{self, On, Plan};
use crate::activation::History;
use crate::function::{Counts, Entered, Function};
use crate::store::StoredChain;

/// See the module.
#[derive(Debug)]
pub struct Chain {
    /// What was applied.
    pub plan: Plan,
    /// The text that it was applied from, and when.
    pub stored: StoredChain,
    /// Counts its versions since spryd started.
    pub version: u64,
    /// What its members may see.
    pub domain: Arc<Domain>,
    /// What a call goes through.
    pub stages: Vec<Stage>,
    /// What emitted values start.
    pub triggers: Vec<Trigger>,
    /// Emitted values that wait for others.
    pub bucket: Mutex<Bucket>,
    /// The last calls; they go on over versions.
    pub history: Arc<Mutex<History>>,
    /// Counters; they go on over versions.
    pub counts: Arc<Counts>,
    /// Emitted values that were dropped: nothing wanted them, or there was no room.
    pub dropped_values: AtomicU64,
    /// Calls that triggers have started and that haven't ended.
    pub started: AtomicUsize,
    /// The functions that serve in it, as in [`Plan::functions`].
    pub members: Vec<Entered>,
    /// Given back with the chain.
    pub routes: Vec<LentRoute>,
}

impl Chain {
    /// Whether a caller needs a token: when one of its functions would ask for it.
    pub fn needs_token(&self) -> bool {
        self.members.iter().any(|member| member.stored.manifest.access.token)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.plan.name.as_str()
    }

    /// A newer version serves now, or none: the members end when the last call has.
    pub fn supersede(&self) {
        for member in &self.members {
            member.supersede();
        }
    }

    /// Brings every member to an instance, so that no step waits for its first.
    pub fn prewarm(&self, transport: &dyn Transport) {
        for member in &self.members {
            if !transport.has_idle(member.index) {
                member.prewarm();
            }
        }
    }
}

/// A part of a chain, ready to be run.
#[derive(Debug)]
pub enum Stage {
    /// Steps that the bus routes by itself.
    Run(Arc<Route>),
    /// All at once on the same input; the results become a list.
    Parallel(Vec<Vec<Stage>>),
    /// The same for every element of the input; the results become a list.
    Map {
        /// What an element goes through.
        each: Vec<Stage>,
        /// Elements at a time.
        at_once: usize,
    },
    /// The first case that fits the input.
    When {
        /// In this order.
        cases: Vec<Case>,
        /// When none fits; empty: the input passes on.
        otherwise: Vec<Stage>,
    },
}

/// One of several ways of which one is taken.
#[derive(Debug)]
pub struct Case {
    /// When it is taken ([`plan::Case::applies`]).
    pub test: plan::Case,
    /// What to do then.
    pub then: Vec<Stage>,
}

/// A route of the bus with what lies behind its numbers.
#[derive(Debug)]
pub struct Route {
    /// Its number.
    pub index: RouteIndex,
    /// Its steps, 1 to `STEPS_PER_ROUTE`.
    pub steps: Vec<Step>,
}

/// One step of a route.
#[derive(Debug)]
pub struct Step {
    /// What it is called in timings and errors.
    pub name: Arc<str>,
    /// Who serves it.
    pub function: Arc<Function>,
    /// More attempts when it has failed.
    pub retry: u8,
    /// Who is called when it has failed for good.
    pub on_error: Option<Arc<Route>>,
}

/// What emitted values start.
#[derive(Debug)]
pub struct Trigger {
    /// When.
    pub on: On,
    /// What.
    pub stages: Vec<Stage>,
    /// What it is called.
    pub label: String,
}

/// The numbers of routes that nobody uses.
#[derive(Debug)]
pub struct FreeRoutes(Mutex<Vec<u16>>);

/// A route's number, given back when dropped.
#[derive(Debug)]
pub struct LentRoute {
    /// The number.
    pub index: RouteIndex,
    free: Arc<FreeRoutes>,
}

impl FreeRoutes {
    /// All below `count`.
    pub fn new(count: u16) -> Arc<Self> {
        Arc::new(Self(Mutex::new((0..count).rev().collect())))
    }

    /// One of them.
    pub fn lend(self: &Arc<Self>) -> Option<LentRoute> {
        let index = RouteIndex(self.0.lock().pop()?);
        Some(LentRoute { index, free: Arc::clone(self) })
    }
}

impl Drop for LentRoute {
    fn drop(&mut self) {
        self.free.0.lock().push(self.index.0);
    }
}
