//! From a [`ChainSpec`] to a [`Plan`]: names are looked up, chains within the chain are laid out flat, steps
//! get names that are unique, and functions that follow one another become runs.
//!
//! The work is bounded whatever the specs say: each chain that is laid out ends in at least one function step, at
//! most [`DEPTH_MAX`] chains further down, and the count of steps is checked as they are made.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::{Branch, Case, Plan, RUN_MAX, Stage, Step, Trigger};
use super::spec::{ChainError, ChainSpec, DEPTH_MAX, Does, PATH_MAX, STEPS_MAX, Starts, TRIGGERS_MAX};
use crate::manifest::Name;

/// What there is to look names up in.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// The functions that are deployed.
    pub functions: BTreeSet<Name>,
    /// The chains that are applied. One with the name of the chain in question is ignored.
    pub chains: BTreeMap<Name, ChainSpec>,
}

/// Makes the plan of a chain.
pub fn flatten(spec: &ChainSpec, known: &Known) -> Result<Plan, ChainError> {
    let mut flattener = Flattener {
        outermost: spec,
        known,
        path: Vec::new(),
        functions: Vec::new(),
        steps: 0,
        triggers: Vec::new(),
        triggers_of: BTreeSet::new(),
    };
    let stages = flattener.chain(spec, "")?;
    Ok(Plan {
        name: spec.name.clone(),
        timeout: spec.timeout(),
        payload_bytes: spec.payload.as_bytes(),
        functions: flattener.functions,
        stages,
        triggers: flattener.triggers,
    })
}

struct Flattener<'a> {
    outermost: &'a ChainSpec,
    known: &'a Known,
    /// The chains that are being laid out, the outermost first.
    path: Vec<&'a Name>,
    functions: Vec<Name>,
    steps: usize,
    triggers: Vec<Trigger>,
    /// The chains whose triggers are there already: one that is gone through twice has them once.
    triggers_of: BTreeSet<&'a Name>,
}

