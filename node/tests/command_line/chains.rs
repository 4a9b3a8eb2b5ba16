//! `spry chain` against a server.

use crate::server::{Server, code, err, out};

const PHOTO: &str = "# a photo's way\nname = \"photo\"\ntimeout = \"10s\"\n[[step]]\nfunction = \"decode\"\n[[step]]\n\
                     parallel = [\"large\", \"small\"]\n[[trigger]]\nfunction = \"decode\"\n\
                     on = { every = \"thumb\" }\n";

fn server() -> Server {
    let server = Server::start();
    for name in ["decode", "large", "small"] {
        let file = server.file(&format!("{name}.py"), "def main(params):\n    return {}\n");
        let output = server.spry(&["deploy", file.to_str().expect("plain")]);
        assert_eq!(code(&output), 0, "{}", err(&output));
    }
    server
}

impl Server {
    fn apply(&self, text: &str) -> std::process::Output {
        let file = self.file("chain.toml", text);
        self.spry(&["chain", "apply", file.to_str().expect("plain")])
    }
}

#[test]
fn apply_list_describe_remove() {
    let server = server();
    assert!(out(&server.spry(&["chain", "list"])).contains("no chains"));
    let applied = server.apply(PHOTO);
    assert_eq!(code(&applied), 0, "{}", err(&applied));
    assert_eq!(out(&applied), "photo is applied: 4 steps with 3 functions\n");
    assert_eq!(server.store.chains().expect("answers")[0].source, PHOTO, "word for word");
    let again = server.apply(PHOTO);
    assert_eq!(out(&again), "photo is applied, replacing the one before: 4 steps with 3 functions\n");

    let list = out(&server.spry(&["chain", "list"]));
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines.len(), 2, "{list}");
    let cells: Vec<&str> = lines[1].split_whitespace().take(7).collect();
    assert_eq!(cells, ["photo", "ready", "4", "3", "3", "6", "12"], "{list}");

    let described = out(&server.spry(&["chain", "describe", "photo"]));
    let picture = "
      request
         ▼
     ┌────────┐
     │ decode │
     └───┬────┘
         │
    ┌────┴─────┐
    ▼          ▼
┌───────┐  ┌───────┐
│ large │  │ small │
└───┬───┘  └───┬───┘
    └────┬─────┘
         ▼
      answer

every \"thumb\"
";
    assert!(described.contains(picture), "{described}");
    for part in ["timeout 10s, payload 6MiB", "FUNCTION  VERSION", "large           1  ready"] {
        assert!(described.contains(part), "{part} is missing from\n{described}");
    }
    let json = out(&server.spry(&["--output", "json", "chain", "describe", "photo"]));
    let view: spry_node::api::ChainView = serde_json::from_str(&json).expect("the contract's JSON");
    assert_eq!((view.source.as_str(), view.functions.len()), (PHOTO, 3));
    let dot = out(&server.spry(&["chain", "describe", "photo", "--output", "dot"]));
    assert!(dot.starts_with("digraph \"photo\" {\n") && dot.ends_with("}\n"), "{dot}");
    assert!(dot.contains("label=\"large\"") && dot.contains(" -> "), "{dot}");

    assert_eq!(out(&server.spry(&["chain", "remove", "photo"])), "removed photo\n");
    for command in ["describe", "remove"] {
        let gone = server.spry(&["chain", command, "photo"]);
        assert_eq!(code(&gone), 2);
        assert!(err(&gone).contains("no chain named \"photo\""), "{}", err(&gone));
    }
    assert_eq!(code(&server.spry(&["chain", "describe", "photo", "--output", "dot"])), 2);
}

#[test]
fn a_chain_that_can_not_be_says_why_and_changes_nothing() {
    let server = server();
    assert_eq!(code(&server.apply(PHOTO)), 0);
    for (text, says) in [
        ("name = 'photo'", "chain.toml: `step` is missing"),
        ("name = 'photo'\n[[step]]\nfunction = 'decod'\n", "did you mean \"decode\"?"),
        ("name = 'photo'\n[[step]]\nchain = 'photo'\n", "leads back to itself: photo -> photo"),
        ("name = 'large'\n[[step]]\nfunction = 'small'\n", "\"large\" is the name of a function"),
    ] {
        let output = server.apply(text);
        assert_eq!((code(&output), out(&output).as_str()), (2, ""), "{text}");
        assert!(err(&output).contains(says), "{text}: {}", err(&output));
    }
    assert_eq!(server.store.chains().expect("answers")[0].source, PHOTO);
}

#[test]
fn what_a_chain_uses_can_not_be_removed_nor_its_name_taken() {
    let server = server();
    assert_eq!(code(&server.apply(PHOTO)), 0);
    let refused = server.spry(&["remove", "large"]);
    assert_eq!(code(&refused), 2);
    let says = "\"large\" is used by the chain \"photo\"; change or remove that first";
    assert!(err(&refused).contains(says), "{}", err(&refused));
    let file = server.file("photo.py", "def main(params):\n    return {}\n");
    let refused = server.spry(&["deploy", file.to_str().expect("plain")]);
    assert_eq!(code(&refused), 2);
    assert!(err(&refused).contains("\"photo\" is the name of a chain"), "{}", err(&refused));
    assert_eq!(code(&server.spry(&["chain", "remove", "photo"])), 0);
    assert_eq!(code(&server.spry(&["remove", "large"])), 0);
}

#[test]
fn a_change_names_the_chains_that_change_with_it() {
    let server = server();
    assert_eq!(code(&server.apply("name = 'inner'\n[[step]]\nfunction = 'large'\n")), 0);
    assert_eq!(code(&server.apply("name = 'outer'\n[[step]]\nchain = 'inner'\n")), 0);
    let changed = server.apply("name = 'inner'\n[[step]]\nfunction = 'small'\n");
    assert!(out(&changed).ends_with("changed with it: outer\n"), "{}", out(&changed));
    let json = server.file("chain.toml", "name = 'inner'\n[[step]]\nfunction = 'large'\n");
    let output = server.spry(&["--output", "json", "chain", "apply", json.to_str().expect("plain")]);
    let applied: spry_node::api::Applied = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(applied.replaced && applied.dependents == ["outer"]);
    let refused = server.spry(&["chain", "remove", "inner"]);
    assert!(err(&refused).contains("\"inner\" is used by the chain \"outer\""), "{}", err(&refused));
}
