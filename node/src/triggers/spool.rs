//! A folder whose files are calls: a file that has been closed after writing, or moved there, is sent and then moved on or
//! deleted. What lies there when spryd starts is sent first.
//!
//! Whoever may write there isn't trusted beyond having calls made: only regular files are taken, opened without following a
//! link and without waiting (a FIFO, a device); of a name, only the file that was read is removed.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use sha2::{Digest, Sha256};

/// A file that waits to be sent.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
    /// What makes it this file and no other: device, inode, size, and when it was written.
    mark: String,
    /// When the kernel last changed anything of it, which nobody can set back.
    changed: (i64, i64),
}

impl Found {
    /// What tells its call from all others: a file that was sent already is sent under the same key, and another one that
    /// has its name, place, size and time is not.
    pub(super) fn key(&self) -> String {
        let content: String =
            Sha256::digest(&self.content).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("file:{}:{content}:{}", self.mark, self.name)
    }
}

/// Why a file isn't taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("{0}")]
    Os(#[from] std::io::Error),
    #[error("it is no regular file")]
    NotAFile,
    #[error("it is over the payload limit of {0} bytes")]
    TooLarge(u64),
}

/// The folder, and news of it.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    done: Option<PathBuf>,
    inotify: Inotify,
}

impl Spool {
    pub(super) fn open(folder: &Path, done: Option<&Path>) -> std::io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let events = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(folder, events)?;
        if let Some(done) = done {
            std::fs::create_dir_all(done)?;
        }
        Ok(Self { folder: folder.to_owned(), done: done.map(Path::to_owned), inotify })
    }

    /// Readable when there is news.
    pub(super) fn fd(&self) -> std::io::Result<OwnedFd> {
        self.inotify.as_fd().try_clone_to_owned()
    }

    /// Names of what has arrived; `None`: so much has that some of it was missed. An error when nothing can arrive any more: who
    /// watches a folder that was removed hears nothing of the next one at its place.
    pub(super) fn news(&self) -> std::io::Result<Option<Vec<String>>> {
        let gone = AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_UNMOUNT | AddWatchFlags::IN_MOVE_SELF;
        let (mut names, mut too_much) = (Vec::new(), false);
        while let Ok(events) = self.inotify.read_events() {
            for event in events {
                if event.mask.intersects(gone) {
                    let text = format!("{} was removed, moved or unmounted", self.folder.display());
                    return Err(std::io::Error::new(std::io::ErrorKind::NotFound, text));
                }
                too_much |= event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                names.extend(event.name.and_then(|name| name.into_string().ok()));
            }
        }
        names.retain(|name| !name.starts_with('.'));
        names.dedup();
        Ok((!too_much).then_some(names))
    }

    /// Names of what is there, in order. Those that begin with a dot are being written.
    pub(super) fn all(&self) -> std::io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            names.extend(entry?.file_name().into_string().ok());
        }
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        Ok(names)
    }

    /// Reads a file; `None`: it is gone.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Option<Found>, Refused> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY;
        let file = File::options().read(true).custom_flags(flags).open(self.folder.join(name));
        let mut file = match file {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => return Err(Refused::NotAFile),
            file => file?,
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(Refused::NotAFile);
        }
        let mut content = Vec::new();
        (&mut file).take(limit + 1).read_to_end(&mut content)?;
        if content.len() as u64 > limit {
            return Err(Refused::TooLarge(limit));
        }
        let (mark, changed) = (mark(&metadata), changed(&metadata));
        Ok(Some(Found { name: name.to_owned(), content, mark, changed }))
    }

    /// The file has been accepted: it goes, unless another has taken its name or it has changed.
    pub(super) fn finish(&self, found: &Found) -> std::io::Result<()> {
        let path = self.folder.join(&found.name);
        let metadata = match std::fs::symlink_metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            metadata => metadata?,
        };
        if mark(&metadata) != found.mark || changed(&metadata) != found.changed {
            return Ok(());
        }
        match &self.done {
            Some(done) => std::fs::rename(&path, done.join(&found.name)),
            None => std::fs::remove_file(&path),
        }
    }
}

fn mark(metadata: &std::fs::Metadata) -> String {
    let (seconds, ns) = (metadata.mtime(), metadata.mtime_nsec());
    format!("{}:{}:{}:{seconds}.{ns}", metadata.dev(), metadata.ino(), metadata.size())
}

