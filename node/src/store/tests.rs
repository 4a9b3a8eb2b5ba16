//! The store with real folders and a real database, and with steps that fail.

use super::sweep::entries;
use super::*;
use crate::manifest::{Defaults, Override, Runtime};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{OnceLock, Weak};

const MAIN: &str = "def main(params):\n    return {}\n";

pub(super) fn options(folder: &Path) -> Options {
    let upload = UploadLimits::default();
    Options { state_dir: folder.join("state"), uid_base: 1_879_048_192, upload, versions: 3 }
}

pub(super) fn open(folder: &Path) -> Store {
    Store::open(options(folder)).expect("the store opens")
}

pub(super) fn archive(text: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, "hello.py", text.as_bytes()).expect("into memory");
    builder.into_inner().expect("into memory")
}

pub(super) fn stage(store: &Store, name: &str, text: &str) -> Result<Staged, StoreError> {
    let mut upload = store.upload()?;
    for piece in archive(text).chunks(700) {
        upload.write(piece)?;
    }
    store.stage(upload, Some(name), &[], &Defaults::default())
}

pub(super) fn deploy(store: &Store, name: &str, text: &str) -> Result<StoredFunction, StoreError> {
    store.commit(stage(store, name, text)?)
}

pub(super) fn remove(store: &Store, name: &Name) -> Result<(), StoreError> {
    store.remove(name)?.clear()
}

pub(super) fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

/// All paths below the folder, sorted.
pub(super) fn everything(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in entries(folder).expect("listed") {
        if path.is_dir() {
            found.extend(everything(&path));
        }
        found.push(path);
    }
    found.sort();
    found
}

#[test]
fn what_was_deployed_is_there_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let stored = {
        let store = open(folder.path());
        deploy(&store, "hello", MAIN).expect("deployed")
    };
    assert_eq!((stored.version, stored.slot, stored.uid), (1, 0, 1_879_048_192));
    assert_eq!(stored.manifest.runtime, Runtime::Python);
    assert_eq!(stored.manifest.handler, "hello:main");
    let store = open(folder.path());
    assert_eq!(store.functions().expect("listed"), std::slice::from_ref(&stored));
    assert_eq!(store.function("hello").expect("found"), Some(stored.clone()));
    assert_eq!(store.opened(), &Opened::default());
    assert_eq!(fs::read_to_string(stored.code.join("hello.py")).expect("code"), MAIN);
}

#[test]
fn only_the_function_can_read_its_code() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let stored = deploy(&store, "hello", MAIN).expect("deployed");
    let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o7777;
    let state = store.state_dir();
    assert_eq!(mode(state), 0o711);
    assert_eq!(mode(&state.join("staging")), 0o700);
    assert_eq!(mode(&state.join("functions")), 0o711);
    assert_eq!(mode(&state.join("functions/hello")), 0o711);
    assert_eq!(mode(&state.join("functions/hello/1")), 0o750);
    assert_eq!(mode(&state.join("spry.db")), 0o600);
    assert_eq!(mode(&stored.code), 0o750);
    assert_eq!(mode(&stored.code.join("hello.py")), 0o640);
    if nix::unistd::geteuid().is_root() {
        for path in [state.join("functions/hello/1"), stored.code.clone(), stored.code.join("hello.py")] {
            let metadata = fs::metadata(&path).expect("there");
            assert_eq!((metadata.uid(), metadata.gid()), (0, stored.uid), "{path:?}");
        }
    } else {
        println!("SKIPPED: owners of files; needs root");
    }
}

#[test]
fn a_staged_version_is_invisible_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let staged = stage(&store, "hello", MAIN).expect("staged");
    assert!(staged.code().join("hello.py").is_file());
    assert_eq!(store.functions().expect("listed"), []);
    drop(staged);
    assert_eq!(everything(&store.state_dir().join("functions")), Vec::<PathBuf>::new());
    assert_eq!(everything(&store.state_dir().join("staging")), Vec::<PathBuf>::new());
}

#[test]
fn a_new_version_replaces_the_old_one_which_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let first = deploy(&store, "hello", MAIN).expect("first");
    let second = deploy(&store, "hello", "def main(p): return 2\n").expect("second");
    assert_eq!((second.version, second.uid), (2, first.uid));
    assert_ne!(first.sha256, second.sha256);
    assert_eq!(store.functions().expect("listed"), std::slice::from_ref(&second));
    assert!(first.code.is_dir());
    assert_eq!(store.versions("hello").expect("listed"), [second, first]);
}

