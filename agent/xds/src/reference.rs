//! docs/config.md, from the table that the configuration is held against.

use std::fmt::Write;

use crate::support::{Support, rows};

const HEAD: &str = "\
# Envoy's configuration, as far as it is understood

Made by `cargo xtask config-reference` from the table in agent/xds/src/support; not to be edited.

`bootstrap: FILE` in the agent's own file names an Envoy v3 bootstrap, in YAML or JSON. Every field that is listed here does
what Envoy's documentation says, within the bounds that are named. A field that has no effect is listed with the reason, and
`shunt config validate FILE` lists it too. **Every other field is refused when it is set**, with its full path: nothing that
would change traffic is passed over in silence. All faults are told at once.

Listeners, clusters, route configurations and load assignments may stand in files of their own (`lds_config`, `cds_config`, `rds`,
`eds_cluster_config`, each with a `path_config_source`): a `DiscoveryResponse` in YAML or JSON. They are followed live; a wrong one is refused
whole, and the last right one stays (docs/adr/0026).

A listener is bound in the node's namespace, unless it has a `traffic_direction` and `bind_to_port: false`, `use_original_dst: true` or the
`original_dst` filter: then it serves captured connections of the workloads, and nothing is bound. With `bind_to_port: false` alone it serves those
that were going to its address, or to its port where the address is the unspecified one; otherwise those that no other listener is for.

Header values may have these format strings: `%REQ(NAME?OTHER):LENGTH%`, `%RESP(NAME?OTHER):LENGTH%`,
`%DOWNSTREAM_REMOTE_ADDRESS%`, `%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%`, `%DOWNSTREAM_LOCAL_ADDRESS%`, each also with
`_WITHOUT_PORT`, and as `%DOWNSTREAM_REMOTE_PORT%`, `%DOWNSTREAM_DIRECT_REMOTE_PORT%`, `%DOWNSTREAM_LOCAL_PORT%`;
`%UPSTREAM_HOST%`, `%UPSTREAM_REMOTE_ADDRESS%`, `%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%`, `%UPSTREAM_REMOTE_PORT%`,
`%UPSTREAM_CLUSTER%`, `%ROUTE_NAME%`, `%PROTOCOL%`, `%RESPONSE_CODE%`, and `%%`. Headers and bodies of `local_reply_config` also
have `%LOCAL_REPLY_BODY%`, `%RESPONSE_FLAGS%`, `%RESPONSE_CODE_DETAILS%` and `%DURATION%`; elsewhere these are refused.
";

/// The whole text.
pub fn markdown() -> String {
    let mut text = HEAD.to_owned();
    for row in rows() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\n## {}\n", row.message);
        if row.fields.is_empty() {
            text.push_str("It has no field that may be set.\n");
            continue;
        }
        text.push_str("| field | |\n| --- | --- |\n");
        for field in row.fields {
            let what = match field.support {
                Support::Honoured => "honoured".to_owned(),
                Support::Within(bounds) => format!("honoured: {bounds}"),
                Support::NoEffect(why) => format!("no effect: {why}"),
            };
            let _ = writeln!(text, "| `{}` | {what} |", field.name);
        }
    }
    text
}
