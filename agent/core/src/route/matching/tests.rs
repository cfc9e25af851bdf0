use std::borrow::Cow;

use super::*;
use crate::route::pattern::StringMatchKind;
use crate::route::{Action, DirectResponse, Mutations, Pattern, StringMatch};

struct Request {
    method: &'static str,
    path: &'static str,
    headers: &'static [(&'static str, &'static str)],
}

impl RequestView for Request {
    fn method(&self) -> &'static str {
        self.method
    }

    fn path(&self) -> &str {
        self.path
    }

    fn authority(&self) -> &'static str {
        "example.com"
    }

    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let mut found = self.headers.iter().filter(|(known, _)| *known == name);
        found.next().map(|(_, value)| value.as_bytes().into())
    }

    fn any_line(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> Option<bool> {
        let mut found = self
            .headers
            .iter()
            .filter(|(known, _)| *known == name)
            .peekable();
        found.peek()?;
        Some(found.any(|(_, value)| test(value.as_bytes())))
    }
}

fn host(name: &str, domains: &[&str]) -> VirtualHost {
    VirtualHost {
        name: name.into(),
        domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
        require_tls: false,
        routes: Vec::new(),
        mutations: Mutations::default(),
        filters: Vec::new(),
    }
}

fn path(path: PathMatch) -> RouteMatch {
    RouteMatch {
        path,
        case_sensitive: true,
        headers: Vec::new(),
        query: Vec::new(),
        fraction: None,
    }
}

fn text(kind: StringMatchKind) -> StringMatch {
    StringMatch {
        kind,
        ignore_case: false,
    }
}

#[test]
fn hosts_are_looked_for_from_exact_to_any() {
    let table = |ignore_port| {
        RouteTable::new(RouteConfiguration {
            virtual_hosts: vec![
                host("any", &["*"]),
                host("exact", &["www.foo.com", "foo.com:8080"]),
                host("suffix", &["*.foo.com"]),
                host("longer", &["*.bar.foo.com", "*-x.foo.com"]),
                host("prefix", &["www.*"]),
            ],
            ignore_port,
            ..RouteConfiguration::default()
        })
    };
    let found = |ignore_port, host: &str| {
        let table = table(ignore_port);
        table
            .virtual_host(host)
            .map(|found| found.host.name.clone())
    };
    for (host, name) in [
        ("www.foo.com", "exact"),
        ("WWW.Foo.COM", "exact"),
        ("www.foo.com:80", "prefix"),
        ("api.foo.com", "suffix"),
        ("a.bar.foo.com", "longer"),
        ("a-x.foo.com", "longer"),
        (".foo.com", "any"),
        ("foo.com", "any"),
        ("foo.com:8080", "exact"),
        ("www.bar.com", "prefix"),
        ("www.", "any"),
        ("", "any"),
    ] {
        assert_eq!(found(false, host).as_deref(), Some(name), "{host}");
    }
    assert_eq!(found(true, "www.foo.com:80").as_deref(), Some("exact"));
    assert_eq!(without_port("[fd00::1]:80"), "[fd00::1]");
    assert_eq!(without_port("[fd00::1]"), "[fd00::1]");
}

#[test]
fn paths_are_matched_without_their_query() {
    let rows = [
        (
            PathMatch::Prefix("/a".into()),
            &["/a", "/ab", "/a/b?c"][..],
            &["/b", "/A", "/"][..],
        ),
        (
            PathMatch::SeparatedPrefix("/a".into()),
            &["/a", "/a/b", "/a?x"],
            &["/ab"],
        ),
        (
            PathMatch::Exact("/a".into()),
            &["/a", "/a?x=/b"],
            &["/a/", "/A"],
        ),
        (
            PathMatch::Regex(Pattern::parse("/[a-c]+").expect("a pattern")),
            &["/abc", "/abc?d"],
            &["/abcd", "x/abc"],
        ),
    ];
    for (wanted, yes, no) in rows {
        let wanted = path(wanted);
        let is = |path| {
            wanted.matches(
                &Request {
                    method: "GET",
                    path,
                    headers: &[],
                },
                0,
            )
        };
        assert!(yes.iter().all(|path| is(path)), "{wanted:?}");
        assert!(!no.iter().any(|path| is(path)), "{wanted:?}");
    }
    let any_case = RouteMatch {
        case_sensitive: false,
        ..path(PathMatch::Exact("/Ab".into()))
    };
    assert!(any_case.matches(
        &Request {
            method: "GET",
            path: "/aB",
            headers: &[]
        },
        0
    ));
}

