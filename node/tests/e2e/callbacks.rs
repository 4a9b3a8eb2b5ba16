//! Callbacks over TLS: to whom the operator trusts, and to nobody else.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned, crypto};

use super::daemon::Daemon;
use super::later::{answer, id_of, later};
use super::tls::pem;
use crate::need_root_and_cc;

/// Longer than a callback may take: a watchdog, not a measurement.
const WATCHDOG: Duration = Duration::from_secs(60);

/// A receiver with the certificate `one`. What comes of each connection: the body, or why there is none.
fn receiver() -> (SocketAddr, Receiver<Result<String, String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let certificate = CertificateDer::from_pem_file(pem("one", "pem")).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(pem("one", "key")).expect("a key");
    let builder = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
    let config = Arc::new(builder.with_single_cert(vec![certificate], key).expect("a pair"));
    let (sender, received) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = ServerConnection::new(Arc::clone(&config)).expect("a server");
            let met = take(BufReader::new(StreamOwned::new(connection, stream)));
            if sender.send(met.map_err(|error| error.to_string())).is_err() {
                return;
            }
        }
    });
    (address, received)
}

fn take<S: Read + Write>(mut stream: BufReader<S>) -> std::io::Result<String> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a number");
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    stream.get_mut().write_all(b"HTTP/1.1 204 Thanks\r\ncontent-length: 0\r\n\r\n")?;
    Ok(String::from_utf8_lossy(&body).into_owned())
}

#[test]
fn a_callback_over_tls_goes_to_whom_the_operator_trusts() {
    need_root_and_cc!();
    let (address, received) = receiver();
    let folder = tempfile::tempdir().expect("a folder");
    let roots = folder.path().join("roots.pem");
    std::fs::copy(pem("two", "pem"), &roots).expect("copied");
    let config = format!(
        "[async.callback]\nhosts = [\"{address}\"]\nroots = {roots:?}\nbackoff = \"10ms\"\nretries = 1000\n"
    );
    let daemon = Daemon::start(&config);
    daemon.deploy_python("told", "def main(params): return 'the answer'\n", &[]);
    let url = format!("https://{address}/hook");
    let id = id_of(&later(daemon.address, "told", &[("x-callback-url", &url)], b"{}"));
    assert_eq!(answer(daemon.address, &id).status, 200);
    let met = received.recv_timeout(WATCHDOG).expect("a connection");
    assert!(met.is_err(), "somebody else's authority: nothing is said to it, {met:?}");
    // The operator mends it; nobody has to restart anything.
    let beside = folder.path().join("beside");
    std::fs::copy(pem("one", "pem"), &beside).expect("copied");
    std::fs::rename(&beside, &roots).expect("moved");
    let body = loop {
        // (Tries from before may still come.)
        if let Ok(body) = received.recv_timeout(WATCHDOG).expect("another try") {
            break body;
        }
    };
    assert!(body.contains("the answer"), "{body}");
    daemon.stop();
}
