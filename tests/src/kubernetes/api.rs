//! An API server with pods and namespaces: list and watch as the real one speaks them, and as a real one fails.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};

use crate::wait;

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
    port: u16,
}

impl ApiServer {
    /// On a port of 127.0.0.1.
    ///
    /// # Panics
    /// It cannot listen.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
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
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let of_server = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if of_server.state().ended {
                    break;
                }
                let shared = Arc::clone(&of_server);
                std::thread::spawn(move || {
                    // Whoever goes away in the middle is no fault of the test.
                    let _ = shared.serve(stream);
                });
            }
        });
        Self { shared, port }
    }

    /// A kubeconfig that leads to it.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn kubeconfig(&self, dir: &std::path::Path) -> PathBuf {
        let path = dir.join("kubeconfig");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": format!("http://127.0.0.1:{}", self.port)}}],
            "users": [{"name": "shunt", "user": {"token": "t0ken"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "shunt"}}],
        });
        std::fs::write(&path, text.to_string()).expect("written");
        path
    }

    /// The agent's section.
    pub fn section(&self, dir: &std::path::Path, more: &str) -> String {
        let path = self.kubeconfig(dir);
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
        let _ = TcpStream::connect(("127.0.0.1", self.port));
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

    /// Requests of one connection, one after another.
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let mut authorised = false;
            loop {
                let mut header = String::new();
                if reader.read_line(&mut header)? <= 2 {
                    break;
                }
                authorised |= header.eq_ignore_ascii_case("authorization: Bearer t0ken\r\n");
            }
            let line = line.trim().trim_end_matches(" HTTP/1.1").to_owned();
            let (failing, epoch) = {
                let mut state = self.state();
                state.requests.push(line.clone());
                (state.failing, state.epoch)
            };
            let (path, query) = line
                .trim_start_matches("GET ")
                .split_once('?')
                .unwrap_or_default();
            let resource = path.trim_start_matches("/api/v1/").to_owned();
            let query = Query::of(query);
            let mut stream = stream.try_clone()?;
            match failing {
                Failing::Dead => return Ok(()),
                Failing::Unavailable => status(&mut stream, 503, "ServiceUnavailable")?,
                Failing::Forbidden => status(&mut stream, 403, "Forbidden")?,
                Failing::Garbage => respond(
                    &mut stream,
                    "200 OK",
                    "{\"kind\": \"PodList\", \"items\": [{]",
                )?,
                _ if !authorised => status(&mut stream, 401, "Unauthorized")?,
                _ if !["pods", "namespaces"].contains(&resource.as_str()) => {
                    status(&mut stream, 404, "NotFound")?
                }
                Failing::Not | Failing::Slow if query.watch => {
                    self.state().watches += 1;
                    let ended = self.watch(&mut stream, &resource, &query, (epoch, failing));
                    self.state().watches -= 1;
                    return ended;
                }
                Failing::Not | Failing::Slow => {
                    let body = self.list(&resource, &query);
                    respond(&mut stream, "200 OK", &body.to_string())?;
                }
            }
        }
    }

    fn list(&self, resource: &str, query: &Query) -> Value {
        let state = self.state();
        let all = state
            .objects
            .iter()
            .filter(|((of, _), object)| of == resource && query.selects(object));
        let all: Vec<&Value> = all.map(|(_, object)| object).collect();
        let page = all.iter().skip(query.from).take(query.limit);
        let items: Vec<Value> = page.map(|object| (*object).clone()).collect();
        let next = query.from + items.len();
        let kind = if resource == "pods" {
            "PodList"
        } else {
            "NamespaceList"
        };
        let mut meta = json!({"resourceVersion": state.version.to_string()});
        if next < all.len() {
            meta["continue"] = next.to_string().into();
            meta["remainingItemCount"] = (all.len() - next).into();
        }
        json!({"apiVersion": "v1", "kind": kind, "metadata": meta, "items": items})
    }

    /// Chunks, each an event in a line, until the epoch ends.
    fn watch(
        &self,
        stream: &mut TcpStream,
        resource: &str,
        query: &Query,
        (epoch, failing): (u64, Failing),
    ) -> io::Result<()> {
        stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        )?;
        let mut at = query.version;
        let mut send = |event: &Value| chunk(stream, &format!("{event}\n"), failing);
        let mut state = self.state();
        if at < state.oldest {
            let gone = json!({"type": "ERROR", "object": {
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Expired", "code": 410,
                "message": format!("too old resource version: {at} ({})", state.oldest),
            }});
            send(&gone)?;
            return chunk(stream, "", Failing::Not);
        }
        loop {
            if state.epoch != epoch {
                return Ok(());
            }
            let new: Vec<_> = state
                .events
                .iter()
                .filter(|(version, ..)| *version > at)
                .cloned()
                .collect();
            if new.is_empty() {
                state = self
                    .changed
                    .wait_timeout(state, Duration::from_millis(200))
                    .expect("no thread panicked")
                    .0;
                continue;
            }
            drop(state);
            for (version, of, kind, object) in new {
                at = version;
                if of == resource && query.selects(&object) {
                    send(&json!({"type": kind, "object": object}))?;
                }
            }
            if query.bookmarks {
                let kind = if resource == "pods" {
                    "Pod"
                } else {
                    "Namespace"
                };
                let meta = json!({"resourceVersion": at.to_string(), "creationTimestamp": null});
                send(
                    &json!({"type": "BOOKMARK", "object": {"kind": kind, "apiVersion": "v1", "metadata": meta, "spec": {"containers": null}, "status": {}}}),
                )?;
            }
            state = self.state();
        }
    }
}

