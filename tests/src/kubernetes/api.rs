//! An API server with pods and namespaces: list and watch as the real one speaks them, and as a real one fails.

mod serving;

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use rustls::ServerConfig;
use serde_json::{Value, json};
use socket2::SockRef;

use super::authority::Authority;
use crate::wait;
use crate::world::Pod;

/// The right one, at first.
const TOKEN: &str = "t0ken";

/// What a request meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    Not,
    /// Connections are closed without an answer.
    Dead,
    /// 503, as while etcd has no leader.
    Unavailable,
    /// 200 and a body that is none.
    Garbage,
    /// 403: the service account may not.
    Forbidden,
    /// It answers in pieces of a few bytes.
    Slow,
}

#[derive(Debug)]
struct State {
    version: u64,
    objects: BTreeMap<(String, String), Value>,
    /// Version, resource, kind, object.
    events: Vec<(u64, String, &'static str, Value)>,
    /// Of versions before this one nothing is known any more.
    oldest: u64,
    failing: Failing,
    /// Watches of an earlier one end.
    epoch: u64,
    requests: Vec<String>,
    watches: usize,
    ended: bool,
    /// The one that is accepted.
    token: String,
    /// Requests that were refused since the token is this one: 401.
    refused: usize,
    /// Connections that ended before both sides believed each other.
    strangers: usize,
    /// Connections of before the last one are closed.
    restarts: usize,
    /// `None`: plain HTTP.
    tls: Option<Arc<ServerConfig>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// Ends when dropped.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    listener: TcpListener,
}

impl ApiServer {
    /// On a port of 127.0.0.1.
    ///
    /// # Panics
    /// It cannot listen.
    pub fn start() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").expect("a port"), None)
    }

    /// On a port of 127.0.0.1 in the pod's namespace.
    ///
    /// # Panics
    /// It cannot listen.
    pub fn start_in(pod: &Pod) -> Self {
        let netns = File::open(format!("/run/netns/{}", pod.netns)).expect("a namespace");
        // Whoever waits for connections may be elsewhere: the socket is in there.
        let bound = std::thread::spawn(move || {
            setns(netns, CloneFlags::CLONE_NEWNET).expect("entered");
            TcpListener::bind("127.0.0.1:0").expect("a port")
        });
        Self::on(bound.join().expect("it listens"), None)
    }

    /// On a port of this loopback address, by TLS, with a certificate of this authority.
    ///
    /// # Panics
    /// It cannot listen.
    pub fn start_tls(address: IpAddr, authority: &Authority) -> Self {
        let listener = TcpListener::bind((address, 0)).expect("a port");
        Self::on(listener, Some(authority.server()))
    }

    fn on(listener: TcpListener, tls: Option<Arc<ServerConfig>>) -> Self {
        let state = State {
            version: 1000,
            objects: BTreeMap::new(),
            events: Vec::new(),
            oldest: 0,
            failing: Failing::Not,
            epoch: 0,
            requests: Vec::new(),
            watches: 0,
            ended: false,
            token: TOKEN.into(),
            refused: 0,
            strangers: 0,
            restarts: 0,
            tls,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let of_server = Arc::clone(&shared);
        let accepting = listener.try_clone().expect("a descriptor");
        std::thread::spawn(move || {
            for stream in accepting.incoming() {
                if of_server.state().ended {
                    break;
                }
                let Ok(stream) = stream else { continue };
                let shared = Arc::clone(&of_server);
                std::thread::spawn(move || {
                    // Whoever goes away in the middle is no fault of the test.
                    let _ = shared.welcome(stream);
                });
            }
        });
        Self { shared, listener }
    }

    /// # Panics
    /// It has none any more.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("an address")
    }

