//! Clients and upstreams that mean harm, byte for byte: each is refused within bounds, nothing of one request is taken for
//! another's, and a client that means well has all of its answers meanwhile.

mod floods;
mod malformed;
mod scene;
mod slow;
mod smuggling;
mod upstream;
mod upstreams;
