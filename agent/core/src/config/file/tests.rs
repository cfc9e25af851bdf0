use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::config::{AccessLog, Admin, Ports};
use crate::flow::Direction;
use crate::policy::{Action, Peer, PolicyRule, Selector};
use crate::service::{Balance, Service};
use crate::workload::{
    Acceleration, AccelerationPolicy, CapturePolicy, DnsPolicy, OnFailure, PortRange,
};

mod faults;
mod properties;
mod services;

fn read(text: &str) -> Result<Config, ConfigError> {
    parse(text, Path::new("shunt.yaml"))
}

/// The faults as displayed, without the file's name.
fn faults(text: &str) -> Vec<String> {
    let error = read(text).expect_err(text).to_string();
    error
        .lines()
        .map(|line| line.strip_prefix("shunt.yaml:").expect(line).to_owned())
        .collect()
}

/// The whole documented format, less what this version refuses.
const DOCUMENTED: &str = r#"
mode: auto                 # auto | ebpf | iptables
concurrency: 2             # worker threads; default: number of cores
ports: {outbound: 15001, inbound: 15006}
mark: 0x539
log: {level: info, format: text, access: stdout}       # access: stdout | off | /path
admin: {socket: /run/shunt/admin.sock, address: 127.0.0.1:15000}   # address optional; none by default
state_dir: /run/shunt
bpffs: /sys/fs/bpf/shunt
timeouts: {connect: 10s, idle: 0s, half_close: 10m, drain: 30s, upgrade: 15m}
limits: {connections: 100000, connections_per_workload: 20000}
splice_after: 1MiB         # bytes a direction copies before it splices; off: always copy
services:                  # L4 services; Envoy clusters fill the same core types
  - {name: web, addresses: ["10.96.0.10:80"], endpoints: ["10.1.0.2:8080"], balance: round_robin}   # or random
policy:                    # L4, first match, default allow; identity = the enrolled workload that owns the namespace or address
  - {action: allow, direction: inbound, workload: {name: db}, peer: {workload: {labels: {app: web}}}, ports: ["5432"]}
  - {action: deny,  direction: inbound, workload: {name: db}, peer: {cidr: 0.0.0.0/0}}
workloads:
  - name: client           # required, unique with namespace
    namespace: default
    netns: podA            # name under /run/netns, or a path (/proc/PID/ns/net)
    cgroup: shunt/podA     # optional, relative to the cgroup2 mount, or absolute
    labels: {app: client}
    mode: ebpf             # optional, overrides the global one
    acceleration: {default: auto, ports: {"5432": off}}    # off | auto | always; a bare word is the default
    on_failure: open       # open | closed: what happens when the agent is dead
    dns: {capture: true}   # queries to port 53 by UDP go through the agent; default: false
    outbound: {include_ports: [], exclude_ports: ["22", "8000-8100"], include_cidrs: [], exclude_cidrs: ["10.9.0.0/16", "fd00::/8"]}
    inbound:  {include_ports: [], exclude_ports: []}
"#;

#[test]
fn the_documented_format() {
    let config = read(DOCUMENTED).expect("the documented format");
    let port = |first, last| PortRange { first, last };
    let client = WorkloadSpec {
        name: WorkloadName {
            namespace: "default".into(),
            name: "client".into(),
        },
        netns: "/run/netns/podA".into(),
        cgroup: Some("shunt/podA".into()),
        labels: [("app".into(), "client".into())].into(),
        mode: ModeSetting::Ebpf,
        acceleration: AccelerationPolicy {
            default: Acceleration::Auto,
            ports: vec![(port(5432, 5432), Acceleration::Off)],
            direct: true,
            handoff: true,
        },
        on_failure: OnFailure::Open,
        dns: DnsPolicy { capture: true },
        outbound: CapturePolicy {
            exclude_ports: vec![port(22, 22), port(8000, 8100)],
            exclude_cidrs: vec!["10.9.0.0/16".parse().unwrap(), "fd00::/8".parse().unwrap()],
            ..CapturePolicy::default()
        },
        inbound: CapturePolicy::default(),
    };
    let web = Service {
        name: "web".into(),
        addresses: vec!["10.96.0.10:80".parse().unwrap()],
        endpoints: vec!["10.1.0.2:8080".parse().unwrap()],
        balance: Balance::RoundRobin,
    };
    let to_db = |action, peer, ports| PolicyRule {
        action,
        direction: Direction::Inbound,
        workload: Some(Selector {
            name: Some("db".into()),
            ..Selector::default()
        }),
        peer: Some(peer),
        ports,
    };
    let app = Selector {
        labels: [("app".into(), "web".into())].into(),
        ..Selector::default()
    };
    let allow = to_db(Action::Allow, Peer::Workload(app), vec![port(5432, 5432)]);
    let everywhere = Peer::Cidr("0.0.0.0/0".parse().unwrap());
    let deny = to_db(Action::Deny, everywhere, Vec::new());
    let address = Some("127.0.0.1:15000".parse().unwrap());
    let default = Config::default();
    let admin = Admin {
        address,
        ..default.admin.clone()
    };
    assert_eq!(
        config,
        Config {
            concurrency: 2,
            admin,
            services: vec![web],
            policy: vec![allow, deny],
            workloads: vec![client],
            ..default
        }
    );
}

#[test]
fn nothing_is_a_configuration() {
    for text in [
        "",
        "\n",
        "# only words\n",
        "---\n",
        "--- # words\n...\n",
        "{}",
        "\u{feff}",
        "log:\nworkloads:\n",
    ] {
        assert_eq!(read(text), Ok(Config::default()), "{text:?}");
    }
}

