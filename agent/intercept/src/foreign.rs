//! Other meshes, Cilium, and whoever else works at the same places: named, with what it means, and never touched.

use std::path::{Path, PathBuf};

use crate::ebpf::foreign::{AtCgroup, at_cgroup, below, in_namespace, sockmaps};
use crate::iptables::foreign::chains;
use crate::netns::Netns;
use crate::{Finding, InterceptError, cgroup};

/// Whose a name is, by its start: of chains and of programs.
const KNOWN: [(&str, &str); 12] = [
    ("ISTIO_", "Istio"),
    ("istio-", "Istio"),
    ("PROXY_INIT_", "Linkerd"),
    ("KUMA_", "Kuma"),
    ("MESH_", "Kuma"),
    ("CONSUL_", "Consul"),
    ("OSM_PROXY_", "Open Service Mesh"),
    ("CILIUM_", "Cilium"),
    ("cil_", "Cilium"),
    ("mb_", "Merbridge"),
    ("kmesh", "Kmesh"),
    ("cgroup_connect", "Kmesh"),
];

/// Whose it is, if that is known.
fn owner(name: &str) -> Option<&'static str> {
    let known = KNOWN.iter().find(|(start, _)| name.starts_with(start));
    known.map(|(_, owner)| *owner)
}

fn of(name: &str) -> String {
    owner(name).map_or(String::new(), |owner| format!(" of {owner}"))
}

/// What others have where a workload is steered, one line each. `cgroup`: where its hooks are, or would be.
pub fn notes(netns: &Netns, cgroup: Option<&Path>) -> Vec<String> {
    let mut notes = chain_notes(netns);
    for program in in_namespace(netns) {
        notes.push(format!(
            "sk_lookup program {program} is attached to the namespace: it decides about inbound connections too"
        ));
    }
    let hooks = cgroup.map(at_cgroup).unwrap_or_default();
    notes.extend(hooks.iter().map(|hook| hook_note(hook, cgroup)));
    notes
}

/// Chains of known meshes in a namespace.
pub fn chain_notes(netns: &Netns) -> Vec<String> {
    let all = netns.enter(chains).unwrap_or_default();
    let meshes = all.iter().filter(|(_, chain)| owner(chain).is_some());
    meshes
        .map(|(table, chain)| {
            format!(
                "chain {chain}{} in table {table}: connections may be redirected twice, \
                 first by whichever rule comes first",
                of(chain)
            )
        })
        .collect()
}

fn hook_note(hook: &AtCgroup, cgroup: Option<&Path>) -> String {
    let AtCgroup {
        program,
        hook,
        path,
    } = hook;
    let order = if cgroup == Some(path) {
        "it runs at the same place, in the order of attachment: whichever comes first sees the address that was asked for"
    } else {
        "ours is nearer to the workload and runs first: it sees the address that was asked for, a service's too"
    };
    format!(
        "program {program}{} at {} ({hook}): {order}{}",
        of(program),
        path.display(),
        what_follows(program, hook)
    )
}

/// What else is to be known of a hook, by whose it is.
fn what_follows(program: &str, hook: &str) -> &'static str {
    if !hook.starts_with("connect") {
        return "";
    }
    match owner(program) {
        Some("Cilium") => {
            "; it translates services of Kubernetes, also for the agent: where ours is first, policy and listeners here \
             know the service's address, not that of who answers"
        }
        Some("Kmesh" | "Merbridge") => {
            "; it sends connections to a proxy of its own: those that both capture pass both"
        }
        _ => "",
    }
}

/// What others' programs are on which socket maps of the node.
pub fn sockmap_notes() -> Vec<String> {
    let all = sockmaps().into_iter();
    all.map(|(map, program)| {
        format!(
            "program {program}{} on socket map {map}: a socket can be in one such map only, \
             so its sockets are not accelerated",
            of(&program)
        )
    })
    .collect()
}

/// What `shunt check` says: of the node's cgroups and socket maps, and of these namespaces.
pub fn probe(namespaces: impl Iterator<Item = PathBuf>) -> Vec<Finding> {
    let hooks: Vec<String> = cgroup::mount_point()
        .map(|root| below(&root))
        .unwrap_or_default()
        .iter()
        .map(
            |AtCgroup {
                 program,
                 hook,
                 path,
             }| {
                let follows = what_follows(program, hook);
                format!(
                    "{program}{} at {} ({hook}){follows}",
                    of(program),
                    path.display()
                )
            },
        )
        .collect();
    let mut chains = Vec::new();
    let mut look = |netns: Result<Netns, InterceptError>| {
        let Ok(netns) = netns else { return };
        let here = chain_notes(&netns).into_iter();
        chains.extend(here.map(|note| format!("{}: {note}", netns.path().display())));
    };
    namespaces.for_each(|path| look(Netns::open(&path)));
    look(Netns::own());
    vec![
        named(
            "others' hooks",
            hooks,
            "never touched; ours at a workload's own cgroup runs before what is attached above it and sees the address \
             that was asked for; without a cgroup in the configuration the order of attachment decides",
        ),
        named(
            "others' socket maps",
            sockmap_notes(),
            "never touched; sockets in them are not accelerated",
        ),
        named(
            "others' chains",
            chains,
            "never touched; two meshes in one namespace redirect twice",
        ),
    ]
}

fn named(name: &'static str, found: Vec<String>, meaning: &str) -> Finding {
    Finding {
        name,
        ok: found.is_empty(),
        required: false,
        found: if found.is_empty() {
            "none".into()
        } else {
            found.join("; ")
        },
        meaning: meaning.to_owned(),
    }
}
