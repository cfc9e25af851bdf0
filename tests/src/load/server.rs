//! Says to each connection where it arrived. One thread: many connections must not measure the scheduler.

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What nobody else would answer
    #[arg(long)]
    token: String,
    /// The first port, bound last: when it listens, all do
    #[arg(long)]
    port: u16,
    #[arg(long, default_value_t = 1)]
    ports: u16,
    /// Stay open until the client closes, and say it again for whatever the client sends
    #[arg(long)]
    hold: bool,
}

struct Server<'a> {
    args: &'a Args,
    poll: Poll,
    streams: Vec<Option<(TcpStream, String)>>,
    free: Vec<usize>,
}

pub(super) fn serve(args: &Args) -> Result<()> {
    let poll = Poll::new()?;
    let mut listeners = Vec::new();
    for port in (args.port..args.port + args.ports).rev() {
        let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let mut listener = TcpListener::bind(at).with_context(|| format!("port {port}"))?;
        let token = Token(listeners.len());
        poll.registry()
            .register(&mut listener, token, Interest::READABLE)?;
        listeners.push(listener);
    }
    let mut server = Server {
        args,
        poll,
        streams: Vec::new(),
        free: Vec::new(),
    };
    let mut events = Events::with_capacity(1024);
    loop {
        server.poll.poll(&mut events, None)?;
        for event in &events {
            match listeners.get(event.token().0) {
                Some(listener) => server.accept(listener),
                None => server.readable(event.token().0 - listeners.len()),
            }
        }
    }
}

impl Server<'_> {
    fn accept(&mut self, listener: &TcpListener) {
        loop {
            match listener.accept() {
                // A client that fails says so itself.
                Ok((stream, _)) => drop(self.greet(stream)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {}
            }
        }
    }

    fn greet(&mut self, mut stream: TcpStream) -> io::Result<()> {
        let line = line(&self.args.token, stream.local_addr()?);
        stream.write_all(line.as_bytes())?;
        if self.args.hold {
            let place = self.free.pop().unwrap_or_else(|| {
                self.streams.push(None);
                self.streams.len() - 1
            });
            let token = Token(place + usize::from(self.args.ports));
            self.poll
                .registry()
                .register(&mut stream, token, Interest::READABLE)?;
            self.streams[place] = Some((stream, line));
        }
        Ok(())
    }

    fn readable(&mut self, place: usize) {
        let Some((stream, line)) = &mut self.streams[place] else {
            return;
        };
        let mut buffer = [0; 64];
        loop {
            match stream.read(&mut buffer) {
                Ok(1..) if stream.write_all(line.as_bytes()).is_ok() => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                _ => break,
            }
        }
        self.streams[place] = None;
        self.free.push(place);
    }
}

/// The answer of the server with this token to a connection that was dialled at `dialled`.
pub(super) fn line(token: &str, dialled: SocketAddr) -> String {
    let ip = dialled.ip().to_canonical();
    format!("{token} {}\n", SocketAddr::new(ip, dialled.port()))
}
