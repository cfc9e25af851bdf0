//! Answers those who ask how the proxy is.

use hyper::Response;
use hyper::header::{HeaderName, HeaderValue};
use shunt_core::http::filters::HealthCheck;

use super::Asked;
use crate::http::Client;
use crate::http::body::ResponseBody;
use crate::http::received::Head;
use crate::http::reply;

/// Of this proxy's own cluster, which has no name.
const CHECKED: HeaderName = HeaderName::from_static("x-envoy-upstream-healthchecked-cluster");

pub(super) struct At<'a> {
    chain: &'a HealthCheck,
    is_asked: bool,
}

impl<'a> At<'a> {
    pub(super) fn new(chain: &'a HealthCheck) -> Self {
        Self {
            chain,
            is_asked: false,
        }
    }

    pub(super) async fn ask(&mut self, asked: &mut Asked<'_>) -> Option<Response<ResponseBody>> {
        self.is_asked = self.chain.is_asked(asked.head);
        let answers = self.is_asked && !self.chain.pass_through;
        answers.then(|| reply::because(reply::local(200, ""), "", "health_check_ok"))
    }

    pub(super) fn answer(
        &mut self,
        response: &mut Response<ResponseBody>,
        _: &Head,
        _: &Client<'_>,
    ) {
        if self.is_asked {
            let headers = response.headers_mut();
            headers.insert(CHECKED, HeaderValue::from_static(""));
        }
    }
}
