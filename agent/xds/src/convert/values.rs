//! Small messages that stand in many places.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use ipnet::IpNet;
use shunt_core::config::file::read_file;
use shunt_core::http::format::Format;
use shunt_core::route::{AppendAction, HeaderAddition, HeaderMutations, Mutations};

use crate::reader::Reader;

/// Of the `Address` under `name`.
pub(super) fn address(reader: &Reader<'_>, name: &str) -> Option<SocketAddr> {
    let address = reader.required(name, reader.message(name))?;
    let socket = address.required("socket_address", address.message("socket_address"))?;
    if socket.choice("protocol") != "TCP" {
        socket.fault("protocol", "only TCP is supported");
    }
    let ip = socket.parsed("address", |text| {
        text.parse::<IpAddr>()
            .map_err(|_| format!("`{text}` is not an IP address"))
    });
    let Some(port) = socket.u32("port_value") else {
        socket.fault("port_value", "is required");
        return None;
    };
    match u16::try_from(port) {
        Ok(port) => Some(SocketAddr::new(ip?, port)),
        Err(_) => {
            socket.fault("port_value", format!("{port} is no port"));
            None
        }
    }
}

pub(super) fn networks(reader: &Reader<'_>, name: &str) -> Vec<IpNet> {
    let ranges = reader.list(name);
    ranges.iter().filter_map(network).collect()
}

fn network(range: &Reader<'_>) -> Option<IpNet> {
    let ip: IpAddr = range.parsed("address_prefix", |text| {
        text.parse()
            .map_err(|_| format!("`{text}` is not an IP address"))
    })?;
    let length = u8::try_from(range.u32("prefix_len").unwrap_or_default());
    let net = length.ok().and_then(|length| IpNet::new(ip, length).ok());
    if net.is_none() {
        range.fault("prefix_len", "longer than the address");
    }
    net.map(|net| net.trunc())
}

/// No TLS, said or not.
pub(super) fn plain_transport(reader: &Reader<'_>) {
    let Some(socket) = reader.message("transport_socket") else {
        return;
    };
    let inner = socket.message("typed_config");
    let inner = inner.and_then(|any| any.unpacked());
    let raw = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
    // Without one, its name would say what it is: that may be TLS.
    if inner.is_none_or(|inner| inner.type_name() != raw) {
        socket.fault("typed_config", "only raw_buffer is supported");
    }
}

/// The four fields of virtual hosts, routes and the like.
pub(super) fn mutations(reader: &Reader<'_>) -> Mutations {
    Mutations {
        request: header_mutations(reader, "request"),
        response: header_mutations(reader, "response"),
    }
}

fn header_mutations(reader: &Reader<'_>, kind: &str) -> HeaderMutations {
    let name = format!("{kind}_headers_to_remove");
    let remove = reader.texts(&name);
    for header in &remove {
        if header.is_empty() || header.starts_with(':') || header.eq_ignore_ascii_case("host") {
            reader.fault(&name, format!("`{header}` cannot be removed"));
        }
    }
    let add = reader.list(&format!("{kind}_headers_to_add"));
    HeaderMutations {
        remove: remove
            .iter()
            .map(|name| name.to_ascii_lowercase())
            .collect(),
        add: add.iter().filter_map(addition).collect(),
    }
}

/// To requests, and to responses whosesoever they are.
pub(super) fn addition(option: &Reader<'_>) -> Option<HeaderAddition> {
    let addition = reply_addition(option)?;
    if addition.value.is_of_local_replies() {
        option.fault(
            "header.value",
            "%LOCAL_REPLY_BODY%, %RESPONSE_FLAGS%, %RESPONSE_CODE_DETAILS% and %DURATION% are supported in local_reply_config only",
        );
    }
    Some(addition)
}

/// To the proxy's own replies.
pub(super) fn reply_addition(option: &Reader<'_>) -> Option<HeaderAddition> {
    let header = option.required("header", option.message("header"))?;
    let name = header_name(&header, "key")?;
    if FRAMING.contains(&name.as_str()) {
        let message = format!(
            "`{name}` says where the message ends, and is no business of the configuration"
        );
        header.fault("key", message);
    }
    let append = option.bool("append");
    let action = match option.choice("append_action").as_str() {
        "ADD_IF_ABSENT" => AppendAction::AddIfAbsent,
        "OVERWRITE_IF_EXISTS_OR_ADD" => AppendAction::OverwriteIfExistsOrAdd,
        "OVERWRITE_IF_EXISTS" => AppendAction::OverwriteIfExists,
        _ if append == Some(false) => AppendAction::OverwriteIfExistsOrAdd,
        _ => AppendAction::AppendIfExistsOrAdd,
    };
    if append.is_some() && option.has("append_action") {
        option.fault("append", "append_action says it already");
    }
    let value = header.parsed("value", |text| match is_line(text) {
        true => Format::parse(text),
        false => Err("a header's value is one line".to_owned()),
    })?;
    Some(HeaderAddition {
        name,
        value,
        action,
        keep_empty: option.is("keep_empty_value"),
    })
}

/// Headers that would cut a body, or make the next message begin elsewhere.
const FRAMING: [&str; 2] = ["content-length", "transfer-encoding"];

/// Of a header that may be changed.
pub(super) fn header_name(reader: &Reader<'_>, field: &str) -> Option<String> {
    reader.parsed(field, |name| {
        if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
            Err(format!(
                "`{name}` may not be changed: it starts with `:`, or is host"
            ))
        } else if is_token(name) {
            Ok(name.to_ascii_lowercase())
        } else {
            Err(format!("`{name}` is no header name"))
        }
    })
}

/// May it be a header's value?
pub(super) fn is_line(text: &str) -> bool {
    !text.bytes().any(|byte| matches!(byte, 0 | b'\r' | b'\n'))
}

/// RFC 9110, section 5.6.2.
pub(super) fn is_token(text: &str) -> bool {
    let special = b"!#$%&'*+-.^_`|~";
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || special.contains(&byte))
}

/// A status with which a request may be answered.
pub(super) fn status(reader: &Reader<'_>, name: &str) -> u16 {
    let status = reader.u32(name).unwrap_or_default();
    match u16::try_from(status) {
        Ok(status) if (200..600).contains(&status) => status,
        _ => {
            reader.fault(name, format!("{status} is not a status from 200 to 599"));
            200
        }
    }
}

/// Bytes of a file that a configuration names: they are held as long as the configuration is.
const MAX_FILE: usize = 1 << 20;

/// Of a `DataSource`.
pub(super) fn data(source: &Reader<'_>) -> Vec<u8> {
    if !source.has("filename") {
        let text = source.text("inline_string").into_bytes();
        return source.bytes("inline_bytes").unwrap_or(text);
    }
    let read = source.parsed("filename", |name| read_file(Path::new(name), MAX_FILE));
    read.unwrap_or_default()
}
