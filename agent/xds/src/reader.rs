//! A message as the conversion reads it: by field names, with its place for faults.

use std::borrow::Cow;
use std::rc::Rc;
use std::time::Duration;

use prost_reflect::{DynamicMessage, Kind, ReflectMessage, Value};

use crate::descriptors;
use crate::document::{Document, below};
use crate::dump::json;
use crate::files::Files;
use crate::support;

/// A year. Longer ones are typing errors, and may not fit a timer.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

#[derive(Clone)]
pub(crate) struct Reader<'a> {
    message: Cow<'a, DynamicMessage>,
    path: String,
    document: &'a Document,
}

impl<'a> Reader<'a> {
    pub(crate) fn root(message: DynamicMessage, document: &'a Document) -> Self {
        Self {
            message: Cow::Owned(message),
            path: String::new(),
            document,
        }
    }

    /// What is set under this name. The conversion reads only what the table says is honoured, so that it is true.
    fn value(&self, name: &str) -> Option<&Value> {
        let descriptor = self.message.descriptor();
        debug_assert!(
            support::is_honoured(descriptor.full_name(), name),
            "{}.{name} is not in the table",
            descriptor.full_name()
        );
        let field = descriptor.get_field_by_name(name)?;
        self.message
            .has_field(&field)
            .then(|| match self.message.get_field(&field) {
                Cow::Borrowed(value) => Some(value),
                // What is set is borrowed.
                Cow::Owned(_) => None,
            })
            .flatten()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    /// The value itself, or what its wrapper holds.
    fn plain<T>(&self, name: &str, get: impl Fn(&Value) -> Option<T>) -> Option<T> {
        match self.value(name)? {
            Value::Message(wrapper) => get(&*wrapper.get_field_by_name("value")?),
            value => get(value),
        }
    }

    pub(crate) fn bool(&self, name: &str) -> Option<bool> {
        self.plain(name, Value::as_bool)
    }

    pub(crate) fn is(&self, name: &str) -> bool {
        self.bool(name).unwrap_or(false)
    }

    pub(crate) fn u32(&self, name: &str) -> Option<u32> {
        self.plain(name, Value::as_u32)
    }

    pub(crate) fn i64(&self, name: &str) -> Option<i64> {
        self.plain(name, Value::as_i64)
    }

    /// Empty when it is not set.
    pub(crate) fn text(&self, name: &str) -> String {
        let text = self.plain(name, |value| value.as_str().map(str::to_owned));
        text.unwrap_or_default()
    }

    pub(crate) fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        self.plain(name, |value| value.as_bytes().map(|bytes| bytes.to_vec()))
    }

    pub(crate) fn texts(&self, name: &str) -> Vec<String> {
        let list = self
            .value(name)
            .and_then(Value::as_list)
            .unwrap_or_default();
        list.iter()
            .filter_map(|value| value.as_str().map(str::to_owned))
            .collect()
    }

    /// Plain numbers.
    pub(crate) fn numbers(&self, name: &str) -> Vec<u32> {
        let list = self
            .value(name)
            .and_then(Value::as_list)
            .unwrap_or_default();
        list.iter().filter_map(Value::as_u32).collect()
    }

    pub(crate) fn duration(&self, name: &str) -> Option<Duration> {
        let message = self.value(name)?.as_message()?;
        let seconds = message.get_field_by_name("seconds")?.as_i64()?;
        let nanos = message.get_field_by_name("nanos")?.as_i32()?;
        let duration = u64::try_from(seconds)
            .ok()
            .zip(u32::try_from(nanos).ok())
            .map(|(seconds, nanos)| Duration::new(seconds, nanos))
            .filter(|duration| *duration <= LONGEST);
        if duration.is_none() {
            self.fault(name, "a duration from 0s to 31536000s is expected");
        }
        duration
    }

    /// The name of the value that is in force, set or not.
    pub(crate) fn choice(&self, name: &str) -> String {
        let descriptor = self.message.descriptor();
        let number = self.value(name).and_then(Value::as_enum_number);
        let field = descriptor.get_field_by_name(name);
        match field.map(|field| field.kind()) {
            Some(Kind::Enum(kind)) => kind
                .get_value(number.unwrap_or_default())
                .map(|value| value.name().to_owned())
                .unwrap_or_default(),
            _ => String::new(),
        }
    }

