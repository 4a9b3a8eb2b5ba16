//! Making the layers that there should be, one after the other, beside everything else.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use shm_bus::ids::FunctionIndex;

use super::super::memory::Packages;
use super::super::{Keeper, off_the_loop};
use super::fit::{self, Found};
use super::key::{LayerKey, names_of};
use super::known::NamedPlan;
use super::{Built, FOUND_MAX, MEMORY_FACTOR, SETTLE, best};
use crate::function::Function;
use crate::packages::Site;
use crate::zygote::{Layer, LayerSpec};

impl Keeper {
    /// A function is gone: what was made for it may go.
    pub(in crate::keeper) fn layers_changed(&self) {
        self.layers.changed.notify_one();
    }

    /// Makes the layers that there should be, until the node ends.
    pub(in crate::keeper) async fn tend_layers(self: Rc<Self>) {
        // (Elsewhere a zygote can't be written down, as `spry doctor` says: none is started in vain.)
        if self.layers.budget_bytes == 0 || cfg!(not(target_arch = "x86_64")) {
            return;
        }
        while !self.closing.get() {
            self.layers.changed.notified().await;
            tokio::time::sleep(SETTLE).await;
            self.forget_imports();
            while !self.closing.get() && self.make_layer().await {}
            self.assign_layers();
            self.show_layers();
            let (text, path) = (self.layers.known.borrow().text(), self.layers.path.clone());
            let written = off_the_loop(move || write_down(&path, &text)).await;
            if let Err(error) = written {
                tracing::warn!(%error, "what functions import isn't remembered over a restart");
            }
        }
    }

    /// Forgets what no function on the bus imports.
    fn forget_imports(&self) {
        let functions = self.functions_on_the_bus();
        let mut known = self.layers.known.borrow_mut();
        let names: HashSet<_> = functions.iter().map(|function| names_of(&function.stored)).collect();
        known.retain(|key| names.contains(&key.names()));
        let mut grounds = self.layers.grounds.borrow_mut();
        grounds.retain(|ground, _| known.has_ground(ground));
        // (What some of the packages is of that no function has any more is of no use.)
        let is_kept = |key: &LayerKey| grounds.contains_key(&key.ground) && known.has_all(&key.packages);
        self.layers.refused.borrow_mut().retain(|key, _| is_kept(key));
        self.layers.failures.borrow_mut().retain(|key, _| is_kept(key));
        let mut found = self.layers.found.borrow_mut();
        found.retain(|key, _| is_kept(key));
        if found.len() > FOUND_MAX {
            let built = self.layers.built.borrow();
            found.retain(|key, _| built.iter().any(|built| built.key == *key));
        }
    }

    pub(super) fn functions_on_the_bus(&self) -> Vec<Arc<Function>> {
        self.bus.functions.iter().filter_map(|entry| entry.load_full()).collect()
    }

    /// Makes one layer. False: there is nothing to make, or no memory.
    async fn make_layer(&self) -> bool {
        let Some(plan) = self.layers.next() else { return false };
        if self.layers.is_short() {
            return false;
        }
        let ground = self.layers.grounds.borrow().get(&plan.key.ground).cloned();
        let Some(ground) = ground else { return false };
        let limit_bytes = {
            let known = self.layers.known.borrow();
            let versions = plan.versions.iter().filter_map(|key| known.get(key));
            versions.map(|version| version.limit_bytes).max().unwrap_or(0)
        };
        let memory_bytes = limit_bytes.saturating_mul(MEMORY_FACTOR);
        let promise = match self.memory.budget.promise(memory_bytes) {
            Ok(promise) => promise,
            Err(short) => {
                tracing::debug!(%short, "no layer is made now");
                return false;
            }
        };
        let number = self.layers.next.replace(self.layers.next.get() + 1);
        let spec = LayerSpec {
            name: format!("_layer-{number}"),
            interpreter: ground.interpreter,
            packages: ground.whole.or_else(|| site(&plan.key.packages)),
            env: ground.env,
            uid_gid: self.layers.uid_gid,
            memory_bytes,
            modules: plan.key.modules.clone(),
        };
        let stop = self.layers.begin(memory_bytes);
        let made = Layer::make(&self.executor, spec, promise, &stop).await;
        self.layers.making.take();
        if self.closing.get() || (made.is_err() && self.layers.is_short()) {
            return false;
        }
        let problem = match made {
            Ok(layer) => self.keep_layer(&plan, number, layer).err(),
            Err(error) => Some(error.to_string()),
        };
        if let Some(problem) = problem {
            tracing::info!(problem, "there is no layer of what some functions import");
            self.layers.refused.borrow_mut().insert(plan.key, problem);
        }
        true
    }

    /// Takes a layer into use; an error when it is of use to nobody.
    fn keep_layer(&self, plan: &NamedPlan, number: u32, layer: Layer) -> Result<(), String> {
        let known = self.layers.known.borrow();
        let found = Found::new(layer.imports().modules.clone(), layer.absent().clone());
        self.layers.found.borrow_mut().insert(plan.key.clone(), found.clone());
        let built = Built {
            key: plan.key.clone(),
            number,
            found,
            layer: Arc::new(layer),
            restore_ns: Cell::new(0),
            functions: RefCell::default(),
        };
        let versions = plan.versions.iter().filter_map(|key| Some((key, known.get(key)?)));
        let reasons = versions
            .map(|(key, version)| fit::unfit(&built.key, &built.found, key, version, &known.provided));
        let reasons: Vec<Option<String>> = reasons.collect();
        if !reasons.iter().any(Option::is_none) {
            return Err(reasons.into_iter().flatten().next().unwrap_or_default());
        }
        tracing::info!(
            modules = built.layer.imports().modules.len(),
            bytes = built.layer.bytes(),
            took_ms = built.layer.took().as_millis() as u64,
            "a package layer was made"
        );
        drop(known);
        self.layers.built.borrow_mut().push(built);
        self.assign_layers();
        Ok(())
    }

    /// Notes whom each layer is for, and has the policy know.
    fn assign_layers(&self) {
        let functions = self.functions_on_the_bus();
        let mut named_so: HashMap<_, Vec<FunctionIndex>> = HashMap::new();
        for function in &functions {
            named_so.entry(names_of(&function.stored)).or_default().push(function.index);
        }
        let (known, built) = (self.layers.known.borrow(), self.layers.built.borrow());
        built.iter().for_each(|built| built.functions.borrow_mut().clear());
        let mut packages = Packages::new();
        for (key, version) in known.iter() {
            let Some(indices) = named_so.get(&key.names()) else { continue };
            let Some(best) = best(&built, key, version, &known) else { continue };
            best.functions.borrow_mut().extend(indices);
            packages.extend(indices.iter().map(|index| (*index, (best.number, best.cost()))));
        }
        self.memory.set_packages(packages);
    }
}

/// What a layer's process is given; nothing, if it needs nothing.
fn site(folders: &[String]) -> Option<Site> {
    let folders: Vec<_> = folders.iter().map(std::path::PathBuf::from).collect();
    (!folders.is_empty()).then_some(Site { folders, whole: None })
}

/// Whole, or as it was.
fn write_down(path: &std::path::Path, text: &[u8]) -> std::io::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, path)
}
