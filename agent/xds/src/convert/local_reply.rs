//! `local_reply_config`: what becomes of the proxy's own replies.

use shunt_core::http::format::Format;
use shunt_core::http::local_reply::{
    BodyFormat, Comparison, Json, LocalReplies, Mapper, ReplyFilter, Template,
};

use super::matchers::header;
use super::values::{data, is_line, reply_addition, status};
use crate::reader::Reader;

/// What Envoy may say of a request.
const FLAGS: [&str; 31] = [
    "LH", "UH", "UT", "LR", "UR", "UF", "UC", "UO", "NR", "DI", "FI", "RL", "UAEX", "RLSE", "DC",
    "URX", "SI", "IH", "DPE", "UPE", "UMSDR", "RFCF", "NFCF", "DT", "OM", "DF", "DO", "NC", "DR",
    "UDO", "DNS",
];

pub(super) fn replies(manager: &Reader<'_>) -> LocalReplies {
    let Some(reader) = manager.message("local_reply_config") else {
        return LocalReplies::default();
    };
    let mappers = reader.list("mappers");
    LocalReplies {
        mappers: mappers.iter().filter_map(mapper).collect(),
        format: reader
            .message("body_format")
            .and_then(|format| body_format(&format)),
    }
}

fn mapper(reader: &Reader<'_>) -> Option<Mapper> {
    let filter = reader.required("filter", reader.message("filter"));
    let add = reader.list("headers_to_add");
    let format = reader.message("body_format_override");
    Some(Mapper {
        status: reader
            .has("status_code")
            .then(|| status(reader, "status_code")),
        body: reader.message("body").map(|body| data(&body)),
        format: format.and_then(|format| body_format(&format)),
        add: add.iter().filter_map(reply_addition).collect(),
        filter: filter.and_then(|filter| reply_filter(&filter))?,
    })
}

fn reply_filter(reader: &Reader<'_>) -> Option<ReplyFilter> {
    if let Some(filter) = reader.message("status_code_filter") {
        return comparison(&filter).map(ReplyFilter::Status);
    }
    if let Some(filter) = reader.message("duration_filter") {
        return comparison(&filter).map(ReplyFilter::Duration);
    }
    if let Some(filter) = reader.message("header_filter") {
        let wanted = filter.required("header", filter.message("header"))?;
        return header(&wanted).map(ReplyFilter::Header);
    }
    if let Some(filter) = reader.message("response_flag_filter") {
        let flags = filter.texts("flags");
        for flag in flags.iter().filter(|flag| !FLAGS.contains(&&***flag)) {
            filter.fault("flags", format!("`{flag}` is no response flag"));
        }
        return Some(ReplyFilter::Flags(flags));
    }
    let several = |name: &str| {
        let filter = reader.message(name)?;
        let filters = filter.list("filters");
        if filters.len() < 2 {
            filter.fault("filters", "two at least are needed");
        }
        Some(filters.iter().filter_map(reply_filter).collect())
    };
    if let Some(all) = several("and_filter") {
        return Some(ReplyFilter::All(all));
    }
    if let Some(any) = several("or_filter") {
        return Some(ReplyFilter::Any(any));
    }
    reader.fault("", "says nothing");
    None
}

fn comparison(filter: &Reader<'_>) -> Option<Comparison> {
    let reader = filter.required("comparison", filter.message("comparison"))?;
    let value = reader.required("value", reader.message("value"))?;
    let than = value.u32("default_value").unwrap_or_default();
    Some(match reader.choice("op").as_str() {
        "GE" => Comparison::AtLeast(than),
        "LE" => Comparison::AtMost(than),
        "NE" => Comparison::Not(than),
        _ => Comparison::Equal(than),
    })
}

/// A `SubstitutionFormatString`.
fn body_format(reader: &Reader<'_>) -> Option<BodyFormat> {
    let text = if let Some(source) = reader.message("text_format_source") {
        Some((
            "text_format_source",
            String::from_utf8_lossy(&data(&source)).into_owned(),
        ))
    } else {
        reader
            .has("text_format")
            .then(|| ("text_format", reader.text("text_format")))
    };
    let (template, usual) = match (text, reader.free("json_format")) {
        (Some((field, text)), _) => {
            let format = Format::parse(&text);
            let format = format.map_err(|message| reader.fault(field, message)).ok();
            (Template::Text(format?), "text/plain")
        }
        (None, Some(json)) => {
            let json = self::json(&json).map_err(|message| reader.fault("json_format", message));
            (Template::Json(json.ok()?), "application/json")
        }
        (None, None) => {
            reader.fault("", "says no format (text_format_source, json_format)");
            return None;
        }
    };
    let content_type = reader.text("content_type");
    if !is_line(&content_type) {
        reader.fault("content_type", "a header's value is one line");
    }
    Some(BodyFormat {
        content_type: match content_type.is_empty() {
            true => usual.to_owned(),
            false => content_type,
        },
        template,
    })
}

fn json(value: &serde_json::Value) -> Result<Json, String> {
    use serde_json::Value;
    Ok(match value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Number(number) => Json::Number(number.as_f64().unwrap_or_default()),
        Value::String(text) => Json::Text(Format::parse(text)?),
        Value::Array(list) => Json::List(list.iter().map(json).collect::<Result<_, _>>()?),
        Value::Object(map) => {
            let pairs = map
                .iter()
                .map(|(key, value)| Ok((key.clone(), json(value)?)));
            Json::Map(pairs.collect::<Result<_, String>>()?)
        }
    })
}
