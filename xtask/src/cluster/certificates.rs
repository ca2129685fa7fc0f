//! The cluster's certificate authority, the certificates of its parts, and their kubeconfigs.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_RSA_SHA256, RsaKeySize, SanType,
};
use serde_json::json;

use super::layout::{API_PORT, CONTROL, KUBERNETES_SERVICE, Node, kubeconfig, pki};

/// Who a certificate is for, as Kubernetes reads it: organizations are groups, the common name is the user.
struct Subject<'a> {
    file: &'a str,
    group: Option<&'a str>,
    user: &'a str,
    names: Vec<SanType>,
}

/// A certificate and its key, PEM.
struct Credentials {
    certificate: String,
    key: String,
}

/// Makes all of them, for so many nodes.
pub fn create(nodes: u8) -> Result<()> {
    let directory = pki();
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let key = KeyPair::generate().context("the authority's key")?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "kubernetes");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let root = params.self_signed(&key).context("the authority's certificate")?.pem();
    private(&directory.join("ca.key"), &key.serialize_pem())?;
    write(&directory.join("ca.crt"), &root)?;
    let issuer = Issuer::new(params, key);

    for subject in [
        Subject { file: "apiserver", group: None, user: "kube-apiserver", names: api_server_names()? },
        Subject { file: "apiserver-kubelet", group: Some("system:masters"), user: "kube-apiserver-kubelet-client", names: Vec::new() },
    ] {
        store(&directory, subject.file, &issue(&issuer, &subject)?)?;
    }
    for (who, group, user) in [
        ("admin", Some("system:masters"), "kubernetes-admin"),
        ("controller-manager", None, "system:kube-controller-manager"),
        ("scheduler", None, "system:kube-scheduler"),
        ("proxy", None, "system:kube-proxy"),
    ] {
        let credentials = issue(&issuer, &Subject { file: who, group, user, names: Vec::new() })?;
        private(&kubeconfig(who), &kubeconfig_text(who, &root, &credentials)?)?;
    }
    for node in Node::all(nodes) {
        let name = node.name();
        let names = vec![
            SanType::DnsName(name.clone().try_into().context("a node's name")?),
            SanType::IpAddress(IpAddr::V4(node.ipv4())),
            SanType::IpAddress(IpAddr::V6(node.ipv6())),
        ];
        let user = format!("system:node:{name}");
        let credentials = issue(&issuer, &Subject { file: &name, group: Some("system:nodes"), user: &user, names })?;
        store(&directory, &name, &credentials)?;
        private(&kubeconfig(&name), &kubeconfig_text(&name, &root, &credentials)?)?;
    }
    // The tokens of service accounts are RS256, as on most clusters.
    let tokens = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).context("the key of service accounts' tokens")?;
    private(&directory.join("service-accounts.key"), &tokens.serialize_pem())?;
    write(&directory.join("service-accounts.pub"), &tokens.public_key_pem())
}

fn api_server_names() -> Result<Vec<SanType>> {
    let mut names = Vec::new();
    for name in ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"] {
        names.push(SanType::DnsName(name.try_into().context("the API server's name")?));
    }
    let addresses = [KUBERNETES_SERVICE, CONTROL].map(|(ipv4, ipv6)| [IpAddr::V4(ipv4), IpAddr::V6(ipv6)]).concat();
    names.extend(addresses.into_iter().map(SanType::IpAddress));
    Ok(names)
}

fn issue(issuer: &Issuer<'_, KeyPair>, subject: &Subject<'_>) -> Result<Credentials> {
    let key = KeyPair::generate().context("a key")?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(group) = subject.group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.distinguished_name.push(DnType::CommonName, subject.user);
    params.subject_alt_names.clone_from(&subject.names);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, issuer).with_context(|| format!("the certificate of {}", subject.user))?;
    Ok(Credentials { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A kubeconfig with everything in it: it works wherever it is copied to.
fn kubeconfig_text(who: &str, root: &str, credentials: &Credentials) -> Result<String> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "nodemesh-lab", "cluster": {
            "server": format!("https://{}:{API_PORT}", CONTROL.0),
            "certificate-authority-data": STANDARD.encode(root),
        }}],
        "users": [{"name": who, "user": {
            "client-certificate-data": STANDARD.encode(&credentials.certificate),
            "client-key-data": STANDARD.encode(&credentials.key),
        }}],
        "contexts": [{"name": "nodemesh-lab", "context": {"cluster": "nodemesh-lab", "user": who}}],
        "current-context": "nodemesh-lab",
    });
    serde_yaml_ng::to_string(&config).context("a kubeconfig")
}

fn store(directory: &Path, name: &str, credentials: &Credentials) -> Result<()> {
    write(&directory.join(format!("{name}.crt")), &credentials.certificate)?;
    private(&directory.join(format!("{name}.key")), &credentials.key)
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

/// For its owner's eyes from the first byte.
fn private(file: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(file)
        .and_then(|mut opened| opened.write_all(text.as_bytes()))
        .with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::{Credentials, kubeconfig_text};

    #[test]
    fn a_kubeconfig_names_its_user_and_carries_its_keys() {
        let credentials = Credentials { certificate: "C".to_owned(), key: "K".to_owned() };
        let config: serde_json::Value = serde_yaml_ng::from_str(&kubeconfig_text("admin", "R", &credentials).unwrap()).unwrap();
        assert_eq!(config["clusters"][0]["cluster"]["server"], "https://172.30.0.1:6443");
        assert_eq!(config["clusters"][0]["cluster"]["certificate-authority-data"], "Ug==");
        assert_eq!(config["users"][0]["user"]["client-key-data"], "Sw==");
        assert_eq!(config["contexts"][0]["context"]["user"], config["users"][0]["name"]);
    }
}
