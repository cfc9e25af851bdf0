use super::*;

fn dump() -> Value {
    json!({
        "configs": [
            {
                "@type": typed("ClustersConfigDump"),
                "version_info": "1",
                "static_clusters": [{"cluster": {"name": "a", "type": "STATIC"}}],
                "dynamic_active_clusters": [
                    {"version_info": "1", "cluster": {
                        "name": "b",
                        "eds_cluster_config": {"service_name": "s"},
                    }},
                ],
            },
            {"@type": typed("EndpointsConfigDump"), "static_endpoint_configs": [
                {"endpoint_config": {"cluster_name": "a"}},
            ]},
        ],
        "mode": "auto",
    })
}

#[test]
fn the_whole_is_given_without_endpoints() {
    let whole = selected(dump(), &DumpQuery::default()).expect("a dump");
    assert_eq!(whole["mode"], "auto");
    assert_eq!(whole["configs"].as_array().map(Vec::len), Some(1));
    let query = DumpQuery {
        include_eds: true,
        ..DumpQuery::default()
    };
    let whole = selected(dump(), &query).expect("a dump");
    assert_eq!(whole, dump());
}

#[test]
fn parts_are_given_as_they_are_asked_for() {
    let query = DumpQuery {
        resource: Some("dynamic_active_clusters".into()),
        mask: vec!["cluster.name".into(), "no.such".into()],
        ..DumpQuery::default()
    };
    let part = selected(dump(), &query).expect("a dump");
    let entry =
        json!({"@type": typed("ClustersConfigDump.DynamicCluster"), "cluster": {"name": "b"}});
    assert_eq!(part, json!({"configs": [entry]}));
    let query = DumpQuery {
        mask: vec!["version_info".into()],
        ..DumpQuery::default()
    };
    let part = selected(dump(), &query).expect("a dump");
    let entry = json!({"@type": typed("ClustersConfigDump"), "version_info": "1"});
    assert_eq!(part, json!({"configs": [entry]}));
    let query = DumpQuery {
        name: regex::Regex::new("^a").ok(),
        include_eds: true,
        ..DumpQuery::default()
    };
    let part = selected(dump(), &query).expect("a dump");
    assert_eq!(part["configs"][0]["dynamic_active_clusters"], json!([]));
    assert_eq!(
        part["configs"][1]["static_endpoint_configs"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    let query = DumpQuery {
        resource: Some("bogus".into()),
        ..DumpQuery::default()
    };
    assert!(selected(dump(), &query).is_err());
}
