//! What becomes of the proxy's own replies: `local_reply_config`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::format::{Format, Known, Value};
use crate::route::{HeaderAddition, HeaderMatch};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LocalReplies {
    /// The first that is for a reply changes it.
    pub mappers: Vec<Mapper>,
    pub format: Option<BodyFormat>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mapper {
    pub filter: ReplyFilter,
    pub status: Option<u16>,
    pub body: Option<Vec<u8>>,
    pub format: Option<BodyFormat>,
    pub add: Vec<HeaderAddition>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplyFilter {
    Status(Comparison),
    /// Milliseconds since the request began.
    Duration(Comparison),
    /// Of the request.
    Header(HeaderMatch),
    /// One of these; none: any.
    Flags(Vec<String>),
    All(Vec<ReplyFilter>),
    Any(Vec<ReplyFilter>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Comparison {
    Equal(u32),
    AtLeast(u32),
    AtMost(u32),
    Not(u32),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BodyFormat {
    pub content_type: String,
    pub template: Template,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Template {
    Text(Format),
    Json(Json),
}

/// JSON, with formats where texts stand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Json {
    Null,
    Bool(bool),
    Number(f64),
    Text(Format),
    List(Vec<Json>),
    Map(BTreeMap<String, Json>),
}

impl LocalReplies {
    pub fn is_empty(&self) -> bool {
        self.mappers.is_empty() && self.format.is_none()
    }

    /// The one that is for this reply.
    pub fn mapper(&self, known: &Known<'_>) -> Option<&Mapper> {
        self.mappers
            .iter()
            .find(|mapper| mapper.filter.passes(known))
    }
}

impl ReplyFilter {
    fn passes(&self, known: &Known<'_>) -> bool {
        match self {
            Self::Status(comparison) => {
                comparison.holds(u64::from(known.response_code.unwrap_or_default()))
            }
            Self::Duration(comparison) => comparison.holds(millis(known.so_far)),
            Self::Header(header) => header.matches(known.request),
            Self::Flags(flags) => match flags.is_empty() {
                true => !known.flags.is_empty(),
                false => flags.iter().any(|flag| flag == known.flags),
            },
            Self::All(filters) => filters.iter().all(|filter| filter.passes(known)),
            Self::Any(filters) => filters.iter().any(|filter| filter.passes(known)),
        }
    }
}

impl Comparison {
    pub fn holds(self, value: u64) -> bool {
        match self {
            Self::Equal(than) => value == u64::from(than),
            Self::AtLeast(than) => value >= u64::from(than),
            Self::AtMost(than) => value <= u64::from(than),
            Self::Not(than) => value != u64::from(than),
        }
    }
}

impl BodyFormat {
    pub fn body(&self, known: &Known<'_>) -> Vec<u8> {
        match &self.template {
            Template::Text(format) => format.render_or(known, "-"),
            Template::Json(json) => {
                let mut text = json.fill(known).to_string();
                text.push('\n');
                text.into_bytes()
            }
        }
    }
}

impl Json {
    fn fill(&self, known: &Known<'_>) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Bool(value) => (*value).into(),
            // Whole numbers are written without a point.
            Self::Number(value) if value.fract() == 0.0 && value.abs() < 1e15 => {
                (*value as i64).into()
            }
            Self::Number(value) => (*value).into(),
            Self::Text(format) => match format.value(known) {
                Value::Nothing => serde_json::Value::Null,
                Value::Number(number) => number.into(),
                Value::Text(text) => String::from_utf8_lossy(&text).into_owned().into(),
            },
            Self::List(list) => list.iter().map(|json| json.fill(known)).collect(),
            Self::Map(map) => {
                let filled = map
                    .iter()
                    .map(|(key, json)| (key.clone(), json.fill(known)));
                serde_json::Value::Object(filled.collect())
            }
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
