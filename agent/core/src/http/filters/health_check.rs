use serde::{Deserialize, Serialize};

use crate::http::RequestView;
use crate::route::HeaderMatch;

/// Requests that ask how the proxy is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// All of these make a request one.
    pub headers: Vec<HeaderMatch>,
    /// It is answered by the upstream, rather than here.
    pub pass_through: bool,
}

impl HealthCheck {
    pub fn is_asked(&self, request: &dyn RequestView) -> bool {
        self.headers.iter().all(|header| header.matches(request))
    }
}
