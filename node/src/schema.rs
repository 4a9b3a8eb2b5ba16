//! JSON Schemas of the files that people write: `spryd.toml`, `spry.toml`, `chain.toml`, `trigger.toml`.
//!
//! Their shape is made from the types that read the files, their words from the page that explains the keys
//! (`docs/configuration.md`): neither is written twice. `spry schema` prints them, and `docs/schema/` has them for editors; a test
//! holds the two together. The same page makes the configuration that the package installs ([`example`]).

use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value};

use crate::chain::spec::raw::RawChain;
use crate::config::raw::RawConfig;
use crate::manifest::raw::RawManifest;
use crate::triggers::spec::RawSpec;

/// The page that explains every key.
const PAGE: &str = include_str!("../../docs/configuration.md");

/// A file that people write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum File {
    /// spryd.toml, the daemon's configuration
    Spryd,
    /// spry.toml, a function's manifest
    Spry,
    /// chain.toml, a chain of functions
    Chain,
    /// trigger.toml, what starts a function or chain by itself
    Trigger,
}

impl File {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Spryd, Self::Spry, Self::Chain, Self::Trigger];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Spryd => "spryd.toml",
            Self::Spry => "spry.toml",
            Self::Chain => "chain.toml",
            Self::Trigger => "trigger.toml",
        }
    }

    /// The page's headings under which its keys are.
    fn section(self) -> &'static str {
        match self {
            Self::Spryd => "## spryd.toml",
            Self::Spry => "## spry.toml",
            Self::Chain => "## chain.toml",
            Self::Trigger => "## trigger.toml",
        }
    }
}

/// A key as the page explains it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    /// Dotted.
    name: String,
    /// As written, in backticks on the page or not.
    default: String,
    bounds: String,
    what: String,
}

/// The schema of a file, as JSON.
pub fn schema(file: File) -> Value {
    let mut schema = match file {
        File::Spryd => generate::<RawConfig>(),
        File::Spry => generate::<RawManifest>(),
        File::Chain => generate::<RawChain>(),
        File::Trigger => generate::<RawSpec>(),
    };
    RecursiveTransform(without_null).transform(&mut schema);
    let mut value = schema.to_value();
    value["title"] = file.name().into();
    value["description"] = format!("{} of spry; see docs/configuration.md.", file.name()).into();
    for key in keys(file) {
        if let Some(place) = place(&mut value, &key.name) {
            place.insert("description".into(), words(&key).into());
        }
    }
    value
}

/// `spryd.toml` with every key explained, all of them commented out.
pub fn example() -> String {
    let mut text = String::from(
        "# The configuration of spryd. Every key is optional; what is commented out is the default.\n\
         # `spry check-config FILE` checks it, `systemctl reload spryd` applies what can change without a restart.\n",
    );
    let mut table = String::new();
    let all = keys(File::Spryd);
    // Keys of the file itself come before its tables.
    let (own, rest): (Vec<_>, Vec<_>) = all.iter().partition(|key| !key.name.contains('.'));
    for key in own.into_iter().chain(rest) {
        let (before, name) = key.name.rsplit_once('.').unwrap_or(("", &key.name));
        text.push('\n');
        if before != table {
            text.push_str(&format!("[{before}]\n"));
            before.clone_into(&mut table);
        }
        for line in wrapped(&words(key), 100) {
            text.push_str(&format!("# {line}\n"));
        }
        text.push_str(&format!("#{name} = {}\n", literal(key)));
    }
    text
}

fn generate<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12()
        .with(|settings| settings.inline_subschemas = true)
        .into_generator()
        .into_root_schema_for::<T>()
}

/// TOML has no null: a key is there or not.
fn without_null(schema: &mut Schema) {
    let Some(object) = schema.as_object_mut() else { return };
    if let Some(Value::Array(kinds)) = object.get_mut("type") {
        kinds.retain(|kind| kind != "null");
        if let [only] = &kinds[..] {
            let only = only.clone();
            object.insert("type".into(), only);
        }
    }
    if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
        choices.retain(|choice| choice.get("type") != Some(&"null".into()));
        if let [Value::Object(only)] = &choices[..] {
            let only = only.clone();
            object.remove("anyOf");
            object.extend(only);
        }
    }
    for noise in ["default", "format", "minimum", "maximum"] {
        object.remove(noise);
    }
}

