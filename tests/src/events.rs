//! A socket as event-driven programs use it, for scripts.

/// `Events(socket)`, and `call(host)` for a connection to port 7000. One that blocks may say `EAGAIN` where it is
/// accelerated: docs/semantics.md.
pub const EVENTS: &str = "
import hashlib, os, random, select, socket, struct, sys, threading, time
class Events:
    def __init__(self, s): self.s = s; s.setblocking(False)
    def recv(self, most):
        while True:
            select.select([self.s], [], [])
            try: return self.s.recv(most)
            except BlockingIOError: pass
    def read(self, count):
        heard = b''
        while len(heard) < count:
            some = self.recv(count - len(heard)); assert some; heard += some
        return heard
    def send(self, bytes):
        while bytes:
            select.select([], [self.s], [])
            try: bytes = bytes[self.s.send(bytes):]
            except BlockingIOError: pass
    def turn(self, bytes): self.send(bytes); assert self.read(len(bytes)) == bytes
def call(host):
    s = socket.create_connection((host, 7000)); s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Events(s)
";
