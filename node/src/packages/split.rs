//! Which files of what pip has installed are which distribution's, and whether these can lie in folders of their own.
//!
//! pip puts all distributions of a set into one folder, and notes in each one's `RECORD` what it has written. A process whose
//! `sys.path` has a folder for each finds the same modules, and `importlib.metadata` the same distributions, if
//!
//! - every file is in exactly one `RECORD` (or in several with the same hash: each distribution gets it);
//! - no module is in two distributions. Those that put modules into one package do so by a namespace (PEP 420: a folder without
//!   `__init__.py`), which Python puts together from all folders of `sys.path`;
//! - none has a `*.pth` file: that is code, or more folders, for every process that has the set;
//! - no library is linked with one that it looks for, by way of its own place (`$ORIGIN`), in another distribution's folder.
//!
//! Else the set stays in one folder, as pip made it. Pure: names in, names out. Everything here was said by the packages; a
//! `RECORD` that lies moves files between folders that the same function gets anyway.

use std::collections::{BTreeMap, BTreeSet};

/// What the interpreter imports.
const SUFFIXES: [&str; 3] = [".py", ".pyc", ".so"];
/// Longest name and version.
const NAME_MAX: usize = 120;
/// Distributions of a set: each is mounted into its functions' roots.
const PARTS_MAX: usize = 256;
/// Files of all distributions together; one may be several's.
const OWNED_MAX: usize = 400_000;
/// Behind the name of the folder that describes a distribution.
const INFO: &str = ".dist-info";

/// A file as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Within the set.
    pub(super) path: String,
    /// Where it looks for libraries, if it is one: with `$ORIGIN`.
    pub(super) searches: Vec<String>,
}

/// A distribution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// Its name and version, as its folder is called that describes it: `numpy-2.2.6`.
    pub(super) name: String,
    /// Its files, by their numbers; without its `RECORD`.
    pub(super) files: Vec<usize>,
    /// Its `RECORD`, without what depends on how it came to be installed.
    pub(super) record: String,
}

impl Part {
    pub(super) fn record_path(&self) -> String {
        format!("{}{INFO}/RECORD", self.name)
    }
}

/// Where the `RECORD`s are.
pub(super) fn records<'a>(paths: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found: Vec<&str> =
        paths.filter(|path| info_of(path).is_some_and(|(_, file)| file == "RECORD")).collect();
    found.sort_unstable();
    found
}

/// The distribution that a path describes, and the rest of the path.
fn info_of(path: &str) -> Option<(&str, &str)> {
    let (folder, rest) = path.split_once('/')?;
    Some((folder.strip_suffix(INFO)?, rest))
}

/// The distributions of a set, sorted; or why it can't be split. `records`: the texts of the `RECORD`s, by their paths.
pub(super) fn split(files: &[Found], records: &BTreeMap<String, String>) -> Result<Vec<Part>, String> {
    let numbers: BTreeMap<&str, usize> =
        files.iter().enumerate().map(|(number, file)| (file.path.as_str(), number)).collect();
    let mut parts = Vec::new();
    // Of each file: whose it is, and what they say is in it.
    let mut owners: Vec<Vec<(usize, &str)>> = vec![Vec::new(); files.len()];
    let mut owned = 0;
    if records.len() > PARTS_MAX {
        return Err(format!("it has more than {PARTS_MAX} distributions"));
    }
    for (path, text) in records {
        let (name, _) = info_of(path).ok_or_else(|| format!("{path} is no RECORD"))?;
        if !is_name(name) {
            return Err(format!("{name:?} is no name for a folder"));
        }
        let number = parts.len();
        let mut record = String::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let row = row(line).ok_or_else(|| format!("{path} has a line that can't be read"))?;
            let Some(file) = place(&row.path) else { continue };
            if is_of_the_installation(name, &file) {
                continue;
            }
            record.push_str(line);
            record.push('\n');
            if let Some(at) = numbers.get(file.as_str())
                && owners[*at].last().is_none_or(|(last, _)| *last != number)
            {
                owners[*at].push((number, row.hash));
                owned += 1;
                if owned > OWNED_MAX {
                    return Err("its RECORDs name too many files".to_owned());
                }
            }
        }
        parts.push(Part { name: name.to_owned(), files: Vec::new(), record });
    }
    let by_name: BTreeMap<String, usize> =
        parts.iter().enumerate().map(|(number, part)| (part.name.clone(), number)).collect();
    for (at, (file, owners)) in files.iter().zip(&mut owners).enumerate() {
        if !file.path.contains('/') && file.path.ends_with(".pth") {
            return Err(format!("{} is for every process that has the set", file.path));
        }
        if let Some((name, rest)) = info_of(&file.path) {
            let Some(number) = by_name.get(name) else {
                return Err(format!("{name} has no RECORD"));
            };
            if rest == "RECORD" || is_of_the_installation(name, &file.path) {
                continue;
            }
            *owners = vec![(*number, "")];
        }
        let Some((_, hash)) = owners.first() else {
            return Err(format!("{} is in no RECORD", file.path));
        };
        if owners.len() > 1 && (hash.is_empty() || owners.iter().any(|(_, other)| other != hash)) {
            let named = named(&parts, owners.iter().map(|(number, _)| *number));
            return Err(format!("{} is of {named}", file.path));
        }
        for (number, _) in owners.iter() {
            parts[*number].files.push(at);
        }
    }
    let mut root = Folder::default();
    for (number, part) in parts.iter().enumerate() {
        for at in &part.files {
            root.add(&files[*at].path, number);
        }
    }
    root.check("").map_err(|(what, both)| format!("{what} is of {}", named(&parts, both.into_iter())))?;
    for (number, part) in parts.iter().enumerate() {
        for file in part.files.iter().map(|at| &files[*at]) {
            for search in &file.searches {
                let Some(folder) = meant(&file.path, search) else { continue };
                if let Some(other) = root.libraries_of_another(&folder, number) {
                    return Err(format!(
                        "{} looks for libraries in {folder}, which {} has",
                        file.path, parts[other].name
                    ));
                }
            }
        }
    }
    Ok(parts)
}

