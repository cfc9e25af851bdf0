//! deploy/: what is given to a cluster is what the cluster's schema and the agent understand.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;
use shunt_tests::agent::binary;
use shunt_tests::require;

/// The oldest version with `appArmorProfile`, one in the middle, a recent one.
const VERSIONS: [&str; 3] = ["1.30", "1.32", "1.35"];
/// Says the documents of the files as JSON, a line each, patches laid over what they are for.
const READ: &str = "
import json, sys, yaml
def over(old, new):
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: over(old.get(key), value) for key, value in new.items()}}
    named = lambda items: isinstance(items, list) and all(isinstance(item, dict) and 'name' in item for item in items)
    if named(old) and named(new):
        merged = {item['name']: item for item in old}
        for item in new: merged[item['name']] = over(merged.get(item['name']), item)
        return list(merged.values())
    return new
seen = {}
for path in sys.argv[1:]:
    for document in yaml.safe_load_all(open(path)):
        key = document['kind'], document.get('metadata', {}).get('name', path)
        seen[key] = over(seen.get(key), document)
for document in seen.values(): print(json.dumps(document))
";

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn text(file: &str) -> String {
    fs::read_to_string(deploy().join("kubernetes").join(file)).expect(file)
}

/// Where Python finds what knows the schemas, fetched once beside the build.
#[expect(clippy::print_stderr, reason = "a skip is told loudly")]
fn schemas() -> Option<PathBuf> {
    static FETCHED: OnceLock<Option<PathBuf>> = OnceLock::new();
    let fetched = FETCHED.get_or_init(|| {
        let test = std::env::current_exe().expect("a path");
        let target = test.ancestors().find(|dir| dir.ends_with("target"))?;
        let home = target.join("kubernetes-validate");
        let works = || {
            let asked = python(&home)
                .args(["-c", "import kubernetes_validate, yaml"])
                .output();
            asked.is_ok_and(|output| output.status.success())
        };
        if !works() {
            // It says itself why it does not work.
            let _ = Command::new("python3")
                .args(["-m", "pip", "install", "--quiet", "--upgrade", "--target"])
                .arg(&home)
                .arg("kubernetes-validate")
                .status();
        }
        works().then_some(home)
    });
    if fetched.is_none() {
        let text =
            "SKIPPED: no schemas: PyPI's kubernetes-validate cannot be installed into target/";
        assert!(std::env::var_os("CI").is_none(), "{text}");
        eprintln!("{text}");
    }
    fetched.clone()
}

fn python(schemas: &Path) -> Command {
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", schemas);
    command
}

/// Every file of a directory but its kustomization, which must name each.
fn files(of: &str) -> Vec<PathBuf> {
    let dir = deploy().join("kubernetes").join(of);
    let kustomization =
        fs::read_to_string(dir.join("kustomization.yaml")).expect("a kustomization");
    let mut files = Vec::new();
    for entry in fs::read_dir(&dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .expect("a name")
            .to_owned();
        if path.is_file() && name != "kustomization.yaml" {
            let named = [format!("- {name}"), format!("- path: {name}")];
            assert!(
                named.iter().any(|line| kustomization.contains(line)),
                "{name} is not in the kustomization"
            );
            files.push(path);
        }
    }
    assert!(!files.is_empty());
    files
}

