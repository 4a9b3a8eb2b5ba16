//! Whom a layer suits: who would have imported the same, from the same files, and in the same way.
//!
//! A layer's process imports its modules among the distributions that *all* its functions have (`LayerKey::packages`), in the same folders
//! and the same order. A function may have more. Then its own imports could have gone another way in three respects, and in each
//! of them the layer isn't for it:
//!
//! - one of its other distributions has a module of a name that is imported in the layer: it might have come from there;
//! - one of them, or its own code, has what importing has looked for and not found (`try: import numexpr`, `find_spec`, the version
//!   of a distribution), as the layer's process has noted;
//! - importing has looked at which distributions there are (entry points, `pkg_resources`), or gone through the folders of
//!   `sys.path` by itself, and there are others.
//!
//! Its own code counts as one of them: a folder `plug-1.0.dist-info` in it is a distribution too, and comes first.
//! What is to be compared and can't be listed has whatever is looked for.
//!
//! Names are compared by their first part, and whether the interpreter would have come as far isn't asked: a layer too few is no harm.
//! What isn't noticed is who reads folders of distributions that were named to it by other means, and that a walk sees the module
//! of the function's handler.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::rc::Rc;

use spry_sched::layers::Measured;
use spry_wire::layer::Absent;

use super::extra;
use super::key::{LayerKey, VersionKey};
use super::known::Version;
use crate::packages::{distribution, modules_in};

/// Names of a function's own code that are looked at; who has more has no layer.
const OWN_MAX: usize = 4096;

/// What a layer turned out to be.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    /// What is imported in it: sorted.
    modules: Vec<String>,
    /// Names of modules, the first part, that were looked for and aren't imported.
    absent: HashSet<String>,
    /// The same of those that are.
    imported: HashSet<String>,
    /// Names of distributions that were asked for, as they are compared.
    distributions: HashSet<String>,
    /// See [`Absent::all`].
    all: bool,
    /// See [`Absent::walked`].
    walked: bool,
    /// What it took and saved.
    pub(super) measured: Option<Measured>,
}

impl Found {
    /// As its process says.
    pub(super) fn new(mut modules: Vec<String>, absent: Absent) -> Self {
        modules.sort_unstable();
        Self {
            imported: modules.iter().map(|module| top(module).to_owned()).collect(),
            modules,
            absent: absent.modules.into_iter().collect(),
            distributions: absent.distributions.iter().map(|name| normalized(name)).collect(),
            all: absent.all,
            walked: absent.walked,
            measured: None,
        }
    }
}

/// Names of modules, the first part, that distributions bring; by their folders, which never change.
#[derive(Debug, Default)]
pub(super) struct Provided(RefCell<HashMap<String, Rc<BTreeSet<String>>>>);

impl Provided {
    /// Nothing, if that can't be told now: it is gone (who has it is going to have it installed again), or there are too many
    /// open files.
    fn of(&self, folder: &str) -> Option<Rc<BTreeSet<String>>> {
        if let Some(known) = self.0.borrow().get(folder) {
            return Some(Rc::clone(known));
        }
        let names = Rc::new(modules_in(Path::new(folder)).ok()?);
        self.0.borrow_mut().insert(folder.to_owned(), Rc::clone(&names));
        Some(names)
    }

    /// Which of these folders have which names; nothing, if that can't be told of one.
    pub(super) fn origins<'a>(&self, folders: &'a [String]) -> Option<BTreeMap<String, Vec<&'a str>>> {
        let mut origins: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for folder in folders {
            for name in self.of(folder)?.iter() {
                origins.entry(name.clone()).or_default().push(folder);
            }
        }
        Some(origins)
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

/// What a function's own code has for who looks for modules and distributions; nothing, if that is too much or can't be told.
pub(super) fn own_names(code: &Path) -> Option<Vec<String>> {
    let mut names = modules_in(code).ok()?;
    for entry in std::fs::read_dir(code).ok()? {
        let file = entry.ok()?.file_name();
        // (As a folder it is listed already. A file may be one too: of `python setup.py develop`, or packed.)
        let file = file.to_string_lossy();
        if is_distribution(&file) {
            names.insert(file.into_owned());
        }
    }
    (names.len() <= OWN_MAX).then(|| names.into_iter().collect())
}

/// Whether `importlib.metadata` or `pkg_resources` takes what has this name for a distribution.
fn is_distribution(name: &str) -> bool {
    let name = name.to_lowercase();
    [".dist-info", ".egg-info", ".egg", ".egg-link"].iter().any(|suffix| name.ends_with(suffix))
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
    if layer.ground != key.ground || version.alone {
        return Some("its functions import on another ground".to_owned());
    }
    let has = |folder: &String| key.packages.binary_search(folder).is_ok();
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
    if let Some(name) = own.iter().find(|name| found.absent.contains(*name)) {
        return Some(format!("importing looks for {name}, which is among their own code"));
    }
    let asks = found.all || !found.distributions.is_empty();
    if let Some(name) = own.iter().find(|name| asks && is_distribution(name)) {
        return Some(format!("importing looks for distributions, and {name} is among their own code"));
    }
    // (What the interpreter itself may leave there is no module.)
    let is_seen = |name: &&String| **name != key.module() && *name != "__pycache__";
    if let (true, Some(name)) = (found.walked, own.iter().find(is_seen)) {
        return Some(format!("importing goes through all folders, and {name} is among their own code"));
    }
    let mut others =
        key.packages.iter().filter(|folder| layer.packages.binary_search(folder).is_err()).peekable();
    if let (true, Some(folder)) = (found.all || found.walked, others.peek()) {
        return Some(format!("importing looks at which packages there are, {} among them", shown(folder)));
    }
    for folder in others {
        let Some(names) = provided.of(folder) else {
            return Some(format!("what {} has can't be listed now", shown(folder)));
        };
        let is_looked_for = |name: &&String| found.absent.contains(*name) || found.imported.contains(*name);
        if let Some(name) = names.iter().find(is_looked_for) {
            return Some(format!("importing looks for {name}, which {} has", shown(folder)));
        }
        if found.distributions.is_empty() {
            continue;
        }
        let shown = shown(folder);
        if found.distributions.contains(&normalized(shown.split("==").next().unwrap_or(&shown))) {
            return Some(format!("importing asks for the version of {shown}"));
        }
    }
    None
}

