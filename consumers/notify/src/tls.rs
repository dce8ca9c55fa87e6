//! Whom TLS trusts: the certificate authorities of the system, and those of a file.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// The certificates that are trusted.
///
/// # Errors
/// The file can't be read, or there is no certificate in it, or none anywhere.
pub(crate) fn roots(ca: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, String> {
    // What can't be read of the system's is left out: there is much in it that nobody needs.
    let mut roots = rustls_native_certs::load_native_certs().certs;
    if let Some(path) = ca {
        let shown = path.display();
        let failed = |error| format!("can't read the certificates in {shown}: {error}");
        let read = CertificateDer::pem_file_iter(path).map_err(failed)?;
        let own: Vec<_> = read.collect::<Result<_, _>>().map_err(failed)?;
        if own.is_empty() {
            return Err(format!("there is no certificate in {shown}"));
        }
        roots.extend(own);
    }
    match roots.is_empty() {
        true => Err("the system has no certificate authorities; name a file with `ca`".into()),
        false => Ok(roots),
    }
}

/// The side of a client that trusts these.
///
/// # Errors
/// As [`roots`].
pub(crate) fn client(ca: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots(ca)?);
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
