//! Files that a bootstrap names.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use shunt_core::listener::NetworkFilter;

use super::*;

struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("shunt-xds-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        let here = Self(path);
        here.write(
            "bootstrap.yaml",
            "dynamic_resources:
  lds_config: {path_config_source: {path: DIR/lds.yaml, watched_directory: {path: DIR}}}
  cds_config: {path: DIR/cds.yaml, resource_api_version: V3}
",
        );
        here.write("lds.yaml", LDS);
        here.write("rds.yaml", RDS);
        here.write("cds.yaml", CDS);
        here.write("eds.yaml", EDS);
        here
    }

    fn write(&self, name: &str, text: &str) {
        let text = text.replace("DIR", &self.0.display().to_string());
        fs::write(self.0.join(name), text).expect("written");
    }

    fn load(&self, before: Option<&Loaded>) -> Loaded {
        load(&self.0.join("bootstrap.yaml"), before, &Texts::new())
            .unwrap_or_else(|error| panic!("{error}"))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const LDS: &str = "version_info: l1
resources:
- '@type': type.googleapis.com/envoy.config.listener.v3.Listener
  name: web
  address: {socket_address: {address: 10.0.0.1, port_value: 80}}
  filter_chains:
  - filters:
    - name: http
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: x
        rds: {route_config_name: r, config_source: {path_config_source: {path: DIR/rds.yaml}}}
        http_filters:
        - {name: router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
";
const RDS: &str = "version_info: r1
resources:
- '@type': type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: r
  virtual_hosts:
  - {name: v, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: later}}]}
";
const CDS: &str = "version_info: c1
resources:
- '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: one
  type: EDS
  metadata: {filter_metadata: {a.b: {deep: [1, yes, {x: null}]}}}
  eds_cluster_config: {service_name: s, eds_config: {path_config_source: {path: DIR/eds.yaml}}}
";
const EDS: &str = "version_info: e1
resources:
- '@type': type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: s
  endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 10.0.0.2, port_value: 1}}}}]}]
";

/// Of each file: what is in force, and what is refused.
fn versions(loaded: &Loaded) -> Vec<String> {
    let mut all: Vec<String> = loaded
        .sources
        .iter()
        .map(|source| {
            let accepted = source.accepted.as_ref();
            let rejected = source.rejected.as_ref();
            format!(
                "{} {} {}",
                source.wanted.kind.word(),
                accepted.map_or("-", |accepted| &accepted.version),
                rejected.map_or("-", |rejected| &rejected.version),
            )
        })
        .collect();
    all.sort();
    all
}

fn config<'v>(dump: &'v Value, what: &str) -> &'v Value {
    let configs = dump["configs"].as_array().expect("configs");
    let of_type = |config: &&Value| config["@type"].as_str().is_some_and(|t| t.contains(what));
    configs.iter().find(of_type).expect("a config")
}

#[test]
fn what_the_files_say_is_served() {
    let here = Directory::new("served");
    let loaded = here.load(None);
    assert_eq!(
        versions(&loaded),
        ["cds c1 -", "eds e1 -", "lds l1 -", "rds r1 -"]
    );
    assert_eq!(loaded.bootstrap.clusters[0].endpoints.len(), 1);
    let NetworkFilter::Http(http) = &loaded.bootstrap.listeners[0].chains[0].filter else {
        panic!("no HTTP")
    };
    // No file has this cluster: whoever is routed to it is told so.
    assert_eq!(http.routes.clusters(), ["later"]);
    let dump: Value = serde_json::from_str(&loaded.dump).expect("JSON");
    let clusters = config(&dump, "Clusters");
    assert_eq!(clusters["version_info"], "c1");
    let cluster = &clusters["dynamic_active_clusters"][0]["cluster"];
    assert_eq!(
        cluster["@type"],
        "type.googleapis.com/envoy.config.cluster.v3.Cluster"
    );
    let deep = &cluster["metadata"]["filter_metadata"]["a.b"]["deep"];
    assert_eq!(deep, &serde_json::json!([1.0, "yes", {"x": null}]));
    let routes = &config(&dump, "Routes")["dynamic_route_configs"][0];
    assert_eq!(routes["route_config"]["name"], "r");
    let notes = &dump["sources"].to_string();
    assert!(notes.contains("metadata"), "{notes}");
    // Nothing has changed: neither do the times.
    assert_eq!(here.load(Some(&loaded)).dump, loaded.dump);
}

