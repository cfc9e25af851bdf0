//! What is refused, and how that is said.

use super::{faults, read};

#[test]
fn every_fault_is_told_at_once_with_its_line() {
    let text = "mode: fast\n\
                concurrencyy: 2\n\
                ports:\n\
                \x20 outbound: 15001\n\
                \x20 inbound: 15001\n\
                timeouts: {connect: 10, drain: 5s}\n\
                bootstrap: x.yaml\n\
                workloads:\n\
                \x20 - name: client\n\
                \x20   inbound: {include_cidrs: []}\n\
                \x20   outbound:\n\
                \x20     exclude_ports: [22,\n\
                \x20                     70000]\n\
                \x20 - netns:\n\
                \x20   name: b\n\
                \x20   labels: [x]\n";
    assert_eq!(
        faults(text),
        [
            "1: mode: `fast` is not known here (auto | ebpf | iptables)",
            "2: concurrencyy: unknown key (did you mean `concurrency`?)",
            "4: ports: outbound and inbound are both 15001; they must differ",
            "6: timeouts.connect: `10` is not a duration (a number with ms, s, m or h, at most 8760h)",
            "7: bootstrap: `x.yaml` is not an absolute path (it must begin with /)",
            "9: workloads[0].netns: missing (every workload has one)",
            "10: workloads[0].inbound.include_cidrs: unknown key (include_ports, exclude_ports)",
            "13: workloads[0].outbound.exclude_ports[1]: `70000` is not a port (1 to 65535) or a range (as 8000-8100)",
            "14: workloads[1].netns: missing (every workload has one)",
            "16: workloads[1].labels: a list where a mapping is expected",
        ]
    );
}

#[test]
fn each_wrong_value_is_named() {
    let cases = [
        ("concurrency: 0", "concurrency", "1 to 64"),
        ("concurrency: 65", "concurrency", "1 to 64"),
        ("concurrency: [1]", "concurrency", "a list where one value"),
        ("mark: 0", "mark", "0xfffffffe"),
        ("mark: 0xffffffff", "mark", "0xfffffffe"),
        ("mark: 0x+1", "mark", "0xfffffffe"),
        ("mark: -1", "mark", "0xfffffffe"),
        ("ports: {outbound: 65536}", "ports.outbound", "65535"),
        ("ports: 15001", "ports", "where a mapping"),
        (
            "log: {access: false}",
            "log.access",
            "stdout | off | /absolute/path",
        ),
        (
            "log: {access: log/x}",
            "log.access",
            "stdout | off | /absolute/path",
        ),
        ("log: {level: loud}", "log.level", "off | error"),
        ("log: {level: 'info,x=loud'}", "log.level", "off | error"),
        ("log: {format: xml}", "log.format", "text | json"),
        ("log: {format: }", "log.format", "text | json"),
        ("admin: {address: 0.0.0.0:1}", "admin.address", "loopback"),
        ("admin: {address: 10.0.0.1:80}", "admin.address", "loopback"),
        (
            "admin: {address: localhost:80}",
            "admin.address",
            "127.0.0.1:15000",
        ),
        ("admin: {socket: admin.sock}", "admin.socket", "absolute"),
        ("state_dir: run", "state_dir", "absolute"),
        ("bpffs: \"/a\\n\"", "bpffs", "absolute"),
        (
            "timeouts: {connect: 0s}",
            "timeouts.connect",
            "more than 0s",
        ),
        ("timeouts: {idle: 1d}", "timeouts.idle", "ms, s, m or h"),
        ("timeouts: {idle: -1s}", "timeouts.idle", "ms, s, m or h"),
        (
            "timeouts: {idle: 99999999999999999999h}",
            "timeouts.idle",
            "8760h",
        ),
        ("limits: {connections: 0}", "limits.connections", "from 1"),
        ("limits: {connections: 1e5}", "limits.connections", "from 1"),
        ("splice_after: 1MB", "splice_after", "KiB, MiB or GiB"),
        ("splice_after: -1", "splice_after", "KiB, MiB or GiB"),
        ("splice_after: 1025GiB", "splice_after", "1024GiB"),
        ("splice_after: never", "splice_after", "off, or"),
        ("splice_after: ", "splice_after", "off, or"),
        ("bootstrap: x", "bootstrap", "absolute path"),
        (
            "kubernetes: yes",
            "kubernetes",
            "a single value where a mapping",
        ),
        ("kubernetes: {default: yes}", "kubernetes.default", "on"),
        (
            "kubernetes: {kubeconfig: x}",
            "kubernetes.kubeconfig",
            "absolute path",
        ),
        (
            "kubernetes: {labels: {inject: a b}}",
            "kubernetes.labels.inject",
            "key of a label",
        ),
        (
            "kubernetes: {exempt_namespaces: [a/b]}",
            "kubernetes.exempt_namespaces[0]",
            "not a name",
        ),
        ("services: {}", "services", "where a list"),
        ("services: [~]", "services[0]", "empty"),
        ("policy: {}", "policy", "where a list"),
        ("policy: [~]", "policy[0]", "empty"),
        ("workloads: {}", "workloads", "where a list"),
        ("workloads: [~]", "workloads[0]", "empty"),
        (
            "workloads: [x]",
            "workloads[0]",
            "a single value where a mapping",
        ),
        ("colour: red", "colour", "unknown key (mode, concurrency"),
        ("x.mode: auto", "x.mode", "unknown key"),
    ];
    for (text, field, message) in cases {
        let error = read(text).expect_err(text);
        let [fault] = error.faults() else {
            panic!("{text}: {error}")
        };
        assert_eq!(
            (fault.line, fault.field.as_str()),
            (Some(1), field),
            "{text}: {error}"
        );
        assert!(fault.message.contains(message), "{text}: {error}");
    }
}

