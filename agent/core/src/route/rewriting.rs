//! What becomes of a request's host and path.

use super::{HostRewrite, Redirect, RedirectPath, Rewrite, RouteMatch};
use crate::http::{RequestView, without_query};

impl Rewrite {
    /// The whole path, with its query, of a request that `matched`.
    pub fn apply(&self, path: &str, matched: &RouteMatch) -> String {
        let plain = without_query(path);
        let query = &path[plain.len()..];
        match self {
            Self::Prefix(prefix) => {
                format!(
                    "{prefix}{}",
                    &path[matched.matched_length(plain).min(plain.len())..]
                )
            }
            Self::Regex(pattern, substitution) => {
                format!("{}{query}", pattern.replace_all(plain, substitution))
            }
        }
    }
}

impl HostRewrite {
    /// The new host; `None`: it stays.
    pub fn apply(&self, request: &dyn RequestView) -> Option<String> {
        match self {
            Self::Literal(host) => Some(host.clone()),
            Self::Header(name) => {
                let value = request.any_header(name)?;
                let value = String::from_utf8_lossy(&value).into_owned();
                (!value.is_empty()).then_some(value)
            }
            Self::PathRegex(pattern, substitution) => {
                Some(pattern.replace_all(without_query(request.path()), substitution))
            }
        }
    }
}

impl Redirect {
    /// Where to. `proto` is what the client's connection speaks: `http` or `https`.
    pub fn location(&self, request: &dyn RequestView, matched: &RouteMatch, proto: &str) -> String {
        let scheme = self.scheme.as_deref().unwrap_or(proto);
        let host = match &self.host {
            Some(host) => host.clone(),
            None => self.same_host(request.authority(), scheme, proto),
        };
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        format!(
            "{scheme}://{host}{port}{}",
            self.path(request.path(), matched)
        )
    }

    /// Without a port that the new one replaces, or that was only the old scheme's own.
    fn same_host(&self, authority: &str, scheme: &str, proto: &str) -> String {
        let at = match authority.starts_with('[') {
            true => authority.rfind("]:").map(|at| at + 1),
            false => authority.rfind(':'),
        };
        let Some((host, port)) = at.map(|at| authority.split_at(at)) else {
            return authority.to_owned();
        };
        let is_own = matches!((proto, port), ("http", ":80") | ("https", ":443"));
        match self.port.is_some() || scheme != proto && is_own {
            true => host.to_owned(),
            false => authority.to_owned(),
        }
    }

    fn path(&self, path: &str, matched: &RouteMatch) -> String {
        let query = &path[without_query(path).len()..];
        let whole = match &self.path {
            RedirectPath::Path(new) if new.contains('?') => return new.clone(),
            RedirectPath::Path(new) => format!("{new}{query}"),
            RedirectPath::Rewrite(rewrite) => rewrite.apply(path, matched),
            RedirectPath::Same => path.to_owned(),
        };
        match self.strip_query {
            true => without_query(&whole).to_owned(),
            false => whole,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::route::{PathMatch, Pattern};

    struct Request(&'static str, &'static str);

    impl RequestView for Request {
        fn method(&self) -> &'static str {
            "GET"
        }

        fn path(&self) -> &str {
            self.1
        }

        fn authority(&self) -> &str {
            self.0
        }

        fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
            (name == "x-host").then(|| b"other".into())
        }

        fn any_line(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> Option<bool> {
            self.header(name).map(|value| test(&value))
        }
    }

    fn matched(path: PathMatch) -> RouteMatch {
        RouteMatch {
            path,
            case_sensitive: true,
            headers: Vec::new(),
            query: Vec::new(),
            fraction: None,
        }
    }

    #[test]
    fn what_was_matched_is_replaced_and_the_query_stays() {
        let prefix = Rewrite::Prefix("/new".into());
        let old = matched(PathMatch::Prefix("/old".into()));
        assert_eq!(prefix.apply("/old/a?b=/old", &old), "/new/a?b=/old");
        assert_eq!(prefix.apply("/old?b", &old), "/new?b");
        let exact = matched(PathMatch::Exact("/old/x".into()));
        assert_eq!(prefix.apply("/old/x?b", &exact), "/new?b");
        let pattern = Pattern::parse("/v([0-9]+)/").expect("a pattern");
        let regex = Rewrite::Regex(pattern, r"/\1/".into());
        assert_eq!(regex.apply("/v2/a/v3/b?/v4/", &old), "/2/a/3/b?/v4/");
    }

    #[test]
    fn locations_are_built_as_envoy_builds_them() {
        let any = matched(PathMatch::Prefix("/old".into()));
        let redirect = Redirect {
            status: 301,
            scheme: None,
            host: None,
            port: None,
            path: RedirectPath::Same,
            strip_query: false,
        };
        let to =
            |redirect: Redirect, host, path| redirect.location(&Request(host, path), &any, "http");
        let https = || Redirect {
            scheme: Some("https".into()),
            ..redirect.clone()
        };
        assert_eq!(to(https(), "a.com", "/old?x"), "https://a.com/old?x");
        assert_eq!(to(https(), "a.com:80", "/"), "https://a.com/");
        assert_eq!(to(https(), "a.com:8080", "/"), "https://a.com:8080/");
        let port = Redirect {
            port: Some(8443),
            ..https()
        };
        assert_eq!(to(port, "[::1]:80", "/"), "https://[::1]:8443/");
        let path = |path: &str, strip_query| Redirect {
            path: RedirectPath::Path(path.into()),
            strip_query,
            ..redirect.clone()
        };
        assert_eq!(to(path("/n", false), "a", "/old?x"), "http://a/n?x");
        assert_eq!(to(path("/n?y", true), "a", "/old?x"), "http://a/n?y");
        assert_eq!(to(path("/n", true), "a", "/old?x"), "http://a/n");
        let rewritten = Redirect {
            path: RedirectPath::Rewrite(Rewrite::Prefix("/new".into())),
            ..redirect.clone()
        };
        assert_eq!(to(rewritten, "a", "/old/b?c"), "http://a/new/b?c");
    }

    #[test]
    fn hosts_come_from_where_they_are_said() {
        let request = Request("a", "/tenant/b?c");
        let pattern = Pattern::parse("^/tenant/(.+)$").expect("a pattern");
        let rows = [
            (HostRewrite::Literal("x".into()), Some("x")),
            (HostRewrite::Header("x-host".into()), Some("other")),
            (HostRewrite::Header("x-none".into()), None),
            (
                HostRewrite::PathRegex(pattern, r"\1.svc".into()),
                Some("b.svc"),
            ),
        ];
        for (rewrite, host) in rows {
            assert_eq!(rewrite.apply(&request).as_deref(), host, "{rewrite:?}");
        }
    }
}
