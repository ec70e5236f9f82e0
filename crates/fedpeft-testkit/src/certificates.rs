//! Certificates for one test: an authority, and what it signs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use tempfile::TempDir;

/// An authority of its own, and a temporary folder with all it signed. Its methods panic when a certificate
/// cannot be made: the test cannot go on.
pub struct Certificates {
    folder: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

/// PEM files of a certificate and its private key.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

type Made<T> = Result<T, Box<dyn std::error::Error>>;

impl Certificates {
    /// A new authority.
    pub fn new() -> Self {
        let make = || -> Made<Self> {
            let folder = tempfile::Builder::new().prefix("fedpeft-tls-").tempdir()?;
            let mut params = CertificateParams::new(Vec::new())?;
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, "test authority");
            let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
            fs::write(folder.path().join("ca.pem"), authority.pem())?;
            Ok(Self { folder, authority })
        };
        made(make())
    }

    /// The authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate for 127.0.0.1 and localhost, good for servers and clients.
    pub fn issue(&self, name: &str) -> Pair {
        made(self.sign(name, &["127.0.0.1", "localhost"], false))
    }

    /// A certificate for another host.
    pub fn issue_for(&self, name: &str, host: &str) -> Pair {
        made(self.sign(name, &[host], false))
    }

    /// A certificate that is no longer valid.
    pub fn issue_expired(&self, name: &str) -> Pair {
        made(self.sign(name, &["127.0.0.1", "localhost"], true))
    }

    /// The folder they lie in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn sign(&self, name: &str, hosts: &[&str], expired: bool) -> Made<Pair> {
        let mut params =
            CertificateParams::new(hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, name);
        if expired {
            (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.authority)?;
        let path = |ending: &str| self.folder.path().join(format!("{name}.{ending}"));
        let pair = Pair { cert: path("pem"), key: path("key") };
        fs::write(&pair.cert, certificate.pem())?;
        fs::write(&pair.key, key.serialize_pem())?;
        Ok(pair)
    }
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}

#[allow(clippy::panic, reason = "a test harness reports by panicking")]
fn made<T>(result: Made<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("certificates: {error}"),
    }
}