#[test]
fn the_later_upload_wins_whichever_is_committed_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let earlier = stage(&store, "hello", MAIN).expect("staged");
    let later = stage(&store, "hello", "def main(p): return 2\n").expect("staged");
    assert_eq!((earlier.version(), later.version()), (1, 2));
    assert_eq!(earlier.uid(), later.uid());
    let folder_of_earlier = earlier.code();
    store.commit(later).expect("committed");
    let error = store.commit(earlier).expect_err("too late");
    assert!(matches!(error, StoreError::Overtaken { version: 1, .. }));
    assert!(!folder_of_earlier.exists());
    assert_eq!(store.function("hello").expect("found").expect("there").version, 2);
}

#[test]
fn user_ids_are_distinct_and_come_back_as_late_as_can_be() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let a = deploy(&store, "a", MAIN).expect("a");
    let staged = stage(&store, "b", MAIN).expect("b is on its way");
    let c = deploy(&store, "c", MAIN).expect("c");
    assert_eq!((a.slot, staged.slot(), c.slot), (0, 1, 2));
    remove(&store, &name("a")).expect("removed");
    drop(staged);
    assert_eq!(deploy(&store, "d", MAIN).expect("d").slot, 3, "a's id rests");
    drop(store);
    let store = open(folder.path());
    assert_eq!(deploy(&store, "e", MAIN).expect("e").slot, 4, "also over a restart");
}

#[test]
fn removing_takes_everything_along() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    deploy(&store, "hello", MAIN).expect("first");
    deploy(&store, "hello", MAIN).expect("second");
    remove(&store, &name("hello")).expect("removed");
    assert_eq!(store.functions().expect("listed"), []);
    assert_eq!(everything(&store.state_dir().join("functions")), Vec::<PathBuf>::new());
    assert!(matches!(remove(&store, &name("hello")), Err(StoreError::NoSuchFunction(_))));
    assert_eq!(deploy(&store, "hello", MAIN).expect("again").version, 1);
}

#[test]
fn nothing_is_swept_behind_a_link() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let [moved, lost] = ["moved", "lost"].map(|name| deploy(&store, name, MAIN).expect("deployed"));
    let functions = store.state_dir().join("functions");
    drop(store);
    let elsewhere = folder.path().join("elsewhere");
    fs::rename(functions.join("moved"), &elsewhere).expect("moved");
    std::os::unix::fs::symlink(&elsewhere, functions.join("moved")).expect("linked");
    fs::write(elsewhere.join("precious"), "").expect("written");
    fs::remove_dir_all(functions.join("lost")).expect("removed");
    std::os::unix::fs::symlink(folder.path().join("nowhere"), functions.join("lost")).expect("linked");
    let store = open(folder.path());
    assert!(elsewhere.join("precious").exists());
    assert_eq!(store.opened().missing, ["lost"]);
    store.check(&moved).expect("its files are there");
    assert!(store.check(&lost).is_err());
}

#[test]
fn a_manifest_that_can_not_be_read_is_its_own_functions_matter() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    for name in ["a", "b", "c"] {
        deploy(&store, name, MAIN).expect("deployed");
    }
    drop(store);
    let database =
        rusqlite::Connection::open(options(folder.path()).state_dir.join("spry.db")).expect("opens");
    database
        .execute("UPDATE versions SET manifest = '{\"of\": \"later\"}' WHERE name = 'b'", [])
        .expect("written");
    drop(database);
    let store = open(folder.path());
    let names = || -> Vec<String> {
        store.functions().expect("listed").into_iter().map(|one| one.manifest.name.to_string()).collect()
    };
    assert_eq!(names(), ["a", "c"]);
    assert!(matches!(store.function("b"), Err(StoreError::StoredManifest { .. })));
    // What it lists is not known: no secret goes.
    let secret = "A".parse().expect("a name");
    assert!(matches!(store.remove_secret(&secret), Err(StoreError::StoredManifest { .. })));
    assert_eq!(deploy(&store, "b", MAIN).expect("deployed again").version, 2);
    let kept = store.versions("b").expect("listed");
    assert_eq!(kept.iter().map(|one| one.version).collect::<Vec<_>>(), [2]);
    assert_eq!(names(), ["a", "b", "c"]);
    remove(&store, &name("b")).expect("removed");
}

