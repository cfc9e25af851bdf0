//! Finding the first route that matches without asking them all: by what their paths begin with.

use std::collections::{BTreeMap, HashMap};

use super::{PathMatch, Route};
use crate::http::{RequestView, without_query};

/// With fewer routes, asking each is as fast.
const WORTH_IT: usize = 16;

/// Of one virtual host: positions of routes, those of one list in their order.
#[derive(Clone, Debug, Default)]
pub struct RouteIndex {
    exact: HashMap<String, Vec<usize>>,
    /// By length.
    prefixes: BTreeMap<usize, HashMap<String, Vec<usize>>>,
    /// Those whose path says nothing beforehand.
    others: Vec<usize>,
}

impl RouteIndex {
    /// `None`: not worth it.
    pub fn new(routes: &[Route]) -> Option<Self> {
        if routes.len() < WORTH_IT {
            return None;
        }
        let mut index = Self::default();
        for (at, route) in routes.iter().enumerate() {
            let list = match &route.matches.path {
                PathMatch::Exact(path) if route.matches.case_sensitive => {
                    index.exact.entry(path.clone()).or_default()
                }
                PathMatch::Prefix(prefix) | PathMatch::SeparatedPrefix(prefix)
                    if route.matches.case_sensitive =>
                {
                    let of_length = index.prefixes.entry(prefix.len()).or_default();
                    of_length.entry(prefix.clone()).or_default()
                }
                _ => &mut index.others,
            };
            list.push(at);
        }
        Some(index)
    }

    /// The first of `routes`, of which this is the index, that matches.
    pub fn first<'a>(
        &self,
        routes: &'a [Route],
        request: &dyn RequestView,
        random: u64,
    ) -> Option<&'a Route> {
        let path = without_query(request.path());
        let shorter = self.prefixes.range(..=path.len());
        let beginning = shorter
            .filter_map(|(length, of_length)| of_length.get(path.get(..*length)?))
            .map(Vec::as_slice);
        let exact = self.exact.get(path).map(Vec::as_slice);
        let mut first = routes.len();
        for list in beginning.chain(exact).chain([self.others.as_slice()]) {
            let earlier = list.iter().take_while(|at| **at < first);
            let found = earlier
                .copied()
                .find(|at| routes[*at].matches.matches(request, random));
            first = found.unwrap_or(first);
        }
        routes.get(first)
    }
}

#[cfg(test)]
mod tests;
