//! Chains as the control API shows them: like `chain.toml`, with every name looked up and chains within the chain
//! laid out flat.

use serde::{Deserialize, Serialize};

use super::{Calls, DeployError, FunctionState, Instances, ZygoteState};
use crate::chain::plan::{On, Plan, Stage, Step, Trigger};
use crate::store::{StoreError, StoredChain};
use crate::units::{Period, Size};

/// A chain that was applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Applied {
    /// The chain, as it is now.
    pub chain: ChainView,
    /// Whether there was one of that name before.
    pub replaced: bool,
    /// The chains that go through it and were changed with it.
    pub dependents: Vec<String>,
}

/// Why a chain was not applied; whatever served before still does.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// One of its functions could not be started for it.
    #[error("the function \"{function}\": {source}")]
    Function {
        /// Which.
        function: String,
        /// Why.
        source: Box<DeployError>,
    },
    /// The node has no room.
    #[error("the node has no room: {0}")]
    NoRoom(String),
    /// The node is shutting down.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// It doesn't fit what is stored, or could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChainView {
    /// Its name.
    pub name: String,
    /// Whether it serves.
    pub state: FunctionState,
    /// Why it doesn't, when it doesn't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// For the whole chain; 0 when its text can't be read.
    pub timeout: Period,
    /// The largest request, response and list; 0 when its text can't be read.
    pub payload: Size,
    /// In the order in which they run; empty when its text can't be read.
    pub stages: Vec<StageView>,
    /// What emitted values start.
    pub triggers: Vec<TriggerView>,
    /// The functions that serve in it, each once. Their processes are this chain's own.
    pub functions: Vec<MemberView>,
    /// What became of its calls.
    pub calls: Calls,
    /// When it was applied.
    pub applied_unix_ms: u64,
    /// Its `chain.toml`, word for word.
    pub source: String,
}

/// A function within a chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberView {
    /// Its name.
    pub name: String,
    /// Which version serves.
    pub version: u64,
    /// Its processes in this chain.
    pub instances: Instances,
    /// Its zygote in this chain.
    pub zygote: ZygoteState,
    /// Requests that wait for it in this chain.
    pub queued: u64,
    /// Why it can't serve, when it can't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A part of a chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageView {
    /// Functions, one after the other.
    Run(Vec<StepView>),
    /// All with the same value; a list comes out.
    Parallel(Vec<BranchView>),
    /// Each element of a list by itself.
    Map {
        /// In timings and errors.
        label: String,
        /// Elements at the same time.
        at_once: u32,
        /// What is done with each.
        each: Vec<StageView>,
    },
    /// What the value says.
    When {
        /// In the order in which they are tried.
        cases: Vec<CaseView>,
        /// If none applies; empty: the value passes on unchanged.
        otherwise: Vec<StageView>,
    },
}

/// A function that is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepView {
    /// In timings and errors.
    pub name: String,
    /// Which function.
    pub function: String,
    /// More attempts when it fails.
    pub retry: u8,
    /// What is called when it has failed for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_error: Option<String>,
}

/// One branch of a fan-out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BranchView {
    /// In timings and errors.
    pub label: String,
    /// What it does.
    pub stages: Vec<StageView>,
}

/// One case of a branch on the value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseView {
    /// A JSON pointer.
    pub field: String,
    /// What must be there.
    pub equals: serde_json::Value,
    /// What is done then.
    pub then: Vec<StageView>,
}

/// What emitted values start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TriggerView {
    /// In timings and errors.
    pub label: String,
    /// When.
    pub on: OnView,
    /// What is done with them.
    pub stages: Vec<StageView>,
}

/// When a trigger starts, written as in `chain.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OnView {
    /// With each value.
    Every {
        /// Of this name.
        every: String,
    },
    /// With so many.
    Count {
        /// How many.
        count: u32,
        /// Of this name.
        of: String,
    },
    /// With one of each.
    Set {
        /// The names.
        set: Vec<String>,
    },
    /// With those of a span.
    Window {
        /// How long.
        window: Period,
        /// Of this name.
        of: String,
    },
}

impl ChainView {
    /// A chain that serves; who runs it fills in `functions` and `calls`.
    pub fn new(stored: &StoredChain, plan: &Plan) -> Self {
        Self {
            name: stored.name.clone(),
            state: FunctionState::Ready,
            problem: None,
            timeout: Period::millis(plan.timeout.as_millis() as u64),
            payload: Size::bytes(plan.payload_bytes),
            stages: stages(&plan.stages, plan),
            triggers: plan.triggers.iter().map(|one| trigger(one, plan)).collect(),
            functions: Vec::new(),
            calls: Calls::default(),
            applied_unix_ms: stored.applied_unix_ms,
            source: stored.source.clone(),
        }
    }

    /// A chain that is stored and can't serve.
    pub fn broken(stored: &StoredChain, problem: String) -> Self {
        Self {
            name: stored.name.clone(),
            state: FunctionState::Broken,
            problem: Some(problem),
            timeout: Period::default(),
            payload: Size::default(),
            stages: Vec::new(),
            triggers: Vec::new(),
            functions: Vec::new(),
            calls: Calls::default(),
            applied_unix_ms: stored.applied_unix_ms,
            source: stored.source.clone(),
        }
    }

    /// How many functions are called, wherever they lie.
    pub fn steps(&self) -> usize {
        let triggered: usize = self.triggers.iter().map(|trigger| count(&trigger.stages)).sum();
        count(&self.stages) + triggered
    }
}

