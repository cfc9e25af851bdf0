//! HTTP filters at work: what a request meets between its reception and the router, and its response on the way back.
//!
//! One more is a file, and a line in the list below.

use hyper::Response;
use shunt_core::http::filters::{FilterKind, HttpFilter, PerFilter, RouteFilter};
use shunt_core::route::matching::RouteTable;
use shunt_core::route::{Action, Forward, Route, Target, VirtualHost};

use super::Client;
use super::body::{RequestBody, ResponseBody};
use super::received::Head;
use super::sent::Matched;
use super::talk::Progress;

/// A filter has a type `At`, which is one request's: `at` begins it, with what routes say, the most specific first; `ask`
/// may answer in the upstream's place; `answer` sees every response.
macro_rules! filters {
    ($($kind:ident $module:ident)*) => {
        $(mod $module;)*

        /// A filter at work on one request.
        enum At<'a> {
            $($kind($module::At<'a>),)*
        }

        impl At<'_> {
            async fn ask(&mut self, asked: &mut Asked<'_>) -> Option<Response<ResponseBody>> {
                match self {
                    $(Self::$kind(at) => at.ask(asked).await,)*
                }
            }

            fn answer(&mut self, response: &mut Response<ResponseBody>, head: &Head, client: &Client<'_>) {
                match self {
                    $(Self::$kind(at) => at.answer(response, head, client),)*
                }
            }
        }
    };
}

filters! {
    Cors cors
    HeaderMutation header_mutation
    Buffer buffer
    HealthCheck health_check
}

/// Where a request would go.
pub(super) struct Found<'a> {
    pub(super) host: Option<&'a VirtualHost>,
    pub(super) route: Option<&'a Route>,
    /// The most specific first.
    levels: [Option<&'a PerFilter>; 4],
}

/// What a filter may look at and change.
pub(super) struct Asked<'a> {
    pub(super) head: &'a mut Head,
    pub(super) body: &'a mut RequestBody,
    pub(super) client: &'a Client<'a>,
    pub(super) progress: &'a Progress,
}

/// Those that work on a request, in their order.
pub(super) struct Filters<'a>(Vec<At<'a>>);

impl<'a> Found<'a> {
    pub(super) fn new(routes: &'a RouteTable, head: &Head, random: u64) -> Self {
        let place = routes.virtual_host(&head.authority);
        let route = place.and_then(|place| place.route(head, random));
        let host = place.map(|place| place.host);
        let choice = route.and_then(|route| match &route.action {
            Action::Forward(forward) => match &forward.target {
                Target::Clusters(clusters) => Some(clusters.choose(random)),
                Target::Header(_) => None,
            },
            Action::Redirect(_) | Action::Respond(_) => None,
        });
        Self {
            host,
            route,
            levels: [
                choice.map(|choice| &choice.filters),
                route.map(|route| &route.filters),
                host.filter(|_| route.is_some()).map(|host| &host.filters),
                route.map(|_| &routes.configuration().filters),
            ],
        }
    }
}

impl<'a> Found<'a> {
    /// Of a route that leads to an upstream.
    pub(super) fn forward(&self) -> Option<&'a Forward> {
        match self.route.map(|route| &route.action) {
            Some(Action::Forward(forward)) => Some(forward),
            _ => None,
        }
    }

    /// `None`: there is no route.
    pub(super) fn matched(&self, routes: &'a RouteTable) -> Option<Matched<'a>> {
        Some(Matched {
            routes: routes.configuration(),
            host: self.host?,
            route: self.route?,
            cluster: None,
            endpoint: None,
        })
    }
}

impl<'a> Filters<'a> {
    pub(super) fn new(chain: &'a [HttpFilter], found: &Found<'a>, random: u64) -> Self {
        let levels = || found.levels.iter().flatten().copied();
        let forwards = found.forward().is_some();
        let working = chain.iter().filter(|filter| filter.works(levels()));
        Self(
            working
                .filter_map(|filter| At::new(filter, filter.own(levels()), forwards, random))
                .collect(),
        )
    }

    /// The answer of a filter that lets the request go no further.
    pub(super) async fn ask(&mut self, mut asked: Asked<'_>) -> Option<Response<ResponseBody>> {
        for at in &mut self.0 {
            if let Some(own) = at.ask(&mut asked).await {
                return Some(own);
            }
        }
        None
    }

    /// The response passes them in reverse.
    pub(super) fn answer(
        &mut self,
        response: &mut Response<ResponseBody>,
        head: &Head,
        client: &Client<'_>,
    ) {
        for at in self.0.iter_mut().rev() {
            at.answer(response, head, client);
        }
    }
}

impl<'a> At<'a> {
    /// `None`: it has nothing to do.
    fn new(
        filter: &'a HttpFilter,
        mut own: impl Iterator<Item = &'a RouteFilter>,
        forwards: bool,
        random: u64,
    ) -> Option<Self> {
        match &filter.kind {
            // As in Envoy, it is about upstreams only.
            FilterKind::Cors if !forwards => None,
            FilterKind::Cors => cors::At::new(own, random).map(Self::Cors),
            FilterKind::HeaderMutation(chain) => {
                Some(Self::HeaderMutation(header_mutation::At::new(chain, own)))
            }
            FilterKind::Buffer(chain) => {
                let own = own.find_map(|own| match own {
                    RouteFilter::Buffer(own) => Some(own),
                    _ => None,
                });
                Some(Self::Buffer(buffer::At::new(own.unwrap_or(chain))))
            }
            FilterKind::HealthCheck(chain) => Some(Self::HealthCheck(health_check::At::new(chain))),
        }
    }
}
