//! Whom to believe: one certificate authority, its revocation list, and the signers it vouches for.
//!
//! As fedmsg does it there is no chain to build: a signer's certificate is signed by the authority
//! itself. A certificate that leads there by way of others is refused.
//!
//! 1. a signer is one whose certificate the authority's key has signed
//! 2. what is out of date (certificate, authority or list) is so by the clock at each message
//! 3. a list is believed only if the authority has signed it
//!
//! x509-parser and not rustls-webpki: that one wants what certificates of servers have, and knows
//! no SHA-1, with which old authorities sign. RSA is ring's.

use std::collections::HashSet;
use std::path::Path;

use ring::signature::{RSA_PKCS1_1024_8192_SHA1_FOR_LEGACY_USE_ONLY, UnparsedPublicKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::der_parser::oid;
use x509_parser::extensions::X509Extension;
use x509_parser::prelude::{
    CertificateRevocationList, FromDer, ParsedExtension, Validity, X509Certificate,
};

use super::Refused;
use crate::stats::Reason;

/// A larger file is no certificate, and no list of any real authority.
const FILE_MAX: u64 = 16 << 20;

/// The authority and its list, as the files had them.
pub(super) struct Authority {
    der: CertificateDer<'static>,
    dates: Dates,
    revoked: Option<Revoked>,
}

struct Revoked {
    serials: HashSet<Vec<u8>>,
    dates: Dates,
}

/// Seconds since 1970.
#[derive(Clone, Copy)]
struct Dates {
    from: i64,
    /// The first second after.
    to: i64,
}

impl Dates {
    fn of(validity: &Validity) -> Self {
        Dates {
            from: validity.not_before.timestamp(),
            to: validity.not_after.timestamp(),
        }
    }

    fn check(self, what: &str, now: i64) -> Result<(), Refused> {
        let wrong = match now {
            _ if now < self.from => "is not valid yet",
            _ if now >= self.to => "has expired",
            _ => return Ok(()),
        };
        Err(Refused::new(Reason::Expired, format!("{what} {wrong}")))
    }
}

/// What is wrong with one of the files.
#[derive(Debug)]
pub(super) struct BadFile {
    /// The setting that names it.
    pub(super) key: &'static str,
    pub(super) why: String,
}

/// The only block of its sort in a PEM file.
fn pem<T: PemObject>(key: &'static str, path: &Path, begin: &str) -> Result<T, BadFile> {
    let bad = |why: String| BadFile {
        key,
        why: format!("{}: {why}", path.display()),
    };
    let read = || {
        let file = std::fs::File::open(path)?;
        let mut bytes = Vec::new();
        // A device or a pipe in its place would never end, or never begin.
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::other("no regular file"));
        }
        std::io::Read::read_to_end(&mut std::io::Read::take(file, FILE_MAX + 1), &mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error| bad(format!("can't be read: {error}")))?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(bad("larger than 16 MiB".into()));
    }
    let mut found = Vec::new();
    for block in T::pem_slice_iter(&bytes) {
        found.push(block.map_err(|error| bad(format!("no PEM: {error}")))?);
    }
    match found.len() {
        0 => Err(bad(format!("has no `-----BEGIN {begin}-----`"))),
        1 => Ok(found.remove(0)),
        n => Err(bad(format!(
            "has {n} of `-----BEGIN {begin}-----`; leave only the one of the authority that signs \
             the publishers' certificates"
        ))),
    }
}

impl Authority {
    /// Reads both files; the list's name may be empty.
    pub(super) fn read(ca: &Path, crl: &Path) -> Result<Self, BadFile> {
        let bad = |why: &str| BadFile {
            key: "ca",
            why: format!("{}: {why}", ca.display()),
        };
        let der: CertificateDer<'_> = pem("ca", ca, "CERTIFICATE")?;
        let certificate = certificate(&der).ok_or_else(|| bad("no X.509 certificate"))?;
        if !certificate.is_ca() {
            return Err(bad(
                "the certificate of no authority (no basicConstraints CA:TRUE); give the one that \
                 signed the publishers' certificates",
            ));
        }
        if let Ok(Some(usage)) = certificate.key_usage()
            && !usage.value.key_cert_sign()
        {
            return Err(bad("its key must not sign certificates (keyUsage)"));
        }
        if !certificate.extensions().iter().all(is_understood) {
            return Err(bad("it has a critical extension that weir does not know"));
        }
        let revoked = match crl.as_os_str().is_empty() {
            true => None,
            false => Some(Revoked::read(crl, &certificate)?),
        };
        let dates = Dates::of(certificate.validity());
        Ok(Authority {
            der,
            dates,
            revoked,
        })
    }

    /// What is out of date of its files, for an operator.
    pub(super) fn out_of_date(&self, now: i64) -> Result<(), Refused> {
        self.dates.check("the CA's certificate", now)?;
        match &self.revoked {
            Some(revoked) => revoked.dates.check("the CRL", now),
            None => Ok(()),
        }
    }