/// The object of a dotted key's schema.
fn place<'a>(schema: &'a mut Value, key: &str) -> Option<&'a mut Map<String, Value>> {
    let mut at = schema;
    for part in key.split('.') {
        // A list of tables is described by its items.
        if at.get("items").is_some() {
            at = at.get_mut("items")?;
        }
        at = at.get_mut("properties")?.get_mut(part)?;
    }
    at.as_object_mut()
}

/// What the page's tables say, in their order.
fn keys(file: File) -> Vec<Key> {
    let section = PAGE.split_once(file.section()).map_or("", |(_, rest)| rest);
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut all = Vec::new();
    // (Other tables explain values, not keys.)
    let mut is_of_keys = false;
    for row in section.lines().filter(|line| line.starts_with("| ")) {
        if !row.starts_with("| `") {
            is_of_keys = row.starts_with("| key |");
        }
        if !is_of_keys || !row.starts_with("| `") {
            continue;
        }
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [names, default, bounds, rest @ ..] = &cells[..] else { continue };
        let names = names.split(", ").filter_map(|name| name.strip_prefix('`')?.strip_suffix('`'));
        // (`a` … `b` names what is explained elsewhere.)
        for name in names.filter(|name| !name.contains('`')) {
            let name = name.trim_start_matches("[[").trim_end_matches("]]");
            let within = match (file, name.split('.').next()) {
                (File::Chain, Some("when")) => "step.",
                (File::Chain, Some("on")) => "trigger.",
                _ => "",
            };
            all.push(Key {
                name: format!("{within}{name}"),
                default: default.replace('`', ""),
                bounds: bounds.replace('`', "\""),
                what: rest.first().copied().unwrap_or_default().replace('`', ""),
            });
        }
    }
    all
}

/// What is said of a key: what it is, its bounds, its default.
fn words(key: &Key) -> String {
    let mut text = String::new();
    let mut add = |what: &str| {
        if !what.is_empty() {
            text.push_str(if text.is_empty() { "" } else { ". " });
            let mut letters = what.chars();
            text.extend(letters.next().into_iter().flat_map(char::to_uppercase));
            text.push_str(letters.as_str());
        }
    };
    add(&key.what);
    if !key.bounds.is_empty() {
        add(&format!("allowed: {}", key.bounds));
    }
    if !key.default.is_empty() {
        add(&format!("default: {}", key.default));
    }
    text.push('.');
    text
}

