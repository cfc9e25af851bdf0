//! The client, and the files of which it is made: others renew them while it lives.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use shunt_core::config::Kubernetes;
use thiserror::Error;

/// Nothing at all for so long: the connection is dead.
const SILENCE: Duration = Duration::from_secs(150);
const CONNECT: Duration = Duration::from_secs(5);
/// Of the account of a pod, mounted by the kubelet.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Why there is no client. It is tried again: the files may become right.
#[derive(Debug, Error)]
pub(super) enum ClientError {
    #[error("the kubeconfig cannot be used")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    #[error("not in a pod with a service account, and no kubeconfig is given")]
    InCluster(#[from] kube::config::InClusterError),
    #[error("no client can be made")]
    Client(#[from] kube::Error),
}

pub(super) async fn make(kubernetes: &Kubernetes) -> Result<Client, ClientError> {
    let mut config = match &kubernetes.kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?
        }
        None => Config::incluster()?,
    };
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    Ok(Client::try_from(config)?)
}

/// The state of the files of which a client is made: of tokens, certificates, keys and authorities.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Credentials(BTreeMap<PathBuf, Option<Stamp>>);

/// Of a file: device, inode, size, and when it was changed, in seconds and nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);

impl Credentials {
    pub(super) fn now(kubernetes: &Kubernetes) -> Self {
        let files = match &kubernetes.kubeconfig {
            Some(path) => of_kubeconfig(path),
            None => ["token", "ca.crt"]
                .map(|name| Path::new(SERVICE_ACCOUNT).join(name))
                .into(),
        };
        let stamped = |file: PathBuf| {
            let found = fs::metadata(&file).ok();
            let stamp =
                found.map(|of| (of.dev(), of.ino(), of.size(), of.mtime(), of.mtime_nsec()));
            (file, stamp)
        };
        Self(files.into_iter().map(stamped).collect())
    }
}

/// It, and those that it names.
fn of_kubeconfig(path: &Path) -> Vec<PathBuf> {
    let mut files = vec![path.to_owned()];
    let Ok(kubeconfig) = Kubeconfig::read_from(path) else {
        return files;
    };
    let clusters = kubeconfig.clusters.into_iter();
    let clusters = clusters.filter_map(|named| named.cluster?.certificate_authority);
    files.extend(clusters.map(PathBuf::from));
    let users = kubeconfig.auth_infos.into_iter();
    for user in users.filter_map(|named| named.auth_info) {
        let named = [user.client_certificate, user.client_key, user.token_file];
        files.extend(named.into_iter().flatten().map(PathBuf::from));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_renewed_makes_other_credentials() {
        let dir = std::env::temp_dir().join(format!("shunt-credentials-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let write = |name: &str, text: &str| {
            fs::write(dir.join("new"), text).expect("written");
            fs::rename(dir.join("new"), dir.join(name)).expect("renamed");
        };
        let kubeconfig = "{apiVersion: v1, kind: Config, \
            clusters: [{name: c, cluster: {server: 'https://[::1]:6443', certificate-authority: ca.crt}}], \
            users: [{name: u, user: {client-certificate: c.crt, client-key: c.key}}, {name: t, user: {tokenFile: token}}]}";
        write("config", kubeconfig);
        let kubernetes = Kubernetes {
            kubeconfig: Some(dir.join("config")),
            ..Kubernetes::default()
        };
        let mut before = Credentials::now(&kubernetes);
        assert_eq!(before, Credentials::now(&kubernetes));
        for name in ["ca.crt", "c.crt", "c.key", "token", "token", "config"] {
            write(name, kubeconfig);
            let now = Credentials::now(&kubernetes);
            assert_ne!(now, before, "{name}");
            before = now;
        }
        fs::remove_dir_all(dir).expect("removed");
    }
}
