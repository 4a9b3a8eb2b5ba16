//! The end of a version: its processes, its place on the bus, its files.

use std::sync::Arc;

use shm_bus::ids::InvocationId;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

use super::{Tender, ToTender};
use crate::dispatch::{ToWorker, port_of};
use crate::gateway::Refusal;
use crate::instance::Doom;
use crate::keeper::off_the_loop;

impl Tender {
    /// Ends everything of this version, and waits until it has ended.
    pub(super) async fn finish(
        mut self,
        mut mailbox: UnboundedReceiver<ToTender>,
        told: Option<oneshot::Sender<()>>,
    ) {
        while self.starting > 0 {
            let Some(letter) = mailbox.recv().await else { break };
            if !matches!(letter, ToTender::End(_)) {
                self.read(letter);
            }
        }
        for instance in self.instances.values() {
            self.keeper.bus.transport.retire(instance.peer);
            instance.kill(Doom::Ended);
        }
        while !self.instances.is_empty() {
            let Some(letter) = mailbox.recv().await else { break };
            if !matches!(letter, ToTender::End(_)) {
                self.read(letter);
            }
        }
        if let Some(zygote) = self.zygote.take() {
            zygote.kill();
            zygote.exited().await;
        }
        self.drop_zygote();
        for queued in self.keeper.bus.take_queue(&self.function) {
            let invocation = InvocationId(queued.descriptor.invocation);
            if let Some(worker) = self.keeper.worker(port_of(invocation)) {
                let refusal = Refusal::ShuttingDown;
                let _ = worker.send(ToWorker::Lost { invocation, begun: true, refusal });
            }
        }
        let index = self.function.index;
        self.keeper.memory.forget(&self.function);
        self.keeper.tended.borrow_mut().remove(&index);
        self.keeper.bus.functions[usize::from(index.0)].store(None);
        if self.function.is_superseded() && self.keeper.node.named(self.function.name()).is_some() {
            self.prune().await;
            self.keeper.sweep_packages().await;
        }
        if let Some(told) = told {
            let _ = told.send(());
        }
    }

    /// Removes the versions that are too many now, but for those of which something runs still, by itself or in a chain.
    async fn prune(&self) {
        let (store, name) = (Arc::clone(&self.keeper.store), self.function.stored.manifest.name.clone());
        let functions = self.keeper.bus.functions.iter().filter_map(|entry| entry.load_full());
        let same = functions.filter(|function| function.name() == name.as_str());
        let busy = same.map(|function| function.stored.version).collect();
        if let Err(error) = off_the_loop(move || store.prune(&name, &busy)).await {
            tracing::warn!(function = self.function.name(), %error, "an old version's files stay behind");
        }
    }
}