#[test]
fn connect_has_routes_of_its_own() {
    let request = |method, path| Request {
        method,
        path,
        headers: &[],
    };
    let connect = path(PathMatch::Connect);
    assert!(connect.matches(&request("CONNECT", ""), 0));
    assert!(!connect.matches(&request("GET", "/"), 0));
    let all = path(PathMatch::Prefix(String::new()));
    assert!(!all.matches(&request("CONNECT", ""), 0));
}

#[test]
fn headers_match_as_envoy_says() {
    let request = Request {
        method: "GET",
        path: "/",
        headers: &[("x-n", "42"), ("x-e", ""), ("x-two", "1"), ("x-two", "2")],
    };
    let is = |name: &str, value: HeaderValueMatch, invert, missing_is_empty| {
        let matcher = HeaderMatch {
            name: name.into(),
            value,
            invert,
            missing_is_empty,
        };
        matcher.matches(&request)
    };
    use HeaderValueMatch::{Present, Range, Text};
    let exact = |value: &str| Text(text(StringMatchKind::Exact(value.into())));
    assert!(is("x-n", Present(true), false, false));
    assert!(!is("x-n", Present(true), true, false));
    assert!(is("x-none", Present(false), false, false));
    assert!(is("x-none", Present(true), true, false));
    assert!(is("x-n", Range(42, 43), false, false));
    assert!(!is("x-n", Range(0, 42), false, false));
    assert!(!is("x-e", Range(0, 42), false, false));
    assert!(is("x-n", exact("42"), false, false));
    assert!(is("x-n", exact("43"), true, false));
    // What is not there matches nothing, inverted or not.
    assert!(!is("x-none", exact(""), false, false));
    assert!(!is("x-none", exact("1"), true, false));
    assert!(is("x-none", exact(""), false, true));
    assert!(is("x-two", exact("1"), false, false) && is("x-two", exact("2"), false, false));
    assert!(!is("x-two", exact("2"), true, false));
    assert!(is(":method", exact("GET"), false, false));
    assert!(is(":path", exact("/"), false, false));
}

#[test]
fn the_first_parameter_of_a_name_counts() {
    let is = |path: &'static str, value| {
        let wanted = RouteMatch {
            query: vec![QueryMatch {
                name: "a".into(),
                value,
            }],
            ..self::path(PathMatch::Prefix("/".into()))
        };
        wanted.matches(
            &Request {
                method: "GET",
                path,
                headers: &[],
            },
            0,
        )
    };
    let exact = |value: &str| QueryValueMatch::Text(text(StringMatchKind::Exact(value.into())));
    assert!(is("/?b=1&a=2&a=3", exact("2")));
    assert!(!is("/?b=1&a=2&a=3", exact("3")));
    assert!(is("/?a", exact("")));
    assert!(!is("/?aa=1", QueryValueMatch::Present(true)));
    assert!(is("/?a=%41", exact("%41")));
    assert!(is("/", QueryValueMatch::Present(false)));
}

#[test]
fn the_first_route_that_matches_is_taken_by_its_share() {
    let route = |name: &str, fraction| Route {
        name: name.into(),
        matches: RouteMatch {
            fraction,
            ..path(PathMatch::Prefix("/".into()))
        },
        action: Action::Respond(DirectResponse {
            status: 200,
            body: Vec::new(),
        }),
        mutations: Mutations::default(),
        filters: Vec::new(),
    };
    let host = VirtualHost {
        routes: vec![route("some", Some(250_000)), route("rest", None)],
        ..host("h", &["*"])
    };
    let table = RouteTable::new(RouteConfiguration {
        virtual_hosts: vec![host],
        ..RouteConfiguration::default()
    });
    let name = |random| {
        let request = Request {
            method: "GET",
            path: "/",
            headers: &[],
        };
        let found = table.virtual_host("h").expect("a host");
        found
            .route(&request, random)
            .map(|route| route.name.clone())
    };
    assert_eq!(name(249_999).as_deref(), Some("some"));
    assert_eq!(name(250_000).as_deref(), Some("rest"));
    assert_eq!(name(1_000_000).as_deref(), Some("some"));
}
