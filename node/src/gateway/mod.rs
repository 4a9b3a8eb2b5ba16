//! HTTP in, HTTP out: one worker thread per core, each with its own event loop and its own bus port.
//!
//! The keeper accepts connections and deals them out in turn, so that a handful of connections is spread
//! evenly. A worker serves HTTP/1.1 and HTTP/2 (prior knowledge) by hyper; the control socket's connections
//! are served by the same code, with the caller known to be local.

mod answer;
mod body;
pub mod call_id;
mod chain;
mod error;
mod headers;
mod later;
mod service;
mod timing;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use shm_bus::ids::PortIndex;
use spry_wire::frame::HEAD_MAX;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::LocalSet;

pub use answer::Failed;
pub(crate) use answer::failure_in;
pub use error::Refusal;
pub(crate) use timing::milliseconds;

use crate::calls::Calls;
use crate::control::{Caller, Control};
use crate::dispatch::{Bus, Dispatcher, ToWorker};
use crate::node::Node;
use service::Worker;

/// An accepted connection.
pub enum Connection {
    /// From the HTTP listener.
    Tcp(std::net::TcpStream),
    /// From the control socket.
    Unix(std::os::unix::net::UnixStream),
}

/// A client that sends a request's head more slowly than this is cut off.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// What is read from an HTTP/1 connection at once, and the longest head. Twice a head that fits into a frame, so that
/// one that doesn't is refused in our own words; no more, so that a body's pieces are in the core's own cache when
/// they are copied.
const READ_MAX: usize = 2 * HEAD_MAX;
/// How long a shutdown waits for requests that are being served.
const GRACE: Duration = Duration::from_secs(10);
/// Streams of one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;

/// What a worker thread is given.
pub struct WorkerSpec {
    /// Its bus port.
    pub port: PortIndex,
    /// The CPU it is bound to.
    pub cpu: Option<usize>,
    /// The bus.
    pub bus: Arc<Bus>,
    /// Its mailbox.
    pub mailbox: UnboundedReceiver<ToWorker>,
    /// The node's name table.
    pub node: Arc<Node>,
    /// The control API.
    pub control: Arc<Control>,
    /// The asynchronous calls.
    pub calls: Arc<Calls>,
    /// Connections being served, by all workers.
    pub connections: Arc<AtomicUsize>,
}

/// Serves until told to shut down; the body of a worker's thread. `ready` is told once the port is open.
pub fn run(spec: WorkerSpec, ready: std::sync::mpsc::Sender<Result<(), String>>) {
    if let Some(cpu) = spec.cpu {
        bind_to(cpu);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(format!("event loop: {error}")))),
    };
    let local = LocalSet::new();
    local.block_on(&runtime, async move {
        let seeds = crate::sys::random_u64().and_then(|one| Ok((one, crate::sys::random_u64()?)));
        let (seed, random) = match seeds {
            Ok(seeds) => seeds,
            Err(error) => return drop(ready.send(Err(format!("draw random bits: {error}")))),
        };
        let dispatcher = match Dispatcher::new(Arc::clone(&spec.bus), spec.port, spec.cpu, seed) {
            Ok(made) => made,
            Err(error) => return drop(ready.send(Err(error.to_string()))),
        };
        let _ = ready.send(Ok(()));
        tokio::task::spawn_local(Rc::clone(&dispatcher).serve_deadlines());
        tokio::task::spawn_local({
            let dispatcher = Rc::clone(&dispatcher);
            async move {
                if let Err(error) = dispatcher.serve_port().await {
                    tracing::error!(%error, "a worker lost its bus port");
                }
            }
        });
        let connections = Arc::clone(&spec.connections);
        let worker = Worker::new(random, spec.node, spec.control, spec.calls, dispatcher);
        serve(worker, spec.mailbox, connections).await;
    });
}

