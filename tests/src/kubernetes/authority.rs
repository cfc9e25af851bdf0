//! Certificates of an API server and of its clients.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

/// Signs certificates, as a cluster's own does.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
}

impl Authority {
    /// # Panics
    /// No key can be made.
    pub fn new() -> Self {
        Self::called("kubernetes")
    }

    /// # Panics
    /// No key can be made.
    pub fn called(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    /// As `ca.crt` has it.
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A client's certificate, and its key.
    ///
    /// # Panics
    /// None can be made.
    pub fn client(&self) -> (String, String) {
        let (certificate, key) = self.sign(&[]);
        (certificate.pem(), key.serialize_pem())
    }

    /// A server at loopback addresses; clients may show a certificate.
    pub(super) fn server(&self) -> Arc<ServerConfig> {
        let (certificate, key) = self.sign(&["127.0.0.1", "::1"]);
        let mut roots = RootCertStore::empty();
        roots
            .add(self.certificate.der().clone())
            .expect("an authority");
        let provider = Arc::new(default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider))
                .allow_unauthenticated()
                .build()
                .expect("a verifier");
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
            );
        Arc::new(config.expect("a configuration"))
    }

    fn sign(&self, names: &[&str]) -> (rcgen::Certificate, KeyPair) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(names).expect("names");
        let certificate = params.signed_by(&key, &self.issuer);
        (certificate.expect("a certificate"), key)
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}
