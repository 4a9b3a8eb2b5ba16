//! Going back to earlier versions, sweeping old ones, and files that are no longer what was deployed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::super::Options;
use super::super::database::SCHEMA;
use super::super::tests::{archive, deploy, failing_after, name, open, options, remove, stage};
use super::*;
use crate::manifest::Defaults;
use crate::secrets::SecretName;
use crate::store::Removal;

/// A Python text that tells its versions apart.
fn text(version: u64) -> String {
    format!("def main(params): return {version}\n")
}

fn with_versions(folder: &Path, count: u64) -> Store {
    let store = open(folder);
    for version in 1..=count {
        deploy(&store, "hello", &text(version)).expect("deployed");
    }
    store
}

fn kept(store: &Store) -> Vec<u64> {
    store.versions("hello").expect("listed").iter().map(|one| one.version).collect()
}

fn current(store: &Store) -> u64 {
    store.function("hello").expect("found").expect("there").version
}

fn go_back(store: &Store, to: Option<u64>) -> Result<u64, StoreError> {
    let recalled = store.recall(&name("hello"), to)?;
    store.roll_back(&recalled).map(|stored| stored.version)
}

#[test]
fn an_earlier_version_serves_again_and_numbers_never_come_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = with_versions(folder.path(), 3);
    assert_eq!(go_back(&store, None).expect("back"), 2);
    assert_eq!((current(&store), kept(&store)), (2, vec![3, 2, 1]));
    assert_eq!(go_back(&store, None).expect("further back"), 1);
    assert_eq!(go_back(&store, Some(3)).expect("and forward"), 3);
    assert_eq!(go_back(&store, Some(1)).expect("back"), 1);
    drop(store);
    let store = open(folder.path());
    assert_eq!(current(&store), 1, "also over a restart");
    let stored = store.function("hello").expect("found").expect("there");
    assert_eq!(fs::read_to_string(stored.code.join("hello.py")).expect("code"), text(1));
    store.prune(&name("hello"), &BTreeSet::from([])).expect("swept");
    assert_eq!(deploy(&store, "hello", &text(4)).expect("deployed").version, 4);
}

#[test]
fn what_can_not_be_gone_back_to_is_said_with_what_can() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = with_versions(folder.path(), 1);
    let refused = |to| go_back(&store, to).expect_err("refused").to_string();
    assert_eq!(refused(None), "no earlier version of \"hello\" is kept: there is only the current one");
    assert_eq!(refused(Some(1)), "version 1 of \"hello\" is the current one");
    deploy(&store, "hello", &text(2)).expect("deployed");
    assert_eq!(refused(Some(7)), "no version 7 of \"hello\" is kept; there is 1");
    let error = store.recall(&name("nobody"), None).expect_err("unknown");
    assert!(matches!(error, StoreError::NoSuchFunction(_)));
}

#[test]
fn those_beyond_what_is_kept_go_but_not_while_they_are_needed() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = with_versions(folder.path(), 5);
    let hello = name("hello");
    go_back(&store, Some(2)).expect("back");
    let held = store.recall(&hello, Some(1)).expect("held");
    store.prune(&hello, &BTreeSet::from([3])).expect("swept");
    assert_eq!(kept(&store), [5, 4, 3, 2, 1], "2 serves, 5 and 4 are the newest, 3 runs, 1 is held");
    store.prune(&hello, &BTreeSet::new()).expect("swept");
    assert_eq!(kept(&store), [5, 4, 2, 1]);
    drop(held);
    store.prune(&hello, &BTreeSet::new()).expect("swept");
    assert_eq!(kept(&store), [5, 4, 2]);
    let folders = fs::read_dir(store.state_dir().join("functions/hello")).expect("there").count();
    assert_eq!(folders, 3, "their files are gone as well");
    drop(store);
    let fewer = Options { versions: 1, ..options(folder.path()) };
    let store = Store::open(fewer).expect("opens");
    assert_eq!((kept(&store), store.opened().versions_swept), (vec![2], 2), "fewer are kept from now on");
}

#[test]
fn who_was_deployed_last_wins_over_who_went_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = with_versions(folder.path(), 2);
    let recalled = store.recall(&name("hello"), None).expect("held");
    let earlier = stage(&store, "hello", &text(3)).expect("staged");
    deploy(&store, "hello", &text(4)).expect("deployed meanwhile");
    let error = store.roll_back(&recalled).expect_err("overtaken");
    assert!(matches!(error, StoreError::Overtaken { version: 1, .. }), "{error}");
    assert_eq!(current(&store), 4);
    go_back(&store, Some(2)).expect("back");
    let error = store.commit(earlier).expect_err("4 came after it, though it doesn't serve now");
    assert!(matches!(error, StoreError::Overtaken { version: 3, .. }), "{error}");
}

#[test]
fn no_version_becomes_current_without_its_secrets() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let secret: SecretName = "A".parse().expect("a name");
    let set = || store.set_secret(&secret, b"sealed").expect("set");
    let lists = |n: u64| {
        let mut upload = store.upload().expect("a file");
        upload.write(&archive(&text(n))).expect("written");
        let overrides = ["secrets=A".parse().expect("an override")];
        store.stage(upload, Some("hello"), &overrides, &Defaults::default()).expect("staged")
    };
    // It was there when the function's first process began, and nobody listed it.
    set();
    let staged = lists(1);
    assert_eq!(store.remove_secret(&secret).expect("asked"), Removal::Done);
    let error = store.commit(staged).expect_err("its secret is gone");
    assert!(matches!(error, StoreError::SecretRemoved { .. }), "{error}");
    assert!(store.function("hello").expect("asked").is_none());
    set();
    store.commit(lists(2)).expect("deployed");
    assert_eq!(store.remove_secret(&secret).expect("asked"), Removal::Listed(vec!["hello".to_owned()]));
    // A version that is kept and doesn't serve holds none, and doesn't serve again without.
    deploy(&store, "hello", &text(3)).expect("deployed");
    let recalled = store.recall(&name("hello"), None).expect("held");
    assert_eq!(store.remove_secret(&secret).expect("asked"), Removal::Done);
    let error = store.roll_back(&recalled).expect_err("its secret is gone");
    assert!(matches!(error, StoreError::SecretRemoved { .. }), "{error}");
    set();
    store.roll_back(&recalled).expect("back");
}

