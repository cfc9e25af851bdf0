//! Single values, from the text that stands in the file.

use marked_yaml::Node;
use prost_reflect::{DynamicMessage, Kind, MessageDescriptor, Value};
use serde_json::Value as Json;

/// # Errors
/// The text is none of its kind.
pub(super) fn parse(text: &str, kind: &Kind) -> Result<Value, String> {
    let number = || format!("`{text}` is not a number that fits here");
    Ok(match kind {
        Kind::Bool => match text {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            _ => return Err(format!("`{text}` is neither true nor false")),
        },
        Kind::String => Value::String(text.to_owned()),
        Kind::Bytes => Value::Bytes(base64(text)?.into()),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            Value::I32(text.parse().map_err(|_| number())?)
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            Value::I64(text.parse().map_err(|_| number())?)
        }
        Kind::Uint32 | Kind::Fixed32 => Value::U32(text.parse().map_err(|_| number())?),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(text.parse().map_err(|_| number())?),
        Kind::Float => Value::F32(text.parse().map_err(|_| number())?),
        Kind::Double => Value::F64(text.parse().map_err(|_| number())?),
        Kind::Enum(kind) => {
            let named = kind.get_value_by_name(text);
            let numbered = || text.parse().ok().and_then(|number| kind.get_value(number));
            let value = named.or_else(numbered).ok_or_else(|| {
                let names: Vec<String> =
                    kind.values().map(|value| value.name().to_owned()).collect();
                format!("`{text}` is none of {}", names.join(", "))
            })?;
            Value::EnumNumber(value.number())
        }
        Kind::Message(message) => {
            return Err(format!("{} is no single value", message.full_name()));
        }
    })
}

/// `1.5s`.
pub(super) fn duration(
    text: &str,
    descriptor: &MessageDescriptor,
) -> Result<DynamicMessage, String> {
    let wrong = || format!("`{text}` is not a duration (seconds, as 0.25s)");
    let number = text.strip_suffix('s').ok_or_else(wrong)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || fraction.len() > 9 || !digits(whole) || !digits(fraction) {
        return Err(wrong());
    }
    let seconds: i64 = whole.parse().map_err(|_| wrong())?;
    let nanos: i32 = format!("{fraction:0<9}").parse().map_err(|_| wrong())?;
    let mut message = DynamicMessage::new(descriptor.clone());
    message.set_field_by_name("seconds", Value::I64(seconds));
    message.set_field_by_name("nanos", Value::I32(nanos));
    Ok(message)
}

/// As JSON would say it.
pub(super) fn json(node: &Node) -> Json {
    if let Some(mapping) = node.as_mapping() {
        let pairs = mapping.iter();
        let pairs = pairs.map(|(key, node)| (key.as_str().to_owned(), json(node)));
        return Json::Object(pairs.collect());
    }
    if let Some(list) = node.as_sequence() {
        return Json::Array(list.iter().map(json).collect());
    }
    let Some(scalar) = node.as_scalar() else {
        return Json::Null;
    };
    let text = scalar.as_str();
    match text {
        _ if !scalar.may_coerce() => text.into(),
        "" | "~" | "null" => Json::Null,
        "true" => true.into(),
        "false" => false.into(),
        _ => match text.parse::<f64>() {
            Ok(number) if number.is_finite() => number.into(),
            _ => text.into(),
        },
    }
}

/// In either alphabet, with or without padding.
fn base64(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return Err("not base64".to_owned()),
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_base64() {
        for (text, bytes) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg", "foob"),
        ] {
            assert_eq!(base64(text).expect(text), bytes.as_bytes());
        }
        assert!(base64("a b").is_err());
    }
}
