//! What is supported, as one table, and the walk that holds a configuration against it: a field that is set and not in
//! the table is a fault, wherever it stands. docs/config.md is made from the same table.

mod connections;
mod filters;
mod http;

use prost_reflect::{DynamicMessage, ReflectMessage, Value};

use crate::document::{Document, below};
use crate::reader::unpack;

/// A message and those of its fields that may be set.
pub(crate) struct Row {
    pub(crate) message: &'static str,
    pub(crate) fields: &'static [Field],
}

pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) support: Support,
}

pub(crate) enum Support {
    /// Does what Envoy says.
    Honoured,
    /// The same, within these bounds; what is outside of them is a fault.
    Within(&'static str),
    /// Has no effect, and no connection fares otherwise for it. Why.
    NoEffect(&'static str),
}

pub(crate) fn rows() -> impl Iterator<Item = &'static Row> {
    connections::ROWS
        .iter()
        .chain(http::ROWS)
        .chain(filters::ROWS)
}

fn row(message: &str) -> Option<&'static Row> {
    rows().find(|row| row.message == message)
}

pub(crate) fn is_honoured(message: &str, field: &str) -> bool {
    let field = row(message).and_then(|row| row.fields.iter().find(|known| known.name == field));
    field.is_some_and(|field| !matches!(field.support, Support::NoEffect(_)))
}

const fn honoured(name: &'static str) -> Field {
    let support = Support::Honoured;
    Field { name, support }
}

const fn within(name: &'static str, bounds: &'static str) -> Field {
    let support = Support::Within(bounds);
    Field { name, support }
}

const fn no_effect(name: &'static str, why: &'static str) -> Field {
    let support = Support::NoEffect(why);
    Field { name, support }
}

/// Notes a fault for every field that is set and not supported, and says which have no effect.
pub(crate) fn judge(message: &DynamicMessage, document: &Document) {
    walk(message, "", document);
}

fn walk(message: &DynamicMessage, path: &str, document: &Document) {
    let descriptor = message.descriptor();
    let name = descriptor.full_name();
    if name == "google.protobuf.Any" {
        // One of an unknown type was a fault when it was read.
        if let Some(inner) = unpack(message) {
            walk(&inner, path, document);
        }
        return;
    }
    if name.starts_with("google.protobuf.") {
        return;
    }
    let Some(row) = row(name) else {
        return document.fault(path, format!("not supported: {name}"));
    };
    for (field, value) in message.fields() {
        let path = below(path, field.name());
        match row.fields.iter().find(|known| known.name == field.name()) {
            None => document.fault(&path, "not supported"),
            Some(Field {
                support: Support::NoEffect(why),
                ..
            }) => document.note(&path, format!("no effect: {why}")),
            Some(_) => below_field(value, &path, document),
        }
    }
}

fn below_field(value: &Value, path: &str, document: &Document) {
    match value {
        Value::Message(message) => walk(message, path, document),
        Value::List(list) => {
            for (at, value) in list.iter().enumerate() {
                below_field(value, &format!("{path}[{at}]"), document);
            }
        }
        Value::Map(map) => {
            for (key, value) in map {
                let key = key.as_str().unwrap_or_default();
                below_field(value, &format!("{path}[{key}]"), document);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptors;

    #[test]
    fn the_table_names_messages_and_fields_that_are_there() {
        let pool = descriptors::pool();
        for row in rows() {
            let message = pool.get_message_by_name(row.message);
            let message = message.unwrap_or_else(|| panic!("no {}", row.message));
            for field in row.fields {
                let known = message.get_field_by_name(field.name);
                assert!(known.is_some(), "no {}.{}", row.message, field.name);
            }
        }
    }
}
