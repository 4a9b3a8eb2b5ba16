//! Which layers there are, for `spry status` and the metrics.

use std::collections::HashMap;
use std::path::Path;

use super::super::Keeper;
use super::fit;
use super::key::{LayerKey, VersionKey, names_of};
use super::known::Version;
use crate::api::LayerView;
use crate::function::Function;
use crate::packages::distribution;
use crate::units::Size;

impl Keeper {
    /// Has `spry status` and the metrics say which layers there are.
    pub(super) fn show_layers(&self) {
        let functions = self.functions_on_the_bus();
        let known = self.layers.known.borrow();
        let grounds = self.layers.grounds.borrow();
        let mut named_so: HashMap<_, Vec<&Function>> = HashMap::new();
        for function in &functions {
            named_so.entry(names_of(&function.stored)).or_default().push(function);
        }
        let versions: Vec<(&VersionKey, &Version, &[&Function])> = known
            .iter()
            .filter_map(|(key, version)| Some((key, version, named_so.get(&key.names())?.as_slice())))
            .collect();
        let named = |layer: &LayerKey,
                     uses: &dyn Fn(&VersionKey, &Version) -> bool|
         -> (Vec<String>, Vec<String>) {
            let users = versions.iter().filter(|(key, version, _)| uses(key, version));
            let users: Vec<&Function> = users.flat_map(|(.., functions)| functions.iter().copied()).collect();
            let mut names: Vec<String> = users.iter().map(|function| function.name().to_owned()).collect();
            names.sort_unstable();
            names.dedup();
            // In one folder they aren't told apart: what was asked for is.
            let is_whole = grounds.get(&layer.ground).is_some_and(|ground| ground.whole.is_some());
            let packages = match users.first().map(|function| &function.stored.manifest.packages) {
                Some(packages) if is_whole => packages.iter().map(ToString::to_string).collect(),
                _ => layer.packages.iter().map(|folder| distribution(Path::new(folder))).collect(),
            };
            (names, packages)
        };
        let mut views: Vec<LayerView> = Vec::new();
        for built in self.layers.built.borrow().iter() {
            let uses = |key: &VersionKey, version: &Version| built.suits(key, version, &known);
            let (functions, packages) = named(&built.key, &uses);
            views.push(LayerView {
                packages,
                functions,
                modules: built.layer.imports().modules.len() as u32,
                memory: Size::bytes(built.layer.bytes()),
                took_ms: built.layer.took().as_secs_f64() * 1e3,
                problem: None,
            });
        }
        for (layer, problem) in self.layers.refused.borrow().iter() {
            let uses = |key: &VersionKey, version: &Version| fit::is_for(layer, key, version);
            let (functions, packages) = named(layer, &uses);
            views.push(LayerView {
                packages,
                functions,
                modules: layer.modules.len() as u32,
                memory: Size::default(),
                took_ms: 0.0,
                problem: Some(problem.clone()),
            });
        }
        views.sort_by(|one, other| one.functions.cmp(&other.functions));
        self.node.set_layers(views);
    }
}
