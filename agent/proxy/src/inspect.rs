//! Listener filters: reads as many of a connection's first bytes as it takes to choose a filter chain.

use std::io;

use shunt_core::listener::{Inspect, Listener, ProxyProtocol};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::proxy_protocol::{self, Addresses};
use crate::sniff::{self, Sniffed};

/// Bytes; what has not shown itself by then is something else.
const MOST: usize = 64 << 10;

/// What was found out, and the bytes that were read for it.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Without a PROXY header.
    pub(crate) read: Vec<u8>,
    /// Bytes of the PROXY header.
    pub(crate) header: usize,
    /// As the PROXY header says.
    pub(crate) proxied: Option<Addresses>,
    pub(crate) is_tls: bool,
    pub(crate) server_name: Option<String>,
    /// Of TLS, or what HTTP is spoken without it.
    pub(crate) protocols: Vec<String>,
}

/// `None`: the bytes did not come in time, and the listener does not go on without them. `read`: those that have come
/// already.
///
/// # Errors
/// The client is gone; or, [`io::ErrorKind::InvalidData`], its PROXY header is wrong or missing.
pub(crate) async fn inspect(
    client: &mut TcpStream,
    listener: &Listener,
    read: Vec<u8>,
) -> io::Result<Option<Findings>> {
    let mut findings = Findings {
        read,
        ..Findings::default()
    };
    if listener.inspect.is_nothing() && listener.proxy_protocol.is_none() {
        return Ok(Some(findings));
    }
    let reading = async {
        if let Some(wanted) = listener.proxy_protocol {
            take_header(client, wanted, &mut findings).await?;
        }
        look(client, listener.inspect, &mut findings).await
    };
    if listener.inspect_timeout.is_zero() {
        return reading.await.map(|()| Some(findings));
    }
    match timeout(listener.inspect_timeout, reading).await {
        Ok(read) => read.map(|()| Some(findings)),
        Err(_) => Ok(listener.continue_on_timeout.then_some(findings)),
    }
}

/// Cancel safe, as the next one.
async fn take_header(
    client: &mut TcpStream,
    wanted: ProxyProtocol,
    findings: &mut Findings,
) -> io::Result<()> {
    let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
    loop {
        match proxy_protocol::header(&findings.read).map_err(wrong)? {
            Sniffed::Found(header) => {
                findings.read.drain(..header.length);
                findings.header = header.length;
                findings.proxied = header.addresses;
                return Ok(());
            }
            Sniffed::Other if wanted.is_optional => return Ok(()),
            Sniffed::Other => return Err(wrong("no PROXY header")),
            Sniffed::More => {
                if client.read_buf(&mut findings.read).await? == 0 {
                    return Err(wrong("no PROXY header"));
                }
            }
        }
    }
}

/// Cancel safe: what was read is in the findings.
async fn look(client: &mut TcpStream, wanted: Inspect, findings: &mut Findings) -> io::Result<()> {
    if wanted.is_nothing() {
        return Ok(());
    }
    while !findings.learn(wanted) && findings.read.len() < MOST {
        let read = client.read_buf(&mut findings.read).await?;
        if read == 0 {
            break;
        }
    }
    Ok(())
}

impl Findings {
    /// Is there nothing more to learn?
    fn learn(&mut self, wanted: Inspect) -> bool {
        let tls = match wanted.tls {
            true => sniff::client_hello(&self.read),
            false => Sniffed::Other,
        };
        let http = match wanted.http {
            true => sniff::http(&self.read),
            false => Sniffed::Other,
        };
        match (tls, http) {
            (Sniffed::Found(hello), _) => {
                self.is_tls = true;
                self.server_name = hello.server_name;
                self.protocols = hello.protocols;
                true
            }
            (_, Sniffed::Found(http)) => {
                self.protocols = vec![http.as_str().to_owned()];
                true
            }
            (tls, http) => tls == Sniffed::Other && http == Sniffed::Other,
        }
    }
}
