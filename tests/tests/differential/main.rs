//! The same bootstrap run by Envoy and by shunt, the same bytes sent to both: what clients and upstreams see is compared
//! line by line.

mod cases;
mod differences;
mod message;
mod scene;

use std::collections::BTreeSet;
use std::path::PathBuf;

use shunt_tests::require;

use crate::differences::ALLOWED;
use crate::scene::{Outcome, Scene};

/// Put there by `cargo xtask test`.
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
fn shunt_does_what_envoy_does() {
    require::everything();
    let Some(envoy) = envoy() else {
        let text = "SKIPPED: no Envoy to compare with; `cargo xtask test` fetches one, or name it in SHUNT_ENVOY";
        assert!(std::env::var_os("CI").is_none(), "{text}");
        eprintln!("{text}");
        return;
    };
    let scene = Scene::new(&envoy);
    let mut faults = Vec::new();
    let mut met = BTreeSet::new();
    for case in cases::all() {
        let [theirs, ours] = scene
            .proxies
            .each_ref()
            .map(|proxy| facts(&scene.play(proxy, &case)));
        for known in ALLOWED.iter().filter(|known| known.is_about(case.name)) {
            let lacking = known.shows.iter().filter(|fact| !ours.contains(**fact));
            faults.extend(lacking.map(|fact| format!("{}: shunt lacks {fact}", case.name)));
        }
        for (side, fact) in theirs
            .difference(&ours)
            .map(|fact| (scene.proxies[0].name, fact))
            .chain(
                ours.difference(&theirs)
                    .map(|fact| (scene.proxies[1].name, fact)),
            )
        {
            let allowed = ALLOWED.iter().position(|known| known.is(case.name, fact));
            match allowed {
                Some(at) => {
                    met.insert(at);
                }
                None => faults.push(format!("{}: only {side}: {fact}", case.name)),
            }
        }
    }
    for (at, difference) in ALLOWED.iter().enumerate() {
        if !met.contains(&at) {
            faults.push(format!("an allowed difference is gone: {difference:?}"));
        }
    }
    let count = cases::all().len();
    assert!(
        faults.is_empty(),
        "{count} cases\n{}\n{}",
        faults.join("\n"),
        scene.log()
    );
}

/// Everything that is compared, each with its place.
fn facts(outcome: &Outcome) -> BTreeSet<String> {
    let mut facts = BTreeSet::new();
    let sides = [
        ("response", &outcome.responses),
        ("upstream request", &outcome.seen),
    ];
    for (what, messages) in sides {
        facts.insert(format!("{what}s: {}", messages.len()));
        for (at, message) in messages.iter().enumerate() {
            let mut times = std::collections::BTreeMap::new();
            for (name, value) in message.facts() {
                let line = format!("{what} {}: {name}: {value}", at + 1);
                *times.entry(line).or_insert(0) += 1;
            }
            facts.extend(times.into_iter().map(|(line, times)| match times {
                1 => line,
                times => format!("{line} ({times} times)"),
            }));
        }
    }
    facts.insert(format!("connection: {}", outcome.end));
    facts
}
