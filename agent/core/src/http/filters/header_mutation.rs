use serde::{Deserialize, Serialize};

use crate::route::HeaderAddition;

/// Changes to headers, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderMutation {
    pub request: Vec<HeaderAction>,
    pub response: Vec<HeaderAction>,
    /// In the chain: what routes say is applied from the least specific to the most, rather than the other way round.
    pub most_specific_wins: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeaderAction {
    /// A name in lower case.
    Remove(String),
    Add(HeaderAddition),
}
