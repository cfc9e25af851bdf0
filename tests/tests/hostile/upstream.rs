//! An upstream that notes what it is sent and forgives nothing. It says what it was asked, so that nobody can be given
//! another's answer unnoticed; for some paths it is the one that means harm.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shunt_tests::{Pod, Raw};

use crate::scene::inside;

pub const PORT: u16 = 8000;

/// What is said in place of an answer.
#[derive(Clone, Debug)]
pub enum Evil {
    Says(Vec<u8>),
    SaysAndCloses(Vec<u8>),
    /// The first once, the second until nobody takes it any more.
    Endless(Vec<u8>, Vec<u8>),
}

/// Of this path's requests no body is read.
pub const DEAF: &str = "/deaf";

#[derive(Debug, Default)]
pub struct Seen {
    /// `POST /path body`, in the order of arrival.
    pub requests: Vec<String>,
    /// What was no request.
    pub faults: Vec<String>,
    evil: HashMap<String, Evil>,
}

#[derive(Clone, Debug)]
pub struct Upstream(Arc<Mutex<Seen>>);

impl Upstream {
    pub fn start(pod: &Pod) -> Self {
        let upstream = Self(Arc::default());
        let listener = inside(pod, || TcpListener::bind(("0.0.0.0", PORT))).expect("a listener");
        let seen = upstream.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let seen = seen.clone();
                std::thread::spawn(move || seen.serve(stream));
            }
        });
        upstream
    }

    pub fn plan(&self, path: &str, evil: Evil) {
        self.with(|seen| seen.evil.insert(path.to_owned(), evil));
    }

    pub fn with<T>(&self, work: impl FnOnce(&mut Seen) -> T) -> T {
        work(&mut self.0.lock().expect("nobody panics with it"))
    }

    fn serve(&self, stream: TcpStream) {
        let Ok(mut answer) = stream.try_clone() else {
            return;
        };
        let mut reader = Reader(stream.into());
        loop {
            let request = match reader.request() {
                Ok(Some(request)) => request,
                Ok(None) => return,
                Err(error) => {
                    // A client that goes away in its body leaves half a body.
                    if error.kind() == io::ErrorKind::InvalidData {
                        self.with(|seen| seen.faults.push(error.to_string()));
                    }
                    return;
                }
            };
            let path = request.split(' ').nth(1).unwrap_or_default();
            let evil = self.with(|seen| {
                if !path.starts_with("/good") {
                    seen.requests.push(request.clone());
                }
                seen.evil.get(path).cloned()
            });
            if say(&mut answer, &request, evil).is_err() {
                return;
            }
        }
    }
}

fn say(answer: &mut TcpStream, request: &str, evil: Option<Evil>) -> io::Result<()> {
    let length = request.len();
    match evil {
        None if request.starts_with("HEAD ") => {
            write!(
                answer,
                "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n"
            )
        }
        None => write!(
            answer,
            "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{request}"
        ),
        Some(Evil::Says(bytes)) => answer.write_all(&bytes),
        Some(Evil::SaysAndCloses(bytes)) => {
            answer.write_all(&bytes)?;
            Err(io::Error::other("as it was planned"))
        }
        Some(Evil::Endless(first, more)) => {
            answer.write_all(&first)?;
            loop {
                answer.write_all(&more)?;
            }
        }
    }
}

struct Reader(Raw);

impl Reader {
    /// `None`: the connection ended where it may.
    fn request(&mut self) -> io::Result<Option<String>> {
        let head = self.0.until(b"\r\n\r\n");
        let head = head.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => fault("half a head", error.to_string().as_bytes()),
            _ => error,
        })?;
        let Some(head) = head else {
            return Ok(None);
        };
        let lines = strict_lines(&head)?;
        let (first, headers) = lines.split_first().expect("one line at least");
        let words: Vec<&str> = first.split(' ').collect();
        let [method, path, "HTTP/1.1"] = words[..] else {
            return Err(fault("a request line", &head));
        };
        if !path.starts_with('/') || path.contains('#') {
            return Err(fault("a target", &head));
        }
        if path == DEAF {
            // Longer than anybody is patient; the socket stays open, and what comes stays in it.
            std::thread::park_timeout(Duration::from_secs(30));
            return Ok(None);
        }
        let mut said = HashMap::new();
        for line in headers {
            let (name, value) = line.split_once(':').ok_or_else(|| fault("a line", &head))?;
            let name = name.to_ascii_lowercase();
            let is_token = |letter: char| letter.is_ascii_alphanumeric() || "-_".contains(letter);
            if name.is_empty() || !name.chars().all(is_token) {
                return Err(fault("a name", &head));
            }
            let is_framing = matches!(
                &name[..],
                "host" | "content-length" | "transfer-encoding" | "connection"
            );
            if is_framing && said.insert(name, value.trim().to_owned()).is_some() {
                return Err(fault("a line that is there twice", &head));
            }
        }
        if !said.contains_key("host") {
            return Err(fault("no host", &head));
        }
        let body = match (said.get("content-length"), said.get("transfer-encoding")) {
            (None, None) => Vec::new(),
            (Some(length), None) if length.bytes().all(|digit| digit.is_ascii_digit()) => self
                .0
                .exactly(length.parse().map_err(|_| fault("a length", &head))?)?,
            (None, Some(encoding)) if encoding == "chunked" => self.chunks()?,
            _ => return Err(fault("lengths", &head)),
        };
        let body = String::from_utf8_lossy(&body).into_owned();
        Ok(Some(format!("{method} {path} {body}")))
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.0.line()?;
            let text = std::str::from_utf8(&line).map_err(|_| fault("a size", &line))?;
            let is_size = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_hexdigit());
            let size = usize::from_str_radix(text, 16).ok().filter(|_| is_size);
            let size = size.ok_or_else(|| fault("a size", &line))?;
            let chunk = self.0.exactly(size + 2)?;
            if !chunk.ends_with(b"\r\n") {
                return Err(fault("a chunk's end, or trailers", &chunk));
            }
            if size == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }
}

/// Lines of a head that are lines to everybody.
fn strict_lines(head: &[u8]) -> io::Result<Vec<String>> {
    let text = std::str::from_utf8(head).map_err(|_| fault("no text", head))?;
    let lines: Vec<String> = text.split("\r\n").map(str::to_owned).collect();
    let is_odd = |line: &String| {
        line.starts_with([' ', '\t'])
            || line.contains(|letter: char| letter.is_ascii_control() && letter != '\t')
    };
    match lines.iter().any(is_odd) {
        true => Err(fault("control bytes, or a folded line", head)),
        false => Ok(lines),
    }
}

fn fault(what: &str, bytes: &[u8]) -> io::Error {
    let text = format!("{what}: {:?}", String::from_utf8_lossy(bytes));
    io::Error::new(io::ErrorKind::InvalidData, text)
}