fn bind_to(cpu: usize) {
    let mut set = nix::sched::CpuSet::new();
    let bound =
        set.set(cpu).and_then(|()| nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set));
    if let Err(error) = bound {
        tracing::warn!(cpu, %error, "a worker could not be bound to its core");
    }
}

async fn serve(worker: Rc<Worker>, mut mailbox: UnboundedReceiver<ToWorker>, connections: Arc<AtomicUsize>) {
    let (closing, closed) = watch::channel(false);
    let mut here = tokio::task::JoinSet::new();
    while let Some(message) = mailbox.recv().await {
        match message {
            ToWorker::Connection(connection) => {
                let (worker, closed) = (Rc::clone(&worker), closed.clone());
                let counted = Counted(Arc::clone(&connections));
                here.spawn_local(async move {
                    let _counted = counted;
                    converse(worker, connection, closed).await;
                });
                while here.try_join_next().is_some() {}
            }
            ToWorker::Call(launch) => {
                here.spawn_local(Rc::clone(&worker).run_launch(*launch));
                while here.try_join_next().is_some() {}
            }
            ToWorker::Flush(done) => {
                worker.dispatcher().receive();
                let _ = done.send(());
            }
            ToWorker::Lost { invocation, begun, refusal } => {
                worker.dispatcher().lost(invocation, begun, refusal)
            }
            ToWorker::Shutdown => {
                let _ = closing.send(true);
                break;
            }
        }
    }
    // Requests that are being served may still need news of their instances.
    let finish = async { while here.join_next().await.is_some() {} };
    let news = async {
        while let Some(message) = mailbox.recv().await {
            match message {
                ToWorker::Lost { invocation, begun, refusal } => {
                    worker.dispatcher().lost(invocation, begun, refusal);
                }
                ToWorker::Flush(done) => {
                    worker.dispatcher().receive();
                    let _ = done.send(());
                }
                // A call that is dropped stays on disk and runs after the restart.
                ToWorker::Connection(_) | ToWorker::Call(_) | ToWorker::Shutdown => {}
            }
        }
    };
    tokio::select! {
        () = finish => {}
        () = news => {}
        () = tokio::time::sleep(GRACE) => tracing::warn!("connections were cut off: they did not end in time"),
    }
}

/// Counts a connection while it lives.
pub struct Counted(pub Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn converse(worker: Rc<Worker>, connection: Connection, closed: watch::Receiver<bool>) {
    match connection {
        Connection::Tcp(stream) => {
            let ready = stream.set_nonblocking(true).and_then(|()| tokio::net::TcpStream::from_std(stream));
            match ready {
                Ok(stream) => {
                    let _ = stream.set_nodelay(true);
                    talk(worker, TokioIo::new(stream), Caller::Remote, closed).await;
                }
                Err(error) => tracing::warn!(%error, "a connection could not be served"),
            }
        }
        Connection::Unix(stream) => {
            let ready = stream.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(stream));
            match ready {
                Ok(stream) => talk(worker, TokioIo::new(stream), Caller::Local, closed).await,
                Err(error) => tracing::warn!(%error, "a control connection could not be served"),
            }
        }
    }
}

async fn talk<I>(worker: Rc<Worker>, io: I, caller: Caller, mut closed: watch::Receiver<bool>)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
{
    let mut builder = auto::Builder::new(LocalExecutor);
    // Not `pipeline_flush`: with it, the 400 for a malformed request is never sent.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(READ_MAX);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX);
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let worker = Rc::clone(&worker);
        async move { Ok::<_, std::convert::Infallible>(worker.handle(request, caller).await) }
    });
    let conversation = builder.serve_connection(io, service);
    tokio::pin!(conversation);
    let ended = tokio::select! {
        ended = conversation.as_mut() => ended,
        _ = closed.wait_for(|closed| *closed) => {
            conversation.as_mut().graceful_shutdown();
            conversation.await
        }
    };
    if let Err(error) = ended {
        // The client's doing: it left, or sent what isn't HTTP.
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Runs hyper's tasks (HTTP/2 streams) on the worker's own thread.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
