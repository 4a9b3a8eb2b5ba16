//! HTTP over TLS: both versions of HTTP, and a new certificate without a restart.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto};

use super::daemon::Daemon;
use crate::need_root_and_cc;

/// `one` or `two`: certificates for these tests alone, which sign themselves.
pub(crate) fn pem(name: &str, kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/e2e/tls/{name}.{kind}"))
}

/// Copies a pair to where the daemon reads it.
fn install(folder: &Path, name: &str) {
    for kind in ["pem", "key"] {
        let (beside, place) = (folder.join("beside"), folder.join(format!("tls.{kind}")));
        std::fs::copy(pem(name, kind), &beside).expect("copied");
        std::fs::set_permissions(&beside, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .expect("private");
        std::fs::rename(&beside, &place).expect("moved");
    }
}

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// A connection that trusts this certificate alone, with its handshake done.
fn connect(daemon: &Daemon, trusted: &str, protocol: &[u8]) -> std::io::Result<Stream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pem(trusted, "pem")).expect("a certificate")).expect("trusted");
    let builder = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("versions");
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = ServerName::try_from("127.0.0.1").expect("an address");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut stream = StreamOwned::new(connection, TcpStream::connect(daemon.address).expect("connects"));
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    assert_eq!(stream.conn.alpn_protocol(), Some(protocol));
    Ok(stream)
}

fn get(stream: &mut Stream, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = Vec::new();
    // (A missing close_notify is the same to us.)
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn http_is_served_over_tls_and_a_new_certificate_comes_without_a_restart() {
    need_root_and_cc!();
    let folder = tempfile::tempdir().expect("a folder");
    install(folder.path(), "one");
    let shown = folder.path().display();
    let daemon =
        Daemon::start(&format!("[tls]\ncertificate = \"{shown}/tls.pem\"\nkey = \"{shown}/tls.key\"\n"));
    daemon.deploy_python("hello", "def main(params): return {'hello': 1}\n", &[]);
    let mut old = connect(&daemon, "one", b"http/1.1").expect("a handshake");
    assert!(connect(&daemon, "two", b"http/1.1").is_err());
    // HTTP/2: its preface is answered with settings.
    let mut second = connect(&daemon, "one", b"h2").expect("a handshake");
    second.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("sent");
    let mut frame = [0; 9];
    second.read_exact(&mut frame).expect("a frame");
    assert_eq!(frame[3], 4, "settings come first");
    drop(second);
    // Plain HTTP is no way in.
    let mut plain = TcpStream::connect(daemon.address).expect("connects");
    plain.write_all(b"GET /healthz HTTP/1.1\r\nhost: test\r\n\r\n").expect("sent");
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/"), "{answer:?}");
    // A pair that can't be used changes nothing; one that can serves new connections.
    std::fs::write(folder.path().join("tls.pem"), "nonsense").expect("written");
    daemon.reload();
    daemon.until("the old certificate serves on", |daemon| connect(daemon, "one", b"http/1.1").is_ok());
    install(folder.path(), "two");
    daemon.reload();
    daemon.until("the new certificate serves", |daemon| connect(daemon, "two", b"http/1.1").is_ok());
    let answer = get(&mut connect(&daemon, "two", b"http/1.1").expect("a handshake"), "/function/hello");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("{\"hello\":1}"), "{answer}");
    assert!(get(&mut old, "/healthz").starts_with("HTTP/1.1 200"), "what was open goes on");
    daemon.stop();
}
