//! A function for tests: deployed, and run by nobody.

use super::*;
use crate::inbox::{NodeBytes, Readers};
use crate::manifest::{Defaults, Manifest};
use crate::records::Recorder;
use shm_bus::segment::SegmentName;

/// A Python function in this place on the bus.
pub(crate) fn function(index: u16) -> Arc<Function> {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("main.py"), "def main(params): return params").expect("a file");
    let manifest = Manifest::of_folder(folder.path(), Some("example"), &[], &Defaults::default());
    let stored = StoredFunction {
        manifest: manifest.expect("a manifest"),
        version: 1,
        sha256: String::new(),
        slot: 0,
        uid: 0,
        code: PathBuf::new(),
        bytes: 0,
        deployed_unix_ms: 0,
        code_sha256: String::new(),
        used_unix_ms: 0,
    };
    let segment = SegmentName { id: 1, generation: 1 };
    let readers = Readers::Instances(Isolation::Instance);
    let inbox = Inbox::new("example", segment, 1 << 10, NodeBytes::new(1 << 20), readers);
    let history = Arc::new(Mutex::new(History::new("example", Recorder::off())));
    Function::new(FunctionIndex(index), stored, inbox.expect("an inbox"), history, Arc::default(), None)
}
