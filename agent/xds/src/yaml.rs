//! Protobuf's JSON mapping, read from a YAML tree. Every fault is noted, and what is right is read all the same.

mod scalar;

use std::collections::HashMap;

use marked_yaml::Node;
use marked_yaml::types::MarkedMappingNode;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor,
    ReflectMessage, Value,
};

use crate::descriptors;
use crate::document::{Document, below};

/// `None` when the text is no mapping.
pub(crate) fn read(
    tree: &Node,
    pool: &DescriptorPool,
    name: &str,
    document: &Document,
) -> Option<DynamicMessage> {
    let descriptor = pool.get_message_by_name(name)?;
    Walk { pool, document }.message(tree, &descriptor, "")
}

struct Walk<'a> {
    pool: &'a DescriptorPool,
    document: &'a Document,
}

impl Walk<'_> {
    fn message(
        &self,
        node: &Node,
        descriptor: &MessageDescriptor,
        path: &str,
    ) -> Option<DynamicMessage> {
        self.place(path, node);
        match descriptor.full_name() {
            "google.protobuf.Any" => return self.any(node, descriptor, path),
            "google.protobuf.Struct" | "google.protobuf.Value" | "google.protobuf.ListValue" => {
                return Some(self.free(node, descriptor));
            }
            "google.protobuf.Duration" => {
                let text = self.text(node, path)?;
                return scalar::duration(text, descriptor)
                    .map_err(|message| self.document.fault(path, message))
                    .ok();
            }
            name if is_wrapper(name) => {
                let field = descriptor.get_field_by_name("value")?;
                let value = self.single(node, &field.kind(), path)?;
                let mut message = DynamicMessage::new(descriptor.clone());
                message.set_field(&field, value);
                return Some(message);
            }
            _ => {}
        }
        let mapping = self.mapping(node, path)?;
        let mut message = DynamicMessage::new(descriptor.clone());
        self.fields(mapping, &mut message, path);
        Some(message)
    }

    fn fields(&self, mapping: &MarkedMappingNode, message: &mut DynamicMessage, path: &str) {
        let descriptor = message.descriptor();
        for (key, node) in mapping.iter() {
            let name = key.as_str();
            if name == "@type" {
                continue;
            }
            let field = descriptor
                .get_field_by_name(name)
                .or_else(|| descriptor.get_field_by_json_name(name));
            let Some(field) = field else {
                let path = below(path, name);
                self.place(&path, node);
                let message = format!("{} has no such field", descriptor.full_name());
                self.document.fault(&path, message);
                continue;
            };
            let path = below(path, field.name());
            self.place(&path, node);
            if is_nothing(node) {
                continue;
            }
            if let Some(oneof) = field
                .containing_oneof()
                .filter(|oneof| !oneof.is_synthetic())
                && let Some(other) = oneof.fields().find(|other| message.has_field(other))
            {
                let text = format!("{} is said too; only one of them can be", other.name());
                self.document.fault(&path, text);
                continue;
            }
            if let Some(value) = self.field(node, &field, &path) {
                message.set_field(&field, value);
            }
        }
    }

    fn field(&self, node: &Node, field: &FieldDescriptor, path: &str) -> Option<Value> {
        if field.is_map() {
            return self.map(node, field, path);
        }
        if !field.is_list() {
            return self.single(node, &field.kind(), path);
        }
        let Some(list) = node.as_sequence() else {
            self.document.fault(path, "a list is expected");
            return None;
        };
        let entries = list.iter().enumerate().filter_map(|(at, node)| {
            let path = format!("{path}[{at}]");
            self.place(&path, node);
            self.single(node, &field.kind(), &path)
        });
        Some(Value::List(entries.collect()))
    }

    fn map(&self, node: &Node, field: &FieldDescriptor, path: &str) -> Option<Value> {
        let Kind::Message(entry) = field.kind() else {
            return None;
        };
        let kind = entry.map_entry_value_field().kind();
        let mut map = HashMap::new();
        for (key, node) in self.mapping(node, path)?.iter() {
            let path = format!("{path}[{}]", key.as_str());
            self.place(&path, node);
            if let Some(value) = self.single(node, &kind, &path) {
                map.insert(MapKey::String(key.as_str().to_owned()), value);
            }
        }
        Some(Value::Map(map))
    }

    fn single(&self, node: &Node, kind: &Kind, path: &str) -> Option<Value> {
        if let Kind::Message(descriptor) = kind {
            return self.message(node, descriptor, path).map(Value::Message);
        }
        let text = self.text(node, path)?;
        scalar::parse(text, kind)
            .map_err(|message| self.document.fault(path, message))
            .ok()
    }

    /// The message that `@type` names, as bytes in its coat.
    fn any(&self, node: &Node, coat: &MessageDescriptor, path: &str) -> Option<DynamicMessage> {
        let mapping = self.mapping(node, path)?;
        let Some(url) = mapping.get_scalar("@type").map(|url| url.as_str()) else {
            self.document.fault(path, "`@type` is missing");
            return None;
        };
        let Some(descriptor) = descriptors::by_url(self.pool, url) else {
            self.document.fault(path, format!("not supported: {url}"));
            return None;
        };
        // A message that has a JSON form of its own stands under `value`.
        let inner = if is_well_known(descriptor.full_name()) {
            self.message(mapping.get_node("value")?, &descriptor, path)?
        } else {
            let mut message = DynamicMessage::new(descriptor);
            self.fields(mapping, &mut message, path);
            message
        };
        let mut any = DynamicMessage::new(coat.clone());
        any.set_field_by_name("type_url", Value::String(url.to_owned()));
        any.set_field_by_name("value", Value::Bytes(inner.encode_to_vec().into()));
        Some(any)
    }

    /// What has no schema, as JSON: nothing but the dump has a use for it.
    fn free(&self, node: &Node, descriptor: &MessageDescriptor) -> DynamicMessage {
        DynamicMessage::deserialize(descriptor.clone(), scalar::json(node))
            .unwrap_or_else(|_| DynamicMessage::new(descriptor.clone()))
    }

    fn mapping<'n>(&self, node: &'n Node, path: &str) -> Option<&'n MarkedMappingNode> {
        let mapping = node.as_mapping();
        if mapping.is_none() {
            self.document.fault(path, "a mapping is expected");
        }
        mapping
    }

    fn text<'n>(&self, node: &'n Node, path: &str) -> Option<&'n str> {
        let scalar = node.as_scalar();
        if scalar.is_none() {
            self.document.fault(path, "a single value is expected");
        }
        scalar.map(|scalar| scalar.as_str())
    }

    fn place(&self, path: &str, node: &Node) {
        if let Some(mark) = node.span().start() {
            self.document.place(path, mark.line());
        }
    }
}

/// `null`, as JSON has it for a field that is not there.
fn is_nothing(node: &Node) -> bool {
    node.as_scalar()
        .is_some_and(|scalar| scalar.may_coerce() && matches!(scalar.as_str(), "" | "~" | "null"))
}

fn is_wrapper(name: &str) -> bool {
    name.strip_prefix("google.protobuf.")
        .and_then(|name| name.strip_suffix("Value"))
        .is_some_and(|kind| {
            let kinds = [
                "Bool", "String", "Bytes", "Int32", "Int64", "UInt32", "UInt64", "Float", "Double",
            ];
            kinds.contains(&kind)
        })
}

fn is_well_known(name: &str) -> bool {
    is_wrapper(name)
        || matches!(
            name,
            "google.protobuf.Duration" | "google.protobuf.Struct" | "google.protobuf.Value"
        )
}
