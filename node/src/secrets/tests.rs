use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};

use proptest::prelude::*;

use super::*;
use crate::config::UploadLimits;
use crate::store::Options;

struct Rig {
    folder: tempfile::TempDir,
    secrets: Secrets,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let secrets = open(folder.path());
        Self { folder, secrets }
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("key")
    }

    fn get(&self, text: &str) -> Result<Vec<u8>, SecretError> {
        let opened = self.secrets.open(&[name(text)])?;
        Ok(opened[0].value.as_bytes().to_vec())
    }
}

fn open(folder: &std::path::Path) -> Secrets {
    let upload = UploadLimits::default();
    let options = Options { state_dir: folder.join("state"), uid_base: 1_879_048_192, upload, versions: 5 };
    Secrets::new(Arc::new(Store::open(options).expect("opened")), folder.join("key"))
}

fn name(text: &str) -> SecretName {
    text.parse().expect("a name")
}

fn value(bytes: &[u8]) -> Value {
    Value::new(bytes.to_vec())
}

#[test]
fn what_is_set_is_there_after_a_restart_and_nowhere_on_the_disk() {
    let rig = Rig::new();
    assert!(!rig.key().exists(), "made with the first secret");
    let password = b"correct horse battery staple";
    rig.secrets.set(&name("DB"), &value(b"the first one")).expect("set");
    rig.secrets.set(&name("DB"), &value(password)).expect("replaced");
    rig.secrets.set(&name("other"), &value(b"\0binary\xff")).expect("set");
    assert_eq!(fs::metadata(rig.key()).expect("made").permissions().mode() & 0o7777, 0o600);
    let Rig { folder, secrets } = rig;
    drop(secrets);
    for entry in fs::read_dir(folder.path().join("state")).expect("listed").flatten() {
        let Ok(bytes) = fs::read(entry.path()) else { continue };
        let found = bytes.windows(password.len()).any(|part| part == password);
        assert!(!found, "the password is in {}", entry.path().display());
    }
    let rig = Rig { secrets: open(folder.path()), folder };
    assert_eq!(rig.get("DB").expect("opened"), password);
    assert_eq!(rig.get("other").expect("opened"), b"\0binary\xff");
    let names: Vec<String> =
        rig.secrets.list().expect("listed").into_iter().map(|view| view.name.into()).collect();
    assert_eq!(names, ["DB", "other"]);
    rig.secrets.remove(&name("DB")).expect("removed");
    assert!(matches!(rig.get("DB"), Err(SecretError::Missing(_))));
    assert!(matches!(rig.secrets.remove(&name("DB")), Err(SecretError::Missing(_))));
}

#[test]
fn a_key_that_is_exposed_or_another_opens_nothing() {
    let rig = Rig::new();
    rig.secrets.set(&name("DB"), &value(b"password")).expect("set");
    let says = |error: SecretError| error.to_string();
    fs::set_permissions(rig.key(), Permissions::from_mode(0o640)).expect("mode");
    assert!(says(rig.get("DB").expect_err("exposed")).contains("open to others (mode 640"));
    assert!(rig.secrets.set(&name("x"), &value(b"x")).is_err(), "nor is anything sealed by it");
    fs::set_permissions(rig.key(), Permissions::from_mode(0o600)).expect("mode");
    let good = fs::read(rig.key()).expect("read");

    fs::write(rig.key(), [7; key::LENGTH]).expect("written");
    assert!(says(rig.get("DB").expect_err("another key")).contains("can't be opened with the key"));
    for broken in [&good[..31], &[0; key::LENGTH], b""] {
        fs::write(rig.key(), broken).expect("written");
        assert!(says(rig.get("DB").expect_err("broken")).contains("must have 32 bytes"));
    }
    fs::remove_file(rig.key()).expect("removed");
    assert!(says(rig.get("DB").expect_err("gone")).contains("can't be opened with the key"));
    symlink("/dev/zero", rig.key()).expect("linked");
    assert!(rig.get("DB").is_err(), "no link is followed");
    fs::remove_file(rig.key()).expect("removed");
    fs::write(rig.key(), good).expect("back");
    fs::set_permissions(rig.key(), Permissions::from_mode(0o600)).expect("mode");
    assert_eq!(rig.get("DB").expect("opened"), b"password");
}

#[test]
fn a_value_opens_under_its_own_name_and_unchanged_only() {
    let rig = Rig::new();
    let key = Key::load_or_create(&rig.key()).expect("made");
    let sealed = seal::seal(&key, &name("DB"), &value(b"password")).expect("sealed");
    assert_eq!(seal::open(&key, &name("DB"), &sealed), Some(value(b"password")));
    assert_eq!(seal::open(&key, &name("other"), &sealed), None, "rows that were swapped");
    for at in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        assert_eq!(seal::open(&key, &name("DB"), &changed), None, "byte {at}");
        assert_eq!(seal::open(&key, &name("DB"), &sealed[..at]), None, "{at} bytes");
    }
    let again = seal::seal(&key, &name("DB"), &value(b"password")).expect("sealed");
    assert_ne!(sealed, again, "a nonce of its own");
}

#[test]
fn lengths_and_names_are_bounded_and_values_are_not_printed() {
    let rig = Rig::new();
    assert!(matches!(rig.secrets.set(&name("a"), &value(b"")), Err(SecretError::Length(0))));
    let long = value(&vec![1; VALUE_MAX + 1]);
    assert!(matches!(rig.secrets.set(&name("a"), &long), Err(SecretError::Length(_))));
    assert!(!rig.key().exists(), "nothing was set");
    for bad in ["", ".", "..", ".a", "a/b", "1a", "a b", "a\0", "é", "-a", &"a".repeat(65)] {
        assert!(bad.parse::<SecretName>().is_err(), "{bad:?}");
    }
    let secret = Secret { name: name("DB"), value: value(b"password") };
    assert_eq!(format!("{secret:?}"), "Secret { name: SecretName(\"DB\"), value: Value(…) }");
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let folder = tempfile::tempdir().expect("a folder");
        let key = Key::load_or_create(&folder.path().join("key")).expect("made");
        prop_assert!(seal::open(&key, &name("a"), &bytes).is_none());
    }
}
