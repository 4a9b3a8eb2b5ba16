//! Chains as they are stored: texts that are looked up anew, all together, whenever one changes.
//!
//! A chain is planned first and committed later, as a function is staged and committed: between the two its
//! functions are started. What it names may change meanwhile, so the commit plans it once more under the
//! database's lock and refuses it if anything came out differently. A name that is about to be removed is
//! [retired](Store::retire) first, so that no chain begins to use it while its processes end.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::database::{ChainRow, Database};
use super::fault::Step;
use super::{Shared, Store, StoreError};
use crate::chain::plan::Plan;
use crate::chain::spec::{ChainError, ChainSpec};
use crate::chain::{Known, flatten};
use crate::manifest::Name;

/// A chain as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredChain {
    /// Its name.
    pub name: String,
    /// Its `chain.toml`, word for word.
    pub source: String,
    /// When it was committed: milliseconds since the Unix epoch.
    pub applied_unix_ms: u64,
}

/// A chain as it is stored, with what it comes to, or why it can't be planned.
pub type StoredPlan = (StoredChain, Result<Plan, ChainError>);

/// A chain that fits what there is, and isn't stored yet.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedChain {
    /// Its `chain.toml`, word for word.
    pub source: String,
    /// What it comes to.
    pub plan: Plan,
    /// The functions and chains that its text names.
    pub uses: Vec<Name>,
    /// What the chains come to that go through it, and will from its commit on. Those that stay as they are, are not
    /// here.
    pub dependents: Vec<Plan>,
}

/// A name that no chain can begin to use as long as this value is kept.
#[derive(Debug)]
pub struct Retired {
    name: Name,
    shared: Arc<Shared>,
}

impl Drop for Retired {
    fn drop(&mut self) {
        self.shared.retired.lock().remove(&self.name);
    }
}

impl Store {
    /// Every chain, by name.
    pub fn chains(&self) -> Result<Vec<StoredChain>, StoreError> {
        Ok(self.shared.database.lock().chains()?.into_iter().map(stored).collect())
    }

    /// Every chain with what it comes to. One that can't be planned (its text was accepted by another version) says
    /// why; the others are not touched by that.
    pub fn plans(&self) -> Result<Vec<StoredPlan>, StoreError> {
        let (rows, known) = {
            let database = self.shared.database.lock();
            (database.chains()?, self.shared.known(&database)?)
        };
        let plan = |row: ChainRow| {
            let plan = ChainSpec::parse(&row.source).and_then(|spec| flatten(&spec, &known));
            (stored(row), plan)
        };
        Ok(rows.into_iter().map(plan).collect())
    }

    /// Checks a chain's text against what else there is. Changes nothing.
    pub fn plan_chain(&self, source: &str) -> Result<PlannedChain, StoreError> {
        self.shared.plan(source, &self.shared.database.lock())
    }

    /// Makes a planned chain the one of its name, durably and at once. [`StoreError::ChainOvertaken`] if by now it
    /// would come out differently.
    pub fn commit_chain(&self, planned: &PlannedChain) -> Result<StoredChain, StoreError> {
        self.shared.seam.pass(Step::BeforeApply)?;
        let mut database = self.shared.database.lock();
        match self.shared.plan(&planned.source, &database) {
            Ok(now) if now == *planned => {}
            Err(failed @ (StoreError::Database { .. } | StoreError::NameIsFunction(_))) => {
                return Err(failed);
            }
            _ => return Err(StoreError::ChainOvertaken(planned.plan.name.to_string())),
        }
        let row = ChainRow {
            name: planned.plan.name.to_string(),
            source: planned.source.clone(),
            applied_unix_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as u64),
        };
        let uses: Vec<&str> = planned.uses.iter().map(Name::as_str).collect();
        database.apply(&row, &uses)?;
        drop(database);
        self.shared.seam.pass(Step::AfterApply)?;
        Ok(stored(row))
    }

    /// Begins the removal of a function or a chain: from now on, no chain can begin to use it.
    /// [`StoreError::InUse`] if one does.
    pub fn retire(&self, name: &Name) -> Result<Retired, StoreError> {
        let database = self.shared.database.lock();
        let chains = database.users_of(name.as_str())?;
        if !chains.is_empty() {
            return Err(StoreError::InUse { name: name.to_string(), chains });
        }
        self.shared.retired.lock().insert(name.clone());
        Ok(Retired { name: name.clone(), shared: Arc::clone(&self.shared) })
    }

    /// Removes a chain that no other one uses.
    pub fn remove_chain(&self, name: &Name) -> Result<(), StoreError> {
        self.shared.seam.pass(Step::RemoveChain)?;
        self.shared.database.lock().remove_chain(name.as_str())
    }
}

impl Shared {
    /// What names can be looked up in: all that is stored and isn't being removed.
    fn known(&self, database: &Database) -> Result<Known, StoreError> {
        let retired = self.retired.lock();
        let stays = |name: &Name| !retired.contains(name);
        let functions = database.function_names()?.into_iter().filter_map(|name| name.try_into().ok());
        let chains = database.chains()?;
        // A text that this version doesn't read is as good as none.
        let chains = chains.iter().filter_map(|row| ChainSpec::parse(&row.source).ok());
        Ok(Known {
            functions: functions.filter(stays).collect(),
            chains: chains.map(|spec| (spec.name.clone(), spec)).filter(|(name, _)| stays(name)).collect(),
        })
    }

    fn plan(&self, source: &str, database: &Database) -> Result<PlannedChain, StoreError> {
        let spec = ChainSpec::parse(source)?;
        if database.function_names()?.iter().any(|name| name == spec.name.as_str()) {
            return Err(StoreError::NameIsFunction(spec.name.to_string()));
        }
        let mut known = self.known(database)?;
        let plan = flatten(&spec, &known)?;
        let before = known.clone();
        known.chains.insert(spec.name.clone(), spec.clone());
        let mut dependents = Vec::new();
        for other in before.chains.values().filter(|other| other.name != spec.name) {
            let old = flatten(other, &before).ok();
            match flatten(other, &known) {
                Ok(new) if old.as_ref() == Some(&new) => {}
                Ok(new) => dependents.push(new),
                // One that is broken anyway is not this one's fault.
                Err(_) if old.is_none() => {}
                Err(source) => return Err(StoreError::Dependent { chain: other.name.to_string(), source }),
            }
        }
        let uses = spec.uses().into_iter().cloned().collect();
        Ok(PlannedChain { source: source.to_owned(), plan, uses, dependents })
    }
}

fn stored(row: ChainRow) -> StoredChain {
    StoredChain { name: row.name, source: row.source, applied_unix_ms: row.applied_unix_ms }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
