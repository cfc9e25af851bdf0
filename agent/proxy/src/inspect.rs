//! Listener filters: reads as many of a connection's first bytes as it takes to choose a filter chain.

use std::io;

use shunt_core::listener::{Inspect, Listener};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::sniff::{self, Sniffed};

/// Bytes; what has not shown itself by then is something else.
const MOST: usize = 64 << 10;

/// What was found out, and the bytes that were read for it.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) read: Vec<u8>,
    pub(crate) is_tls: bool,
    pub(crate) server_name: Option<String>,
    /// Of TLS, or what HTTP is spoken without it.
    pub(crate) protocols: Vec<String>,
}

/// `None`: the bytes did not come in time, and the listener does not go on without them.
///
/// # Errors
/// The client is gone.
pub(crate) async fn inspect(
    client: &mut TcpStream,
    listener: &Listener,
) -> io::Result<Option<Findings>> {
    let mut findings = Findings::default();
    if listener.inspect.is_nothing() {
        return Ok(Some(findings));
    }
    let reading = read(client, listener.inspect, &mut findings);
    if listener.inspect_timeout.is_zero() {
        return reading.await.map(|()| Some(findings));
    }
    match timeout(listener.inspect_timeout, reading).await {
        Ok(read) => read.map(|()| Some(findings)),
        Err(_) => Ok(listener.continue_on_timeout.then_some(findings)),
    }
}

/// Cancel safe: what was read is in the findings.
async fn read(client: &mut TcpStream, wanted: Inspect, findings: &mut Findings) -> io::Result<()> {
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
