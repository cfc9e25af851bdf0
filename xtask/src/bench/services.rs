//! Services for the configuration.

use std::fmt::Write;

use super::load::CONNECT_PORT;

/// The section while there is none.
pub(super) const NONE: &str = "services: []";
/// Of the service that is dialled.
pub(super) const ADDRESS: &str = "10.96.0.1";

/// The section with that many services; one of them leads to the server of short connections at `server`.
pub(super) fn among(count: usize, server: &str) -> String {
    let mut text = String::from("services:\n");
    let mut add = |name: &str, address: &str, endpoint: &str| {
        let _ = writeln!(
            text,
            "  - {{name: {name}, addresses: [\"{address}\"], endpoints: [\"{endpoint}\"]}}"
        );
    };
    for at in 1..count {
        let address = format!("10.97.{}.{}:80", at >> 8, at & 255);
        let endpoint = format!("10.98.{}.{}:8080", at >> 8, at & 255);
        add(&format!("other{at}"), &address, &endpoint);
    }
    let (front, back) = (
        format!("{ADDRESS}:{CONNECT_PORT}"),
        format!("{server}:{CONNECT_PORT}"),
    );
    add("dialled", &front, &back);
    text.truncate(text.trim_end().len());
    text
}