#[test]
fn a_wrong_file_is_refused_whole_and_the_last_good_one_stays() {
    let here = Directory::new("wrong");
    let first = here.load(None);
    let more = "- '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: two
  type: LOGICAL_DNS
";
    here.write("cds.yaml", &(CDS.replace("c1", "c2") + more));
    let second = here.load(Some(&first));
    assert_eq!(second.bootstrap, first.bootstrap);
    assert_eq!(versions(&second)[..2], ["cds c1 c2", "eds e1 -"]);
    let dump: Value = serde_json::from_str(&second.dump).expect("JSON");
    let clusters = &config(&dump, "Clusters")["dynamic_active_clusters"];
    for (at, name) in ["one", "two"].iter().enumerate() {
        let error = &clusters[at]["error_state"];
        assert_eq!(error["version_info"], "c2", "{clusters}");
        assert_eq!(error["failed_configuration"]["name"], **name);
        let details = error["details"].as_str().expect("details");
        let expected =
            "cds.yaml:10: resources[1].type: only STATIC, EDS and ORIGINAL_DST are supported";
        assert!(details.contains(expected), "{details}");
    }
    assert_eq!(clusters[0]["version_info"], "c1");
    assert!(clusters[1]["cluster"].is_null());
    // Others change all the same, and the file that is wrong is right one day.
    here.write("eds.yaml", &EDS.replace("e1", "e2").replace("0.2", "0.3"));
    let third = here.load(Some(&second));
    assert_eq!(versions(&third)[..2], ["cds c1 c2", "eds e2 -"]);
    let endpoint = third.bootstrap.clusters[0].endpoints[0].addr;
    assert_eq!(endpoint.to_string(), "10.0.0.3:1");
    here.write("cds.yaml", "version_info: c3\n");
    let fourth = here.load(Some(&third));
    assert!(fourth.bootstrap.clusters.is_empty());
    assert_eq!(versions(&fourth), ["cds c3 -", "lds l1 -", "rds r1 -"]);
}

#[test]
fn what_was_never_right_is_not_there() {
    let here = Directory::new("never");
    here.write(
        "eds.yaml",
        &EDS.replace("cluster_name: s", "cluster_name: t"),
    );
    fs::remove_file(here.0.join("rds.yaml")).expect("removed");
    let loaded = here.load(None);
    assert_eq!(
        versions(&loaded),
        ["cds c1 -", "eds - e1", "lds l1 -", "rds - "]
    );
    assert!(loaded.bootstrap.clusters[0].endpoints.is_empty());
    let faults = check(&here.0.join("bootstrap.yaml")).expect_err("faults");
    let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
    assert!(faults[0].contains("`s` is expected here"), "{faults:?}");
    assert!(faults[1].contains("rds.yaml: cannot read"), "{faults:?}");
}

#[test]
fn what_is_in_force_is_not_lost_to_its_surroundings() {
    let here = Directory::new("lost");
    let path = here.0.join("bootstrap.yaml");
    let first = here.load(None);
    let text = fs::read_to_string(&path).expect("a file");
    for (own, expected) in [
        (
            "clusters: [{name: one}]",
            "cds.yaml:4: resources[0].name: the bootstrap has a cluster of that name",
        ),
        (
            "listeners: [{name: web, address: {socket_address: {address: 10.0.0.9, port_value: 80}}, filter_chains: [{filters: [{name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: one}}]}]}]
  clusters: [{name: another}]",
            "lds.yaml:4: resources[0].name: the bootstrap has a listener of that name",
        ),
    ] {
        let taken = format!("{text}static_resources:\n  {own}\n").replace("cluster: one}", "cluster: another}");
        fs::write(&path, taken).expect("written");
        let error = load(&path, Some(&first), &Texts::new()).expect_err("refused").to_string();
        assert!(error.contains(expected), "{error}");
    }
    // Otherwise it is as it was.
    fs::write(&path, text).expect("written");
    assert_eq!(here.load(Some(&first)).bootstrap, first.bootstrap);
}

