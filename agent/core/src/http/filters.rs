//! HTTP filters: what stands before the router in a connection manager's chain, and what routes say of it.
//!
//! One more is a file and a line here, in `shunt_proxy::http::filters` and in `shunt_xds`'s conversion.

mod buffer;
mod cors;
mod header_mutation;
mod health_check;

use serde::{Deserialize, Serialize};

pub use self::buffer::Buffer;
pub use self::cors::CorsPolicy;
pub use self::header_mutation::{HeaderAction, HeaderMutation};
pub use self::health_check::HealthCheck;

/// A place in the chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HttpFilter {
    /// By which routes say something of it.
    pub name: String,
    /// It does nothing unless a route says so.
    pub disabled: bool,
    pub kind: FilterKind,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FilterKind {
    /// What is allowed, routes say.
    Cors,
    HeaderMutation(HeaderMutation),
    Buffer(Buffer),
    HealthCheck(HealthCheck),
}

/// What a route says of a filter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteFilter {
    Cors(CorsPolicy),
    HeaderMutation(HeaderMutation),
    Buffer(Buffer),
}

/// `typed_per_filter_config` of one level: weighted cluster, route, virtual host or route configuration.
pub type PerFilter = Vec<(String, Override)>;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Override {
    Disabled,
    /// The filter works, also where the chain says that it does not.
    Enabled(Option<RouteFilter>),
}

impl HttpFilter {
    /// Does it work where these levels, the most specific first, are in force?
    pub fn works<'a>(&self, levels: impl Iterator<Item = &'a PerFilter>) -> bool {
        let mut said = self.said(levels);
        said.next()
            .map_or(!self.disabled, |said| matches!(said, Override::Enabled(_)))
    }

    /// What the levels say of it, in their order.
    pub fn own<'a>(
        &self,
        levels: impl Iterator<Item = &'a PerFilter>,
    ) -> impl Iterator<Item = &'a RouteFilter> {
        self.said(levels).filter_map(|said| match said {
            Override::Enabled(own) => own.as_ref(),
            Override::Disabled => None,
        })
    }

    fn said<'a>(
        &self,
        levels: impl Iterator<Item = &'a PerFilter>,
    ) -> impl Iterator<Item = &'a Override> {
        levels.filter_map(|level| {
            let mut entries = level.iter();
            entries
                .find(|(name, _)| *name == self.name)
                .map(|(_, said)| said)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_level_says_whether_a_filter_works() {
        let filter = |disabled| HttpFilter {
            name: "b".into(),
            disabled,
            kind: FilterKind::Buffer(Buffer { max_bytes: 1 }),
        };
        let of = |bytes| {
            let own = RouteFilter::Buffer(Buffer { max_bytes: bytes });
            vec![("b".to_owned(), Override::Enabled(Some(own)))]
        };
        let off = vec![("b".to_owned(), Override::Disabled)];
        let plain = vec![("b".to_owned(), Override::Enabled(None))];
        let other = vec![("c".to_owned(), Override::Disabled)];
        for (levels, disabled, works) in [
            (vec![&other], false, true),
            (vec![&other], true, false),
            (vec![&off, &plain], false, false),
            (vec![&plain, &off], true, true),
        ] {
            let found = filter(disabled).works(levels.iter().copied());
            assert_eq!(found, works, "{levels:?}");
        }
        let (one, two) = (of(1), of(2));
        let levels = [&plain, &two, &one];
        let filter = filter(false);
        let own: Vec<_> = filter.own(levels.into_iter()).collect();
        assert_eq!(own[0], &RouteFilter::Buffer(Buffer { max_bytes: 2 }));
        assert_eq!(own.len(), 2);
    }
}