fn documents(schemas: &Path, files: &[PathBuf]) -> Vec<Value> {
    let output = python(schemas)
        .args(["-c", READ])
        .args(files)
        .output()
        .expect("python runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines = String::from_utf8(output.stdout).expect("text");
    lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

#[test]
fn the_schemas_know_them() {
    let Some(schemas) = schemas() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    for more in [
        vec![],
        vec!["cni"],
        vec!["monitoring"],
        vec!["cni", "monitoring"],
    ] {
        let mut all = files("");
        more.iter()
            .for_each(|component| all.extend(files(component)));
        let path = dir.path().join("all.json");
        for document in documents(&schemas, &all) {
            // Its definition is the Prometheus operator's.
            if document["kind"] == "PodMonitor" {
                continue;
            }
            fs::write(&path, document.to_string()).expect("written");
            for version in VERSIONS {
                let check = python(&schemas)
                    .args(["-m", "kubernetes_validate", "--strict", "-k", version])
                    .arg(&path)
                    .output()
                    .expect("it runs");
                let said =
                    String::from_utf8_lossy(&check.stdout) + String::from_utf8_lossy(&check.stderr);
                assert!(
                    check.status.success(),
                    "{more:?} {version}: {said}\n{document:#}"
                );
            }
        }
    }
}

#[test]
fn what_belongs_together_is_called_the_same() {
    let Some(schemas) = schemas() else { return };
    let mut all = files("");
    all.extend(files("cni"));
    all.extend(files("monitoring"));
    let documents = documents(&schemas, &all);
    let of = |kind: &str| {
        documents
            .iter()
            .find(|document| document["kind"] == kind)
            .expect(kind)
    };
    let set = of("DaemonSet");
    let pod = &set["spec"]["template"];
    let labels = &pod["metadata"]["labels"];
    assert_eq!(&set["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(&of("PodMonitor")["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(
        pod["spec"]["serviceAccountName"],
        of("ServiceAccount")["metadata"]["name"]
    );
    for key in ["hostPID", "hostNetwork"] {
        assert_eq!(pod["spec"][key], true, "{key}");
    }
    assert_eq!(pod["spec"]["priorityClassName"], "system-node-critical");
    let names = |list: &Value| -> BTreeSet<String> {
        let name = |entry: &Value| entry["name"].as_str().expect("a name").to_owned();
        list.as_array()
            .map(|list| list.iter().map(name).collect())
            .unwrap_or_default()
    };
    let volumes = names(&pod["spec"]["volumes"]);
    let mut mounted = BTreeSet::new();
    for container in pod["spec"]["containers"].as_array().expect("containers") {
        mounted.extend(names(&container["volumeMounts"]));
        assert!(
            !container["resources"]["limits"]["memory"].is_null(),
            "{container:#}"
        );
        assert_eq!(
            container["securityContext"]["capabilities"]["drop"][0], "ALL",
            "{container:#}"
        );
        let image = container["image"].as_str().expect("an image");
        assert!(
            !image.contains('/'),
            "{image}: whose registry that is, whoever deploys it says"
        );
    }
    assert_eq!(mounted, volumes);
    let monitored = of("PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"].clone();
    let ports = pod["spec"]["containers"]
        .as_array()
        .expect("containers")
        .iter();
    assert!(
        ports
            .flat_map(|container| container["ports"].as_array())
            .flatten()
            .any(|port| port["name"] == monitored)
    );
    let role = documents
        .iter()
        .find(|document| {
            document["kind"] == "ClusterRole" && document["metadata"]["name"] == "shunt"
        })
        .expect("a role");
    for rule in role["rules"].as_array().expect("rules") {
        assert_eq!(
            rule["verbs"],
            serde_json::json!(["get", "list", "watch"]),
            "it changes nothing"
        );
    }
    // The kubelet asks where the agent answers.
    let address = settings()["admin"]["address"]
        .as_str()
        .expect("an address")
        .to_owned();
    let agent = &pod["spec"]["containers"].as_array().expect("containers")[0];
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let get = &agent[probe]["httpGet"];
        assert_eq!(
            format!("{}:{}", get["host"].as_str().expect("a host"), get["port"]),
            address,
            "{probe}"
        );
    }
}

/// The agent's configuration of the manifests, with every default.
fn settings() -> Value {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("shunt.yaml");
    fs::write(&path, configuration()).expect("written");
    let dump = Command::new(binary())
        .args(["config", "validate"])
        .arg(&path)
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&dump.stdout) + String::from_utf8_lossy(&dump.stderr);
    assert!(dump.status.success(), "{said}");
    let mut found = BTreeMap::new();
    for line in configuration().lines() {
        if let Some((_, address)) = line.split_once("address: \"") {
            found.insert(
                "address",
                address.split('"').next().unwrap_or_default().to_owned(),
            );
        }
    }
    serde_json::json!({"admin": found})
}

fn configuration() -> String {
    let map = text("configmap.yaml");
    let (_, file) = map.split_once("  shunt.yaml: |\n").expect("the file");
    file.lines()
        .map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line)))
        .collect()
}

#[test]
fn the_agent_understands_its_configuration() {
    assert_eq!(settings()["admin"]["address"], "127.0.0.1:15000");
    assert!(configuration().contains("kubernetes:"));
}

#[test]
fn capabilities_are_those_of_the_service_and_each_has_a_reason() {
    let manifest = text("daemonset.yaml");
    let (_, added) = manifest.split_once("              add:\n").expect("a list");
    let mut asked = BTreeSet::new();
    for line in added
        .lines()
        .map_while(|line| line.trim().strip_prefix("- "))
    {
        let (name, reason) = line.split_once(" # ").expect("a reason");
        assert!(reason.len() > 10, "{line}");
        asked.insert(format!("CAP_{name}"));
    }
    let bounding: BTreeSet<String> = require::service_capabilities().into_iter().collect();
    assert_eq!(asked, bounding);
}

#[test]
fn the_recipe_names_no_registry_and_builds_what_is_run() {
    let recipe = fs::read_to_string(deploy().join("Containerfile")).expect("a recipe");
    for line in recipe.lines().filter(|line| line.starts_with("FROM ")) {
        let image = line.split(' ').nth(1).expect("an image");
        assert!(image == "scratch" || image.starts_with("${"), "{line}");
    }
    for line in recipe.lines().filter(|line| line.starts_with("ARG ")) {
        assert!(!line.contains('/'), "{line}");
    }
    for program in ["shunt", "shunt-cni"] {
        assert!(recipe.contains(&format!("-p {program}")), "{program}");
    }
}
