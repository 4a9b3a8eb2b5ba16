//! HTTP in, HTTP out: one worker thread per core, each with its own event loop and its own bus port.
//!
//! The keeper accepts connections and deals them out in turn, so that a handful of connections is spread
//! evenly. A worker serves HTTP/1.1 and HTTP/2 (prior knowledge) by hyper; the control socket's connections
//! are served by the same code, with the caller known to be local.

mod accepted;
mod answer;
mod body;
pub mod call_id;
mod chain;
mod coding;
mod conversation;
mod error;
mod headers;
mod host;
mod later;
mod pages;
mod service;
mod timing;
pub mod tls;
mod unsent;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::HeaderValue;
use http::header::CONNECTION;
use hyper::body::Incoming;
use shm_bus::ids::PortIndex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::LocalSet;

pub use answer::Failed;
pub(crate) use answer::failure_in;
pub use error::Refusal;
pub(crate) use timing::milliseconds;
pub use unsent::{Shelf, Unsent};

use crate::access::Caller;
use crate::calls::Calls;
use crate::control::Control;
use crate::dispatch::{Bus, Dispatcher, ToWorker};
use crate::node::Node;
use crate::trace::{self, Tracer};
use service::Worker;

/// An accepted connection.
pub enum Connection {
    /// From the HTTP listener.
    Tcp(std::net::TcpStream),
    /// From the control socket.
    Unix(std::os::unix::net::UnixStream),
}

/// A client that sends a request's head more slowly than this is cut off, and one that sends nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// What is refused at the end of the grace gets this long to be written.
const LAST_WORDS: Duration = Duration::from_secs(2);

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
    /// The answers that are on their way.
    pub unsent: Arc<Unsent>,
    /// What HTTP is encrypted with, if it is.
    pub tls: Option<Arc<tls::Door>>,
    /// Where spans of calls go, if anywhere.
    pub spans: Option<trace::Sink>,
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
        let draw = crate::sys::random_u64;
        let seeds = draw().and_then(|one| Ok((one, draw()?, draw()?)));
        let (seed, random, tracing) = match seeds {
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
        let door = spec.tls;
        let tracer = Tracer::new(spec.spans, tracing);
        let worker =
            Worker::new(random, tracer, spec.node, spec.control, spec.calls, spec.unsent, dispatcher);
        serve(worker, spec.mailbox, door).await;
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

async fn serve(worker: Rc<Worker>, mut mailbox: UnboundedReceiver<ToWorker>, door: Option<Arc<tls::Door>>) {
    let (closing, closed) = watch::channel(false);
    let mut here = tokio::task::JoinSet::new();
    let grace = loop {
        let Some(message) = mailbox.recv().await else { return };
        match message {
            ToWorker::Connection(connection, counted) => {
                let (worker, door, closed) = (Rc::clone(&worker), door.clone(), closed.clone());
                here.spawn_local(async move {
                    let _counted = counted;
                    converse(worker, connection, door, closed).await;
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
            ToWorker::Shutdown { grace } => {
                worker.ending().closing.set(true);
                let _ = closing.send(true);
                break grace;
            }
        }
    };
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
                ToWorker::Connection(..) | ToWorker::Call(_) | ToWorker::Shutdown { .. } => {}
            }
        }
    };
    let cut = async {
        tokio::time::sleep(grace).await;
        tracing::warn!(grace_s = grace.as_secs_f64(), "calls did not end in time and are refused");
        let _ = worker.ending().cut.send(true);
        worker.dispatcher().refuse_all();
        tokio::time::sleep(LAST_WORDS).await;
        tracing::warn!("connections were cut off: they did not take their answers");
    };
    tokio::select! {
        () = finish => {}
        () = news => {}
        () = cut => {}
    }
}

/// Holds a connection's place while it lives.
pub struct Counted(Arc<AtomicUsize>);

impl Counted {
    /// Takes a place; `None`: all `most` are taken.
    pub fn take(places: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let counted = Self(Arc::clone(places));
        (places.fetch_add(1, Ordering::Relaxed) < most).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn converse(
    worker: Rc<Worker>,
    connection: Connection,
    door: Option<Arc<tls::Door>>,
    closed: watch::Receiver<bool>,
) {
    match connection {
        Connection::Tcp(stream) => {
            let ready = stream.set_nonblocking(true).and_then(|()| tokio::net::TcpStream::from_std(stream));
            let ready = ready.and_then(|stream| Ok((stream.peer_addr()?.ip(), stream)));
            match ready {
                Ok((address, stream)) => {
                    let _ = stream.set_nodelay(true);
                    let caller = Caller::Remote(address);
                    let Some(door) = door else {
                        return talk(worker, stream, caller, closed).await;
                    };
                    if let Some(stream) = door.pass(stream).await {
                        talk(worker, stream, caller, closed).await;
                    }
                }
                Err(error) => tracing::debug!(%error, "a connection could not be served"),
            }
        }
        Connection::Unix(stream) => {
            let caller = worker.control().access().at_socket(&stream);
            let ready = stream.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(stream));
            match ready {
                Ok(stream) => talk(worker, stream, caller, closed).await,
                Err(error) => tracing::warn!(%error, "a control connection could not be served"),
            }
        }
    }
}

async fn talk<I>(worker: Rc<Worker>, io: I, caller: Caller, closed: watch::Receiver<bool>)
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let answer = move |request: hyper::Request<Incoming>, client| {
        let worker = Rc::clone(&worker);
        async move {
            let multiplexed = request.version() == http::Version::HTTP_2;
            let mut response = Rc::clone(&worker).handle(request, caller, client).await;
            if worker.ending().closing.get() && !multiplexed {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            response
        }
    };
    if let Err(error) = conversation::hold(io, answer, PATIENCE, closed).await {
        // The client's doing: it left, or sent what isn't HTTP.
        tracing::debug!(%error, "a connection ended early");
    }
}