fn changed(metadata: &std::fs::Metadata) -> (i64, i64) {
    (metadata.ctime(), metadata.ctime_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_within_the_limit_are_taken() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let spool = Spool::open(folder.path(), None).expect("opens");
        std::fs::write(at("good"), b"content").expect("written");
        std::fs::write(at("long"), [b'x'; 100]).expect("written");
        std::fs::write(at(".hidden"), b"x").expect("written");
        std::fs::create_dir(at("folder")).expect("made");
        std::os::unix::fs::symlink("/etc/passwd", at("link")).expect("made");
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("made");
        assert_eq!(spool.all().expect("listed"), ["folder", "good", "link", "long", "pipe"]);
        assert_eq!(spool.news().expect("watched").expect("all of it"), ["good", "long"]);
        let found = spool.read("good", 10).expect("readable").expect("there");
        assert_eq!(found.content, b"content");
        assert!(matches!(spool.read("long", 99), Err(Refused::TooLarge(99))));
        for name in ["folder", "link", "pipe"] {
            assert!(matches!(spool.read(name, 99), Err(Refused::NotAFile)), "{name}");
        }
        assert!(spool.read("gone", 99).expect("no error").is_none());
        // Another file under the same name stays.
        std::fs::remove_file(at("good")).expect("removed");
        std::fs::write(at("good"), b"another").expect("written");
        spool.finish(&found).expect("no error");
        assert!(at("good").exists());
        let found = spool.read("good", 10).expect("readable").expect("there");
        spool.finish(&found).expect("removed");
        assert!(!at("good").exists());
    }

    #[test]
    fn another_content_under_the_same_time_is_another_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let spool = Spool::open(folder.path(), None).expect("opens");
        let path = folder.path().join("a");
        let read = || spool.read("a", 10).expect("readable").expect("there");
        std::fs::write(&path, b"one").expect("written");
        let written = std::fs::metadata(&path).and_then(|metadata| metadata.modified()).expect("a time");
        let one = read();
        assert_eq!(one.key(), read().key());
        std::fs::write(&path, b"two").expect("written");
        let file = File::options().write(true).open(&path).expect("there");
        // Set back, until the kernel's own clock, which may be a coarse one, has moved on.
        file.set_modified(written).expect("set");
        while changed(&file.metadata().expect("there")) == one.changed {
            file.set_modified(written).expect("set");
        }
        let two = read();
        assert_eq!(one.mark, two.mark);
        assert_ne!(one.key(), two.key());
        spool.finish(&one).expect("no error");
        assert!(path.exists(), "what was never read stays");
        spool.finish(&two).expect("removed");
        assert!(!path.exists());
    }

    #[test]
    fn a_folder_that_goes_is_missed_whatever_comes_in_its_place() {
        let parent = tempfile::tempdir().expect("a folder");
        let (folder, aside) = (parent.path().join("in"), parent.path().join("aside"));
        type Going<'a> = &'a dyn Fn() -> std::io::Result<()>;
        let going: [Going<'_>; 2] =
            [&|| std::fs::remove_dir_all(&folder), &|| std::fs::rename(&folder, &aside)];
        for go in going {
            std::fs::create_dir(&folder).expect("made");
            let spool = Spool::open(&folder, None).expect("opens");
            assert!(spool.news().expect("watched").expect("all of it").is_empty());
            std::fs::write(folder.join("a"), b"x").expect("written");
            go().expect("gone");
            std::fs::create_dir(&folder).expect("made");
            std::fs::write(folder.join("b"), b"x").expect("written");
            let error = spool.news().expect_err("nothing is heard of the new one");
            assert!(error.to_string().contains("was removed"), "{error}");
            std::fs::remove_dir_all(&folder).expect("removed");
            assert!(spool.all().is_err(), "a folder that can't be listed isn't an empty one");
        }
    }

    #[test]
    fn files_can_be_moved_on() {
        let (folder, done) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let spool = Spool::open(folder.path(), Some(&done.path().join("new"))).expect("opens");
        std::fs::write(folder.path().join("a"), b"x").expect("written");
        let found = spool.read("a", 10).expect("readable").expect("there");
        spool.finish(&found).expect("moved");
        assert_eq!(std::fs::read(done.path().join("new/a")).expect("there"), b"x");
        assert!(Spool::open(&folder.path().join("absent"), None).is_err());
    }
}
