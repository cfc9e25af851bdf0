use std::borrow::Cow;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::route::{Action, DirectResponse, HeaderMatch, HeaderValueMatch, Mutations, RouteMatch};

struct Request(String, bool);

impl RequestView for Request {
    fn method(&self) -> &'static str {
        "GET"
    }

    fn path(&self) -> &str {
        &self.0
    }

    fn authority(&self) -> &'static str {
        "example.com"
    }

    fn header(&self, _: &str) -> Option<Cow<'_, [u8]>> {
        self.1.then(|| b"yes"[..].into())
    }

    fn any_line(&self, _: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> Option<bool> {
        self.1.then(|| test(b"yes"))
    }
}

/// Of few letters, so that they often begin alike.
fn path() -> impl Strategy<Value = String> {
    "/[ab/]{0,4}"
}

fn route() -> impl Strategy<Value = Route> {
    let kind = prop_oneof![
        path().prop_map(PathMatch::Exact),
        path().prop_map(PathMatch::Prefix),
        path().prop_map(PathMatch::SeparatedPrefix),
    ];
    (kind, prop::bool::weighted(0.8), prop::bool::weighted(0.3)).prop_map(
        |(path, case_sensitive, with_header)| Route {
            name: String::new(),
            matches: RouteMatch {
                path,
                case_sensitive,
                headers: with_header
                    .then(|| HeaderMatch {
                        name: "x".to_owned(),
                        value: HeaderValueMatch::Present(true),
                        invert: false,
                        missing_is_empty: false,
                    })
                    .into_iter()
                    .collect(),
                query: Vec::new(),
                fraction: None,
            },
            action: Action::Respond(DirectResponse {
                status: 200,
                body: Vec::new(),
            }),
            mutations: Mutations::default(),
        },
    )
}

proptest! {
    #[test]
    fn it_finds_what_asking_each_in_turn_finds(
        routes in vec(route(), WORTH_IT..40),
        path in "/[abA/]{0,5}([?][ab]{0,2})?",
        has_header: bool,
    ) {
        let request = Request(path, has_header);
        let index = RouteIndex::new(&routes).expect("enough routes");
        let found = index.first(&routes, &request, 0).map(std::ptr::from_ref);
        let mut each = routes.iter();
        let first = each.find(|route| route.matches.matches(&request, 0));
        prop_assert_eq!(found, first.map(std::ptr::from_ref));
    }
}