/// Whether a layer was thought of for this version, whatever it turned out to be.
pub(super) fn is_for(layer: &LayerKey, key: &VersionKey, version: &Version) -> bool {
    layer.ground == key.ground
        && layer.packages.iter().all(|folder| key.packages.binary_search(folder).is_ok())
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
    use std::time::Instant;

    use super::super::known::{Known, TOOK};
    use super::*;

    const NUMPY: &str = "/numpy-2.2.6-a";
    const OTHER: &str = "/Num_Expr-1.0-b";

    /// Why a layer of NumPy isn't for a function that has both.
    fn why(own: &[&str], found: Found) -> Option<String> {
        why_of(own, found, OTHER)
    }

    /// The same of one that has another beside NumPy.
    fn why_of(own: &[&str], found: Found, other: &str) -> Option<String> {
        let strings =
            |names: &[&str]| -> Vec<String> { names.iter().map(|name| (*name).to_owned()).collect() };
        let known = Known::default();
        known.provided.insert(NUMPY, &["numpy"]);
        known.provided.insert(OTHER, &["numexpr", "_numexpr"]);
        let text =
            serde_json::json!({"code": "a", "handler": "f:main", "ground": "g", "packages": [other, NUMPY]});
        let key: VersionKey = serde_json::from_value(text).expect("a key");
        let modules = strings(&["os", "numpy", "numpy.core", "numexpr"]);
        let version = Version::new(modules, TOOK, 0, 0, Some(strings(own)));
        let mut known = known;
        known.learn(key.clone(), version.clone(), Instant::now());
        let layer = LayerKey { ground: key.ground.clone(), modules: vec![], packages: strings(&[NUMPY]) };
        unfit(&layer, &found, &key, &version, &known.provided)
    }

    fn found(modules: &[&str], absent: &[&str], distributions: &[&str], all: bool) -> Found {
        let strings =
            |names: &[&str]| -> Vec<String> { names.iter().map(|name| (*name).to_owned()).collect() };
        let absent =
            Absent { modules: strings(absent), distributions: strings(distributions), all, walked: false };
        Found::new(strings(modules), absent)
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

    #[test]
    fn a_functions_own_code_has_distributions_as_well() {
        let usual = &["os", "numpy"][..];
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("plug-1.0.dist-info")).expect("made");
        for file in ["f.py", "Old.EGG-info", "packed.egg", "notes.txt"] {
            std::fs::write(folder.path().join(file), "").expect("written");
        }
        let own = own_names(folder.path()).expect("listed");
        assert_eq!(own, ["Old.EGG-info", "f", "packed.egg", "plug-1.0.dist-info"]);
        let alone = |own: &[&str], found| why_of(own, found, NUMPY);
        for name in own.iter().filter(|name| *name != "f") {
            for found in [found(usual, &[], &["six"], false), found(usual, &[], &[], true)] {
                let why = alone(&["f", name], found).unwrap_or_default();
                assert!(why.contains(&format!("{name} is among their own code")), "{why}");
            }
            assert_eq!(alone(&["f", name], found(usual, &["yaml"], &[], false)), None);
        }
        assert_eq!(alone(&["f"], found(usual, &[], &["six"], true)), None);
        assert_eq!(own_names(&folder.path().join("gone")), None);
        for number in 0..OWN_MAX {
            std::fs::write(folder.path().join(format!("m{number}.py")), "").expect("written");
        }
        assert_eq!(own_names(folder.path()), None, "too many");
    }

    #[test]
    fn who_goes_through_the_folders_sees_all_but_the_handlers_module() {
        let walks = || Found { all: true, walked: true, ..found(&["os", "numpy"], &[], &[], false) };
        assert_eq!(why_of(&["f", "__pycache__"], walks(), NUMPY), None);
        let why = why_of(&["f", "helpers"], walks(), NUMPY).unwrap_or_default();
        assert!(why.contains("helpers is among their own code"), "{why}");
    }

    #[test]
    fn what_can_not_be_listed_may_have_anything() {
        let gone = "/nowhere/gone-1.0-c";
        let why = why_of(&["f"], found(&["os", "numpy"], &[], &[], false), gone).unwrap_or_default();
        assert!(why.contains("what gone==1.0 has can't be listed"), "{why}");
        assert_eq!(Provided::default().origins(&[gone.to_owned()]), None);
    }
}
