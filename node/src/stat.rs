//! The line that `/proc` has of a process (proc(5)).

/// A process's line, as it was.
#[derive(Debug)]
pub(crate) struct Stat(String);

impl Stat {
    /// `None`: there is no such process.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).ok().map(Self)
    }

    /// What follows its name, which may hold anything, a parenthesis too: the first word is its state.
    fn words(&self) -> impl Iterator<Item = &str> {
        self.0.rsplit_once(')').map_or("", |(_, words)| words).split_ascii_whitespace()
    }

    fn number(&self, place: usize) -> Option<u64> {
        self.words().nth(place)?.parse().ok()
    }

    /// Its state's letter.
    pub(crate) fn state(&self) -> Option<char> {
        self.words().next()?.chars().next()
    }

    /// Whether the kernel is taking it down, or has.
    pub(crate) fn is_ending(&self) -> bool {
        /// `PF_EXITING`
        const EXITING: u64 = 4;
        self.number(6).is_some_and(|flags| flags & EXITING != 0)
    }

    /// User and system time.
    pub(crate) fn cpu_ticks(&self) -> Option<u64> {
        self.number(11)?.checked_add(self.number(12)?)
    }
}

/// Whether a process's end has begun, whoever brought it about: that is so before its memory goes, or a descriptor.
pub(crate) fn is_ending(pid: i32) -> bool {
    Stat::of(pid).is_none_or(|stat| stat.is_ending())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_hides_nothing() {
        let words = "R 1 7 7 0 -1 4194308 100 0 0 0 250 50 0 0 20 0 1 0 100 1000 50 18446744073709551615";
        let stat = Stat(format!("7 (a) b) {words}"));
        assert_eq!((stat.state(), stat.cpu_ticks(), stat.is_ending()), (Some('R'), Some(300), true));
        let none = Stat("nothing".to_owned());
        assert_eq!((none.state(), none.cpu_ticks(), none.is_ending()), (None, None, false));
    }

    #[test]
    fn who_ends_is_told_from_who_lives() {
        assert!(!is_ending(std::process::id() as i32));
        let mut child = std::process::Command::new("true").spawn().expect("true");
        let pid = child.id() as i32;
        let id = nix::sys::wait::Id::Pid(nix::unistd::Pid::from_raw(pid));
        let ended = nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT;
        nix::sys::wait::waitid(id, ended).expect("it ends");
        assert!(is_ending(pid), "it isn't reaped yet");
        child.wait().expect("reaped");
        assert!(is_ending(pid), "it is gone");
    }
}
