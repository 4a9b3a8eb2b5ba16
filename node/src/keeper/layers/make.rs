//! Making the layers that there should be, one after the other, beside everything else.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use super::super::{Keeper, off_the_loop};
use super::known::NamedPlan;
use super::{Built, MEMORY_FACTOR, SETTLE, extra};
use crate::function::Function;
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
        known.retain(|key| functions.iter().any(|function| key.is_of(&function.stored)));
        let mut grounds = self.layers.grounds.borrow_mut();
        grounds.retain(|ground, _| known.has_ground(ground));
        self.layers.refused.borrow_mut().retain(|(ground, _), _| grounds.contains_key(ground));
        self.layers.failures.borrow_mut().retain(|(ground, _), _| grounds.contains_key(ground));
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
        let ground = self.layers.grounds.borrow().get(&plan.ground).cloned();
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
            packages: ground.packages,
            env: ground.env,
            uid_gid: self.layers.uid_gid,
            memory_bytes,
            modules: plan.modules.clone(),
        };
        let stop = self.layers.begin(memory_bytes);
        let made = Layer::make(&self.executor, spec, promise, &stop).await;
        self.layers.making.take();
        if self.closing.get() || (made.is_err() && self.layers.is_short()) {
            return false;
        }
        let problem = match made {
            Ok(layer) => self.keep_layer(&plan, layer).err(),
            Err(error) => Some(error.to_string()),
        };
        if let Some(problem) = problem {
            tracing::info!(problem, "there is no layer of what some functions import");
            self.layers.refused.borrow_mut().insert((plan.ground, plan.modules), problem);
        }
        true
    }

    /// Takes a layer into use; an error when it is of use to nobody.
    fn keep_layer(&self, plan: &NamedPlan, layer: Layer) -> Result<(), String> {
        let known = self.layers.known.borrow();
        let built = Built {
            ground: plan.ground.clone(),
            planned: plan.modules.clone(),
            layer: Arc::new(layer),
            restore_ns: Cell::new(0),
        };
        let versions = || plan.versions.iter().filter_map(|key| Some((key, known.get(key)?)));
        if !versions().any(|(key, version)| built.is_part_of(key, version)) {
            let modules = built.layer.imports().modules.as_slice();
            let brought = versions().next().map(|(_, version)| extra(modules, &version.modules));
            let mut brought = brought.unwrap_or_default();
            brought.truncate(5);
            return Err(format!("importing brings more than the functions import: {}", brought.join(", ")));
        }
        tracing::info!(
            modules = built.layer.imports().modules.len(),
            bytes = built.layer.bytes(),
            took_ms = built.layer.took().as_millis() as u64,
            "a package layer was made"
        );
        drop(known);
        self.layers.built.borrow_mut().push(built);
        Ok(())
    }
}

/// Whole, or as it was.
fn write_down(path: &std::path::Path, text: &[u8]) -> std::io::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, path)
}
