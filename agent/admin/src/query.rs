//! What is asked for behind the `?` of a path.

use regex::Regex;

/// How an answer is to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    #[default]
    Text,
    Json,
    Prometheus,
}

/// Of `/config_dump`, as Envoy has them.
#[derive(Clone, Debug, Default)]
pub struct DumpQuery {
    /// One of the lists in it, as `dynamic_listeners`.
    pub resource: Option<String>,
    /// Paths of fields, `a.b`; with a resource they begin at its entries.
    pub mask: Vec<String>,
    pub name: Option<Regex>,
    pub include_eds: bool,
}

/// Of `/stats`.
#[derive(Clone, Debug, Default)]
pub struct StatsQuery {
    pub filter: Option<Regex>,
    pub shape: Shape,
    /// Without those that are 0.
    pub used_only: bool,
}

impl DumpQuery {
    pub(crate) fn parse(query: Option<&str>) -> Result<Self, String> {
        let mask = parameter(query, "mask").unwrap_or_default();
        let paths = mask.split(',').filter(|path| !path.is_empty());
        Ok(Self {
            resource: parameter(query, "resource").filter(|name| !name.is_empty()),
            mask: paths.map(str::to_owned).collect(),
            name: regex(query, "name_regex")?,
            include_eds: flag(query, "include_eds"),
        })
    }
}

impl StatsQuery {
    /// `default`: the shape where none is said.
    pub(crate) fn parse(query: Option<&str>, default: Shape) -> Result<Self, String> {
        let shape = match parameter(query, "format").as_deref() {
            None => default,
            Some("text") => Shape::Text,
            Some("json") => Shape::Json,
            Some("prometheus") => Shape::Prometheus,
            Some(_) => return Err("format is text, json or prometheus".to_owned()),
        };
        Ok(Self {
            filter: regex(query, "filter")?,
            shape,
            used_only: flag(query, "usedonly"),
        })
    }

    pub fn wants(&self, name: &str, is_zero: bool) -> bool {
        let is_named = self
            .filter
            .as_ref()
            .is_none_or(|filter| filter.is_match(name));
        is_named && !(self.used_only && is_zero)
    }
}

pub(crate) fn shape(query: Option<&str>) -> Result<Shape, String> {
    match parameter(query, "format").as_deref() {
        None | Some("text") => Ok(Shape::Text),
        Some("json") => Ok(Shape::Json),
        Some(_) => Err("format is text or json".to_owned()),
    }
}

fn regex(query: Option<&str>, name: &str) -> Result<Option<Regex>, String> {
    match parameter(query, name) {
        None => Ok(None),
        Some(text) => Regex::new(&text)
            .map(Some)
            .map_err(|error| format!("{name}: {error}")),
    }
}

/// Said, and not said to be off.
fn flag(query: Option<&str>, name: &str) -> bool {
    let mut words = query.unwrap_or_default().split('&');
    words.any(|word| match word.split_once('=') {
        Some((key, value)) => key == name && !matches!(value, "false" | "0" | "off"),
        None => word == name,
    })
}

pub(crate) fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let mut pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .find(|(key, _)| *key == name)
        .map(|(_, value)| percent_decoded(value))
}

/// As far as it is right; anything else stays as it stands, and is refused where its meaning is known.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = (first == b'%')
            .then(|| after.get(..2))
            .flatten()
            .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_may_be_percent_encoded() {
        let cases = [
            ("info%2cshunt_proxy%3Ddebug", "info,shunt_proxy=debug"),
            ("50%", "50%"),
            ("%+1%zz%€", "%+1%zz%€"),
        ];
        for (text, expected) in cases {
            assert_eq!(percent_decoded(text), expected);
        }
    }

    #[test]
    fn what_is_asked_for_is_understood() {
        let dump = DumpQuery::parse(Some(
            "resource=static_clusters&mask=a.b,c&include_eds&name_regex=%5Ex",
        ));
        let dump = dump.expect("understood");
        assert_eq!(dump.resource.as_deref(), Some("static_clusters"));
        assert_eq!(dump.mask, ["a.b", "c"]);
        assert!(dump.include_eds && dump.name.is_some_and(|name| name.is_match("xy")));
        assert!(DumpQuery::parse(Some("name_regex=%28")).is_err());
        let stats = StatsQuery::parse(Some("filter=a$&usedonly&format=json"), Shape::Text);
        let stats = stats.expect("understood");
        assert_eq!(stats.shape, Shape::Json);
        assert!(
            stats.wants("b.a", false) && !stats.wants("b.a", true) && !stats.wants("ab", false)
        );
        assert!(StatsQuery::parse(Some("format=html"), Shape::Text).is_err());
        assert!(!StatsQuery::parse(Some("usedonly=false"), Shape::Text).is_ok_and(|q| q.used_only));
    }
}
