//! Whom callbacks over TLS are told to: receivers whose certificate leads to one of the authorities in a PEM file, the system's own
//! unless `async.callback.roots` names another.
//!
//! The file is read when it is first needed and again when it has changed, so that the system may renew it, and nobody who makes
//! no such callback needs one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

/// Where Debian, its children, and most others have the authorities that they trust.
pub(super) const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Bytes of the file at most.
const FILE_MAX: u64 = 16 << 20;

/// Why nobody can be trusted now. The operator's to mend; callbacks are tried again.
#[derive(Debug, thiserror::Error)]
pub(super) enum TrustError {
    /// The file can't be read.
    #[error("read async.callback.roots {}: {source} (Debian: the package ca-certificates)", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no certificate in it that can be used.
    #[error("async.callback.roots {}: there is no certificate in it that can be used", .0.display())]
    Nobody(PathBuf),
    /// rustls can't be set up.
    #[error("set up TLS: {0}")]
    Setup(tokio_rustls::rustls::Error),
}

/// What tells one state of the file from another.
type Stamp = (u64, i64, i64, u64);

/// The authorities, as they were read last.
pub(super) struct Trust {
    path: PathBuf,
    read: Mutex<Option<(Stamp, Arc<ClientConfig>)>>,
}

impl Trust {
    pub(super) fn new(path: &Path) -> Arc<Self> {
        Arc::new(Self { path: path.to_owned(), read: Mutex::default() })
    }

    /// What a connection is encrypted with. Blocks on the disk.
    pub(super) fn connector(&self) -> Result<TlsConnector, TrustError> {
        let failed = |source| TrustError::Read { path: self.path.clone(), source };
        let metadata = fs::metadata(&self.path).map_err(failed)?;
        let stamp = (metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len());
        let mut read = self.read.lock();
        if let Some((_, config)) = read.as_ref().filter(|(before, _)| *before == stamp) {
            return Ok(TlsConnector::from(Arc::clone(config)));
        }
        if metadata.len() > FILE_MAX {
            return Err(failed(std::io::Error::other("it is too large")));
        }
        let text = fs::read(&self.path).map_err(failed)?;
        let mut roots = RootCertStore::empty();
        // One that can't be read doesn't cost the others.
        let (added, _) = roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&text).flatten());
        if added == 0 {
            return Err(TrustError::Nobody(self.path.clone()));
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(TrustError::Setup)?;
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let config = Arc::new(config);
        *read = Some((stamp, Arc::clone(&config)));
        Ok(TlsConnector::from(config))
    }
}
