//! Connections, requests and answers.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rustls::{ServerConnection, StreamOwned};
use serde_json::{Value, json};

use super::super::answer::{Query, chunk, respond, status};
use super::{Failing, Shared};

impl Shared {
    pub(super) fn welcome(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let Some(config) = self.state().tls.clone() else {
            return self.serve(stream, false);
        };
        let connection = ServerConnection::new(config).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, stream);
        if let Err(error) = stream.conn.complete_io(&mut stream.sock) {
            self.state().strangers += 1;
            return Err(error);
        }
        let certified = stream.conn.peer_certificates().is_some();
        self.serve(stream, certified)
    }

    /// Requests of one connection, one after another. `certified`: the client has shown that it is one of ours.
    fn serve(&self, stream: impl Read + Write, certified: bool) -> io::Result<()> {
        let restarts = self.state().restarts;
        let mut reader = BufReader::new(stream);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 || self.state().restarts != restarts {
                return Ok(());
            }
            let mut authorised = certified;
            let right = format!("authorization: Bearer {}\r\n", self.state().token);
            loop {
                let mut header = String::new();
                if reader.read_line(&mut header)? <= 2 {
                    break;
                }
                authorised |= header.eq_ignore_ascii_case(&right);
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
            let stream = reader.get_mut();
            match failing {
                Failing::Dead => return Ok(()),
                Failing::Unavailable => status(stream, 503, "ServiceUnavailable")?,
                Failing::Forbidden => status(stream, 403, "Forbidden")?,
                Failing::Garbage => {
                    respond(stream, "200 OK", "{\"kind\": \"PodList\", \"items\": [{]")?
                }
                _ if !authorised => {
                    self.state().refused += 1;
                    status(stream, 401, "Unauthorized")?
                }
                _ if !["pods", "namespaces"].contains(&resource.as_str()) => {
                    status(stream, 404, "NotFound")?
                }
                Failing::Not | Failing::Slow if query.watch => {
                    self.state().watches += 1;
                    let ended = self.watch(stream, &resource, &query, (epoch, failing));
                    self.state().watches -= 1;
                    return ended;
                }
                Failing::Not | Failing::Slow => {
                    let body = self.list(&resource, &query);
                    respond(stream, "200 OK", &body.to_string())?;
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
        stream: &mut impl Write,
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
