//! Chains in a real store: what excludes what, what a change reaches, what a crash leaves.

use super::super::tests::{deploy, failing_after, name, open, options, remove, stage};
use super::*;
use crate::chain::plan::Stage;

const MAIN: &str = "def main(params):\n    return {}\n";

/// A chain that calls these functions.
fn calls(chain: &str, functions: &[&str]) -> String {
    let steps = functions.iter().map(|function| format!("[[step]]\nfunction = \"{function}\"\n"));
    format!("name = \"{chain}\"\n{}", steps.collect::<String>())
}

/// A chain that goes through another one.
fn through(chain: &str, other: &str) -> String {
    format!("name = \"{chain}\"\n[[step]]\nchain = \"{other}\"\n")
}

fn apply(store: &Store, text: &str) -> Result<StoredChain, StoreError> {
    store.commit_chain(&store.plan_chain(text)?)
}

fn sources(store: &Store) -> Vec<String> {
    store.chains().expect("listed").into_iter().map(|chain| chain.source).collect()
}

fn store_with(functions: &[&str]) -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    for function in functions {
        deploy(&store, function, MAIN).expect("deployed");
    }
    (folder, store)
}

#[test]
fn what_was_applied_is_there_after_a_restart() {
    let (folder, store) = store_with(&["a", "b"]);
    let text = "# a comment is kept\n".to_owned() + &calls("x", &["a", "b"]);
    let planned = store.plan_chain(&text).expect("fits");
    assert_eq!(store.chains().expect("listed"), [], "planning stores nothing");
    let stored = store.commit_chain(&planned).expect("applied");
    assert_eq!((stored.name.as_str(), stored.source.as_str()), ("x", text.as_str()));
    drop(store);
    let store = open(folder.path());
    assert_eq!(store.chains().expect("listed"), std::slice::from_ref(&stored));
    assert_eq!(store.plans().expect("listed"), [(stored, Ok(planned.plan))]);
}

#[test]
fn applying_again_replaces_the_text_and_what_is_used() {
    let (_folder, store) = store_with(&["a", "b"]);
    apply(&store, &calls("x", &["a"])).expect("applied");
    apply(&store, &calls("x", &["b"])).expect("applied again");
    assert_eq!(sources(&store), [calls("x", &["b"])]);
    remove(&store, &name("a")).expect("nobody uses it any more");
    assert!(matches!(remove(&store, &name("b")), Err(StoreError::InUse { .. })));
}

