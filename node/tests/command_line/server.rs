//! A control socket and an HTTP listener over the shelf, and the `spry` that talks to them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use spry_node::access::{Access, Caller};
use spry_node::calls::policy::Policy;
use spry_node::calls::runner::Callees;
use spry_node::calls::settings::Settings;
use spry_node::calls::{self, Calls};
use spry_node::config::UploadLimits;
use spry_node::control::token::ApiToken;
use spry_node::control::{self, Control};
use spry_node::doctor;
use spry_node::manifest::Defaults;
use spry_node::secrets::Secrets;
use spry_node::store::fault::Seam;
use spry_node::store::{Options, Store};
use spry_node::triggers::Triggers;
use spry_node::units::Size;
use tempfile::TempDir;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;

use crate::shelf::{CALL, Shelf};

/// There is nobody to call asynchronously.
struct Nobody;

impl Callees for Nobody {
    fn policy(&self, _: &str) -> Option<Policy> {
        None
    }
    fn payload(&self, _: &str) -> Option<u64> {
        None
    }
}

/// A running node without function processes. Ends when dropped.
pub(crate) struct Server {
    pub(crate) folder: TempDir,
    pub(crate) socket: PathBuf,
    pub(crate) http: SocketAddr,
    pub(crate) token: String,
    pub(crate) store: Arc<Store>,
    pub(crate) shelf: Arc<Shelf>,
    _runtime: Runtime,
}

impl Server {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let state_dir = folder.path().join("state");
        let upload = UploadLimits { size: Size::mib(1), files: 1000 };
        let options = Options { state_dir: state_dir.clone(), uid_base: 1_879_048_192, upload, versions: 5 };
        let store = Arc::new(Store::open(options).expect("the store opens"));
        let token_file = state_dir.join("api-token");
        let token = ApiToken::load_or_create(&token_file).expect("a token");
        let shelf = Arc::new(Shelf::new(Arc::clone(&store)));
        let engine: Arc<Shelf> = Arc::clone(&shelf);
        let secrets = Arc::new(Secrets::new(Arc::clone(&store), state_dir.join("secrets.key")));
        let defaults = Defaults::default();
        let calls = Calls::open(calls::Parts {
            state_dir: &state_dir,
            settings: Settings::default(),
            defaults: Policy::default(),
            clock: Arc::new(spry_node::activation::unix_ms),
            seam: Seam::default(),
        })
        .expect("the calls open");
        calls.start(Vec::new(), Arc::new(Nobody)).expect("the runner starts");
        let access = Arc::new(Access::new(token, &store.tokens().expect("listed"), None));
        let control =
            Control::new(engine, Arc::clone(&store), secrets, access, defaults, doctor::Options::default())
                .with_calls(Arc::clone(&calls))
                .with_triggers(Arc::new(Triggers::start(calls, Arc::new(Nobody)).expect("a thread").into()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("an event loop");
        let socket = folder.path().join("control.sock");
        let http = runtime.block_on(async {
            let unix = UnixListener::bind(&socket).expect("the control socket");
            let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
            let http = tcp.local_addr().expect("it is bound");
            let local = control.clone();
            tokio::spawn(async move {
                while let Ok((stream, _)) = unix.accept().await {
                    tokio::spawn(serve(stream, local.clone(), Caller::Local));
                }
            });
            tokio::spawn(async move {
                while let Ok((stream, _)) = tcp.accept().await {
                    tokio::spawn(serve(
                        stream,
                        control.clone(),
                        Caller::Remote(std::net::Ipv4Addr::LOCALHOST.into()),
                    ));
                }
            });
            http
        });
        let token = std::fs::read_to_string(token_file).expect("the token").trim().to_owned();
        Self { socket, http, token, store, shelf, folder, _runtime: runtime }
    }

    /// Runs `spry` against this server.
    pub(crate) fn spry(&self, arguments: &[&str]) -> Output {
        spry(&self.socket, arguments)
    }

    /// Writes a file into a folder of the test's own.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join("work").join(name);
        std::fs::create_dir_all(path.parent().expect("has one")).expect("made");
        std::fs::write(&path, text).expect("written");
        path
    }
}

async fn serve(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    control: Control,
    caller: Caller,
) {
    let service = service_fn(|request: Request<Incoming>| async {
        let response = match control::is_control_path(request.uri().path()) {
            true => control::handle(request, &control, caller).await,
            false => invoked(&request),
        };
        Ok::<_, std::convert::Infallible>(response)
    });
    // A client that leaves is no failure of the server's.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// What the gateway would answer, by the last part of the path.
fn invoked(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let error =
        |code: &str| format!(r#"{{"error":{{"code":"{code}","message":"it said no","call_id":"{CALL}"}}}}"#);
    let (status, body) = match path.rsplit('/').next().unwrap_or_default() {
        "raise" => (500, error("function_failed")),
        "killed" => (502, error("process_killed")),
        "full" => (429, error("queue_full")),
        "absent" => (404, error("no_such_function")),
        "teapot" => (418, "short and stout".into()),
        _ => (200, format!("{} {path} {:?}", request.method(), request.headers().get("x-test"))),
    };
    let response = Response::builder().status(status).header("x-call-id", CALL);
    response.header("server-timing", "exec;dur=0.5").body(Full::new(body.into())).expect("a response")
}

/// Runs `spry`, as it was built with these tests.
pub(crate) fn spry(socket: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spry"))
        .env_remove("SPRY_CONTROL_SOCKET")
        .arg("--control-socket")
        .arg(socket)
        .args(arguments)
        .output()
        .expect("spry runs")
}

pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().expect("it was not killed")
}

pub(crate) fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