fn named(parts: &[Part], numbers: impl Iterator<Item = usize>) -> String {
    let names: Vec<&str> = numbers.map(|number| parts[number].name.as_str()).collect();
    names.join(" and ")
}

/// Whether it can be a folder's, and starts and ends as one that nobody hides.
fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._+!-".contains(&byte);
    name.len() <= NAME_MAX
        && name.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
        && name.contains('-')
        && name.bytes().all(fits)
}

/// What says how a distribution came here (asked for, or needed by another) rather than what it is; and compiled code.
fn is_of_the_installation(name: &str, path: &str) -> bool {
    path.split('/').any(|part| part == super::tree::COMPILED)
        || info_of(path).is_some_and(|(of, rest)| of == name && rest == "REQUESTED")
}

struct Row<'a> {
    path: String,
    hash: &'a str,
}

/// A line of a `RECORD`: a path, a hash, a length; quoted where it must be.
fn row(line: &str) -> Option<Row<'_>> {
    let (path, rest) = match line.strip_prefix('"') {
        None => {
            let (path, rest) = line.split_once(',')?;
            (path.to_owned(), rest)
        }
        Some(mut rest) => {
            let mut path = String::new();
            loop {
                let (part, after) = rest.split_once('"')?;
                path.push_str(part);
                match after.strip_prefix('"') {
                    Some(after) => {
                        path.push('"');
                        rest = after;
                    }
                    None => break (path, after.strip_prefix(',')?),
                }
            }
        }
    };
    let (hash, _) = rest.split_once(',')?;
    Some(Row { path, hash })
}

/// Where a path of a `RECORD` is in the set: pip takes modules, scripts and data together, from the folders beside one another that
/// they were installed into. `None`: nowhere.
fn place(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').skip_while(|part| *part == "..").collect();
    let plain = |part: &&str| !part.is_empty() && *part != "." && *part != "..";
    (!parts.is_empty() && parts.iter().all(plain)).then(|| parts.join("/"))
}

/// The folder within the set that a file means by `$ORIGIN/…`. `None`: one outside.
fn meant(file: &str, search: &str) -> Option<String> {
    let rest = search.strip_prefix("$ORIGIN").or_else(|| search.strip_prefix("${ORIGIN}"))?;
    let mut folder: Vec<&str> = file.split('/').collect();
    folder.pop();
    for part in rest.split('/').filter(|part| !part.is_empty() && *part != ".") {
        match part {
            ".." => drop(folder.pop()?),
            part => folder.push(part),
        }
    }
    Some(folder.join("/"))
}

/// A folder of the set, with the distributions that have something in it.
#[derive(Debug, Default)]
struct Folder<'a> {
    owners: BTreeSet<usize>,
    folders: BTreeMap<&'a str, Folder<'a>>,
    files: BTreeMap<&'a str, BTreeSet<usize>>,
}

impl<'a> Folder<'a> {
    fn add(&mut self, path: &'a str, owner: usize) {
        self.owners.insert(owner);
        match path.split_once('/') {
            Some((first, rest)) => self.folders.entry(first).or_default().add(rest, owner),
            None => drop(self.files.entry(path).or_default().insert(owner)),
        }
    }

    /// Whether what is found here doesn't depend on which folder is looked into first; else what, and whose it is.
    fn check(&self, place: &str) -> Result<(), (String, BTreeSet<usize>)> {
        let within = |name: &str| if place.is_empty() { name.to_owned() } else { format!("{place}/{name}") };
        let modules = || {
            let files = self.files.iter().filter_map(|(name, owners)| Some((module(name)?, owners)));
            files.chain(self.folders.iter().map(|(name, folder)| (*name, &folder.owners)))
        };
        if !place.is_empty() && modules().any(|(name, _)| name == "__init__") {
            return Err((place.to_owned(), self.owners.clone()));
        }
        let mut of: BTreeMap<&str, (BTreeSet<usize>, bool)> = BTreeMap::new();
        for (name, owners) in modules() {
            let (all, is_file) = of.entry(name).or_default();
            all.extend(owners);
            *is_file |=
                !self.folders.contains_key(name) || self.files.keys().any(|file| module(file) == Some(name));
        }
        for (name, (owners, is_file)) in of.into_iter().filter(|(_, (owners, _))| owners.len() > 1) {
            if is_file {
                return Err((within(name), owners));
            }
            self.folders[name].check(&within(name))?;
        }
        Ok(())
    }

    /// Somebody else who has libraries in this folder.
    fn libraries_of_another(&self, path: &str, owner: usize) -> Option<usize> {
        let folder = path
            .split('/')
            .filter(|part| !part.is_empty())
            .try_fold(self, |folder, part| folder.folders.get(part))?;
        let libraries = folder.files.iter().filter(|(name, _)| name.contains(".so"));
        libraries.flat_map(|(_, owners)| owners).copied().find(|other| *other != owner)
    }
}

/// The module that a file is, if it is one.
pub(super) fn module(file: &str) -> Option<&str> {
    let is_one = SUFFIXES.iter().any(|suffix| file.ends_with(suffix));
    let name = file.split('.').next().filter(|name| is_one && !name.is_empty())?;
    Some(name)
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
