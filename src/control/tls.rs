//! Encryption of the interface: rustls, with ring.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

/// Meets those who connect.
#[derive(Clone)]
pub(super) struct Acceptor(TlsAcceptor);

impl Acceptor {
    /// Reads certificate and key.
    pub(super) fn open(certificate: &Path, key: &Path) -> Result<Self, String> {
        let wrong = |what: &str, path: &Path, error: &dyn std::fmt::Display| {
            format!(
                "can't use the {what} {} of hub.http_tls: {error}; it has to be a file in PEM that \
                 the hub's user may read",
                path.display()
            )
        };
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| wrong("certificate", certificate, &error))?;
        if chain.is_empty() {
            return Err(wrong("certificate", certificate, &"there is none in it"));
        }
        let private =
            PrivateKeyDer::from_pem_file(key).map_err(|error| wrong("key", key, &error))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .map_err(|error| wrong("key", key, &error))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Acceptor(TlsAcceptor::from(Arc::new(config))))
    }

    /// Agrees on keys.
    pub(super) async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.0.accept(stream).await
    }
}
