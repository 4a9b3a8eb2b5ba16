//! What processes in pid namespaces of their own are called here.

use std::fs;
use std::path::PathBuf;

/// The pid namespace of a process, if there is such a process.
pub(crate) fn namespace(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

/// The process that calls itself `number` in one of these namespaces.
pub(crate) fn find(namespaces: &[PathBuf], number: i64) -> Option<i32> {
    let number = number.to_string();
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    let mut all = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    all.find(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        numbers.and_then(|numbers| numbers.split_whitespace().last()) == Some(&number)
            && namespace(*pid).is_some_and(|namespace| namespaces.contains(&namespace))
    })
}