fn count(stages: &[StageView]) -> usize {
    let one = |stage: &StageView| match stage {
        StageView::Run(steps) => steps.len(),
        StageView::Parallel(branches) => branches.iter().map(|branch| count(&branch.stages)).sum(),
        StageView::Map { each, .. } => count(each),
        StageView::When { cases, otherwise } => {
            cases.iter().map(|case| count(&case.then)).sum::<usize>() + count(otherwise)
        }
    };
    stages.iter().map(one).sum()
}

fn stages(list: &[Stage], plan: &Plan) -> Vec<StageView> {
    list.iter().map(|one| stage(one, plan)).collect()
}

fn stage(stage: &Stage, plan: &Plan) -> StageView {
    match stage {
        Stage::Run(steps) => StageView::Run(steps.iter().map(|one| step(one, plan)).collect()),
        Stage::Parallel(branches) => {
            let branches = branches.iter().map(|branch| BranchView {
                label: branch.label.clone(),
                stages: stages(&branch.stages, plan),
            });
            StageView::Parallel(branches.collect())
        }
        Stage::Map { each, at_once, label } => {
            StageView::Map { label: label.clone(), at_once: *at_once as u32, each: stages(each, plan) }
        }
        Stage::When { cases, otherwise } => {
            let cases = cases.iter().map(|case| CaseView {
                field: case.pointer.clone(),
                equals: case.equals.clone(),
                then: stages(&case.then, plan),
            });
            StageView::When { cases: cases.collect(), otherwise: stages(otherwise, plan) }
        }
    }
}

fn step(step: &Step, plan: &Plan) -> StepView {
    let name = |index: usize| plan.functions[index].to_string();
    StepView {
        name: step.name.clone(),
        function: name(step.function),
        retry: step.retry,
        on_error: step.on_error.map(name),
    }
}

fn trigger(trigger: &Trigger, plan: &Plan) -> TriggerView {
    let on = match &trigger.on {
        On::Every(name) => OnView::Every { every: name.clone() },
        On::Count { name, count } => OnView::Count { count: *count as u32, of: name.clone() },
        On::Set(names) => OnView::Set { set: names.clone() },
        On::Window { name, span } => {
            OnView::Window { window: Period::millis(span.as_millis() as u64), of: name.clone() }
        }
    };
    TriggerView { label: trigger.label.clone(), on, stages: stages(&trigger.run, plan) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::spec::ChainSpec;
    use crate::chain::{Known, flatten};

    #[test]
    fn a_chain_is_shown_as_documented() {
        let source = "name = 'x'\ntimeout = '2s'\n[[step]]\nfunction = 'a'\nretry = 1\non_error = 'b'\n[[step]]\n\
                      parallel = ['a', 'b']\n[[step]]\nmap = 'a'\nat_once = 3\n[[step]]\n\
                      when = [{ field = '/k', equals = 1, then = 'a' }]\n[[trigger]]\nfunction = 'b'\n\
                      on = { every = 'v' }\n[[trigger]]\nfunction = 'b'\non = { count = 2, of = 'v' }\n\
                      [[trigger]]\nfunction = 'b'\non = { set = ['v', 'w'] }\n[[trigger]]\nfunction = 'b'\n\
                      on = { window = '10ms', of = 'v' }\n";
        let functions = ["a", "b"].map(|name| name.parse().expect("a name")).into();
        let known = Known { functions, ..Known::default() };
        let plan = flatten(&ChainSpec::parse(source).expect("valid"), &known).expect("flat");
        let stored = StoredChain { name: "x".into(), source: source.into(), applied_unix_ms: 7 };
        let view = ChainView::new(&stored, &plan);
        assert_eq!(view.steps(), 9);
        let json = serde_json::to_value(&view).expect("JSON");
        let step = |name: &str, function: &str| serde_json::json!({"run": [{"name": name, "function": function, "retry": 0}]});
        assert_eq!(
            json,
            serde_json::json!({
                "name": "x", "state": "ready", "timeout": "2s", "payload": "6MiB",
                "stages": [
                    {"run": [{"name": "a", "function": "a", "retry": 1, "on_error": "b"}]},
                    {"parallel": [
                        {"label": "a-2", "stages": [step("a-2", "a")]},
                        {"label": "b", "stages": [step("b", "b")]},
                    ]},
                    {"map": {"label": "a-3", "at_once": 3, "each": [step("a-3", "a")]}},
                    {"when": {
                        "cases": [{"field": "/k", "equals": 1, "then": [step("a-4", "a")]}],
                        "otherwise": [],
                    }},
                ],
                "triggers": [
                    {"label": "b-2", "on": {"every": "v"}, "stages": [step("b-2", "b")]},
                    {"label": "b-3", "on": {"count": 2, "of": "v"}, "stages": [step("b-3", "b")]},
                    {"label": "b-4", "on": {"set": ["v", "w"]}, "stages": [step("b-4", "b")]},
                    {"label": "b-5", "on": {"window": "10ms", "of": "v"}, "stages": [step("b-5", "b")]},
                ],
                "functions": [],
                "calls": {"ok": 0, "failed": 0, "cold": 0, "forked": 0, "warm": 0},
                "applied_unix_ms": 7,
                "source": source,
            })
        );
        assert_eq!(serde_json::from_value::<ChainView>(json).expect("reads back"), view);
        let broken = ChainView::broken(&stored, "it is no chain".into());
        assert_eq!(
            (broken.state, broken.steps(), broken.source.as_str()),
            (FunctionState::Broken, 0, source)
        );
    }
}
