//! Routing of HTTP requests: what is matched, what is done. How: [`matching`], [`rewriting`].

mod index;
pub mod matching;
pub mod pattern;
pub mod rewriting;
pub mod template;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::pattern::{Pattern, StringMatch};
use crate::cluster::Weighted;
use crate::cluster::subsets::Metadata;
use crate::http::Upgrade;
use crate::http::filters::PerFilter;
use crate::http::format::Format;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RouteConfiguration {
    pub name: String,
    pub virtual_hosts: Vec<VirtualHost>,
    /// `host:8080` is looked for as `host`.
    pub ignore_port: bool,
    pub mutations: Mutations,
    pub filters: PerFilter,
    /// The order of mutations is this, virtual host, route rather than the other way round: who comes last wins.
    pub most_specific_wins: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VirtualHost {
    pub name: String,
    /// In lower case. Exact, `*.suffix`, `prefix.*` or `*`; no two hosts share one.
    pub domains: Vec<String>,
    pub require_tls: bool,
    pub routes: Vec<Route>,
    pub mutations: Mutations,
    pub filters: PerFilter,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    pub name: String,
    pub matches: RouteMatch,
    pub action: Action,
    pub mutations: Mutations,
    pub filters: PerFilter,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteMatch {
    pub path: PathMatch,
    /// Regular expressions always are.
    pub case_sensitive: bool,
    pub headers: Vec<HeaderMatch>,
    pub query: Vec<QueryMatch>,
    /// Requests in a million; `None`: all.
    pub fraction: Option<u32>,
}

/// Of the path without its query.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathMatch {
    Prefix(String),
    /// The prefix, and then a `/` or nothing.
    SeparatedPrefix(String),
    Exact(String),
    Regex(Pattern),
    /// `CONNECT`, which has no path and which nothing else matches.
    Connect,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeaderMatch {
    /// In lower case.
    pub name: String,
    pub value: HeaderValueMatch,
    pub invert: bool,
    pub missing_is_empty: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeaderValueMatch {
    Present(bool),
    Text(StringMatch),
    /// From, and to without the end.
    Range(i64, i64),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueryMatch {
    pub name: String,
    pub value: QueryValueMatch,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueryValueMatch {
    Present(bool),
    Text(StringMatch),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Forward(Box<Forward>),
    Redirect(Box<Redirect>),
    Respond(DirectResponse),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forward {
    pub target: Target,
    /// What endpoints are to have, where the cluster has subsets; of weighted clusters, each has its own beside.
    pub metadata: Metadata,
    /// The status when the cluster is not there.
    pub cluster_not_found: u16,
    pub rewrite: Option<Rewrite>,
    pub host: Option<HostRewrite>,
    /// In the end it becomes the endpoint's, if that has one.
    pub host_of_endpoint: bool,
    /// Tell upstreams the host as the client said it, in `x-forwarded-host`.
    pub append_x_forwarded_host: bool,
    /// From the end of the request to the end of the response; zero: none.
    pub timeout: Duration,
    /// A request of which nothing moves; `None`: as the connection manager says.
    pub idle_timeout: Option<Duration>,
    /// What a connection may become here.
    pub upgrades: Vec<Upgrade>,
    /// `CONNECT` ends here: the upstream sees the bytes in it, and not the request.
    pub terminates_connect: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    Clusters(Weighted<ClusterChoice>),
    /// The cluster that this request header names.
    Header(String),
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterChoice {
    pub name: String,
    pub mutations: Mutations,
    pub filters: PerFilter,
    pub host: Option<String>,
    /// With the route's.
    pub metadata: Metadata,
}

/// Of the path; the query stays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rewrite {
    /// In place of what the path match has matched.
    Prefix(String),
    /// Every place that the pattern matches; `\1` is its first group.
    Regex(Pattern, String),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostRewrite {
    Literal(String),
    /// What this request header says, if it is there.
    Header(String),
    /// Of the path without its query.
    PathRegex(Pattern, String),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Redirect {
    pub status: u16,
    pub scheme: Option<String>,
    pub host: Option<String>,
    pub port: Option<u16>,
    pub path: RedirectPath,
    pub strip_query: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RedirectPath {
    Same,
    /// With a query of its own it replaces the request's.
    Path(String),
    Rewrite(Rewrite),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectResponse {
    pub status: u16,
    pub body: Vec<u8>,
}

/// Changes to headers of requests and responses at one level.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mutations {
    pub request: HeaderMutations,
    pub response: HeaderMutations,
}

/// Removed before anything is added.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderMutations {
    /// In lower case.
    pub remove: Vec<String>,
    pub add: Vec<HeaderAddition>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderAddition {
    /// In lower case.
    pub name: String,
    pub value: Format,
    pub action: AppendAction,
    pub keep_empty: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AppendAction {
    AppendIfExistsOrAdd,
    AddIfAbsent,
    OverwriteIfExistsOrAdd,
    OverwriteIfExists,
}

impl RouteConfiguration {
    /// Every cluster that a route names.
    pub fn clusters(&self) -> Vec<&str> {
        let routes = self.virtual_hosts.iter().flat_map(|host| &host.routes);
        let targets = routes.filter_map(|route| match &route.action {
            Action::Forward(forward) => Some(&forward.target),
            Action::Redirect(_) | Action::Respond(_) => None,
        });
        let chosen = targets.filter_map(|target| match target {
            Target::Clusters(clusters) => {
                Some(clusters.iter().map(|cluster| cluster.name.as_str()))
            }
            Target::Header(_) => None,
        });
        chosen.flatten().collect()
    }
}
