//! The admin API beside Envoy's, both with the same files: what is in an answer of ours is in Envoy's in the same place and
//! of the same kind.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use shunt_tests::wait;
use shunt_tests::world::Running;

use crate::scene::Scene;

/// What only the agent says.
const OURS: [&str; 11] = [
    "uptime_seconds",
    "pid",
    "worker_pid",
    "generation",
    "pods",
    "worker_generations",
    "worker_version",
    "retired_pids",
    "sources",
    "workloads",
    // Envoy's admin address is its own.
    "admin",
];

fn envoy() -> Option<PathBuf> {
    let named = std::env::var_os("SHUNT_ENVOY").map(PathBuf::from);
    let beside = || {
        let test = std::env::current_exe().ok()?;
        let target = test.ancestors().find(|dir| dir.ends_with("target"))?;
        Some(target.join("envoy/envoy"))
    };
    named.or_else(beside).filter(|path| path.is_file())
}

#[test]
fn what_tools_read_is_where_envoy_has_it() {
    let Some(envoy) = envoy() else {
        let text = "SKIPPED: no Envoy to compare with; `cargo xtask test` fetches one, or name it in SHUNT_ENVOY";
        assert!(std::env::var_os("CI").is_none(), "{text}");
        eprintln!("{text}");
        return;
    };
    let scene = Scene::new();
    let twin = Scene::new();
    for scene in [&scene, &twin] {
        scene.health();
    }
    let agent = scene.agent();
    // Envoy has the same addresses in a pod of its own, and its files.
    for name in [
        "bootstrap.yaml",
        "lds.yaml",
        "rds.yaml",
        "cds.yaml",
        "eds.yaml",
    ] {
        let text = fs::read_to_string(twin.at(name)).expect("a file");
        twin.write(name, &text.replace(&twin.server.v4, &scene.server.v4));
    }
    let mut command = twin.gateway.command(&envoy.display().to_string());
    command.arg("-c").arg(twin.at("bootstrap.yaml"));
    command.args([
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "--log-level",
        "error",
    ]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _envoy = Running(command.spawn().expect("Envoy starts"));
    let theirs = |path: &str| {
        let url = format!("http://127.0.0.1:9901{path}");
        let said = twin.gateway.run("curl", &["-sS", "-m", "5", &url]);
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        said.replace(&twin.gateway.v4, &scene.gateway.v4).replace(
            &twin.world.dir.path().display().to_string(),
            &scene.world.dir.path().display().to_string(),
        )
    };
    wait::until("Envoy is there", Duration::from_secs(20), || {
        (theirs("/ready").trim() == "LIVE").then_some(())
    });
    let ours = |path: &str| agent.admin("GET", path, "").1;
    let json = |text: String| -> Value {
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}"))
    };
    for path in [
        "/config_dump?include_eds",
        "/config_dump?resource=dynamic_listeners",
        "/config_dump?resource=dynamic_active_clusters&mask=cluster.name,version_info",
        "/config_dump?resource=static_clusters&name_regex=own",
        "/clusters?format=json",
        "/listeners?format=json",
        "/server_info",
    ] {
        let (mine, envoys) = (json(ours(path)), json(theirs(path)));
        let mut strange = Vec::new();
        compare(&mine, &envoys, path, &mut strange);
        assert!(strange.is_empty(), "{}\n{mine:#}", strange.join("\n"));
        let full = json_lists(&envoys);
        assert_eq!(json_lists(&mine), full, "{path}");
    }
    for path in ["/clusters", "/listeners"] {
        let (mine, envoys) = (ours(path), theirs(path));
        assert!(!mine.is_empty());
        for line in mine.lines() {
            assert!(
                envoys.lines().any(|theirs| theirs == line),
                "{path}: {line} not in\n{envoys}"
            );
        }
    }
    // Of every endpoint, whatever its health, and of clusters that send to all because too few are healthy.
    let said = |text: String| {
        let facts = ["::hostname::", "::health_flags::", "::weight::"];
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.retain(|line| facts.iter().any(|fact| line.contains(fact)));
        lines.sort();
        lines
    };
    assert_eq!(said(ours("/clusters")), said(theirs("/clusters")));
    let membership = |text: String| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.retain(|line| {
            line.contains(".membership_total") || line.contains(".membership_healthy")
        });
        lines.sort();
        lines
    };
    assert_eq!(membership(ours("/stats")), membership(theirs("/stats")));
    let stats = json(ours("/stats?format=json&filter=^snapshot"));
    assert_eq!(stats["stats"][0]["name"], "snapshot_generation");
    assert!(ours("/stats?format=prometheus&filter=shunt_build").contains("shunt_build"));
    assert_eq!(agent.admin("GET", "/config_dump?resource=bogus", "").0, 404);
}