#[derive(Debug)]
struct Query {
    watch: bool,
    bookmarks: bool,
    version: u64,
    limit: usize,
    from: usize,
    node: Option<String>,
}

impl Query {
    fn of(text: &str) -> Self {
        let value = |key: &str| {
            let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
            let mut found = pairs.filter(|(name, _)| *name == key);
            found.next().map(|(_, value)| value.replace("%3D", "="))
        };
        let number = |key: &str| value(key).and_then(|text| text.parse().ok());
        let is = |key: &str| value(key).is_some_and(|text| text == "true");
        let selector = value("fieldSelector");
        Self {
            watch: is("watch"),
            bookmarks: is("allowWatchBookmarks"),
            version: number("resourceVersion").unwrap_or(0),
            // Pages of two, so that there are some.
            limit: number("limit").map_or(usize::MAX, |_| 2),
            from: number("continue").unwrap_or(0) as usize,
            node: selector.and_then(|text| text.strip_prefix("spec.nodeName=").map(str::to_owned)),
        }
    }

    fn selects(&self, object: &Value) -> bool {
        self.node
            .as_ref()
            .is_none_or(|node| object["spec"]["nodeName"] == **node)
    }
}

fn status(stream: &mut TcpStream, code: u16, reason: &str) -> io::Result<()> {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": format!("it is so: {reason}"), "reason": reason, "code": code});
    respond(stream, &format!("{code} {reason}"), &body.to_string())
}

fn respond(stream: &mut TcpStream, status: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes())
}

/// The empty one is the end.
fn chunk(stream: &mut TcpStream, text: &str, failing: Failing) -> io::Result<()> {
    let piece = if failing == Failing::Slow {
        700
    } else {
        text.len().max(1)
    };
    for part in text.as_bytes().chunks(piece) {
        write!(stream, "{:x}\r\n", part.len())?;
        stream.write_all(part)?;
        stream.write_all(b"\r\n")?;
        if failing == Failing::Slow {
            wait::pause(Duration::from_millis(5));
        }
    }
    if text.is_empty() {
        stream.write_all(b"0\r\n\r\n")?;
    }
    Ok(())
}
