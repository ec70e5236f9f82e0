//! TLS: which authorities are believed, and by what a peer of ours proves itself.
//!
//! Files are checked before the first connection, so that a mistake is one line that names the file; the
//! client library reads them again at every reconnect, so that renewed certificates are taken up.

use std::path::{Path, PathBuf};

use async_nats::{
    ConnectOptions,
    rustls::{
        self, AlertDescription, CertificateError,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

use crate::BusError;

/// How a connection is encrypted. Any of these, or an address that begins with `tls://`, makes TLS a must:
/// a server that does not offer it is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM file with the authorities to believe; those of the system where absent.
    pub ca: Option<PathBuf>,
    /// PEM file with our certificate chain, for servers that verify their clients (mTLS).
    pub cert: Option<PathBuf>,
    /// PEM file with its private key.
    pub key: Option<PathBuf>,
    /// Encrypt before the server's first word instead of after it: for servers with `handshake_first`.
    pub first: bool,
}

impl Tls {
    /// Whether TLS is asked for by options; an address may ask for it as well.
    pub fn is_wanted(&self) -> bool {
        *self != Self::default()
    }

    pub(crate) async fn apply(&self, options: ConnectOptions) -> Result<ConnectOptions, BusError> {
        if !self.is_wanted() {
            return Ok(options);
        }
        let tls = self.clone();
        let checking = tokio::task::spawn_blocking(move || tls.check()).await;
        checking.map_err(|error| BusError::broker("reading TLS files", error))??;
        let mut options = options.require_tls(true);
        if let Some(ca) = &self.ca {
            options = options.add_root_certificates(ca.clone());
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        Ok(if self.first { options.tls_first() } else { options })
    }

    fn check(&self) -> Result<(), BusError> {
        if let Some(ca) = &self.ca {
            certificates(ca)?;
        }
        match (&self.cert, &self.key) {
            (None, None) => Ok(()),
            (Some(cert), Some(key)) => {
                let chain = certificates(cert)?;
                let secret = PrivateKeyDer::from_pem_file(key)
                    .map_err(|error| unusable(key, pem(&error, "private key")))?;
                let mismatch = |error: rustls::Error| {
                    unusable(key, format!("it does not fit the certificate {}: {error}", cert.display()))
                };
                let builder =
                    rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty());
                builder.with_client_auth_cert(chain, secret).map(drop).map_err(mismatch)
            }
            (Some(cert), None) => Err(unusable(cert, "it needs its private key: give --tls-key")),
            (None, Some(key)) => Err(unusable(key, "it needs its certificate: give --tls-cert")),
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, BusError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|error| unusable(path, pem(&error, "certificate")))?;
    if found.is_empty() { Err(unusable(path, "it has no certificate in PEM")) } else { Ok(found) }
}

fn pem(error: &rustls::pki_types::pem::Error, what: &str) -> String {
    use rustls::pki_types::pem::Error;
    match error {
        Error::Io(error) => error.to_string(),
        Error::NoItemsFound => format!("it has no {what} in PEM"),
        other => format!("it is not PEM: {other:?}"),
    }
}

fn unusable(path: &Path, reason: impl Into<String>) -> BusError {
    BusError::TlsFile { path: path.to_owned(), reason: reason.into() }
}

/// What to do about a handshake that failed, if the error chain holds one.
pub(crate) fn cure(error: &(dyn std::error::Error + 'static), tls: &Tls) -> Option<(String, &'static str)> {
    let failure = rustls_error(error)?;
    let cure = match failure {
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) if tls.ca.is_some() => "another authority signed its certificate: give that one with --tls-ca",
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "no authority of this system signed its certificate: give its authority with --tls-ca"
        }
        rustls::Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => "renew the server's certificate, or set this machine's clock",
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "use the host name that is in its certificate",
        rustls::Error::InvalidCertificate(_) => "renew the server's certificate",
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "it verifies its clients: give a certificate with --tls-cert and --tls-key"
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateExpired) => {
            "the certificate of --tls-cert has expired: renew it"
        }
        rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown,
        ) => "it does not know the authority of --tls-cert: use a certificate that it accepts",
        rustls::Error::InvalidMessage(_) => {
            "it does not speak TLS: leave the --tls options and tls:// out, or set up TLS there"
        }
        _ => "check its TLS setup",
    };
    Some((failure.to_string(), cure))
}

/// The TLS failure behind an error of the client library, which wraps it several times.
fn rustls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // An `io::Error` names the source of what it wraps as its own and hides the wrapped one.
        if let Some(wrapped) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref)
            && let Some(found) = rustls_error(wrapped)
        {
            return Some(found);
        }
        next = error.source();
    }
    None
}
