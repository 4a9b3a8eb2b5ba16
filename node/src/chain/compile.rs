//! From a plan to what is run: each step gets its function, each run a route of the bus.

use std::sync::Arc;

use shm_bus::ids::FunctionIndex;
use shm_bus::transport::{BusError, Transport};

use super::plan;
use super::served::{Case, FreeRoutes, LentRoute, Route, Stage, Step, Trigger};
use crate::function::Function;

/// Why a plan can't be run.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// All routes are taken.
    #[error("the bus has no route left for the chain; remove another chain first")]
    NoRoute,
    /// The transport refused.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// Makes stages for one chain.
pub struct Compiler<'a> {
    members: &'a [Arc<Function>],
    transport: &'a dyn Transport,
    free: &'a Arc<FreeRoutes>,
    lent: Vec<LentRoute>,
}

impl<'a> Compiler<'a> {
    /// For a chain with these members (as in [`plan::Plan::functions`]).
    pub fn new(
        members: &'a [Arc<Function>],
        transport: &'a dyn Transport,
        free: &'a Arc<FreeRoutes>,
    ) -> Self {
        Self { members, transport, free, lent: Vec::new() }
    }

    /// The routes that were made; they are free again when these are dropped.
    pub fn into_routes(self) -> Vec<LentRoute> {
        self.lent
    }

    /// All of some stages.
    pub fn stages(&mut self, stages: &[plan::Stage]) -> Result<Vec<Stage>, CompileError> {
        stages.iter().map(|stage| self.stage(stage)).collect()
    }

    /// All triggers.
    pub fn triggers(&mut self, triggers: &[plan::Trigger]) -> Result<Vec<Trigger>, CompileError> {
        let made = triggers.iter().map(|trigger| {
            let stages = self.stages(&trigger.run)?;
            Ok(Trigger { on: trigger.on.clone(), stages, label: trigger.label.clone() })
        });
        made.collect()
    }

    fn stage(&mut self, stage: &plan::Stage) -> Result<Stage, CompileError> {
        Ok(match stage {
            plan::Stage::Run(steps) => {
                let steps: Result<Vec<Step>, CompileError> =
                    steps.iter().map(|step| self.step(step)).collect();
                Stage::Run(self.route(steps?)?)
            }
            plan::Stage::Parallel(branches) => {
                let branches: Result<_, CompileError> =
                    branches.iter().map(|branch| self.stages(&branch.stages)).collect();
                Stage::Parallel(branches?)
            }
            plan::Stage::Map { each, at_once, .. } => {
                Stage::Map { each: self.stages(each)?, at_once: *at_once }
            }
            plan::Stage::When { cases, otherwise } => {
                let cases: Result<_, CompileError> = cases
                    .iter()
                    .map(|case| {
                        let then = self.stages(&case.then)?;
                        Ok(Case { test: plan::Case { then: Vec::new(), ..case.clone() }, then })
                    })
                    .collect();
                Stage::When { cases: cases?, otherwise: self.stages(otherwise)? }
            }
        })
    }

    fn step(&mut self, step: &plan::Step) -> Result<Step, CompileError> {
        let on_error = match step.on_error {
            Some(function) => {
                let name = format!("{}.on_error", step.name);
                let handler =
                    Step { name: name.into(), function: self.member(function), retry: 0, on_error: None };
                Some(self.route(vec![handler])?)
            }
            None => None,
        };
        Ok(Step {
            name: step.name.as_str().into(),
            function: self.member(step.function),
            retry: step.retry,
            on_error,
        })
    }

    fn member(&self, index: usize) -> Arc<Function> {
        Arc::clone(&self.members[index])
    }

    fn route(&mut self, steps: Vec<Step>) -> Result<Arc<Route>, CompileError> {
        let lent = self.free.lend().ok_or(CompileError::NoRoute)?;
        let functions: Vec<FunctionIndex> = steps.iter().map(|step| step.function.index).collect();
        self.transport.set_route(lent.index, &functions)?;
        let index = lent.index;
        self.lent.push(lent);
        Ok(Arc::new(Route { index, steps }))
    }
}
