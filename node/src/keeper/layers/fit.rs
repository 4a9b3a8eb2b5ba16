//! Whom a layer suits: who would have imported the same, from the same files, and in the same way.
//!
//! A layer's process imports its modules among the distributions that *all* its functions have (`LayerKey::packages`), in the same folders
//! and the same order. A function may have more. Then its own imports could have gone another way in three respects, and in each
//! of them the layer isn't for it:
//!
//! - one of its other distributions has a module of a name that is imported in the layer: it might have come from there;
//! - one of them, or its own code, has what importing has looked for and not found (`try: import numexpr`, `find_spec`, the version
//!   of a distribution), as the layer's process has noted;
//! - importing has looked at which distributions there are (entry points, `pkg_resources`, a walk through `sys.path`), and there are others.
//!
//! Names are compared by their first part, and whether the interpreter would have come as far isn't asked: a layer too few is no harm.
//! What isn't noticed is who reads folders of distributions that were named to it by other means.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::rc::Rc;

use spry_sched::layers::Measured;
use spry_wire::layer::Absent;

use super::extra;
use super::known::{LayerKey, Version, VersionKey};
use crate::packages::{distribution, modules_in};

/// What a layer turned out to be.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    /// What is imported in it.
    pub(super) modules: Vec<String>,
    /// What isn't.
    pub(super) absent: Absent,
    /// What it took and saved.
    pub(super) measured: Option<Measured>,
}

/// Names of modules, the first part, that distributions bring; by their folders, which never change.
#[derive(Debug, Default)]
pub(super) struct Provided(RefCell<HashMap<String, Rc<BTreeSet<String>>>>);

impl Provided {
    fn of(&self, folder: &str) -> Rc<BTreeSet<String>> {
        if let Some(known) = self.0.borrow().get(folder) {
            return Rc::clone(known);
        }
        match modules_in(Path::new(folder)) {
            Ok(names) => Rc::clone(self.0.borrow_mut().entry(folder.to_owned()).or_insert(Rc::new(names))),
            // It is gone; who has it is going to have it installed again.
            Err(_) => Rc::default(),
        }
    }

    /// Which of these folders have which names.
    pub(super) fn origins<'a>(&self, folders: &'a [String]) -> BTreeMap<String, Vec<&'a str>> {
        let mut origins: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for folder in folders {
            for name in self.of(folder).iter() {
                origins.entry(name.clone()).or_default().push(folder);
            }
        }
        origins
    }

    pub(super) fn retain(&self, is_kept: impl Fn(&str) -> bool) {
        self.0.borrow_mut().retain(|folder, _| is_kept(folder));
    }

    #[cfg(test)]
    pub(super) fn insert(&self, folder: &str, names: &[&str]) {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        self.0.borrow_mut().insert(folder.to_owned(), Rc::new(names));
    }
}

/// The first part of a module's name.
pub(super) fn top(module: &str) -> &str {
    module.split('.').next().unwrap_or(module)
}

/// Why a layer isn't for this version, if it isn't.
pub(super) fn unfit(
    layer: &LayerKey,
    found: &Found,
    key: &VersionKey,
    version: &Version,
    provided: &Provided,
) -> Option<String> {
    if layer.ground != *key.ground() || version.alone {
        return Some("its functions import on another ground".to_owned());
    }
    let has = |folder: &String| key.packages().binary_search(folder).is_ok();
    if !layer.packages.iter().all(has) {
        return Some("its functions have other packages".to_owned());
    }
    let mut brought = extra(&found.modules, &version.modules);
    if !brought.is_empty() {
        brought.truncate(5);
        return Some(format!("importing brings more than the functions import: {}", brought.join(", ")));
    }
    let Some(own) = &version.own else {
        return Some("what their own code has isn't known yet".to_owned());
    };
    let absent: BTreeSet<&str> = found.absent.modules.iter().map(String::as_str).collect();
    if let Some(name) = own.iter().find(|name| absent.contains(name.as_str())) {
        return Some(format!("importing looks for {name}, which is among their own code"));
    }
    let mut others =
        key.packages().iter().filter(|folder| layer.packages.binary_search(folder).is_err()).peekable();
    if let (true, Some(folder)) = (found.absent.all, others.peek()) {
        return Some(format!("importing looks at which packages there are, {} among them", shown(folder)));
    }
    let imported: BTreeSet<&str> = found.modules.iter().map(|module| top(module)).collect();
    let distributions: BTreeSet<String> =
        found.absent.distributions.iter().map(|name| normalized(name)).collect();
    for folder in others {
        let names = provided.of(folder);
        let looked_for =
            names.iter().find(|name| absent.contains(name.as_str()) || imported.contains(name.as_str()));
        if let Some(name) = looked_for {
            return Some(format!("importing looks for {name}, which {} has", shown(folder)));
        }
        let shown = shown(folder);
        if distributions.contains(&normalized(shown.split("==").next().unwrap_or(&shown))) {
            return Some(format!("importing asks for the version of {shown}"));
        }
    }
    None
}