    /// A kubeconfig that leads to it; `cluster` and `user` as it has them.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn kubeconfig(&self, dir: &Path, mut cluster: Value, user: Value) -> PathBuf {
        let path = dir.join("kubeconfig");
        let scheme = match self.shared.state().tls {
            None => "http",
            Some(_) => "https",
        };
        cluster["server"] = format!("{scheme}://{}", self.address()).into();
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "shunt", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "shunt"}}],
        });
        std::fs::write(&path, text.to_string()).expect("written");
        path
    }

    /// The agent's section.
    pub fn section(&self, dir: &Path, more: &str) -> String {
        let path = self.kubeconfig(dir, json!({}), json!({"token": TOKEN}));
        format!(
            "kubernetes: {{node_name: n1, kubeconfig: {}{more}}}",
            path.display()
        )
    }

    /// Makes or replaces an object.
    ///
    /// # Panics
    /// It has no name.
    pub fn put(&self, mut object: Value) {
        let mut state = self.shared.state();
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let key = key(&object);
        let known = state.objects.insert(key.clone(), object.clone()).is_some();
        let kind = if known { "MODIFIED" } else { "ADDED" };
        state.events.push((version, key.0, kind, object));
        self.shared.changed.notify_all();
    }

    /// # Panics
    /// There is no such object.
    pub fn delete(&self, object: &Value) {
        let mut state = self.shared.state();
        state.version += 1;
        let version = state.version;
        let key = key(object);
        let mut object = state.objects.remove(&key).expect("the object");
        object["metadata"]["resourceVersion"] = version.to_string().into();
        state.events.push((version, key.0, "DELETED", object));
        self.shared.changed.notify_all();
    }

    /// What happened so far is forgotten, and every watch ends: whoever comes back is told 410 Gone.
    pub fn compact(&self) {
        let mut state = self.shared.state();
        state.version += 1;
        state.oldest = state.version;
        state.events.clear();
        state.epoch += 1;
        self.shared.changed.notify_all();
    }

    /// Every watch is cut off in the middle.
    pub fn cut(&self) {
        self.shared.state().epoch += 1;
        self.shared.changed.notify_all();
    }

    /// How requests are met from now on; watches that go on are cut.
    pub fn fail(&self, failing: Failing) {
        self.shared.state().failing = failing;
        self.cut();
    }

    /// From now on this token is the right one, and no other; watches that go on are cut.
    pub fn accept_only(&self, token: &str) {
        let mut state = self.shared.state();
        (state.token, state.refused) = (token.to_owned(), 0);
        drop(state);
        self.cut();
    }

    /// Waits until somebody came with another token than the right one.
    ///
    /// # Panics
    /// Nobody does, in time.
    pub fn wait_for_refused(&self) {
        wait::until("somebody is refused", Duration::from_secs(30), || {
            (self.shared.state().refused > 0).then_some(())
        });
    }

    /// Waits until so many connections have ended because one side did not believe the other.
    ///
    /// # Panics
    /// They do not, in time.
    pub fn wait_for_strangers(&self, count: usize) {
        wait::until("they do not believe", Duration::from_secs(30), || {
            (self.shared.state().strangers >= count).then_some(())
        });
    }

    /// It is started anew: its certificate is of another authority, and clients' must be.
    pub fn certify(&self, authority: &Authority) {
        let mut state = self.shared.state();
        state.tls = Some(authority.server());
        state.restarts += 1;
        drop(state);
        self.cut();
    }

    /// All so far, as `GET /api/v1/pods?...`.
    pub fn requests(&self) -> Vec<String> {
        self.shared.state().requests.clone()
    }

    /// Waits until pods and namespaces are watched.
    ///
    /// # Panics
    /// They are not, in time.
    pub fn wait_for_watches(&self) {
        wait::until("both are watched", Duration::from_secs(30), || {
            (self.shared.state().watches >= 2).then_some(())
        });
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shared.state().ended = true;
        self.cut();
        // Wakes the one that accepts.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
    }
}

fn key(object: &Value) -> (String, String) {
    let resource = match object["kind"].as_str() {
        Some("Pod") => "pods",
        _ => "namespaces",
    };
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
    (
        resource.to_owned(),
        format!("{}/{}", text("namespace"), text("name")),
    )
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panicked")
    }
}
