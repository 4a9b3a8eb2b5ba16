use super::*;
use crate::calls::Parts;
use crate::calls::policy::Policy;
use crate::calls::settings::Settings;
use crate::store::fault::Seam;

struct Everybody;

impl Callees for Everybody {
    fn policy(&self, _: &str) -> Option<Policy> {
        Some(Policy::default())
    }
    fn payload(&self, _: &str) -> Option<u64> {
        Some(1000)
    }
}

/// Calls that are written and not run.
fn calls(folder: &std::path::Path) -> Arc<Calls> {
    let parts = Parts {
        state_dir: folder,
        settings: Settings::default(),
        defaults: Policy::default(),
        clock: Arc::new(unix_ms),
        seam: Seam::default(),
    };
    Calls::open(parts).expect("calls open")
}

const NEW_YEAR: &str = "name = 't'\ncall = 'f'\n[cron]\nschedule = '0 0 1 1 *'\n";

#[tokio::test]
async fn what_is_gone_from_the_disk_can_be_removed_all_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let calls = calls(folder.path());
    let triggers = Triggers::start(Arc::clone(&calls), Arc::new(Everybody)).expect("started");
    assert!(!triggers.apply("t", NEW_YEAR.into()).await.expect("applied"));
    assert!(calls.remove_trigger("t").await.expect("written"));
    triggers.remove("t").await.expect("it is in the table");
    assert!(triggers.list().is_empty());
    assert!(matches!(triggers.remove("t").await, Err(TriggerError::NoSuchTrigger(_))));
    triggers.close();
    calls.close();
}

#[tokio::test]
async fn changes_at_once_leave_on_disk_what_is_in_the_table() {
    let folder = tempfile::tempdir().expect("a folder");
    let calls = calls(folder.path());
    let triggers = Triggers::start(Arc::clone(&calls), Arc::new(Everybody)).expect("started");
    triggers.apply("t", NEW_YEAR.into()).await.expect("applied");
    let (removed, paused) = tokio::join!(triggers.remove("t"), triggers.pause("t", true));
    assert!(removed.is_ok() && matches!(paused, Err(TriggerError::NoSuchTrigger(_))), "{paused:?}");
    assert!(calls.triggers().expect("readable").is_empty(), "a trigger that was removed comes back");
    triggers.close();
    calls.close();
}

/// A trigger on a folder, at work by the test's hand.
fn firing(calls: &Arc<Calls>, folder: &std::path::Path) -> Firing {
    let text = format!("name = 't'\ncall = 'f'\n[spool]\nfolder = '{}'\n", folder.display());
    Firing {
        spec: text.parse().expect("a trigger"),
        calls: Arc::clone(calls),
        callees: Arc::new(Everybody),
        shared: Arc::default(),
    }
}

#[tokio::test]
async fn a_file_goes_when_its_call_is_accepted_and_not_before() {
    let (state, spool) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let calls = calls(state.path());
    let firing = firing(&calls, spool.path());
    let watched = Spool::open(spool.path(), None).expect("opens");
    let put = |name: &str| std::fs::write(spool.path().join(name), name).expect("written");
    put("sent");
    firing.take(&watched, "sent").await;
    assert!(!spool.path().join("sent").exists());
    calls.close();
    put("kept");
    firing.take(&watched, "kept").await;
    assert!(spool.path().join("kept").exists());
    assert!(firing.shared.problem.lock().is_some());
}

#[tokio::test]
async fn a_file_is_not_given_up_for_want_of_descriptors() {
    let (state, spool) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let calls = calls(state.path());
    let firing = firing(&calls, spool.path());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
        let mut waits =
            std::pin::pin!(firing.patiently(|| Err::<(), _>(std::io::Error::from_raw_os_error(errno))));
        assert!(waits.as_mut().poll(&mut context).is_pending(), "{errno}");
        assert!(firing.shared.problem.lock().take().is_some(), "it is said");
    }
    let other = firing.patiently(|| Err::<(), _>(std::io::Error::from_raw_os_error(libc::EACCES))).await;
    assert_eq!(other.expect_err("said at once").kind(), std::io::ErrorKind::PermissionDenied);
    assert_eq!(firing.patiently(|| Ok(7)).await.expect("done"), 7);
    calls.close();
}