/// The default as TOML. Where it is made from something else, an example stands in its place.
fn literal(key: &Key) -> String {
    let example = match key.name.as_str() {
        "workers" => "2",
        "api_token_file" => "\"/var/lib/spry/api-token\"",
        "secret_key_file" => "\"/var/lib/spry/secrets.key\"",
        "node.memory_budget" => "\"4GiB\"",
        "zygotes.layers_memory" => "\"400MiB\"",
        "runtime_dir" => "\"/usr/lib/spry\"",
        "packages.index" => "\"https://wheels.example/simple\"",
        "packages.find_links" => "\"/srv/wheels\"",
        "python.interpreter" => "\"/usr/bin/python3\"",
        "trace.otlp" => "\"http://127.0.0.1:4318/v1/traces\"",
        "tls.certificate" => "\"/etc/spry/tls.pem\"",
        "tls.key" => "\"/etc/spry/tls.key\"",
        "control.owner" => "\"root\"",
        "control.group" => "\"root\"",
        "rate.burst" => "1",
        _ => "",
    };
    if !example.is_empty() {
        return example.to_owned();
    }
    let is_number = key.default.parse::<f64>().is_ok() || matches!(key.default.as_str(), "true" | "false");
    if is_number || key.default.starts_with('[') { key.default.clone() } else { format!("{:?}", key.default) }
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.last_mut().expect("there is one");
        if !last.is_empty() && last.len() + 1 + word.len() > width {
            lines.push(word.to_owned());
        } else {
            last.push_str(if last.is_empty() { "" } else { " " });
            last.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    /// What is checked in is what the types say. `SPRY_BLESS=1` writes it anew.
    fn is_checked_in(path: &str, text: &str) {
        let file = root().join(path);
        if std::env::var_os("SPRY_BLESS").is_some() {
            std::fs::create_dir_all(file.parent().expect("a folder")).expect("made");
            std::fs::write(&file, text).expect("written");
        }
        let found = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(found == text, "{path} is out of date: SPRY_BLESS=1 cargo test -p spry-node --lib schema");
    }

    #[test]
    fn the_schemas_that_are_checked_in_are_what_the_types_say() {
        for file in File::ALL {
            let text = serde_json::to_string_pretty(&schema(file)).expect("JSON") + "\n";
            is_checked_in(&format!("docs/schema/{}.json", file.name()), &text);
        }
    }

    #[test]
    fn the_example_that_is_checked_in_explains_every_key() {
        is_checked_in("packaging/spryd.toml", &example());
    }

    /// Every key of the types is explained, and every key that is explained is one of the types'.
    #[test]
    fn every_key_has_its_words() {
        fn bare(value: &Value, path: &str, found: &mut Vec<String>) {
            for (name, inner) in value["properties"].as_object().into_iter().flatten() {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                let inner =
                    inner.get("items").filter(|items| items.get("properties").is_some()).unwrap_or(inner);
                if inner.get("properties").is_some() {
                    bare(inner, &path, found);
                } else if !inner["description"]
                    .as_str()
                    .is_some_and(|words| words.contains(". ") || words.len() > 20)
                {
                    found.push(path);
                }
            }
        }
        for file in [File::Spryd, File::Spry, File::Trigger] {
            let mut schema = schema(file);
            let mut found = Vec::new();
            bare(&schema, "", &mut found);
            // `env` holds whatever it holds, and the limits of a manifest are explained with the node's.
            found.retain(|key| {
                key != "env"
                    && !(file == File::Spry && (key.starts_with("limits.") || key.starts_with("scale.")))
            });
            assert!(found.is_empty(), "{}: docs/configuration.md doesn't explain {found:?}", file.name());
            for key in keys(file).iter().filter(|key| !key.name.starts_with("env.")) {
                assert!(
                    place(&mut schema, &key.name).is_some(),
                    "{}: there is no key {}",
                    file.name(),
                    key.name
                );
            }
        }
    }

    /// Nothing in the example is a lie: with every key as it stands there, the file is valid, and what isn't made from something
    /// else is the default.
    #[test]
    fn the_example_holds_the_defaults() {
        use crate::config::Config;
        let config = |text: &str| -> Config {
            let raw: RawConfig = toml::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
            raw.try_into().expect("valid")
        };
        let example = example();
        let silent = config(&example);
        assert_eq!(silent, config(""));
        let active: Vec<_> = example
            .lines()
            .filter_map(|line| match line.strip_prefix('#') {
                Some(rest) if !rest.starts_with(' ') => Some(rest),
                Some(_) => None,
                None => Some(line),
            })
            .collect();
        let loud = config(&active.join("\n"));
        let made = Config {
            workers: loud.workers,
            runtime_dir: loud.runtime_dir.clone(),
            python: loud.python.clone(),
            packages: loud.packages.clone(),
            memory_budget: loud.memory_budget,
            layers_memory: loud.layers_memory,
            trace: loud.trace.clone(),
            tls: loud.tls.clone(),
            control: loud.control,
            ..silent
        };
        assert_eq!(loud, made);
    }

    #[test]
    fn what_a_schema_allows_is_what_the_types_read() {
        let schema = schema(File::Spryd);
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["properties"]["queue"]["additionalProperties"], false);
        assert_eq!(schema["properties"]["workers"]["type"], "integer");
        let memory = &schema["properties"]["queue"]["properties"]["memory"]["anyOf"];
        assert_eq!(memory.as_array().map(Vec::len), Some(2), "{memory}");
    }
}
