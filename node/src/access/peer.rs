//! Who is at the other end of the control socket, as the kernel says (unix(7), `SO_PEERCRED`, `SO_PEERGROUPS`).

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::Caller;
use crate::config::ControlAccess;

/// A process that connected, when it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// Its groups.
    pub groups: Vec<u32>,
}

impl Peer {
    /// Asks the kernel.
    pub fn of(stream: &UnixStream) -> std::io::Result<Self> {
        let credentials = getsockopt(stream, PeerCredentials)?;
        // Where the kernel doesn't tell the others (it may not, in a namespace), there is the first.
        let mut groups = crate::sys::peer_groups(stream.as_fd()).unwrap_or_default();
        groups.push(credentials.gid());
        Ok(Self { uid: credentials.uid(), groups })
    }

    /// What it may do.
    pub fn caller(&self, access: ControlAccess, own_uid: u32) -> Caller {
        let named = access.owner == Some(self.uid);
        let member = access.group.is_some_and(|group| self.groups.contains(&group));
        if self.uid == 0 || self.uid == own_uid || named || member {
            Caller::Local
        } else {
            Caller::Stranger { uid: self.uid }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_who_it_is() {
        let (one, _other) = UnixStream::pair().expect("a pair");
        let peer = Peer::of(&one).expect("credentials");
        assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
        assert!(peer.groups.contains(&nix::unistd::getegid().as_raw()));
        for group in nix::unistd::getgroups().expect("groups") {
            assert!(peer.groups.contains(&group.as_raw()));
        }
    }

    #[test]
    fn root_spryds_user_the_owner_and_the_group_and_nobody_else() {
        let peer = |uid, groups: &[u32]| Peer { uid, groups: groups.to_vec() };
        let access = ControlAccess { owner: Some(1000), group: Some(2000) };
        for (uid, groups) in [(0, &[0][..]), (500, &[500]), (1000, &[1000]), (7, &[7, 2000])] {
            assert_eq!(peer(uid, groups).caller(access, 500), Caller::Local, "{uid}");
        }
        assert_eq!(peer(7, &[0, 1000]).caller(access, 500), Caller::Stranger { uid: 7 });
        assert_eq!(peer(7, &[7]).caller(ControlAccess::default(), 500), Caller::Stranger { uid: 7 });
    }
}
