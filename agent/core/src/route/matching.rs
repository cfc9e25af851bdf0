//! Which route a request takes: the virtual host by its host, then the first route that matches.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use super::index::RouteIndex;
use super::{
    HeaderMatch, HeaderValueMatch, PathMatch, QueryMatch, QueryValueMatch, Route,
    RouteConfiguration, RouteMatch, VirtualHost,
};
use crate::http::{RequestView, without_query};

/// Of hosts, by their length, the longest first.
type Parts = BTreeMap<Reverse<usize>, HashMap<String, usize>>;

/// Routes to be looked up in.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    configuration: RouteConfiguration,
    exact: HashMap<String, usize>,
    suffixes: Parts,
    prefixes: Parts,
    any: Option<usize>,
    /// Of each virtual host.
    indexes: Vec<Option<RouteIndex>>,
}

/// A virtual host, ready to be asked for a route.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    pub host: &'a VirtualHost,
    index: Option<&'a RouteIndex>,
}

impl RouteTable {
    pub fn new(configuration: RouteConfiguration) -> Self {
        let mut table = Self::default();
        for (at, host) in configuration.virtual_hosts.iter().enumerate() {
            for domain in &host.domains {
                if domain == "*" {
                    table.any = Some(at);
                } else if let Some(suffix) = domain.strip_prefix('*') {
                    let of_length = table.suffixes.entry(Reverse(suffix.len())).or_default();
                    of_length.insert(suffix.to_owned(), at);
                } else if let Some(prefix) = domain.strip_suffix('*') {
                    let of_length = table.prefixes.entry(Reverse(prefix.len())).or_default();
                    of_length.insert(prefix.to_owned(), at);
                } else {
                    table.exact.insert(domain.clone(), at);
                }
            }
        }
        let hosts = configuration.virtual_hosts.iter();
        table.indexes = hosts.map(|host| RouteIndex::new(&host.routes)).collect();
        table.configuration = configuration;
        table
    }

    pub fn configuration(&self) -> &RouteConfiguration {
        &self.configuration
    }

    /// The virtual host that serves `host`, in any case of letters.
    pub fn virtual_host(&self, host: &str) -> Option<Found<'_>> {
        let host = match self.configuration.ignore_port {
            true => without_port(host),
            false => host,
        };
        let host = match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => Cow::Owned(host.to_ascii_lowercase()),
            false => Cow::Borrowed(host),
        };
        let host = &*host;
        let end = |length| host.get(host.len() - length..);
        let start = |length| host.get(..length);
        let at = self.exact.get(host).copied();
        let at = at.or_else(|| longest(&self.suffixes, host, end));
        let at = at.or_else(|| longest(&self.prefixes, host, start));
        let at = at.or(self.any)?;
        Some(Found {
            host: self.configuration.virtual_hosts.get(at)?,
            index: self.indexes.get(at)?.as_ref(),
        })
    }
}

/// What the longest part of `host` that is known stands for. A wildcard beside it is one character at least.
fn longest<'h>(
    parts: &Parts,
    host: &'h str,
    part: impl Fn(usize) -> Option<&'h str>,
) -> Option<usize> {
    let shorter = parts
        .iter()
        .filter(|(Reverse(length), _)| *length < host.len());
    shorter
        .filter_map(|(Reverse(length), of_length)| of_length.get(part(*length)?))
        .next()
        .copied()
}

impl<'a> Found<'a> {
    /// The first that matches. `random` decides on fractions, and must be the same whenever this request asks again.
    pub fn route(self, request: &dyn RequestView, random: u64) -> Option<&'a Route> {
        let routes = &self.host.routes;
        match self.index {
            Some(index) => index.first(routes, request, random),
            None => routes
                .iter()
                .find(|route| route.matches.matches(request, random)),
        }
    }
}

impl RouteMatch {
    pub fn matches(&self, request: &dyn RequestView, random: u64) -> bool {
        self.fraction
            .is_none_or(|millionths| random % 1_000_000 < u64::from(millionths))
            && (self.path == PathMatch::Connect) == (request.method() == "CONNECT")
            && self.path_matches(without_query(request.path()))
            && self.headers.iter().all(|header| header.matches(request))
            && self.query_matches(request.path())
    }

    fn path_matches(&self, path: &str) -> bool {
        let starts = |prefix: &str| {
            path.as_bytes()
                .get(..prefix.len())
                .is_some_and(|start| match self.case_sensitive {
                    true => start == prefix.as_bytes(),
                    false => start.eq_ignore_ascii_case(prefix.as_bytes()),
                })
        };
        match &self.path {
            PathMatch::Prefix(prefix) => starts(prefix),
            PathMatch::SeparatedPrefix(prefix) => {
                starts(prefix) && matches!(path.as_bytes().get(prefix.len()), None | Some(b'/'))
            }
            PathMatch::Exact(exact) => path.len() == exact.len() && starts(exact),
            PathMatch::Regex(pattern) => pattern.matches(path.as_bytes()),
            PathMatch::Connect => true,
        }
    }

    /// How many bytes of the path, which matches, the match is about.
    pub fn matched_length(&self, path: &str) -> usize {
        match &self.path {
            PathMatch::Prefix(prefix) | PathMatch::SeparatedPrefix(prefix) => prefix.len(),
            PathMatch::Exact(_) | PathMatch::Regex(_) | PathMatch::Connect => path.len(),
        }
    }

    fn query_matches(&self, path: &str) -> bool {
        if self.query.is_empty() {
            return true;
        }
        let query = path.split_once('?').map_or("", |(_, query)| query);
        let query = query.split('#').next().unwrap_or_default();
        self.query.iter().all(|wanted| wanted.matches(query))
    }
}

impl HeaderMatch {
    pub fn matches(&self, request: &dyn RequestView) -> bool {
        let mut test = |value: &[u8]| self.value.matches(value);
        let found = match self.name.as_str() {
            name if name.starts_with(':') || name == "host" => {
                request.any_header(name).map(|value| test(&value))
            }
            name => request.any_line(name, &mut test),
        };
        if let HeaderValueMatch::Present(present) = self.value {
            let is_there = found.is_some() || self.missing_is_empty;
            return (is_there == present) != self.invert;
        }
        // One line that matches is enough; what is not there matches nothing, inverted or not.
        let found = found.or_else(|| self.missing_is_empty.then(|| test(b"")));
        found.is_some_and(|matches| matches != self.invert)
    }
}

impl HeaderValueMatch {
    fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Text(text) => text.matches(value),
            Self::Range(from, to) => std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse::<i64>().ok())
                .is_some_and(|number| (*from..*to).contains(&number)),
            Self::Present(_) => true,
        }
    }
}

impl QueryMatch {
    /// The first parameter of the name counts; nothing is decoded.
    fn matches(&self, query: &str) -> bool {
        let mut pairs = query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let value = pairs
            .find(|(name, _)| *name == self.name)
            .map(|(_, value)| value);
        match &self.value {
            QueryValueMatch::Present(present) => value.is_some() == *present,
            QueryValueMatch::Text(text) => {
                value.is_some_and(|value| text.matches(value.as_bytes()))
            }
        }
    }
}

/// An authority's host.
pub fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port))
            if port.bytes().all(|byte| byte.is_ascii_digit())
                && (!host.contains(':') || host.ends_with(']')) =>
        {
            host
        }
        _ => authority,
    }
}

#[cfg(test)]
mod tests;