    /// Whether it vouches for a certificate in PEM, whenever that may be valid.
    pub(super) fn vouches(&self, text: &[u8]) -> Result<Signer, Refused> {
        let malformed = |why| Refused::new(Reason::Malformed, why);
        let untrusted = |why| Refused::new(Reason::Untrusted, why);
        let der = CertificateDer::from_pem_slice(text)
            .map_err(|_| malformed("`certificate` is no PEM"))?;
        let certificate =
            certificate(&der).ok_or_else(|| malformed("`certificate` is no X.509 certificate"))?;
        let authority = self::certificate(&self.der)
            .ok_or_else(|| untrusted("the CA's certificate can't be read"))?;
        if certificate.issuer().as_raw() != authority.subject().as_raw() {
            // Anybody may have written it: not all of it into the log.
            let issuer: String = (certificate.issuer().to_string().chars())
                .take(200)
                .collect();
            let why = format!("its issuer is not the CA but {issuer}");
            return Err(Refused::new(Reason::Untrusted, why));
        }
        (certificate.verify_signature(Some(authority.public_key()))).map_err(|error| {
            let why = format!("its certificate is not signed by the CA: {error}");
            Refused::new(Reason::Untrusted, why)
        })?;
        if !certificate.extensions().iter().all(is_understood) {
            return Err(untrusted("a critical extension that weir does not know"));
        }
        let name = certificate.subject().iter_common_name().next();
        let name = name.and_then(|name| name.as_str().ok());
        let key = certificate.public_key();
        Ok(Signer {
            name: name.ok_or_else(|| untrusted("no common name"))?.to_owned(),
            // What is no key of RSA does not parse as one, whatever it calls itself.
            key: UnparsedPublicKey::new(
                &RSA_PKCS1_1024_8192_SHA1_FOR_LEGACY_USE_ONLY,
                key.subject_public_key.data.to_vec(),
            ),
            dates: Dates::of(certificate.validity()),
            revoked: (self.revoked.as_ref())
                .is_some_and(|list| list.serials.contains(certificate.raw_serial())),
        })
    }
}

impl Revoked {
    fn read(path: &Path, authority: &X509Certificate<'_>) -> Result<Self, BadFile> {
        let bad = |why: &str| BadFile {
            key: "crl",
            why: format!("{}: {why}", path.display()),
        };
        let der: CertificateRevocationListDer<'_> = pem("crl", path, "X509 CRL")?;
        let (rest, list) = CertificateRevocationList::from_der(&der)
            .map_err(|_| bad("no certificate revocation list"))?;
        let signed = list.issuer().as_raw() == authority.subject().as_raw()
            && list.signature_algorithm == list.tbs_cert_list.signature
            && list.verify_signature(authority.public_key()).is_ok();
        if !signed || !rest.is_empty() {
            return Err(bad("not a list that the CA in `ca` has signed"));
        }
        // Such as that the list is of a part only, or of other authorities' certificates.
        let entries = list.iter_revoked_certificates();
        let of_entries = entries.flat_map(|entry| entry.extensions());
        let mut extensions = list.extensions().iter().chain(of_entries);
        if extensions.any(|extension| extension.critical) {
            return Err(bad("it has a critical extension that weir does not know"));
        }
        let entries = list.iter_revoked_certificates();
        Ok(Revoked {
            serials: entries.map(|entry| entry.raw_serial().to_vec()).collect(),
            dates: Dates {
                from: list.last_update().timestamp(),
                to: list.next_update().map_or(i64::MAX, |next| next.timestamp()),
            },
        })
    }
}

/// A whole certificate and nothing after it, that says the same of its signature twice.
fn certificate(der: &[u8]) -> Option<X509Certificate<'_>> {
    let (rest, certificate) = X509Certificate::from_der(der).ok()?;
    let same = certificate.signature_algorithm == certificate.tbs_certificate.signature;
    (rest.is_empty() && same).then_some(certificate)
}

/// Whether nothing is asked of us in it that we would not do. None of those named here is about who
/// may sign a message.
fn is_understood(extension: &X509Extension<'_>) -> bool {
    let certificate_type = oid!(2.16.840.1.113730.1.1);
    let known = matches!(
        extension.parsed_extension(),
        ParsedExtension::BasicConstraints(_)
            | ParsedExtension::KeyUsage(_)
            | ParsedExtension::ExtendedKeyUsage(_)
            | ParsedExtension::SubjectAlternativeName(_)
            | ParsedExtension::CertificatePolicies(_)
            | ParsedExtension::CRLDistributionPoints(_)
    );
    !extension.critical || known || extension.oid == certificate_type
}

/// Somebody whom the authority vouches for.
pub(super) struct Signer {
    /// The common name.
    pub(super) name: String,
    key: UnparsedPublicKey<Vec<u8>>,
    dates: Dates,
    revoked: bool,
}

impl Signer {
    /// Whether its certificate may be used now.
    pub(super) fn check(&self, now: i64) -> Result<(), Refused> {
        self.dates.check("its certificate", now)?;
        match self.revoked {
            false => Ok(()),
            true => Err(Refused::new(Reason::Revoked, "its certificate is revoked")),
        }
    }

    /// Whether it has signed this text, as RSA PKCS#1 v1.5 with SHA-1.
    pub(super) fn has_signed(&self, text: &[u8], signature: &[u8]) -> bool {
        self.key.verify(text, signature).is_ok()
    }
}
