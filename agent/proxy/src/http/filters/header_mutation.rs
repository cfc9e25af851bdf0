//! Changes to headers: the chain's own, then what routes say.

use hyper::Response;
use hyper::header::HeaderMap;
use shunt_core::http::filters::{HeaderAction, HeaderMutation, RouteFilter};
use shunt_core::http::format::Known;

use super::Asked;
use crate::http::Client;
use crate::http::body::ResponseBody;
use crate::http::received::Head;
use crate::http::sent::{add, known, lookup};

pub(super) struct At<'a> {
    /// In the order in which they are applied.
    all: Vec<&'a HeaderMutation>,
}

impl<'a> At<'a> {
    pub(super) fn new(
        chain: &'a HeaderMutation,
        own: impl Iterator<Item = &'a RouteFilter>,
    ) -> Self {
        let mut all = vec![chain];
        all.extend(own.filter_map(|own| match own {
            RouteFilter::HeaderMutation(own) => Some(own),
            _ => None,
        }));
        if chain.most_specific_wins {
            all[1..].reverse();
        }
        Self { all }
    }

    pub(super) async fn ask(&mut self, asked: &mut Asked<'_>) -> Option<Response<ResponseBody>> {
        for action in self.all.iter().flat_map(|one| &one.request) {
            let value = match action {
                HeaderAction::Remove(_) => Vec::new(),
                HeaderAction::Add(addition) => {
                    let known = known(asked.head, asked.client);
                    addition.value.render(&known).into_owned()
                }
            };
            apply(&mut asked.head.headers, action, &value);
        }
        None
    }

    pub(super) fn answer(
        &mut self,
        response: &mut Response<ResponseBody>,
        head: &Head,
        client: &Client<'_>,
    ) {
        for action in self.all.iter().flat_map(|one| &one.response) {
            let value = match action {
                HeaderAction::Remove(_) => Vec::new(),
                HeaderAction::Add(addition) => {
                    let headers = lookup(response.headers());
                    let known = Known {
                        response: Some(&headers),
                        response_code: Some(response.status().as_u16()),
                        ..known(head, client)
                    };
                    addition.value.render(&known).into_owned()
                }
            };
            apply(response.headers_mut(), action, &value);
        }
    }
}

fn apply(headers: &mut HeaderMap, action: &HeaderAction, value: &[u8]) {
    match action {
        HeaderAction::Remove(name) => {
            headers.remove(name.as_str());
        }
        HeaderAction::Add(addition) => add(headers, addition, value),
    }
}
