//! One call of a chain: its stages in order, its runs sent and awaited, its failures tried again or mended.
//!
//! Steps that follow one another are the bus's business; a call only waits for the end of the run. It comes in where
//! somebody must look at a value or gather several: branches, lists, conditions, retries. What it writes itself (views and
//! lists of values) names the values where they lie and copies none.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::{LocalBoxFuture, try_join_all};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use spry_ebpf_common::status;
use spry_wire::frame::Place;

use super::fields::Fields;
use super::served::{Chain, Route, Stage};
use super::timeline::Timeline;
use super::value::{Part, Values};
use super::{Holdings, Scope, split};
use crate::dispatch::{Dispatcher, Ended, Job, Outcome, Request, Run, place_of, place_of_hop};
use crate::gateway::call_id::CallId;
use crate::gateway::{Failed, Refusal, failure_in};
use crate::inbox::Block;

/// See the module.
pub struct Call {
    dispatcher: Rc<Dispatcher>,
    chain: Arc<Chain>,
    call_id: CallId,
    deadline: Instant,
    /// How many triggers lie between it and a client's call.
    depth: u8,
    values: Values,
    timeline: RefCell<Timeline>,
}

/// A run that did not: which step, why, and what it was given.
struct Stopped {
    step: u8,
    failed: Failed,
    input: Place,
    /// Whether another attempt, or the step's `on_error`, may help.
    mendable: bool,
}

impl Call {
    /// A call whose request lies in `request`, a block of the chain's inbox. `depth` is 0 for a client's.
    pub fn new(
        dispatcher: Rc<Dispatcher>,
        chain: Arc<Chain>,
        call_id: CallId,
        deadline: Instant,
        depth: u8,
        request: Block,
    ) -> Self {
        let origin = request.place();
        let keeps = Scope::new(&chain.domain);
        keeps.keep(request);
        let values = Values::new(&chain, origin, keeps);
        Self { dispatcher, chain, call_id, deadline, depth, values, timeline: RefCell::default() }
    }

    /// Goes through `stages` with what lies at `input`. The result is a frame of any kind, which the call keeps.
    pub async fn go(&self, stages: &[Stage], input: Place) -> Result<Place, Failed> {
        self.stages(&self.values, stages, input).await
    }

    /// What keeps the result.
    pub fn into_holdings(self) -> Holdings {
        self.values.keeps().take()
    }