#[test]
fn each_wrong_value_of_a_workload_is_named() {
    let long = format!("name: {}", "a".repeat(254));
    let cases = [
        ("name: a/b", "name", "1 to 253"),
        ("name: -a", "name", "1 to 253"),
        ("name: ..", "name", "1 to 253"),
        ("name: ''", "name", "1 to 253"),
        (&long, "name", "1 to 253"),
        ("namespace: a b", "namespace", "1 to 253"),
        ("netns: a/b", "netns", "/run/netns"),
        ("netns: ..", "netns", "/run/netns"),
        ("netns: {}", "netns", "a mapping where one value"),
        ("cgroup: ../x", "cgroup", "without .."),
        ("mode: off", "mode", "auto | ebpf | iptables"),
        ("acceleration: on", "acceleration", "off | auto | always"),
        (
            "acceleration: {default: yes}",
            "acceleration.default",
            "off | auto | always",
        ),
        (
            "acceleration: {ports: {80: on}}",
            "acceleration.ports.80",
            "off | auto | always",
        ),
        (
            "acceleration: {ports: {80-90: off, 85: always}}",
            "acceleration.ports.85",
            "overlaps with `80-90`",
        ),
        (
            "acceleration: {handoff: 1}",
            "acceleration.handoff",
            "true | false",
        ),
        (
            "acceleration: {direct: maybe}",
            "acceleration.direct",
            "true | false",
        ),
        (
            "acceleration: {ports: {http: off}}",
            "acceleration.ports.http",
            "not a port",
        ),
        ("on_failure: close", "on_failure", "open | closed"),
        ("dns: true", "dns", "expected"),
        ("dns: {capture: yes please}", "dns.capture", "true | false"),
        (
            "outbound: {include_ports: 80}",
            "outbound.include_ports",
            "where a list",
        ),
        (
            "outbound: {include_ports: [+80]}",
            "outbound.include_ports[0]",
            "not a port",
        ),
        (
            "outbound: {include_cidrs: [10.0.0.0/33]}",
            "outbound.include_cidrs[0]",
            "not a network",
        ),
        ("labels: {a: [b]}", "labels.a", "a list where one value"),
    ];
    for (setting, field, message) in cases {
        let mut lines = vec![setting];
        for (key, line) in [("name:", "name: a"), ("netns:", "netns: b")] {
            if !setting.starts_with(key) {
                lines.push(line);
            }
        }
        let text = format!("workloads:\n- {}\n", lines.join("\n  "));
        let error = read(&text).expect_err(setting);
        let [fault] = error.faults() else {
            panic!("{setting}: {error}")
        };
        let field = format!("workloads[0].{field}");
        assert_eq!(
            (fault.line, &fault.field),
            (Some(2), &field),
            "{setting}: {error}"
        );
        assert!(fault.message.contains(message), "{setting}: {error}");
    }
}

#[test]
fn workloads_exclude_each_other_by_name_and_by_namespace() {
    let text = "workloads:\n\
                - {name: a, netns: x}\n\
                - {name: a, netns: y}\n\
                - {name: a, namespace: other, netns: z}\n\
                - {name: b, netns: /var/run/netns//x}\n";
    assert_eq!(
        faults(text),
        [
            "3: workloads[1].name: workload `default/a` is given twice",
            "5: workloads[3].netns: `/var/run/netns//x` is the network namespace of workload `default/a` already (one workload each)",
        ]
    );
}

#[test]
fn what_is_not_our_yaml_is_refused_with_its_line() {
    let cases = [
        ("a: 1\n b: 2\n", "2: not YAML"),
        ("mode: [auto\n", "not YAML"),
        ("- mode\n", "1: the text must be a mapping"),
        ("mode", "1: the text must be a mapping"),
        ("log: &x {}\n", "1: YAML anchors"),
        ("mode: !!str auto\n", "1: YAML tags"),
        ("mode: auto\n---\nmode: ebpf\n", "2: only one YAML document"),
        ("mode: auto\n...\nmode: ebpf\n", "3: only one YAML document"),
        (
            "mode: auto\nmark: 0\nmode: ebpf\n",
            "3: mode: the key is given twice, here and in line 1",
        ),
    ];
    for (text, expected) in cases {
        let told = faults(text).join("\n");
        assert!(told.contains(expected), "{text:?}: {told}");
    }
    // The rest of the file is looked at even then.
    assert_eq!(faults("mode: auto\nmark: 0\nmode: ebpf\n").len(), 2);
}

#[test]
fn no_text_overflows_the_stack() {
    let deep_flow = format!("a: {}", "[".repeat(60_000));
    let shallow_flow = format!("a: {}{}", "[".repeat(250), "]".repeat(250));
    let dashes = format!("a:\n  {}", "- ".repeat(60_000));
    let colons = format!("a:\n  {}", ": ".repeat(60_000));
    let stairs: String = (0..2000)
        .map(|depth| format!("{}a:\n", " ".repeat(depth)))
        .collect();
    for text in [deep_flow, shallow_flow, dashes, colons, stairs] {
        read(&text).expect_err("nonsense");
    }
}
