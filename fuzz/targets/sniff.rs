//! The first bytes of a connection. What was said of some of them stays true of more of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shunt_proxy::sniff::{Sniffed, client_hello, http};

fuzz_target!(|bytes: &[u8]| {
    stays(bytes, http);
    stays(bytes, client_hello);
});

fn stays<T: PartialEq + std::fmt::Debug>(bytes: &[u8], sniff: impl Fn(&[u8]) -> Sniffed<T>) {
    let whole = sniff(bytes);
    for length in [bytes.len() / 2, bytes.len().saturating_sub(1)] {
        let part = sniff(&bytes[..length]);
        assert!(
            matches!(part, Sniffed::More) || part == whole,
            "{part:?} of {length} bytes, {whole:?} of all"
        );
    }
}