    pub(crate) fn message(&self, name: &str) -> Option<Reader<'_>> {
        let message = self.value(name)?.as_message()?;
        Some(Reader {
            message: Cow::Borrowed(message),
            path: below(&self.path, name),
            document: self.document,
        })
    }

    pub(crate) fn list(&self, name: &str) -> Vec<Reader<'_>> {
        let list = self
            .value(name)
            .and_then(Value::as_list)
            .unwrap_or_default();
        let messages = list.iter().filter_map(Value::as_message).enumerate();
        messages
            .map(|(at, message)| Reader {
                message: Cow::Borrowed(message),
                path: format!("{}[{at}]", below(&self.path, name)),
                document: self.document,
            })
            .collect()
    }

    /// The messages of a map, by key.
    pub(crate) fn map(&self, name: &str) -> Vec<(String, Reader<'_>)> {
        let map = self.value(name).and_then(Value::as_map);
        let entries = map.into_iter().flatten().filter_map(|(key, value)| {
            let key = key.as_str()?.to_owned();
            let path = format!("{}[{key}]", below(&self.path, name));
            let reader = Reader {
                message: Cow::Borrowed(value.as_message()?),
                path,
                document: self.document,
            };
            Some((key, reader))
        });
        entries.collect()
    }

    /// What is in this `Any`.
    pub(crate) fn unpacked(&self) -> Option<Reader<'a>> {
        Some(Reader {
            message: Cow::Owned(unpack(&self.message)?),
            path: self.path.clone(),
            document: self.document,
        })
    }

    /// A `google.protobuf.Struct`.
    pub(crate) fn free(&self, name: &str) -> Option<serde_json::Value> {
        serde_json::to_value(self.value(name)?.as_message()?).ok()
    }

    /// This message, which is a `google.protobuf.Struct`.
    pub(crate) fn as_free(&self) -> Option<serde_json::Value> {
        serde_json::to_value(&*self.message).ok()
    }

    /// The message itself, for whoever converts nothing.
    pub(crate) fn raw(&self) -> &DynamicMessage {
        &self.message
    }

    /// A text field, of whatever message this is.
    pub(crate) fn raw_text(&self, name: &str) -> String {
        let value = self.message.get_field_by_name(name);
        let text = value.as_ref().and_then(|value| value.as_str());
        text.unwrap_or_default().to_owned()
    }

    /// The files that the configuration names.
    pub(crate) fn files(&self) -> &'a Rc<Files> {
        &self.document.files
    }

    /// For the dump: these are routes that stand in their listener.
    pub(crate) fn note_routes(&self) {
        self.files().note_routes(json(&self.message));
    }

    pub(crate) fn type_name(&self) -> String {
        self.message.descriptor().full_name().to_owned()
    }

    /// Of a field of this message; of the message itself with an empty name.
    pub(crate) fn fault(&self, name: &str, message: impl Into<String>) {
        let path = match name {
            "" => self.path.clone(),
            name => below(&self.path, name),
        };
        self.document.fault(&path, message);
    }

    /// The value, and a fault where there is none.
    pub(crate) fn required<T>(&self, name: &str, value: Option<T>) -> Option<T> {
        if value.is_none() {
            self.fault(name, "is required");
        }
        value
    }

    /// What `parse` makes of a text.
    pub(crate) fn parsed<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        parse(&self.text(name))
            .map_err(|message| self.fault(name, message))
            .ok()
    }
}

/// `None`: no message of a known type.
pub(crate) fn unpack(any: &DynamicMessage) -> Option<DynamicMessage> {
    let url = any.get_field_by_name("type_url")?;
    let bytes = any.get_field_by_name("value")?;
    let descriptor = descriptors::by_url(any.descriptor().parent_pool(), url.as_str()?)?;
    DynamicMessage::decode(descriptor, bytes.as_bytes()?.clone()).ok()
}