#[test]
fn a_body_that_is_gone_takes_no_routes_along() {
    let here = Directory::new("body");
    here.write("body.txt", "hello");
    let respond = "direct_response: {status: 200, body: {filename: DIR/body.txt}}";
    here.write("rds.yaml", &RDS.replace("route: {cluster: later}", respond));
    let first = here.load(None);
    fs::remove_file(here.0.join("body.txt")).expect("removed");
    let path = here.0.join("bootstrap.yaml");
    let error = load(&path, Some(&first), &Texts::new())
        .expect_err("refused")
        .to_string();
    assert!(error.contains("body.filename: cannot read"), "{error}");
    // Routes without it may come in their place.
    here.write("rds.yaml", &RDS.replace("r1", "r2"));
    assert_eq!(versions(&here.load(Some(&first)))[3], "rds r2 -");
}

#[test]
fn what_was_looked_at_is_what_is_read() {
    let here = Directory::new("looked");
    let path = here.0.join("bootstrap.yaml");
    let texts = ["bootstrap.yaml", "rds.yaml"].map(|name| {
        let path = here.0.join(name);
        let text = fs::read_to_string(&path).expect("a file");
        (path, text)
    });
    here.write("rds.yaml", &RDS.replace("r1", "r2"));
    here.write("bootstrap.yaml", "");
    let loaded = load(&path, None, &Texts::from(texts)).expect("it is right");
    assert_eq!(versions(&loaded)[3], "rds r1 -");
}

#[test]
fn a_file_is_read_once() {
    let here = Directory::new("once");
    let files = Files::new(&[], &Texts::new());
    let path = here.0.join("rds.yaml");
    let first = files.text(&path).expect("a file");
    here.write("rds.yaml", "");
    assert_eq!(files.text(&path).expect("a file"), first);
}

#[test]
fn a_body_is_no_pipe_and_has_an_end() {
    let here = Directory::new("pipe");
    let pipe = here.0.join("pipe").display().to_string();
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo").success());
    here.write("long.txt", &"x".repeat((1 << 20) + 1));
    for (file, expected) in [
        ("pipe", "this is no file"),
        ("long.txt", "more than 1048576 bytes"),
    ] {
        let body = format!("direct_response: {{status: 200, body: {{filename: DIR/{file}}}}}");
        here.write("rds.yaml", &RDS.replace("route: {cluster: later}", &body));
        let faults = check(&here.0.join("bootstrap.yaml")).expect_err("faults");
        assert!(faults[0].to_string().contains(expected), "{faults:?}");
    }
}

#[test]
fn names_and_addresses_of_the_bootstrap_are_its_own() {
    let here = Directory::new("own");
    let of_static = "static_resources:
  clusters: [{name: one}]
  listeners:
  - {name: own, address: {socket_address: {address: 10.0.0.1, port_value: 80}}, filter_chains: [{filters: [{name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: one}}]}]}
";
    let path = here.0.join("bootstrap.yaml");
    let text = fs::read_to_string(&path).expect("a file") + of_static;
    fs::write(&path, text).expect("written");
    let faults = check(&path).expect_err("faults");
    let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
    let faults = faults.join("\n");
    assert!(
        faults.contains("the bootstrap has a cluster of that name"),
        "{faults}"
    );
    assert!(
        faults.contains("another listener has 10.0.0.1:80"),
        "{faults}"
    );
}

#[test]
fn a_source_that_is_no_file_is_refused() {
    let text = "dynamic_resources: {cds_config: {ads: {}}, lds_config: {path_config_source: {}}}\n";
    let error = parse(text, Path::new("b.yaml"))
        .expect_err("faults")
        .to_string();
    assert!(
        error.contains("dynamic_resources.cds_config.ads: not supported"),
        "{error}"
    );
    assert!(error.contains("lds_config: a file is required"), "{error}");
    let text = "dynamic_resources: {cds_config: {path: /dev/null}}\n";
    let loaded = parse(text, Path::new("b.yaml")).expect("it is right");
    let rejected = loaded.sources[0].rejected.as_ref().expect("refused");
    assert!(rejected.error.to_string().contains("this is no file"));
}