#[test]
fn what_is_no_chain_or_names_nothing_changes_nothing() {
    let (_folder, store) = store_with(&["a"]);
    apply(&store, &calls("x", &["a"])).expect("applied");
    for (text, says) in [
        ("name = [", "line 1"),
        (&calls("x", &[]), "`step` is missing"),
        (&calls("x", &["absent"]), "there is no function of that name"),
        (&calls("a", &["a"]), "\"a\" is the name of a function; give the chain another one"),
        (&through("x", "x"), "leads back to itself: x -> x"),
    ] {
        let error = store.plan_chain(text).expect_err(text).to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
    assert_eq!(sources(&store), [calls("x", &["a"])]);
}

#[test]
fn a_function_can_not_have_the_name_of_a_chain() {
    let (_folder, store) = store_with(&["a"]);
    let staged = stage(&store, "x", MAIN).expect("nobody has the name yet");
    apply(&store, &calls("x", &["a"])).expect("nor now");
    let error = store.commit(staged).expect_err("the chain came first").to_string();
    assert!(error.starts_with("\"x\" is the name of a chain; give the function another one"), "{error}");
    assert!(
        matches!(stage(&store, "x", MAIN), Err(StoreError::NameIsChain(_))),
        "told before the upload is kept"
    );
    assert_eq!(store.function("x").expect("answers"), None);
}

#[test]
fn a_chain_can_not_have_the_name_of_a_function_that_came_meanwhile() {
    let (_folder, store) = store_with(&["a"]);
    let planned = store.plan_chain(&calls("x", &["a"])).expect("fits");
    deploy(&store, "x", MAIN).expect("deployed");
    assert!(matches!(store.commit_chain(&planned), Err(StoreError::NameIsFunction(_))));
    assert_eq!(store.chains().expect("listed"), []);
}

#[test]
fn what_a_chain_uses_can_not_be_removed() {
    let (_folder, store) = store_with(&["step", "branch", "each", "case", "other", "mend", "store", "free"]);
    let every = "name = \"every\"\n[[step]]\nfunction = \"step\"\non_error = \"mend\"\n[[step]]\n\
                 parallel = [\"branch\"]\n[[step]]\nmap = \"each\"\n[[step]]\nwhen = [{ field = \"\", equals = 1, \
                 then = \"case\" }]\notherwise = \"other\"\n[[trigger]]\nfunction = \"store\"\n\
                 on = { every = \"v\" }\n";
    apply(&store, every).expect("applied");
    apply(&store, &through("outer", "every")).expect("applied");
    apply(&store, &calls("second", &["step"])).expect("applied");
    for used in ["branch", "each", "case", "other", "mend", "store"] {
        let error = store.retire(&name(used)).expect_err(used).to_string();
        assert_eq!(error, format!("\"{used}\" is used by the chain \"every\"; change or remove that first"));
        assert!(matches!(remove(&store, &name(used)), Err(StoreError::InUse { .. })), "{used}");
        assert!(store.function(used).expect("answers").is_some());
    }
    let error = store.retire(&name("step")).expect_err("two use it").to_string();
    assert!(error.contains("is used by the chains \"every\", \"second\""), "{error}");
    let error = store.remove_chain(&name("every")).expect_err("a chain uses it").to_string();
    assert!(error.contains("is used by the chain \"outer\""), "{error}");
    remove(&store, &name("free")).expect("nobody uses it");
    for chain in ["outer", "every", "second"] {
        store.remove_chain(&name(chain)).expect("from the outside in");
    }
    remove(&store, &name("step")).expect("nobody uses it now");
    assert!(matches!(store.remove_chain(&name("every")), Err(StoreError::NoSuchChain(_))));
}

#[test]
fn nobody_begins_to_use_what_is_retired() {
    let (_folder, store) = store_with(&["a", "b"]);
    let planned = store.plan_chain(&calls("x", &["a"])).expect("fits");
    let retired = store.retire(&name("a")).expect("nobody uses it");
    assert!(matches!(store.commit_chain(&planned), Err(StoreError::ChainOvertaken(_))));
    assert!(matches!(
        store.plan_chain(&calls("x", &["a"])),
        Err(StoreError::Chain(ChainError::Unknown { .. }))
    ));
    drop(retired);
    store.commit_chain(&planned).expect("it stays after all");
    apply(&store, &calls("y", &["b"])).expect("applied");
    let _retired = store.retire(&name("y")).expect("nobody uses it");
    let error = store.plan_chain(&through("z", "y")).expect_err("it goes").to_string();
    assert!(error.contains("there is no chain of that name"), "{error}");
}

#[test]
fn a_change_reaches_the_chains_that_go_through_it() {
    let (_folder, store) = store_with(&["a", "b"]);
    apply(&store, &calls("inner", &["a"])).expect("applied");
    apply(&store, &through("middle", "inner")).expect("applied");
    apply(&store, &through("outer", "middle")).expect("applied");
    apply(&store, &calls("other", &["a"])).expect("applied");
    let planned = store.plan_chain(&calls("inner", &["a", "b"])).expect("fits");
    let reached: Vec<&str> = planned.dependents.iter().map(|plan| plan.name.as_str()).collect();
    assert_eq!(reached, ["middle", "outer"]);
    let Stage::Run(run) = &planned.dependents[1].stages[0] else { panic!("{planned:?}") };
    assert_eq!(run[1].name, "middle/inner/b");
    store.commit_chain(&planned).expect("applied");
    let again = store.plan_chain(&calls("inner", &["a", "b"])).expect("fits");
    assert!(again.dependents.is_empty(), "nothing changes for them");

    let error = store.plan_chain(&through("inner", "outer")).expect_err("a cycle").to_string();
    assert_eq!(error, "the chain leads back to itself: inner -> outer -> middle -> inner");
    let most = vec!["a"; 256];
    apply(&store, &calls("inner", &most)).expect("256 steps, also for those around it");
    apply(&store, &calls("inner", &["a"])).expect("applied");
    let long = format!("{}[[step]]\nchain = \"inner\"\n", calls("long", &["a"]));
    apply(&store, &long).expect("applied");
    let error = store.plan_chain(&calls("inner", &most)).expect_err("257 steps in another").to_string();
    assert!(
        error.starts_with(
            "the chain \"long\" goes through this one, and with it would be refused: the chain has more"
        ),
        "{error}"
    );
}

#[test]
fn two_applies_that_would_make_a_cycle_together_do_not() {
    let (_folder, store) = store_with(&["a"]);
    apply(&store, &calls("x", &["a"])).expect("applied");
    apply(&store, &calls("y", &["a"])).expect("applied");
    let x = store.plan_chain(&through("x", "y")).expect("fits");
    let y = store.plan_chain(&through("y", "x")).expect("fits");
    store.commit_chain(&x).expect("the first one");
    let error = store.commit_chain(&y).expect_err("too late").to_string();
    assert_eq!(error, "what the chain \"y\" names was changed meanwhile by somebody else; apply it again");
    assert_eq!(sources(&store), [through("x", "y"), calls("y", &["a"])]);
}

#[test]
fn a_text_that_is_no_longer_read_stops_only_its_own_chain() {
    let (folder, store) = store_with(&["a"]);
    apply(&store, &calls("x", &["a"])).expect("applied");
    apply(&store, &calls("y", &["a"])).expect("applied");
    apply(&store, &through("z", "y")).expect("applied");
    drop(store);
    let path = folder.path().join("state/spry.db");
    let connection = rusqlite::Connection::open(&path).expect("opens");
    connection.execute("UPDATE chains SET source = 'of = the future' WHERE name = 'y'", []).expect("changed");
    drop(connection);
    let store = open(folder.path());
    let works: Vec<(String, bool)> =
        store.plans().expect("listed").into_iter().map(|(chain, plan)| (chain.name, plan.is_ok())).collect();
    assert_eq!(works, [("x".into(), true), ("y".into(), false), ("z".into(), false)]);
    apply(&store, &calls("x", &["a", "a"])).expect("applied");
    let mended = store.plan_chain(&calls("y", &["a"])).expect("fits");
    assert_eq!(mended.dependents.len(), 1, "z works again");
}

#[test]
fn a_database_without_chains_gets_their_tables() {
    let (folder, store) = store_with(&["a"]);
    let before = store.functions().expect("listed");
    drop(store);
    let path = folder.path().join("state/spry.db");
    let connection = rusqlite::Connection::open(&path).expect("opens");
    let later = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT IN ('functions', 'versions', 'counters')";
    let mut statement = connection.prepare(later).expect("prepared");
    let tables = statement.query_map([], |row| row.get::<_, String>(0)).expect("listed");
    let drops: String = tables.flatten().map(|table| format!("DROP TABLE {table};")).collect();
    drop(statement);
    let columns = "ALTER TABLE versions DROP COLUMN code_sha256; ALTER TABLE functions DROP COLUMN last; \
                   ALTER TABLE functions DROP COLUMN used_unix_ms;";
    let back = format!("{drops} {columns} PRAGMA user_version = 1;");
    connection.execute_batch(&back).expect("as version 1 left it");
    drop(connection);
    let store = open(folder.path());
    assert_eq!(store.functions().expect("listed"), before);
    apply(&store, &calls("x", &["a"])).expect("applied");
    drop(store);
    assert_eq!(sources(&open(folder.path())), [calls("x", &["a"])]);
}

/// Whatever the step at which an apply, a second one and a removal are cut off: after the next open every chain is
/// wholly as it was before a step or wholly as after it, and what it uses belongs to its text.
#[test]
fn cut_off_at_every_step_chains_are_whole() {
    let states = [
        vec![calls("old", &["a"])],
        vec![calls("fresh", &["a"]), calls("old", &["a"])],
        vec![calls("fresh", &["a"]), calls("old", &["b"])],
        vec![calls("old", &["b"])],
    ];
    for steps in 0..100 {
        let (folder, store) = store_with(&["a", "b"]);
        apply(&store, &calls("old", &["a"])).expect("applied");
        drop(store);
        let store = Store::open_with(options(folder.path()), failing_after(steps)).expect("opens");
        let done = apply(&store, &calls("fresh", &["a"]))
            .and_then(|_| apply(&store, &calls("old", &["b"])))
            .and_then(|_| store.remove_chain(&name("fresh")));
        drop(store);
        let store = open(folder.path());
        let found = sources(&store);
        assert!(states.contains(&found), "{steps}: {found:?}");
        let used = |function: &str| found.iter().any(|text| text.contains(&format!("\"{function}\"")));
        for function in ["a", "b"] {
            assert_eq!(store.retire(&name(function)).is_err(), used(function), "{steps}: {function}");
        }
        if done.is_ok() {
            assert_eq!(steps, 5, "two applies have two steps each, the removal one");
            assert_eq!(found, states[3]);
            return;
        }
    }
    panic!("the sequence never came to its end");
}
