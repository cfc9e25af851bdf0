//! A route table and a request, both from lines: `word argument`. Paths are made the same, matched, rewritten; header values
//! are rendered.
#![no_main]

use std::borrow::Cow;
use std::net::SocketAddr;

use libfuzzer_sys::fuzz_target;
use shunt_core::http::format::Format;
use shunt_core::http::filters::PerFilter;
use shunt_core::http::{PathRules, RequestView};
use shunt_core::route::matching::RouteTable;
use shunt_core::route::{
    Action, DirectResponse, HeaderMatch, HeaderValueMatch, HostRewrite, Mutations, PathMatch,
    Pattern, QueryMatch, QueryValueMatch, Redirect, RedirectPath, Rewrite, Route,
    RouteConfiguration, RouteMatch, VirtualHost,
};

#[derive(Default)]
struct Request<'a> {
    path: String,
    authority: &'a str,
    header: &'a str,
}

impl RequestView for Request<'_> {
    fn method(&self) -> &str {
        "GET"
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn authority(&self) -> &str {
        self.authority
    }

    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        (name == "x").then(|| self.header.as_bytes().into())
    }

    fn any_line(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> Option<bool> {
        (name == "x").then(|| test(self.header.as_bytes()))
    }
}

fuzz_target!(|text: &str| {
    let mut request = Request {
        path: "/".to_owned(),
        ..Request::default()
    };
    let mut domains = Vec::new();
    let mut routes: Vec<Route> = Vec::new();
    let mut rewrites = Vec::new();
    let mut hosts = Vec::new();
    for line in text.lines().take(32) {
        let (word, argument) = line.split_once(' ').unwrap_or((line, ""));
        let last = routes.last_mut().map(|route| &mut route.matches);
        match (word, last) {
            ("path", _) => request.path = format!("/{argument}"),
            ("host", _) => request.authority = argument,
            ("header", _) => request.header = argument,
            ("domain", _) => domains.push(argument.to_lowercase()),
            ("prefix", _) => routes.push(route(PathMatch::Prefix(argument.into()))),
            ("separated", _) => routes.push(route(PathMatch::SeparatedPrefix(argument.into()))),
            ("exact", _) => routes.push(route(PathMatch::Exact(argument.into()))),
            ("regex", _) => {
                let pattern = Pattern::parse(argument).ok();
                routes.extend(pattern.map(|pattern| route(PathMatch::Regex(pattern))));
            }
            ("nocase", Some(last)) => last.case_sensitive = false,
            ("query", Some(last)) => last.query.push(QueryMatch {
                name: argument.into(),
                value: QueryValueMatch::Present(true),
            }),
            ("range", Some(last)) => last.headers.push(header(HeaderValueMatch::Range(-3, 7))),
            ("present", Some(last)) => last.headers.push(header(HeaderValueMatch::Present(true))),
            ("to", _) => rewrites.push(Rewrite::Prefix(argument.into())),
            ("sub", _) => {
                if let Some((pattern, substitution)) = substitution(argument) {
                    rewrites.push(Rewrite::Regex(pattern.clone(), substitution.clone()));
                    hosts.push(HostRewrite::PathRegex(pattern, substitution));
                }
            }
            ("format", _) => render(argument, &request),
            _ => {}
        }
    }
    for rules in [(false, true), (true, false), (true, true)] {
        let (normalize, merge_slashes) = rules;
        let rules = PathRules {
            normalize,
            merge_slashes,
        };
        let once = rules.apply(&request.path);
        assert!(once.starts_with('/'), "{once}");
        if rules.normalize {
            request.path = once;
        }
    }
    let table = RouteTable::new(RouteConfiguration {
        virtual_hosts: vec![VirtualHost {
            name: "v".into(),
            domains,
            require_tls: false,
            routes,
            mutations: Mutations::default(),
            filters: PerFilter::default(),
        }],
        ..RouteConfiguration::default()
    });
    let Some(host) = table.virtual_host(request.authority) else {
        return;
    };
    let Some(route) = host.route(&request, 0) else {
        return;
    };
    assert!(route.matches.matches(&request, 0));
    for rewrite in rewrites {
        rewrite.apply(&request.path, &route.matches);
        let redirect = Redirect {
            status: 301,
            scheme: None,
            host: None,
            port: Some(81),
            path: RedirectPath::Rewrite(rewrite),
            strip_query: false,
        };
        redirect.location(&request, &route.matches, "http");
    }
    for host in hosts {
        host.apply(&request);
    }
});

fn route(path: PathMatch) -> Route {
    Route {
        name: String::new(),
        matches: RouteMatch {
            path,
            case_sensitive: true,
            headers: Vec::new(),
            query: Vec::new(),
            fraction: None,
        },
        action: Action::Respond(DirectResponse {
            status: 200,
            body: Vec::new(),
        }),
        mutations: Mutations::default(),
        filters: PerFilter::default(),
    }
}

fn header(value: HeaderValueMatch) -> HeaderMatch {
    HeaderMatch {
        name: "x".into(),
        value,
        invert: false,
        missing_is_empty: false,
    }
}

fn substitution(argument: &str) -> Option<(Pattern, String)> {
    let (pattern, substitution) = argument.split_once(' ')?;
    let pattern = Pattern::parse(pattern).ok()?;
    pattern.check_substitution(substitution).ok()?;
    Some((pattern, substitution.to_owned()))
}

fn render(text: &str, request: &Request<'_>) {
    let Ok(format) = Format::parse(text) else {
        return;
    };
    let addr = SocketAddr::from(([10, 0, 0, 1], 80));
    let value = |name: &str| (name == "x").then(|| b"v\xff".to_vec());
    let known = shunt_core::http::format::Known {
        request,
        response: Some(&value),
        protocol: "HTTP/1.1",
        response_code: Some(200),
        local_reply: None,
        flags: "-",
        details: "",
        so_far: std::time::Duration::ZERO,
        client: addr,
        direct_client: addr,
        listener: addr,
        upstream: None,
        route: "r",
        cluster: None,
    };
    format.render(&known);
    let again = String::from(format);
    assert_eq!(again, text);
}