/// What a name turned out to be.
enum Target<'a> {
    Function(&'a Name),
    Chain(&'a ChainSpec),
}

impl<'a> Flattener<'a> {
    /// The stages of a chain, each name with `prefix` before it.
    fn chain(&mut self, spec: &'a ChainSpec, prefix: &str) -> Result<Vec<Stage>, ChainError> {
        let cycle = self.path.contains(&&spec.name);
        self.path.push(&spec.name);
        let path = || self.path.iter().map(|name| name.to_string()).collect();
        if cycle {
            return Err(ChainError::Cycle { path: path() });
        }
        if self.path.len() > DEPTH_MAX {
            return Err(ChainError::TooDeep { path: path() });
        }
        let mut scope = Scope::new(prefix, spec);
        let mut stages = Vec::new();
        for (index, step) in spec.steps.iter().enumerate() {
            let at = self.at(spec, "step", index);
            self.step(&mut stages, step.name.as_ref(), &step.does, &mut scope, &at)?;
        }
        if self.triggers_of.insert(&spec.name) {
            for (index, trigger) in spec.triggers.iter().enumerate() {
                let at = self.at(spec, "trigger", index);
                let target = match &trigger.starts {
                    Starts::Function(name) => self.function(name, &at)?,
                    Starts::Chain(name) => self.chain_named(name, &at)?,
                };
                let label = scope.take(None, target.name());
                let run = self.target(target, &label)?;
                if self.triggers.len() == TRIGGERS_MAX {
                    return Err(ChainError::TooManyTriggers);
                }
                self.triggers.push(Trigger { on: trigger.on.clone(), run, label });
            }
        }
        self.path.pop();
        Ok(stages)
    }

    fn step(
        &mut self,
        stages: &mut Vec<Stage>,
        name: Option<&Name>,
        does: &'a Does,
        scope: &mut Scope,
        at: &str,
    ) -> Result<(), ChainError> {
        match does {
            Does::Function { function, retry, on_error } => {
                self.function(function, at)?;
                let mut step = self.call(function, scope.take(name, function))?;
                step.retry = *retry;
                if let Some(handler) = on_error {
                    self.function(handler, at)?;
                    step.on_error = Some(self.index(handler));
                }
                append(stages, vec![Stage::Run(vec![step])]);
            }
            Does::Chain(chain) => {
                let target = self.chain_named(chain, at)?;
                let label = scope.take(name, chain);
                append(stages, self.target(target, &label)?);
            }
            Does::Parallel(branches) => {
                let mut within = scope.within(name);
                let names = within.as_mut().unwrap_or(scope);
                let branches = branches.iter().map(|branch| {
                    let (label, stages) = self.either(branch, names, at)?;
                    Ok(Branch { label, stages })
                });
                stages.push(Stage::Parallel(branches.collect::<Result<_, _>>()?));
            }
            Does::Map { with, at_once } => {
                let target = self.function_or_chain(with, at)?;
                let label = scope.take(name, with);
                stages.push(Stage::Map { each: self.target(target, &label)?, at_once: *at_once, label });
            }
            Does::When { cases, otherwise } => {
                let mut within = scope.within(name);
                let names = within.as_mut().unwrap_or(scope);
                let cases = cases.iter().map(|case| {
                    let (_, then) = self.either(&case.then, names, at)?;
                    Ok(Case { pointer: case.field.clone(), equals: case.equals.clone(), then })
                });
                let cases = cases.collect::<Result<_, _>>()?;
                let otherwise = match otherwise {
                    Some(name) => self.either(name, names, at)?.1,
                    None => Vec::new(),
                };
                stages.push(Stage::When { cases, otherwise });
            }
        }
        Ok(())
    }

    fn either(
        &mut self,
        name: &'a Name,
        scope: &mut Scope,
        at: &str,
    ) -> Result<(String, Vec<Stage>), ChainError> {
        let target = self.function_or_chain(name, at)?;
        let label = scope.take(None, name);
        let stages = self.target(target, &label)?;
        Ok((label, stages))
    }

    fn target(&mut self, target: Target<'a>, label: &str) -> Result<Vec<Stage>, ChainError> {
        match target {
            Target::Function(name) => Ok(vec![Stage::Run(vec![self.call(name, label.to_owned())?])]),
            Target::Chain(spec) => self.chain(spec, &format!("{label}/")),
        }
    }

    fn call(&mut self, function: &Name, name: String) -> Result<Step, ChainError> {
        if self.steps == STEPS_MAX {
            return Err(ChainError::TooManySteps);
        }
        if name.len() > PATH_MAX {
            return Err(ChainError::PathTooLong { path: name });
        }
        self.steps += 1;
        Ok(Step { name, function: self.index(function), retry: 0, on_error: None })
    }

    fn index(&mut self, function: &Name) -> usize {
        let known = self.functions.iter().position(|known| known == function);
        known.unwrap_or_else(|| {
            self.functions.push(function.clone());
            self.functions.len() - 1
        })
    }

    fn function(&self, name: &'a Name, at: &str) -> Result<Target<'a>, ChainError> {
        match self.look_up(name) {
            Some(target @ Target::Function(_)) => Ok(target),
            Some(Target::Chain(_)) => {
                Err(self.unknown(name, at, "function", "; a chain has it: write chain = instead".into()))
            }
            None => Err(self.absent(name, at, "function")),
        }
    }

    fn chain_named(&self, name: &'a Name, at: &str) -> Result<Target<'a>, ChainError> {
        match self.look_up(name) {
            Some(target @ Target::Chain(_)) => Ok(target),
            Some(Target::Function(_)) => {
                Err(self.unknown(name, at, "chain", "; a function has it: write function = instead".into()))
            }
            None => Err(self.absent(name, at, "chain")),
        }
    }

    fn function_or_chain(&self, name: &'a Name, at: &str) -> Result<Target<'a>, ChainError> {
        self.look_up(name).ok_or_else(|| self.absent(name, at, "function or chain"))
    }

    fn look_up(&self, name: &'a Name) -> Option<Target<'a>> {
        if *name == self.outermost.name {
            return Some(Target::Chain(self.outermost));
        }
        if self.known.functions.contains(name) {
            return Some(Target::Function(name));
        }
        self.known.chains.get(name).map(Target::Chain)
    }

    fn unknown(&self, name: &Name, at: &str, wanted: &'static str, hint: String) -> ChainError {
        ChainError::Unknown { at: at.into(), name: name.clone(), wanted, hint }
    }

    fn absent(&self, name: &Name, at: &str, wanted: &'static str) -> ChainError {
        let functions = self.known.functions.iter().filter(|_| wanted != "chain");
        let chains = self.known.chains.keys().filter(|_| wanted != "function");
        let hint = match nearest(name.as_str(), functions.chain(chains)) {
            Some(near) => format!("; did you mean \"{near}\"?"),
            None if wanted == "chain" => "; apply it first (`spry chain apply`)".into(),
            None => "; deploy it first (`spry deploy`)".into(),
        };
        self.unknown(name, at, wanted, hint)
    }

    /// Where an error is: the chain is named if it isn't the one in question.
    fn at(&self, spec: &ChainSpec, what: &str, index: usize) -> String {
        match self.path.len() {
            1 => format!("{what} {}", index + 1),
            _ => format!("{what} {} of the chain \"{}\"", index + 1, spec.name),
        }
    }
}

impl Target<'_> {
    fn name(&self) -> &Name {
        match self {
            Self::Function(name) => name,
            Self::Chain(spec) => &spec.name,
        }
    }
}

/// Names that are given out once each, below one path.
struct Scope {
    prefix: String,
    /// Given out, or reserved for the step whose author chose it.
    taken: BTreeSet<String>,
}

impl Scope {
    fn new(prefix: &str, spec: &ChainSpec) -> Self {
        let chosen = spec.steps.iter().filter_map(|step| step.name.as_ref()).map(Name::to_string);
        Self { prefix: prefix.to_owned(), taken: chosen.collect() }
    }

    /// Below the name that the author chose, if that was done.
    fn within(&self, chosen: Option<&Name>) -> Option<Self> {
        chosen.map(|name| Self { prefix: format!("{}{name}/", self.prefix), taken: BTreeSet::new() })
    }

    /// The name that the author chose (which nobody else has), or one made from what is called.
    fn take(&mut self, chosen: Option<&Name>, called: &Name) -> String {
        if let Some(name) = chosen {
            return format!("{}{name}", self.prefix);
        }
        let mut name = called.to_string();
        let mut number = 1;
        while !self.taken.insert(name.clone()) {
            number += 1;
            name = format!("{called}-{number}");
        }
        format!("{}{name}", self.prefix)
    }
}

/// Puts stages behind others. A run that meets a run fills it up before it begins a new one.
fn append(stages: &mut Vec<Stage>, more: Vec<Stage>) {
    for stage in more {
        let Stage::Run(steps) = stage else {
            stages.push(stage);
            continue;
        };
        for step in steps {
            match stages.last_mut() {
                Some(Stage::Run(run)) if run.len() < RUN_MAX => run.push(step),
                _ => stages.push(Stage::Run(vec![step])),
            }
        }
    }
}

/// The name that was probably meant: at most a third of its letters differ.
fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a Name>) -> Option<&'a Name> {
    let distance = |name: &Name| strsim::damerau_levenshtein(wanted, name.as_str());
    names
        .map(|name| (distance(name), name))
        .filter(|(distance, name)| *distance * 3 <= name.as_str().len().max(wanted.len()))
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests;
