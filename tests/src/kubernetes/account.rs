//! The files of a service account, as the kubelet mounts and renews them.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::fcntl::{Flock, FlockArg};

use super::authority::Authority;
use crate::agent::AgentBuilder;
use crate::world::World;

/// Where clients look for them.
const MOUNTED: &str = "/run/secrets/kubernetes.io/serviceaccount";
/// Its directories from the first one that may have to be made.
const ABOVE: usize = 3;

/// One at a time on the machine: the place has to be there for everybody, though only the agent sees what is in it.
#[derive(Debug)]
pub struct ServiceAccount {
    dir: PathBuf,
    made: Vec<PathBuf>,
    _turn: Flock<File>,
}

impl ServiceAccount {
    /// # Panics
    /// They cannot be written.
    pub fn new(world: &World, token: &str, authority: &Authority) -> Self {
        let run = File::open("/run").expect("/run");
        let turn = Flock::lock(run, FlockArg::LockExclusive);
        let turn = turn.map_err(|(_, error)| error).expect("a turn");
        let mut made = Vec::new();
        let mut ancestors: Vec<&Path> = Path::new(MOUNTED).ancestors().take(ABOVE).collect();
        ancestors.reverse();
        for dir in ancestors.into_iter().filter(|dir| !dir.exists()) {
            fs::create_dir(dir).expect("a directory");
            made.push(dir.to_owned());
        }
        let dir = world.dir.path().join("serviceaccount");
        fs::create_dir(&dir).expect("a directory");
        let account = Self {
            dir,
            made,
            _turn: turn,
        };
        for name in ["token", "ca.crt", "namespace"] {
            symlink(Path::new("..data").join(name), account.dir.join(name)).expect("a link");
        }
        account.renew(token, authority);
        account
    }

    /// All at once, as the kubelet does.
    ///
    /// # Panics
    /// They cannot be written.
    pub fn renew(&self, token: &str, authority: &Authority) {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let data = format!("..{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let dir = self.dir.join(&data);
        fs::create_dir(&dir).expect("a directory");
        let files = [
            ("token", token.to_owned()),
            ("ca.crt", authority.pem()),
            ("namespace", "shunt-system".into()),
        ];
        for (name, text) in files {
            fs::write(dir.join(name), text).expect("written");
        }
        let link = self.dir.join("..data_tmp");
        symlink(data, &link).expect("a link");
        fs::rename(link, self.dir.join("..data")).expect("renamed");
    }
}

impl Drop for ServiceAccount {
    fn drop(&mut self) {
        for dir in self.made.iter().rev() {
            let _ = fs::remove_dir(dir);
        }
    }
}

impl AgentBuilder<'_> {
    /// In a pod with this service account, to which the API is at this address.
    #[must_use]
    pub fn with_account(self, account: &ServiceAccount, api: SocketAddr) -> Self {
        let mount = format!("mount --bind \"$0\" {MOUNTED} && exec env \"$@\"");
        let words = ["unshare", "--mount", "--propagation", "slave", "sh", "-c"];
        let mut prefix: Vec<String> = words.map(str::to_owned).into();
        prefix.extend([
            mount,
            account.dir.display().to_string(),
            format!("KUBERNETES_SERVICE_HOST={}", api.ip()),
            format!("KUBERNETES_SERVICE_PORT={}", api.port()),
        ]);
        self.behind(prefix)
    }
}