#[test]
fn values_are_read_as_they_stand() {
    let config = read(
        "log: {access: off, level: 'warn,shunt_proxy=debug', format: json}\n\
         mark: 1337\n\
         ports: {outbound: 0, inbound: 0}\n\
         timeouts: {connect: 250ms, idle: 1h, half_close: 90s, drain: 0s}\n\
         workloads:\n\
         - {name: a, netns: /proc/1/ns/net, acceleration: off, on_failure: closed,\n\
        \x20  labels: {a: on, b: 1.50, c: ''}, inbound: {include_ports: [80, '443', 8000-8100]}}\n\
         - {name: a, namespace: other, netns: b, outbound: {include_cidrs: [10.0.0.1, '::1', 10.1.2.3/8, '::ffff:10.0.0.0/104']}}\n",
    )
    .expect("a configuration");
    assert_eq!(config.log.access, AccessLog::Off);
    assert_eq!(config.mark, 0x539);
    assert_eq!(
        config.ports,
        Ports {
            outbound: 0,
            inbound: 0
        }
    );
    assert_eq!(config.timeouts.connect, Duration::from_millis(250));
    assert_eq!(config.timeouts.idle, Duration::from_secs(3600));
    assert_eq!(config.timeouts.half_close, Duration::from_secs(90));
    let [first, second] = &config.workloads[..] else {
        panic!("two workloads")
    };
    assert_eq!(first.acceleration, Acceleration::Off.into());
    assert_eq!(first.acceleration.of(80), Acceleration::Off);
    assert_eq!(first.on_failure, OnFailure::Closed);
    assert_eq!(
        first.labels.values().collect::<Vec<_>>(),
        ["on", "1.50", ""]
    );
    let shown = |items: &[PortRange]| items.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        shown(&first.inbound.include_ports),
        ["80", "443", "8000-8100"]
    );
    let cidrs: Vec<_> = second
        .outbound
        .include_cidrs
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        cidrs,
        ["10.0.0.1/32", "::1/128", "10.0.0.0/8", "10.0.0.0/8"]
    );
    assert_eq!(second.name.to_string(), "other/a");
}

#[test]
fn a_file_is_loaded_and_a_missing_one_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shunt.yaml");
    let error = load(&path).expect_err("there is no file").to_string();
    assert!(
        error.starts_with(&format!("{}: cannot read the file", path.display())),
        "{error}"
    );
    std::fs::write(&path, "mode: iptables\n").unwrap();
    assert_eq!(load(&path).expect("a file").mode, ModeSetting::Iptables);
    std::fs::write(&path, b"mode: auto\nbpffs: /\xff\n").unwrap();
    let error = load(&path).expect_err("not text").to_string();
    assert_eq!(
        error,
        format!("{}:2: this is not UTF-8 text", path.display())
    );
}

#[test]
fn flags_add_workloads_and_replace_the_mode() {
    let file =
        "mode: ebpf\nworkloads:\n- {name: a, netns: a}\n- {name: b, netns: b, mode: iptables}\n";
    let flag = |name: &str, netns: &str| (name.to_owned(), netns.to_owned());
    let config = read(file).expect("a configuration");
    let given = [flag("c", "c"), flag("ns/a", "/proc/1/ns/net")];
    let flagged = apply_flags(config.clone(), Some(ModeSetting::Auto), &given).expect("flags");
    let shown: Vec<_> = flagged
        .workloads
        .iter()
        .map(|workload| {
            format!(
                "{} {} {:?}",
                workload.name,
                workload.netns.display(),
                workload.mode
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "default/a /run/netns/a Auto",
            "default/b /run/netns/b Iptables",
            "default/c /run/netns/c Auto",
            "ns/a /proc/1/ns/net Auto",
        ]
    );
    let wrong = [flag("a", "z"), flag("d e", "../x"), flag("f", "b")];
    let error = apply_flags(config, None, &wrong)
        .expect_err("wrong flags")
        .to_string();
    let lines: Vec<_> = error.lines().collect();
    assert_eq!(lines.len(), 4, "{error}");
    assert_eq!(
        lines[0],
        "command line: --workload a=z: workload `default/a` is given twice"
    );
    assert!(
        lines[3].contains("network namespace of workload `default/b`"),
        "{error}"
    );
}

#[test]
fn one_workload_in_json_or_yaml() {
    let name = WorkloadName {
        namespace: "default".into(),
        name: "web".into(),
    };
    let read = |text: &str| parse_workload(text, &name, ModeSetting::Iptables);
    let json =
        r#"{"netns": "podB", "labels": {"app": "web"}, "inbound": {"include_ports": [80, "443"]}}"#;
    let spec = read(json).expect("a workload");
    assert_eq!((&spec.name, spec.mode), (&name, ModeSetting::Iptables));
    assert_eq!(spec.netns, PathBuf::from("/run/netns/podB"));
    assert_eq!(
        read("name: web\nnamespace: default\nnetns: podB\n").map(|spec| spec.name),
        Ok(name.clone())
    );

    let error = read("{\"name\": \"db\",\n \"nets\": 1}")
        .expect_err("wrong")
        .to_string();
    assert_eq!(
        error,
        "request body:1: name: differs from the path of the request, which says `web`\n\
         request body:1: netns: missing (every workload has one)\n\
         request body:2: nets: unknown key (did you mean `netns`?)"
    );
    read("").expect_err("nothing");
    let strange = WorkloadName {
        namespace: "a b".into(),
        name: "x".into(),
    };
    parse_workload("netns: x", &strange, ModeSetting::Auto).expect_err("a strange name");

    let other = WorkloadSpec {
        name: WorkloadName {
            name: "db".into(),
            ..name
        },
        ..spec.clone()
    };
    assert_eq!(conflict([&spec], &spec), None);
    assert!(
        conflict([&spec], &other)
            .expect("one namespace, two names")
            .contains("default/web")
    );
}
