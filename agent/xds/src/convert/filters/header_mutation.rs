use shunt_core::http::filters::{FilterKind, HeaderAction, HeaderMutation, Override, RouteFilter};

use super::super::values::{addition, header_name};
use super::Known;
use crate::reader::Reader;

pub(super) const KNOWN: Known = Known {
    message: "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
    chain: |reader| {
        Some(FilterKind::HeaderMutation(HeaderMutation {
            most_specific_wins: reader.is("most_specific_header_mutations_wins"),
            ..mutation(reader)
        }))
    },
    own: "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute",
    route: |reader| {
        let own = RouteFilter::HeaderMutation(mutation(reader));
        Some(Override::Enabled(Some(own)))
    },
};

fn mutation(reader: &Reader<'_>) -> HeaderMutation {
    let Some(mutations) = reader.message("mutations") else {
        return HeaderMutation::default();
    };
    let actions = |name: &str| {
        let list = mutations.list(name);
        list.iter().filter_map(action).collect()
    };
    HeaderMutation {
        request: actions("request_mutations"),
        response: actions("response_mutations"),
        most_specific_wins: false,
    }
}

fn action(reader: &Reader<'_>) -> Option<HeaderAction> {
    if let Some(append) = reader.message("append") {
        return addition(&append).map(HeaderAction::Add);
    }
    if !reader.has("remove") {
        reader.fault("", "says no action (remove, append)");
        return None;
    }
    header_name(reader, "remove").map(HeaderAction::Remove)
}
