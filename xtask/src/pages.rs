//! What the pages promise: links lead somewhere, and the threat model names tests that exist.

use std::fs;
use std::path::{Path, PathBuf};

use crate::process;

/// Every file below `folder` with this extension; build folders and hidden ones left out.
fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the repository").flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|is| is == extension) {
            found.push(path);
        }
    }
}

fn all(extension: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    files(process::root(), extension, &mut found);
    let read = |path: PathBuf| fs::read_to_string(&path).ok().map(|text| (path, text));
    found.into_iter().filter_map(read).collect()
}

/// The targets of `[text](target)` outside of code.
fn links(page: &str) -> impl Iterator<Item = &str> {
    page.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target)
}

/// The words in backticks.
fn code_words(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut broken = Vec::new();
    for (path, text) in all("md") {
        for target in links(&text).filter(|target| !target.contains("://") && !target.starts_with('#')) {
            let file = target.split('#').next().unwrap_or_default();
            if !path.parent().expect("a page lies in a folder").join(file).exists() {
                broken.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_threat_model_names_tests_that_exist() {
    let page = fs::read_to_string(process::root().join("docs/threat-model.md")).expect("the page");
    let sources: String = all("rs").into_iter().map(|(_, text)| text).collect();
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| ") && line.contains('`')).collect();
    assert!(rows.len() > 5, "the table is gone");
    let mut missing = Vec::new();
    for row in rows {
        // The last column; `crate::` in front says where to look.
        let tests = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        for test in code_words(tests) {
            let name = test.rsplit("::").next().unwrap_or(test);
            // Some are made by a macro, from a list of `name: module::function,`.
            let made = format!("\n    {name}: ");
            if !sources.contains(&format!("fn {name}(")) && !sources.contains(&made) {
                missing.push(test.to_owned());
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn links_and_words_are_found() {
    let text = "see [a](x.md) and [b](y/z.md#part), `one` or `two`";
    assert_eq!(links(text).collect::<Vec<_>>(), ["x.md", "y/z.md#part"]);
    assert_eq!(code_words(text).collect::<Vec<_>>(), ["one", "two"]);
}