/// Whether a layer was thought of for this version, whatever it turned out to be.
pub(super) fn is_for(layer: &LayerKey, key: &VersionKey, version: &Version) -> bool {
    layer.ground == *key.ground()
        && layer.packages.iter().all(|folder| key.packages().binary_search(folder).is_ok())
        && extra(&layer.modules, &version.modules).is_empty()
}

fn shown(folder: &str) -> String {
    distribution(Path::new(folder))
}

/// As names of distributions are compared.
fn normalized(name: &str) -> String {
    let parts = name.split(['-', '_', '.']).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("-").to_lowercase()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::known::Known;
    use super::*;

    const NUMPY: &str = "/numpy-2.2.6-a";
    const OTHER: &str = "/Num_Expr-1.0-b";

    /// Why a layer of NumPy isn't for a function that has both.
    fn why(own: &[&str], found: Found) -> Option<String> {
        let strings =
            |names: &[&str]| -> Vec<String> { names.iter().map(|name| (*name).to_owned()).collect() };
        let known = Known::default();
        known.provided.insert(NUMPY, &["numpy"]);
        known.provided.insert(OTHER, &["numexpr", "_numexpr"]);
        let text =
            serde_json::json!({"code": "a", "handler": "f:main", "ground": "g", "packages": [OTHER, NUMPY]});
        let key: VersionKey = serde_json::from_value(text).expect("a key");
        let modules = strings(&["os", "numpy", "numpy.core", "numexpr"]);
        let version = Version::new(modules, Duration::ZERO, 0, 0, strings(own));
        let mut known = known;
        known.learn(key.clone(), version.clone(), Instant::now());
        let layer = LayerKey { ground: key.ground().clone(), modules: vec![], packages: strings(&[NUMPY]) };
        unfit(&layer, &found, &key, &version, &known.provided)
    }

    fn found(modules: &[&str], absent: &[&str], distributions: &[&str], all: bool) -> Found {
        let strings =
            |names: &[&str]| -> Vec<String> { names.iter().map(|name| (*name).to_owned()).collect() };
        let absent = Absent { modules: strings(absent), distributions: strings(distributions), all };
        Found { modules: strings(modules), absent, measured: None }
    }

    #[test]
    fn who_has_what_importing_looked_for_is_given_no_layer() {
        let usual = &["os", "numpy", "numpy.core"][..];
        assert_eq!(why(&["main"], found(usual, &["pandas", "yaml"], &["pandas"], false)), None);
        for (own, found, says) in [
            (
                &["main"][..],
                found(usual, &["numexpr"], &[], false),
                "looks for numexpr, which Num_Expr==1.0 has",
            ),
            (&["main"], found(&["os", "numexpr.utils"], &[], &[], false), "brings more"),
            (
                &["main"],
                found(&["os", "numexpr"], &[], &[], false),
                "looks for numexpr, which Num_Expr==1.0 has",
            ),
            (&["main"], found(usual, &[], &["num-expr"], false), "asks for the version of Num_Expr==1.0"),
            (&["main"], found(usual, &[], &[], true), "which packages there are, Num_Expr==1.0 among them"),
            (&["main", "yaml"], found(usual, &["yaml"], &[], false), "yaml, which is among their own code"),
        ] {
            let why = why(own, found).unwrap_or_default();
            assert!(why.contains(says), "{why} is not {says}");
        }
    }
}