/// Between its rows and its folders, the name is as good as new.
#[test]
fn what_is_uploaded_while_a_function_is_removed_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let (opened, uploaded) = (Arc::new(OnceLock::<Weak<Store>>::new()), Arc::new(Mutex::new(None)));
    let (inside, there) = (Arc::clone(&opened), Arc::clone(&uploaded));
    let seam = Seam::new(move |step| {
        if step == Step::RemoveFolder {
            let store = inside.get().and_then(Weak::upgrade).expect("it is open");
            let staged = stage(&store, "hello", "def main(p): return 'new'\n").expect("staged");
            *there.lock() = Some(staged);
        }
        Ok(())
    });
    let store = Arc::new(Store::open_with(options(folder.path()), seam).expect("opens"));
    opened.set(Arc::downgrade(&store)).expect("once");
    let old = deploy(&store, "hello", MAIN).expect("deployed");
    remove(&store, &name("hello")).expect("removed");
    assert!(!old.code.exists());
    let staged = uploaded.lock().take().expect("uploaded meanwhile");
    let new = store.commit(staged).expect("committed");
    store.check(&new).expect("its files are there");
    remove(&store, &name("hello")).expect("removed");
    drop(uploaded.lock().take());
    assert_eq!(deploy(&store, "hello", MAIN).expect("again").version, 1, "the numbers are free again");
}

#[test]
fn an_upload_over_the_limit_is_refused_while_it_arrives() {
    let folder = tempfile::tempdir().expect("a folder");
    let upload = UploadLimits { size: crate::units::Size::kib(1), files: 10 };
    let store = Store::open(Options { upload, ..options(folder.path()) }).expect("opens");
    let mut upload = store.upload().expect("begins");
    upload.write(&[0; 1024]).expect("fits");
    assert!(matches!(upload.write(b"x"), Err(StoreError::TooLarge { limit: 1024 })));
    drop(upload);
    assert_eq!(everything(&store.state_dir().join("staging")), Vec::<PathBuf>::new());
}

#[test]
fn a_bad_upload_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    deploy(&store, "hello", MAIN).expect("deployed");
    let before = everything(&store.state_dir().join("functions"));
    let mut upload = store.upload().expect("begins");
    upload.write(&[b'x'; 4096]).expect("written");
    let error = store.stage(upload, Some("hello"), &[], &Defaults::default()).expect_err("no archive");
    assert!(matches!(error, StoreError::Archive(_)));
    let mut upload = store.upload().expect("begins");
    upload.write(&archive(MAIN)).expect("written");
    let set: Override = "limits.memory=1B".parse().expect("an override");
    let error = store.stage(upload, Some("hello"), &[set], &Defaults::default()).expect_err("out of bounds");
    assert!(matches!(error, StoreError::Manifest(_)));
    assert_eq!(everything(&store.state_dir().join("functions")), before);
    assert_eq!(everything(&store.state_dir().join("staging")), Vec::<PathBuf>::new());
}

#[test]
fn a_second_daemon_is_told_who_the_first_one_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let error = Store::open(options(folder.path())).expect_err("locked").to_string();
    assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
    drop(store);
    open(folder.path());
}

#[test]
fn a_damaged_foreign_or_newer_database_is_not_touched() {
    let folder = tempfile::tempdir().expect("a folder");
    drop(open(folder.path()));
    let path = folder.path().join("state/spry.db");
    let good = fs::read(&path).expect("readable");
    let refused = || Store::open(options(folder.path())).expect_err("refused").to_string();

    fs::write(&path, vec![b'x'; good.len()]).expect("overwritten");
    assert!(refused().contains("is damaged") && refused().contains("deploy the functions again"));

    let mut torn = good.clone();
    torn[4096..].fill(0xff);
    fs::write(&path, &torn).expect("overwritten");
    assert!(refused().contains("is damaged"), "{}", refused());

    fs::write(&path, &good).expect("restored");
    let set = |pragma: &str, value: i32| {
        let connection = rusqlite::Connection::open(&path).expect("opens");
        connection.pragma_update(None, pragma, value).expect("set");
    };
    let known = super::database::SCHEMA.len() as i32;
    for other in [known + 1, 0] {
        set("user_version", other);
        let says = format!("has version {other}; this spryd reads version {known}");
        assert!(refused().contains(&says), "{}", refused());
    }
    set("user_version", known);
    set("application_id", 7);
    assert!(refused().contains("another program's mark"), "{}", refused());
}

#[test]
fn missing_code_is_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    let stored = deploy(&open(folder.path()), "hello", MAIN).expect("deployed");
    fs::remove_dir_all(&stored.code).expect("gone");
    assert_eq!(open(folder.path()).opened().missing, ["hello"]);
}

