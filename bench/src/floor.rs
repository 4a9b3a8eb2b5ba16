//! The floor: a bare hyper server that answers the same bytes to the same requests as the functions do.
//! What spry costs is what it adds to this.
//!
//! Two shapes, since neither is best at everything: tokio's multi-threaded runtime as it comes, and one
//! current-thread runtime per core with connections handed out in turn. Two ways to echo a body: gathered and
//! sent back, or streamed back while it comes in. The floor of a case is the best of them.
//!
//! | request | answer |
//! |---|---|
//! | `GET …nop` | 27 bytes of JSON |
//! | `POST …echo` | the body, gathered first |
//! | `POST …echo-stream` | the body, while it comes in |
//! | `GET /bytes/N` | N bytes |
//! | `GET …cgi` | 27 bytes of JSON from a program that is started for this request, as CGI does |

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use nix::unistd::Pid;
use tokio::net::TcpStream;

/// The nop's answer.
pub const NOP_JSON: &[u8] = br#"{"message":"hello, world!"}"#;
/// The largest answer of `/bytes/N`.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// How the server is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// tokio's multi-threaded runtime with its defaults.
    MultiThread,
    /// One current-thread runtime per core, connections in turn.
    PerCore,
}

impl Shape {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::MultiThread => "multi-thread",
            Self::PerCore => "per-core",
        }
    }
}

type Answer = Response<BoxBody<Bytes, hyper::Error>>;

fn answer(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body).map_err(|never| match never {}).boxed());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    answer
}

async fn respond(request: Request<Incoming>) -> Result<Answer, Infallible> {
    const BINARY: &str = "application/octet-stream";
    let path = request.uri().path();
    if path.ends_with("nop") {
        return Ok(answer(StatusCode::OK, "application/json", Bytes::from_static(NOP_JSON)));
    }
    if path.ends_with("cgi") {
        return Ok(match run_program().await {
            Ok(output) => answer(StatusCode::OK, "application/json", output),
            Err(error) => answer(StatusCode::BAD_GATEWAY, BINARY, error.to_string().into()),
        });
    }
    if path.ends_with("echo-stream") {
        let mut answer = Response::new(request.into_body().boxed());
        answer.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(BINARY));
        return Ok(answer);
    }
    if path.ends_with("echo") {
        return Ok(match request.into_body().collect().await {
            Ok(body) => answer(StatusCode::OK, BINARY, body.to_bytes()),
            Err(_) => answer(StatusCode::BAD_REQUEST, BINARY, Bytes::new()),
        });
    }
    match path.strip_prefix("/bytes/").and_then(|count| count.parse::<usize>().ok()) {
        Some(count) if count <= BYTES_MAX => {
            Ok(answer(StatusCode::OK, BINARY, Bytes::from(vec![b'x'; count])))
        }
        _ => Ok(answer(StatusCode::NOT_FOUND, BINARY, Bytes::new())),
    }
}

/// Starts this program as [`print_nop`], and takes what it prints.
async fn run_program() -> std::io::Result<Bytes> {
    let run = || {
        let program = std::env::current_exe()?;
        let output = Command::new(program).arg(CGI).stdin(Stdio::null()).stderr(Stdio::null()).output()?;
        if output.status.success() { Ok(output.stdout.into()) } else { Err(std::io::ErrorKind::Other.into()) }
    };
    tokio::task::spawn_blocking(run).await.map_err(std::io::Error::other)?
}

/// The argument that makes this program answer one request on its standard output and end.
pub const CGI: &str = "answer-once";

/// What a program does that is started for each request.
pub fn print_nop() -> std::io::Result<()> {
    std::io::Write::write_all(&mut std::io::stdout(), NOP_JSON)
}

async fn serve_connection(stream: TcpStream) {
    // Neither a client that leaves nor a socket that is gone already is the server's concern.
    let _ = stream.set_nodelay(true);
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(respond)).await;
}

/// Why the server did not start or went down.
#[derive(Debug, thiserror::Error)]
#[error("the floor: {operation}: {source}")]
pub struct FloorError {
    operation: &'static str,
    source: std::io::Error,
}

fn failed(operation: &'static str) -> impl Fn(std::io::Error) -> FloorError {
    move |source| FloorError { operation, source }
}

/// Serves on a free port, says which on standard output, and ends when standard input does.
pub fn serve(shape: Shape) -> Result<(), FloorError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed("bind"))?;
    println!("{}", listener.local_addr().map_err(failed("bind"))?);
    std::thread::spawn(|| {
        // End of file and an error mean the same: whoever started this is gone.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    match shape {
        Shape::MultiThread => serve_multi_thread(listener),
        Shape::PerCore => serve_per_core(listener),
    }
}

fn serve_multi_thread(listener: TcpListener) -> Result<(), FloorError> {
    listener.set_nonblocking(true).map_err(failed("set the listener nonblocking"))?;
    let runtime = tokio::runtime::Runtime::new().map_err(failed("start tokio"))?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(failed("listen"))?;
        loop {
            let (stream, _) = listener.accept().await.map_err(failed("accept"))?;
            tokio::spawn(serve_connection(stream));
        }
    })
}

fn serve_per_core(listener: TcpListener) -> Result<(), FloorError> {
    let cores = std::thread::available_parallelism().map_err(failed("count the cores"))?;
    let mut workers = Vec::new();
    for _ in 0..cores.get() {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel::<std::net::TcpStream>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(failed("start tokio"))?;
        std::thread::spawn(move || {
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async move {
                while let Some(stream) = receiver.recv().await {
                    if let Ok(stream) = TcpStream::from_std(stream) {
                        tokio::task::spawn_local(serve_connection(stream));
                    }
                }
            });
        });
        workers.push(sender);
    }
    for turn in 0.. {
        let (stream, _) = listener.accept().map_err(failed("accept"))?;
        stream.set_nonblocking(true).map_err(failed("set a socket nonblocking"))?;
        let worker = &workers[turn % workers.len()];
        worker.send(stream).map_err(|_| failed("hand over")(std::io::ErrorKind::BrokenPipe.into()))?;
    }
    Ok(())
}

/// A running floor; it ends when this is dropped.
#[derive(Debug)]
pub struct Floor {
    /// How it is built.
    pub shape: Shape,
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
}

impl Floor {
    /// Starts the `spry-bench` binary as a floor.
    pub fn start(binary: &Path, shape: Shape) -> Result<Self, FloorError> {
        let mut child = Command::new(binary)
            .args(["floor", "--shape", shape.name()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed("start the process"))?;
        let mut line = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output.take(100)).read_line(&mut line).map_err(failed("read the port"))?;
        }
        match line.trim().parse() {
            Ok(address) => Ok(Self { shape, address, child }),
            Err(_) => {
                end(&mut child);
                Err(failed("read the port")(std::io::ErrorKind::InvalidData.into()))
            }
        }
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // Killing fails only when it has ended already, and waiting only when it was reaped.
    let _ = child.kill();
    let _ = child.wait();
}
