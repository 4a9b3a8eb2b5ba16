//! Which layers there are, for `spry status` and the metrics.

use super::super::Keeper;
use super::extra;
use super::known::{Version, VersionKey};
use crate::api::LayerView;
use crate::units::Size;

impl Keeper {
    /// Has `spry status` and the metrics say which layers there are.
    pub(super) fn show_layers(&self) {
        let functions = self.functions_on_the_bus();
        let known = self.layers.known.borrow();
        let named = |uses: &dyn Fn(&VersionKey, &Version) -> bool| -> (Vec<String>, Vec<String>) {
            let users = functions.iter().filter(|function| {
                known.iter().any(|(key, version)| key.is_of(&function.stored) && uses(key, version))
            });
            let mut names: Vec<String> = users.clone().map(|function| function.name().to_owned()).collect();
            names.sort_unstable();
            names.dedup();
            let packages = users.map(|function| &function.stored.manifest.packages).next();
            let packages = packages.map(|packages| packages.iter().map(ToString::to_string).collect());
            (names, packages.unwrap_or_default())
        };
        let mut views: Vec<LayerView> = Vec::new();
        for built in self.layers.built.borrow().iter() {
            let uses = |key: &VersionKey, version: &Version| built.is_part_of(key, version);
            let (functions, packages) = named(&uses);
            views.push(LayerView {
                packages,
                functions,
                modules: built.layer.imports().modules.len() as u32,
                memory: Size::bytes(built.layer.bytes()),
                took_ms: built.layer.took().as_secs_f64() * 1e3,
                problem: None,
            });
        }
        for ((ground, modules), problem) in self.layers.refused.borrow().iter() {
            let uses = |key: &VersionKey, version: &Version| {
                key.ground() == ground && extra(modules, &version.modules).is_empty()
            };
            let (functions, packages) = named(&uses);
            views.push(LayerView {
                packages,
                functions,
                modules: modules.len() as u32,
                memory: Size::default(),
                took_ms: 0.0,
                problem: Some(problem.clone()),
            });
        }
        views.sort_by(|one, other| one.functions.cmp(&other.functions));
        self.node.set_layers(views);
    }
}