#[test]
fn strays_are_swept_at_open() {
    let folder = tempfile::tempdir().expect("a folder");
    let kept = {
        let store = open(folder.path());
        let kept = deploy(&store, "kept", MAIN).expect("deployed");
        // Killed with all of these in the air:
        std::mem::forget(stage(&store, "kept", MAIN).expect("staged"));
        std::mem::forget(stage(&store, "new", MAIN).expect("staged"));
        std::mem::forget(store.upload().expect("begun"));
        kept
    };
    let functions = folder.path().join("state/functions");
    fs::write(functions.join("stray"), "x").expect("written");
    std::os::unix::fs::symlink("/etc", functions.join("link")).expect("linked");
    // The forgotten ones hold the lock's file as little as a dead process does.
    let store = open(folder.path());
    assert_eq!(store.opened().uploads_swept, 1);
    assert_eq!(store.opened().folders_swept, 4, "kept/2, new, stray, link");
    assert!(Path::new("/etc/passwd").exists());
    assert_eq!(store.functions().expect("listed"), std::slice::from_ref(&kept));
    let left = everything(&functions);
    assert_eq!(
        left,
        [functions.join("kept"), functions.join("kept/1"), kept.code.clone(), kept.code.join("hello.py")]
    );
}

/// Lets `calls` steps pass; from then on every step fails, as if the process had been killed there.
pub(super) fn failing_after(calls: usize) -> Seam {
    let passed = AtomicUsize::new(0);
    Seam::new(move |_| match passed.fetch_add(1, Ordering::Relaxed) < calls {
        true => Ok(()),
        false => Err(std::io::ErrorKind::Other.into()),
    })
}

/// Whatever the step at which a redeploy, a first deploy and a removal are cut off, and whether the process
/// cleans up or is killed: after the next open every function is wholly in its old or wholly in its new state,
/// and the folders are exactly those that the database names.
#[test]
fn cut_off_at_every_step_the_store_is_whole() {
    let mut finished = false;
    for calls in 0..200 {
        for killed in [false, true] {
            let folder = tempfile::tempdir().expect("a folder");
            deploy(&open(folder.path()), "old", MAIN).expect("deployed");
            deploy(&open(folder.path()), "gone", MAIN).expect("deployed");
            let store = Store::open_with(options(folder.path()), failing_after(calls)).expect("opens");
            let run = |name, text| -> Result<(), StoreError> {
                let mut upload = store.upload()?;
                let bytes = archive(text);
                let written = bytes.chunks(2048).try_for_each(|piece| upload.write(piece));
                if killed && written.is_err() {
                    std::mem::forget(upload);
                    return written;
                }
                written?;
                let staged = store.stage(upload, Some(name), &[], &Defaults::default())?;
                store.commit(staged).map(|_| ())
            };
            let done = run("old", "def main(p): return 'new'\n")
                .and_then(|()| run("fresh", MAIN))
                .and_then(|()| remove(&store, &name("gone")));
            finished |= done.is_ok();
            drop(store);
            whole_after_reopening(folder.path());
        }
        if finished {
            assert!(calls > 15, "the seam was passed {calls} times only");
            return;
        }
    }
    panic!("the sequence never came to its end");
}

fn whole_after_reopening(folder: &Path) {
    let store = open(folder);
    assert_eq!(store.opened().missing, Vec::<String>::new());
    let functions = store.functions().expect("listed");
    let mut wanted = Vec::new();
    for stored in &functions {
        let text = fs::read_to_string(stored.code.join("hello.py")).expect("its code is there");
        let new = text.contains("new");
        let expected = if stored.manifest.name.as_str() == "old" && new { 2 } else { 1 };
        assert_eq!(stored.version, expected, "version and code belong together");
        store.check(stored).expect("its files are what was deployed");
        let function = stored.code.parent().and_then(Path::parent).expect("has one");
        wanted.push(function.to_owned());
        for kept in store.versions(stored.manifest.name.as_str()).expect("listed") {
            let version = kept.code.parent().expect("has one").to_owned();
            wanted.extend([version, kept.code.clone(), kept.code.join("hello.py")]);
        }
    }
    wanted.sort();
    assert_eq!(everything(&store.state_dir().join("functions")), wanted);
    assert_eq!(everything(&store.state_dir().join("staging")), Vec::<PathBuf>::new());
    assert!(functions.iter().any(|stored| stored.manifest.name.as_str() == "old"));
    deploy(&store, "old", MAIN).expect("and it goes on");
}
