//! What routes match.

use shunt_core::route::pattern::StringMatchKind;
use shunt_core::route::template::Template;
use shunt_core::route::{
    HeaderMatch, HeaderValueMatch, PathMatch, Pattern, QueryMatch, QueryValueMatch, RouteMatch,
    StringMatch,
};

use super::values::is_token;
use crate::reader::Reader;

const TEMPLATE: &str = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig";

/// A field that has a text, and what that makes.
type ByName = (&'static str, fn(String) -> StringMatchKind);

pub(super) fn route_match(reader: &Reader<'_>) -> Option<RouteMatch> {
    let path = path(reader);
    let headers = reader.list("headers");
    let query = reader.list("query_parameters");
    let headers: Vec<_> = headers.iter().map(header).collect();
    let query: Vec<_> = query.iter().map(query_parameter).collect();
    let fraction = reader.message("runtime_fraction");
    Some(RouteMatch {
        path: path?,
        case_sensitive: reader.bool("case_sensitive").unwrap_or(true),
        headers: headers.into_iter().collect::<Option<_>>()?,
        query: query.into_iter().collect::<Option<_>>()?,
        fraction: fraction.and_then(|fraction| millionths(&fraction)),
    })
}

fn path(reader: &Reader<'_>) -> Option<PathMatch> {
    if reader.has("path") {
        return Some(PathMatch::Exact(reader.text("path")));
    }
    if reader.has("path_separated_prefix") {
        let prefix = reader.text("path_separated_prefix");
        if prefix.len() < 2
            || !prefix.starts_with('/')
            || prefix.ends_with('/')
            || prefix.contains(['?', '#'])
        {
            let message = "must start with `/`, must not end with it, and has neither ? nor #";
            reader.fault("path_separated_prefix", message);
        }
        return Some(PathMatch::SeparatedPrefix(prefix));
    }
    if let Some(regex) = reader.message("safe_regex") {
        return pattern(&regex).map(PathMatch::Regex);
    }
    if reader.has("prefix") {
        return Some(PathMatch::Prefix(reader.text("prefix")));
    }
    if let Some(policy) = reader.message("path_match_policy") {
        return template(&policy).map(|template| PathMatch::Regex(template.pattern));
    }
    if reader.message("connect_matcher").is_some() {
        return Some(PathMatch::Connect);
    }
    reader.fault(
        "",
        "says no path (prefix, path, safe_regex, path_separated_prefix, path_match_policy, connect_matcher)",
    );
    None
}

/// Of a `path_match_policy`.
pub(super) fn template(policy: &Reader<'_>) -> Option<Template> {
    let inner = policy
        .message("typed_config")
        .and_then(|any| any.unpacked());
    let inner = policy.required("typed_config", inner)?;
    if inner.type_name() != TEMPLATE {
        policy.fault("typed_config", format!("only {TEMPLATE} is supported"));
        return None;
    }
    inner.parsed("path_template", Template::parse)
}

/// `None` when everybody is meant.
pub(super) fn millionths(reader: &Reader<'_>) -> Option<u32> {
    let share = reader.required("default_value", reader.message("default_value"))?;
    let numerator = u64::from(share.u32("numerator").unwrap_or_default());
    let factor = match share.choice("denominator").as_str() {
        "HUNDRED" => 10_000,
        "TEN_THOUSAND" => 100,
        _ => 1,
    };
    let millionths = u32::try_from(numerator * factor).unwrap_or(u32::MAX);
    (millionths < 1_000_000).then_some(millionths)
}

pub(super) fn pattern(reader: &Reader<'_>) -> Option<Pattern> {
    let text = reader.text("regex");
    if text.is_empty() {
        reader.fault("regex", "is required");
        return None;
    }
    reader.parsed("regex", Pattern::parse)
}

/// Pattern and what goes in its place.
pub(super) fn substitution(reader: &Reader<'_>) -> Option<(Pattern, String)> {
    let pattern = reader.required("pattern", reader.message("pattern"))?;
    let pattern = self::pattern(&pattern)?;
    let text = reader.text("substitution");
    if let Err(message) = pattern.check_substitution(&text) {
        reader.fault("substitution", message);
    }
    Some((pattern, text))
}

pub(super) fn string(reader: &Reader<'_>) -> Option<StringMatch> {
    let kind = if reader.has("exact") {
        StringMatchKind::Exact(reader.text("exact"))
    } else if let Some(regex) = reader.message("safe_regex") {
        StringMatchKind::Regex(pattern(&regex)?)
    } else {
        let kinds: [ByName; 3] = [
            ("prefix", StringMatchKind::Prefix),
            ("suffix", StringMatchKind::Suffix),
            ("contains", StringMatchKind::Contains),
        ];
        let found = kinds.into_iter().find(|(name, _)| reader.has(name));
        let (name, kind) = reader.required("exact", found)?;
        let text = reader.text(name);
        if text.is_empty() {
            reader.fault(name, "must not be empty");
        }
        kind(text)
    };
    Some(StringMatch {
        kind,
        ignore_case: reader.is("ignore_case"),
    })
}

pub(super) fn header(reader: &Reader<'_>) -> Option<HeaderMatch> {
    let name = reader.text("name");
    if !is_token(name.trim_start_matches(':')) {
        reader.fault("name", format!("`{name}` is no header name"));
    }
    let text = |kind| {
        HeaderValueMatch::Text(StringMatch {
            kind,
            ignore_case: false,
        })
    };
    let old: [ByName; 4] = [
        ("exact_match", StringMatchKind::Exact),
        ("prefix_match", StringMatchKind::Prefix),
        ("suffix_match", StringMatchKind::Suffix),
        ("contains_match", StringMatchKind::Contains),
    ];
    let value = if let Some(string) = reader.message("string_match") {
        HeaderValueMatch::Text(self::string(&string)?)
    } else if let Some(regex) = reader.message("safe_regex_match") {
        text(StringMatchKind::Regex(pattern(&regex)?))
    } else if let Some(range) = reader.message("range_match") {
        let bound = |name| range.i64(name).unwrap_or_default();
        HeaderValueMatch::Range(bound("start"), bound("end"))
    } else if let Some((name, kind)) = old.into_iter().find(|(name, _)| reader.has(name)) {
        text(kind(reader.text(name)))
    } else {
        HeaderValueMatch::Present(reader.bool("present_match").unwrap_or(true))
    };
    Some(HeaderMatch {
        name: name.to_ascii_lowercase(),
        value,
        invert: reader.is("invert_match"),
        missing_is_empty: reader.is("treat_missing_header_as_empty"),
    })
}

fn query_parameter(reader: &Reader<'_>) -> Option<QueryMatch> {
    let name = reader.text("name");
    if name.is_empty() {
        reader.fault("name", "is required");
    }
    let value = match reader.message("string_match") {
        Some(string) => QueryValueMatch::Text(self::string(&string)?),
        None => QueryValueMatch::Present(reader.bool("present_match").unwrap_or(true)),
    };
    Some(QueryMatch { name, value })
}
