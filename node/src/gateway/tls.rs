//! TLS at the HTTP listener: rustls with ring, where a certificate and its key are configured.
//!
//! The pair is read and checked whole before it is used, at the start and at each `SIGHUP`: one that can't be used is an error that
//! names the file, and what was there before goes on serving. Connections keep what they began with.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig, crypto};
use tokio_rustls::server::TlsStream;

use crate::config::Tls;

/// A client that takes longer for its handshake is cut off.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a PEM file at most.
const FILE_MAX: u64 = 1 << 20;

/// Why a certificate and its key can't be used. The operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("read {key} {}: {source}", path.display())]
    Read {
        /// Which configuration key names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others can read the key.
    #[error("tls.key {} can be read by others (mode {mode:o}): chmod 600 it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// There is nothing of the kind in the file.
    #[error("{key} {}: {why}", path.display())]
    Pem {
        /// Which configuration key names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The two don't belong together, or rustls can't use them.
    #[error("tls.certificate and tls.key can't be used together: {0}")]
    Pair(rustls::Error),
}

/// What new connections are encrypted with.
#[derive(Debug)]
pub struct Door {
    config: ArcSwap<ServerConfig>,
}

impl Door {
    /// Reads a pair.
    pub fn open(files: &Tls) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self { config: ArcSwap::new(load(files)?) }))
    }

    /// Reads a pair anew; on an error nothing has changed.
    pub fn reload(&self, files: &Tls) -> Result<(), TlsError> {
        self.config.store(load(files)?);
        Ok(())
    }

    /// The handshake. `None`: the client didn't get through it.
    pub(super) async fn pass(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let acceptor = TlsAcceptor::from(self.config.load_full());
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a TLS handshake failed");
                None
            }
            Err(_) => {
                tracing::debug!("a TLS handshake took too long");
                None
            }
        }
    }
}

fn load(files: &Tls) -> Result<Arc<ServerConfig>, TlsError> {
    let certificates = certificates(&files.certificate)?;
    let key = private_key(&files.key)?;
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(TlsError::Pair)?.with_no_client_auth();
    let mut config = builder.with_single_cert(certificates, key).map_err(TlsError::Pair)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    const KEY: &str = "tls.certificate";
    let (text, _) = read(KEY, path)?;
    let bad = |why: String| TlsError::Pem { key: KEY, path: path.into(), why };
    let all: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&text).collect();
    let all = all.map_err(|error| bad(error.to_string()))?;
    if all.is_empty() { Err(bad("there is no certificate in it".into())) } else { Ok(all) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    const KEY: &str = "tls.key";
    let (text, mode) = read(KEY, path)?;
    // A group may read it (Debian's ssl-cert), others may not.
    if mode & 0o007 != 0 {
        return Err(TlsError::Exposed { path: path.into(), mode });
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| TlsError::Pem {
        key: KEY,
        path: path.into(),
        why: match error {
            pem::Error::NoItemsFound => "there is no private key in it".into(),
            other => other.to_string(),
        },
    })
}

fn read(key: &'static str, path: &Path) -> Result<(Vec<u8>, u32), TlsError> {
    let failed = |source| TlsError::Read { key, path: path.into(), source };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
    let mut text = Vec::new();
    file.take(FILE_MAX).read_to_end(&mut text).map_err(failed)?;
    Ok((text, mode))
}
