//! etcd, API server, controllers and scheduler, in the control plane's namespace.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cgroups::Hierarchies;
use super::layout::{API_PORT, CONTROL, CONTROL_NAMESPACE, REGISTRY_PORT, SERVICE_CIDRS, kubeconfig, pki, registry, root};
use super::program::{Launch, Started, network, words};
use super::state::Recorder;
use crate::go;

const ETCD: &str = "http://127.0.0.1:2379";
const PATIENCE: Duration = Duration::from_secs(120);

/// Starts all of it and the registry; returns when the API server is ready.
pub fn start(hierarchies: &Hierarchies, recorder: &Recorder, registry_program: &Path) -> Result<()> {
    let launch = |name: &str, words| Launch {
        name: name.to_owned(),
        namespaces: vec![network(CONTROL_NAMESPACE)],
        cgroup: hierarchies.control(),
        words,
    };
    let program = |name: &str| go::KUBERNETES.program(name);
    let mut etcd = launch("etcd", words("etcd", etcd_arguments(root()))).start(recorder)?;
    let mut api_server = launch("kube-apiserver", words(program("kube-apiserver"), api_server_arguments(&pki()))).start(recorder)?;
    let arguments = [registry().display().to_string(), format!("{}:{REGISTRY_PORT}", CONTROL.0)];
    launch("registry", words(registry_program, arguments)).start(recorder)?;
    // Both wait for the API server by themselves.
    let arguments = controller_manager_arguments(&pki());
    launch("kube-controller-manager", words(program("kube-controller-manager"), arguments)).start(recorder)?;
    launch("kube-scheduler", words(program("kube-scheduler"), scheduler_arguments())).start(recorder)?;
    await_ready(&mut etcd, &mut api_server)
}

fn await_ready(etcd: &mut Started, api_server: &mut Started) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        etcd.check()?;
        api_server.check()?;
        if super::client::kubectl().args(["get", "--raw", "/readyz"]).output().context("asking the API server")?.status.success() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!(
                "the API server is not ready after {} s; its log is {}",
                PATIENCE.as_secs(),
                super::layout::log("kube-apiserver").display()
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn etcd_arguments(root: &Path) -> [String; 5] {
    [
        format!("--data-dir={}", root.join("etcd").display()),
        format!("--listen-client-urls={ETCD}"),
        format!("--advertise-client-urls={ETCD}"),
        // The data goes with the cluster: there is nothing to save from a crash of the machine.
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
    ]
}

fn api_server_arguments(pki: &Path) -> [String; 20] {
    let file = |name: &str| pki.join(name).display().to_string();
    let (address, _) = CONTROL;
    [
        format!("--etcd-servers={ETCD}"),
        format!("--bind-address={address}"),
        format!("--advertise-address={address}"),
        format!("--secure-port={API_PORT}"),
        format!("--tls-cert-file={}", file("apiserver.crt")),
        format!("--tls-private-key-file={}", file("apiserver.key")),
        format!("--client-ca-file={}", file("ca.crt")),
        format!("--kubelet-certificate-authority={}", file("ca.crt")),
        format!("--kubelet-client-certificate={}", file("apiserver-kubelet.crt")),
        format!("--kubelet-client-key={}", file("apiserver-kubelet.key")),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!("--service-cluster-ip-range={SERVICE_CIDRS}"),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        format!("--service-account-key-file={}", file("service-accounts.pub")),
        format!("--service-account-signing-key-file={}", file("service-accounts.key")),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        // No kube-proxy runs beside it: it reaches webhooks by their pods' addresses.
        "--enable-aggregator-routing=true".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--profiling=false".to_owned(),
    ]
}

fn controller_manager_arguments(pki: &Path) -> [String; 9] {
    let file = |name: &str| pki.join(name).display().to_string();
    [
        format!("--kubeconfig={}", kubeconfig("controller-manager").display()),
        format!("--root-ca-file={}", file("ca.crt")),
        format!("--service-account-private-key-file={}", file("service-accounts.key")),
        format!("--cluster-signing-cert-file={}", file("ca.crt")),
        format!("--cluster-signing-key-file={}", file("ca.key")),
        format!("--service-cluster-ip-range={SERVICE_CIDRS}"),
        "--use-service-account-credentials=true".to_owned(),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
    ]
}

fn scheduler_arguments() -> [String; 3] {
    [
        format!("--kubeconfig={}", kubeconfig("scheduler").display()),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::{api_server_arguments, controller_manager_arguments};
    use std::path::Path;

    #[test]
    fn tokens_are_signed_with_the_key_whose_other_half_checks_them() {
        let server = api_server_arguments(Path::new("/p"));
        assert!(server.contains(&"--service-account-signing-key-file=/p/service-accounts.key".to_owned()));
        assert!(server.contains(&"--service-account-key-file=/p/service-accounts.pub".to_owned()));
        let manager = controller_manager_arguments(Path::new("/p"));
        assert!(manager.contains(&"--service-account-private-key-file=/p/service-accounts.key".to_owned()));
    }

    #[test]
    fn a_node_may_only_change_what_is_its_own() {
        let server = api_server_arguments(Path::new("/p"));
        assert!(server.contains(&"--authorization-mode=Node,RBAC".to_owned()));
        assert!(server.contains(&"--enable-admission-plugins=NodeRestriction".to_owned()));
    }
}
