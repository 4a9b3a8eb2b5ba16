//! `SIGHUP`: the configuration is read anew, checked whole, and what can change while spryd runs is changed.
//!
//! A file that can't be used changes nothing. What needs a restart is named in the log, and goes on as it was.

use std::path::PathBuf;
use std::sync::Arc;

use super::sockets::give_control;
use crate::config::{Config, Flags};
use crate::control::Control;
use crate::gateway::tls::Door;
use crate::log::Level;
use crate::node::Node;

/// What a reload reaches.
pub(super) struct Reload {
    pub(super) flags: Flags,
    pub(super) level: Level,
    pub(super) node: Arc<Node>,
    pub(super) control: Arc<Control>,
    pub(super) door: Option<Arc<Door>>,
    /// The control socket's file, if it is ours.
    pub(super) control_socket: Option<PathBuf>,
}

impl Reload {
    /// Reads the file and applies it.
    pub(super) fn go(&mut self) {
        let wanted = match Config::load(&self.flags) {
            Ok(wanted) => wanted,
            Err(error) => {
                return tracing::error!(%error, "the configuration can't be used; nothing was changed");
            }
        };
        let now = self.node.config();
        // First, since it is what can fail: a certificate is renewed under the same name.
        if let (Some(door), Some(files)) = (&self.door, &wanted.tls)
            && let Err(error) = door.reload(files)
        {
            return tracing::error!(%error, "the certificate can't be used; nothing was changed");
        }
        let needs_restart = now.needs_restart(&wanted);
        if !needs_restart.is_empty() {
            let keys = needs_restart.join(", ");
            tracing::warn!(keys, "these keys have changed and need a restart; the rest was applied");
        }
        self.level.set(&wanted.log_level);
        self.control.set_defaults(wanted.defaults);
        let access = self.control.access();
        access.set_control(wanted.control);
        if let Some(path) = self.control_socket.as_ref().filter(|_| now.control != wanted.control)
            && let Err(error) = give_control(path, wanted.control)
        {
            tracing::error!(%error, "{} can't be given to control.owner and control.group", path.display());
        }
        if now.rate != wanted.rate {
            access.set_rate(wanted.rate);
        }
        self.node.set_config(now.with_live_of(wanted));
        tracing::info!("the configuration was read anew");
    }
}
