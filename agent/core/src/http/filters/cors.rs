use serde::{Deserialize, Serialize};

use crate::route::StringMatch;

/// Which other origins may call. What is `None` a less specific level may say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CorsPolicy {
    pub origins: Vec<StringMatch>,
    pub methods: Option<String>,
    pub headers: Option<String>,
    pub exposed: Option<String>,
    /// Seconds, as clients are told.
    pub max_age: Option<String>,
    pub credentials: Option<bool>,
    pub private_network: Option<bool>,
    pub forward_not_matching: Option<bool>,
    /// Of a million requests, for how many the policy is in force; `None`: for all.
    pub enabled: Option<u32>,
}

impl CorsPolicy {
    pub fn allows(&self, origin: &[u8]) -> bool {
        self.origins
            .iter()
            .any(|allowed| allowed.matches(b"*") || allowed.matches(origin))
    }
}