/// Everything in `mine` must be in `theirs`; of lists, each entry's twin by its name or place.
fn compare(mine: &Value, theirs: &Value, at: &str, strange: &mut Vec<String>) {
    match (mine, theirs) {
        (Value::Object(mine), Value::Object(theirs)) => {
            // The agent's own configuration stands beside Envoy's dump.
            let is_top = at.starts_with("/config_dump") && theirs.contains_key("configs");
            for (key, value) in mine {
                if OURS.contains(&key.as_str()) || is_top && key != "configs" {
                    continue;
                }
                // Of endpoints Envoy does not say which version they are.
                if at.contains("_endpoint_configs[") && key != "endpoint_config" {
                    continue;
                }
                let at = format!("{at} {key}");
                match theirs.get(key) {
                    Some(theirs) => compare(value, theirs, &at, strange),
                    // A message that says nothing may be left out.
                    None if value.as_object().is_some_and(serde_json::Map::is_empty) => {}
                    None => strange.push(format!("{at} is not there")),
                }
            }
        }
        (Value::Array(mine), Value::Array(theirs)) => {
            for (index, value) in mine.iter().enumerate() {
                let name = name(value);
                let twin = match &name {
                    Some(found) => theirs
                        .iter()
                        .find(|other| self::name(other).as_ref() == Some(found)),
                    None => theirs.get(index),
                };
                let at = format!("{at}[{}]", name.unwrap_or_else(|| index.to_string()));
                match twin {
                    Some(twin) => compare(value, twin, &at, strange),
                    None => strange.push(format!("{at} is not there")),
                }
            }
        }
        // Times, versions of the program and such differ.
        (mine, theirs) => {
            let differ = [
                "last_updated",
                "uptime_current_epoch",
                "uptime_all_epochs",
                "version",
                "hot_restart_version",
                "state",
                "concurrency",
                "config_path",
            ];
            let last = at.rsplit(' ').next().unwrap_or_default();
            let is_free = differ.contains(&last);
            let is_alike = match is_free {
                true => std::mem::discriminant(mine) == std::mem::discriminant(theirs),
                false => mine == theirs,
            };
            if !is_alike {
                strange.push(format!("{at}: {mine} for {theirs}"));
            }
        }
    }
}

fn name(value: &Value) -> Option<String> {
    let places = ["cluster", "listener", "route_config", "endpoint_config"];
    let mut inner = places.iter().map(|place| &value[*place]).chain([value]);
    inner.find_map(|value| {
        let named = ["name", "cluster_name", "@type"].iter();
        named
            .filter_map(|field| value[*field].as_str())
            .next()
            .map(str::to_owned)
    })
}

/// How many entries there are of each list of a dump.
fn json_lists(dump: &Value) -> Vec<String> {
    let mut all = Vec::new();
    for config in dump["configs"].as_array().into_iter().flatten() {
        for (key, list) in config.as_object().into_iter().flatten() {
            if let Some(list) = list.as_array() {
                all.push(format!("{key} {}", list.len()));
            }
        }
    }
    all.sort();
    all
}