    /// Its values.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// Where its time went, as far as it came.
    pub fn timeline(&self) -> std::cell::Ref<'_, Timeline> {
        self.timeline.borrow()
    }

    fn stages<'a>(
        &'a self,
        values: &'a Values,
        stages: &'a [Stage],
        input: Place,
    ) -> LocalBoxFuture<'a, Result<Place, Failed>> {
        Box::pin(async move {
            let mut value = input;
            for stage in stages {
                value = self.stage(values, stage, value).await?;
            }
            Ok(value)
        })
    }

    async fn stage(&self, values: &Values, stage: &Stage, input: Place) -> Result<Place, Failed> {
        match stage {
            Stage::Run(route) => self.run(values, route, input).await,
            Stage::Parallel(branches) => {
                let results = branches.iter().map(|branch| self.stages(values, branch, input));
                let results = try_join_all(results).await?;
                let parts: Result<Vec<Part>, Refusal> =
                    results.into_iter().map(|place| values.part(place)).collect();
                Ok(gather(values, &parts?)?)
            }
            Stage::Map { each, at_once } => self.map(values, each, *at_once, input).await,
            Stage::When { cases, otherwise } => {
                let fields = values.fields(input, cases.iter().map(|case| case.test.pointer.as_str()))?;
                let fits = |fields: Fields| {
                    let mut tried = cases.iter().enumerate();
                    tried
                        .find(|(index, case)| fields.at(*index).is_some_and(|found| case.test.applies(found)))
                };
                let case = fields.and_then(fits).map(|(_, case)| case);
                self.stages(values, case.map_or(otherwise, |case| &case.then), input).await
            }
        }
    }

    /// Every element by itself, so many at a time; the results in the order of the elements.
    async fn map(
        &self,
        values: &Values,
        each: &[Stage],
        at_once: usize,
        input: Place,
    ) -> Result<Place, Failed> {
        let (elements, content_type) = values.elements(input)?;
        let results = elements.into_iter().map(|element| async move {
            let within = values.within();
            let view = within.view(element, content_type)?;
            let result = self.stages(&within, each, view).await?;
            Ok::<Part, Failed>(within.leave(result)?)
        });
        let results: Vec<Part> = stream::iter(results).buffered(at_once).try_collect().await?;
        Ok(gather(values, &results)?)
    }

    /// A run over a route, until it has come to the end, or can't.
    async fn run(&self, values: &Values, route: &Arc<Route>, input: Place) -> Result<Place, Failed> {
        let (mut first, mut input) = (0, input);
        let mut attempts = vec![0_u8; route.steps.len()];
        loop {
            let stopped = match self.send(values, route, first, input).await? {
                Ok(result) => return Ok(result),
                Err(stopped) => stopped,
            };
            let step = &route.steps[usize::from(stopped.step)];
            let attempt = &mut attempts[usize::from(stopped.step)];
            if stopped.mendable && *attempt < step.retry {
                *attempt += 1;
                (first, input) = (stopped.step, stopped.input);
                continue;
            }
            let failed = stopped.failed.at_step(&step.name);
            let Some(handler) = step.on_error.as_ref().filter(|_| stopped.mendable) else {
                return Err(failed);
            };
            let error = values.error(&step.name, &failed.refusal)?;
            let mended = Box::pin(self.run(values, handler, error)).await?;
            if usize::from(stopped.step) + 1 == route.steps.len() {
                return Ok(mended);
            }
            (first, input) = (stopped.step + 1, mended);
        }
    }

    /// Sends a run and awaits it. The outer error is the call's end.
    async fn send(
        &self,
        values: &Values,
        route: &Arc<Route>,
        first: u8,
        input: Place,
    ) -> Result<Result<Place, Stopped>, Failed> {
        let (chain, route_) = (Arc::clone(&self.chain), Arc::clone(route));
        let (depth, keeps) = (self.depth, Rc::clone(values.keeps()));
        let run = Run { chain, route: route_, first, input, depth, keeps };
        let job = Job::Run(run.clone());
        let sent = self.dispatcher.submit(Request { call_id: self.call_id, deadline: self.deadline, job });
        let ended =
            sent.map_err(|refusal| Failed::from(refusal).at_step(&route.steps[usize::from(first)].name))?;
        let ended = ended.await;
        self.timeline.borrow_mut().note(route, first, &ended);
        Ok(self.outcome(&run, ended))
    }

    fn outcome(&self, run: &Run, ended: Ended) -> Result<Place, Stopped> {
        let Ended { outcome, visits, .. } = ended;
        // What a step was given is what the one before has answered with.
        let stopped = |step: u8, failed: Failed, mendable: bool| {
            let before = visits.iter().find(|visit| visit.step + 1 == step && step > run.first);
            let input = before.map_or(run.input, |visit| place_of_hop(&visit.hop));
            Stopped { step, failed, input, mendable }
        };
        let answered = match outcome {
            Outcome::Answered(answered) => answered,
            Outcome::Refused(refusal) => {
                let next = visits.last().map_or(run.first, |visit| visit.step + 1);
                let step = next.min(run.route.steps.len() as u8 - 1);
                let mendable = refusal.is_the_processes();
                return Err(stopped(step, refusal.into(), mendable));
            }
        };
        let descriptor = &answered.descriptor;
        let last = run.route.steps.len() as u8 - 1;
        match descriptor.flags & status::MASK {
            status::OK => Ok(place_of(descriptor)),
            status::FAILED => {
                Err(stopped(descriptor.step.min(last), failure_in(&answered.instance, descriptor), true))
            }
            status::EXPIRED => {
                let refusal = Refusal::ChainTimedOut(self.chain.plan.timeout);
                Err(stopped(descriptor.step.min(last), refusal.into(), false))
            }
            other => {
                let refusal = Refusal::BadAnswer(format!("its status is {other}"));
                Err(stopped(descriptor.step.min(last), refusal.into(), true))
            }
        }
    }
}

/// The list of some results.
fn gather(values: &Values, parts: &[Part]) -> Result<Place, Refusal> {
    values.list(parts.iter().map(|part| ("", *part)))
}

impl From<split::SplitError> for Refusal {
    fn from(error: split::SplitError) -> Self {
        Refusal::BadValue(format!("`map` needs a list: {error}"))
    }
}
