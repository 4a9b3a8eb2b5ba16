//! A run: a value on its way over a chain's route, as the thread that sent it knows it.
//!
//! The bus moves it from step to step by itself and notes in its trail where it was. spryd hears of it again when it has
//! ended, or when it can't go on alone: then it is sent on from here.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use shm_bus::Descriptor;
use shm_bus::ids::{InvocationId, PeerId, PortIndex};
use spry_ebpf_common::{CHAIN_BIT, Hop, source_of_port};
use spry_wire::frame::Place;

use super::pending::Pending;
use super::{Dispatcher, Job, Request};
use crate::chain::{Chain, Route, Scope};
use crate::function::Function;
use crate::gateway::Refusal;
use crate::instance::Instance;
use crate::keeper::ToKeeper;

/// See the module.
#[derive(Clone, Debug)]
pub struct Run {
    /// The chain, which stays while it runs.
    pub chain: Arc<Chain>,
    /// Where it goes.
    pub route: Arc<Route>,
    /// The step that it starts with.
    pub first: u8,
    /// The frame that goes in.
    pub input: Place,
    /// How many triggers lie between its call and a client's.
    pub depth: u8,
    /// What is kept for it, longer than it takes.
    pub keeps: Rc<Scope>,
}

/// What a descriptor names.
pub fn place_of(descriptor: &Descriptor) -> Place {
    let Descriptor { segment, generation, offset, length, .. } = *descriptor;
    Place { segment, generation, offset, length }
}

/// What a step has answered with.
pub fn place_of_hop(hop: &Hop) -> Place {
    Place { segment: hop.segment, generation: hop.generation, offset: hop.offset, length: hop.length }
}

impl Run {
    /// The function of a step.
    pub fn function(&self, step: u8) -> Option<&Arc<Function>> {
        self.route.steps.get(usize::from(step)).map(|step| &step.function)
    }

    /// What to send so that `step` gets what lies at `place`.
    pub(super) fn descriptor(&self, port: PortIndex, trail: u16, step: u8, place: Place) -> Descriptor {
        Descriptor {
            segment: place.segment,
            generation: place.generation,
            offset: place.offset,
            length: place.length,
            route: CHAIN_BIT | self.route.index.0,
            step,
            source: source_of_port(port.0, trail),
            ..Descriptor::default()
        }
    }

    /// The step that a trail ends with: sent and not answered; else the one after the last that has answered.
    pub(super) fn current_step(&self, hops: &[Hop]) -> u8 {
        let next = usize::from(self.first) + self.answered(hops).count();
        next.min(self.route.steps.len().saturating_sub(1)) as u8
    }

    /// The steps of a trail that have answered, one after the other.
    pub(super) fn answered<'a>(&self, hops: &'a [Hop]) -> impl Iterator<Item = (u8, &'a Hop)> + use<'a> {
        let from_first = (0..).zip(hops).skip(usize::from(self.first));
        from_first.take_while(|(_, hop)| hop.answered_ns != 0)
    }

    /// What goes into a step.
    pub fn input_of(&self, step: u8, hops: &[Hop]) -> Place {
        match step.checked_sub(1) {
            Some(before) if step > self.first => {
                hops.get(usize::from(before)).map_or(self.input, place_of_hop)
            }
            _ => self.input,
        }
    }
}

/// One step that has answered.
#[derive(Clone, Debug)]
pub struct Visit {
    /// Which.
    pub step: u8,
    /// What the bus noted.
    pub hop: Hop,
    /// Who served it, and how many others it had served before; `None`: it has ended since.
    pub by: Option<(Arc<Instance>, u64)>,
}

impl Dispatcher {
    /// Gives a run its name and its trail: what to send, and to whom.
    pub(super) fn begin_run(
        &self,
        request: Request,
    ) -> Result<(InvocationId, Arc<Function>, Descriptor), Refusal> {
        let Job::Run(run) = &request.job else { unreachable!("the caller has a run") };
        let (first, place, deadline) = (run.first, run.input, request.deadline);
        let target = Arc::clone(run.function(first).expect("a run begins with a step of its route"));
        let trail = self.inner.borrow_mut().trails.take();
        let trail = trail.ok_or(Refusal::NodeFull { what: "runs of chains" })?;
        let descriptor = run.descriptor(self.port_index, trail.index, first, place);
        let (id, descriptor) = match self.name(Pending::new(request, descriptor, Some(trail))) {
            Ok(named) => named,
            Err(refusal) => {
                self.inner.borrow_mut().trails.give_back(trail);
                return Err(refusal);
            }
        };
        self.bus.transport.begin_trail(trail, id, crate::clock::monotonic_ns_at(deadline));
        if let Some(domain) = &target.domain {
            domain.run_begins();
        }
        Ok((id, target, descriptor))
    }

    /// The bus and the queues have let go of this invocation. A run's steps are looked up, and its trail is free.
    pub(super) fn settle(&self, id: InvocationId) {
        let (trail, run) = {
            let mut inner = self.inner.borrow_mut();
            let Some(pending) = inner.pending.get(id) else { return };
            pending.let_go();
            let (Some(trail), Some(run)) = (pending.trail(), pending.run()) else { return };
            (trail, run.clone())
        };
        let steps = run.route.steps.len();
        let mut hops = Vec::with_capacity(steps);
        self.bus.transport.trail(trail, steps, &mut hops);
        if run.chain.domain.run_ends(self.bus.cores.count).is_some() {
            let _ = self.bus.keeper.send(ToKeeper::Crowd(Arc::clone(&run.chain)));
        }
        let visits = self.visits(&run, &hops);
        let mut inner = self.inner.borrow_mut();
        inner.trails.give_back(trail);
        if let Some(pending) = inner.pending.get(id) {
            pending.settle(visits);
        }
    }

    /// Who served the steps of a trail that have answered.
    fn visits(&self, run: &Run, hops: &[Hop]) -> Vec<Visit> {
        let now = crate::activation::unix_ms();
        let visit = |(step, hop): (u8, &Hop)| {
            let peer = PeerId { slot: hop.slot, generation: hop.slot_generation };
            // (The route's own, not the one on the bus of that index: it is at hand.)
            let function = &run.route.steps[usize::from(step)].function;
            let served = || function.instance_of(peer).filter(|_| function.index == peer.function());
            let by = served().map(|instance| {
                let took = Duration::from_nanos(hop.answered_ns.saturating_sub(hop.sent_ns));
                self.learn(function, &instance, took);
                let before = instance.answered(now);
                function.served.note(now, took);
                (instance, before)
            });
            Visit { step, hop: *hop, by }
        };
        run.answered(hops).map(visit).collect()
    }
}