#[test]
fn what_was_recalled_is_not_mistaken_for_what_came_after_a_removal() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = with_versions(folder.path(), 2);
    let recalled = store.recall(&name("hello"), Some(1)).expect("held");
    let uid = recalled.function().uid;
    remove(&store, &name("hello")).expect("removed");
    // As many as before, under the same name; and another function, that gets a user id.
    let ours: Vec<_> = (3..=4).map(|n| deploy(&store, "hello", &text(n)).expect("deployed")).collect();
    let other = deploy(&store, "other", &text(1)).expect("deployed");
    let error = store.roll_back(&recalled).expect_err("that version is gone");
    assert!(matches!(error, StoreError::Overtaken { version: 1, .. }), "{error}");
    assert_eq!(current(&store), ours[1].version);
    assert!(ours.iter().all(|ours| ours.version > 2 && ours.uid == uid) && other.uid != uid);
    drop(recalled);
    remove(&store, &name("hello")).expect("removed");
    assert!(!store.state_dir().join("functions/hello").exists(), "nothing is held any more");
    assert_eq!(deploy(&store, "hello", &text(5)).expect("deployed").version, 1);
}

#[test]
fn cut_off_at_every_step_one_of_the_two_serves() {
    for calls in 0..20 {
        let folder = tempfile::tempdir().expect("a folder");
        drop(with_versions(folder.path(), 4));
        let store = Store::open_with(options(folder.path()), failing_after(calls)).expect("opens");
        let done = go_back(&store, Some(2)).and_then(|_| store.prune(&name("hello"), &BTreeSet::new()));
        drop(store);
        let store = open(folder.path());
        assert!(matches!(current(&store), 2 | 4));
        store.check(&store.function("hello").expect("found").expect("there")).expect("whole");
        assert_eq!(kept(&store).len(), 3);
        if done.is_ok() {
            assert_eq!((calls, current(&store)), (3, 2));
            return;
        }
    }
    panic!("the sequence never came to its end");
}

#[test]
fn files_that_are_not_what_was_deployed_are_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let whole = deploy(&store, "whole", &text(1)).expect("deployed");
    type Change<'a> = &'a dyn Fn(&Path);
    let changes: [(&str, Change<'_>); 4] = [
        ("cut", &|file| fs::write(file, "def ma").expect("written")),
        ("zeros", &|file| fs::write(file, vec![0; text(1).len()]).expect("written")),
        ("gone", &|file| fs::remove_file(file).expect("removed")),
        ("folder", &|file| fs::remove_dir_all(file.parent().expect("one")).expect("removed")),
    ];
    for (what, change) in changes {
        let stored = deploy(&store, what, &text(1)).expect("deployed");
        store.check(&stored).expect("still whole");
        change(&stored.code.join("hello.py"));
        let error = store.check(&stored).expect_err(what);
        assert!(matches!(error, StoreError::Altered { version: 1, .. }), "{what}: {error}");
        assert!(error.to_string().contains(&format!("spry rollback {what}")), "{error}");
    }
    store.check(&whole).expect("the others are as they were");
}

#[test]
fn when_functions_were_used_outlives_the_daemon() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = with_versions(folder.path(), 2);
    assert_eq!(store.function("hello").expect("found").expect("there").used_unix_ms, 0);
    store.note_uses(&[("hello".into(), 77), ("nobody".into(), 88)]).expect("noted");
    drop(store);
    let store = open(folder.path());
    assert_eq!(store.function("hello").expect("found").expect("there").used_unix_ms, 77);
    deploy(&store, "hello", &text(3)).expect("deployed");
    assert_eq!(store.function("hello").expect("found").expect("there").used_unix_ms, 77, "of any version");
}

#[test]
fn a_database_of_an_earlier_spryd_is_taken_over_with_its_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let stored = deploy(&open(folder.path()), "hello", &text(1)).expect("deployed");
    let path = folder.path().join("state/spry.db");
    let manifest = serde_json::to_string(&stored.manifest).expect("JSON");
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(folder.path().join(format!("state/spry.db{suffix}")));
    }
    let old = rusqlite::Connection::open(&path).expect("made");
    SCHEMA[..4].iter().try_for_each(|addition| old.execute_batch(addition)).expect("the old tables");
    old.pragma_update(None, "application_id", 0x7370_7279).expect("marked");
    old.pragma_update(None, "user_version", 4).expect("marked");
    old.execute("INSERT INTO functions VALUES ('hello', 0, 1)", []).expect("a row");
    let values = rusqlite::params![stored.sha256, manifest, stored.bytes];
    old.execute("INSERT INTO versions VALUES ('hello', 1, ?1, ?2, ?3, 5)", values).expect("a row");
    drop(old);
    let store = open(folder.path());
    let taken = store.function("hello").expect("found").expect("there");
    assert_eq!((taken.version, &taken.code_sha256), (1, &stored.code_sha256));
    store.check(&taken).expect("held to what they were");
    assert_eq!(deploy(&store, "hello", &text(2)).expect("deployed").version, 2);
}
