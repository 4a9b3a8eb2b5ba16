//! What a folder's own files say about the function in it, where its `spry.toml` is silent or absent.
//!
//! Only the obvious is guessed: one `.py` or one `.so` at the top of the folder, and in the `.py` a `main`, a
//! `handler`, or a single function. Everything else is an error that says what to write.

use std::path::Path;

use super::raw::RawManifest;
use super::{Manifest, ManifestError, Runtime};

/// Fills in name, runtime and handler. `name` wins over the manifest's.
pub fn fill_in(
    mut raw: RawManifest,
    folder: &Path,
    name: Option<&str>,
) -> Result<RawManifest, ManifestError> {
    if let Some(name) = name {
        raw.name = Some(name.to_owned());
    }
    if raw.name.is_some() && raw.runtime.is_some() && raw.handler.is_some() {
        return Ok(raw);
    }
    let files = top_level(folder)?;
    let runtime = match raw.runtime.as_deref() {
        Some(word) => word.to_owned(),
        None => match (raw.handler.as_deref(), files.python.as_slice(), files.native.as_slice()) {
            (Some(handler), _, _) if handler.contains(':') => "python".into(),
            (Some(handler), _, _) if handler.ends_with(".so") => "native".into(),
            (None, [_], []) => "python".into(),
            (None, [], [_]) => "native".into(),
            _ => return Err(ManifestError::Unclear(unclear(&files))),
        },
    };
    let own = if runtime == "native" { &files.native } else { &files.python };
    let [only] = own.as_slice() else {
        if raw.handler.is_none() || raw.name.is_none() {
            return Err(ManifestError::Unclear(unclear(&files)));
        }
        raw.runtime = Some(runtime);
        return Ok(raw);
    };
    if raw.handler.is_none() {
        raw.handler = Some(if runtime == "native" { only.clone() } else { python_handler(folder, only)? });
    }
    if raw.name.is_none() {
        raw.name = Some(name_of_file(only));
    }
    raw.runtime = Some(runtime);
    Ok(raw)
}

/// Whether the file that the handler names is in the folder. For Python the interpreter says it better, with
/// a traceback; a missing `.so` would only give the loader's "cannot open".
pub fn handler_is_there(manifest: &Manifest, folder: &Path) -> Result<(), ManifestError> {
    if manifest.runtime != Runtime::Native || folder.join(&manifest.handler).is_file() {
        return Ok(());
    }
    let why = "there is no such file in the folder".into();
    Err(ManifestError::Handler { handler: manifest.handler.clone(), why })
}

/// A function's name made from a file's: `lib` and the extension go, capitals fall, `_` and `.` become `-`.
pub fn name_of_file(file: &str) -> String {
    let (stem, extension) = file.rsplit_once('.').unwrap_or((file, ""));
    let stem = if extension == "so" { stem.strip_prefix("lib").unwrap_or(stem) } else { stem };
    stem.to_lowercase().replace(['_', '.', ' '], "-").trim_matches('-').to_owned()
}

#[derive(Default)]
struct TopLevel {
    python: Vec<String>,
    native: Vec<String>,
}

fn top_level(folder: &Path) -> Result<TopLevel, ManifestError> {
    let failed = |source| ManifestError::Read { path: folder.to_owned(), source };
    let mut files = TopLevel::default();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let Ok(name) = entry.map_err(failed)?.file_name().into_string() else { continue };
        if name.ends_with(".py") && name != "__init__.py" {
            files.python.push(name);
        } else if name.ends_with(".so") {
            files.native.push(name);
        }
    }
    files.python.sort();
    files.native.sort();
    Ok(files)
}

fn unclear(files: &TopLevel) -> String {
    let found = match (files.python.len(), files.native.len()) {
        (0, 0) => "there is no .py and no .so at its top".into(),
        (python, native) => format!("there are {python} .py and {native} .so files at its top"),
    };
    format!("{found}: write one with name, runtime and handler")
}

fn python_handler(folder: &Path, file: &str) -> Result<String, ManifestError> {
    let path = folder.join(file);
    let text = std::fs::read(&path).map_err(|source| ManifestError::Read { path, source })?;
    let module = file.strip_suffix(".py").unwrap_or(file);
    let functions = top_level_functions(&String::from_utf8_lossy(&text));
    let chosen = ["main", "handler"]
        .into_iter()
        .find(|wanted| functions.iter().any(|name| name == wanted))
        .map(str::to_owned)
        .or_else(|| (functions.len() == 1).then(|| functions[0].clone()));
    match chosen {
        Some(function) => Ok(format!("{module}:{function}")),
        None => Err(ManifestError::Unclear(format!(
            "{file} has {} functions at its top, none of them called main or handler: name one with \
             --set handler={module}:FUNCTION",
            functions.len()
        ))),
    }
}

/// The names of the functions that start in the first column, in order, each once.
fn top_level_functions(text: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for line in text.lines() {
        let rest = line.strip_prefix("async ").map_or(line, str::trim_start);
        let Some(rest) = rest.strip_prefix("def ") else { continue };
        let is_part = |letter: &char| letter.is_alphanumeric() || *letter == '_';
        let name: String = rest.trim_start().chars().take_while(is_part).collect();
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
