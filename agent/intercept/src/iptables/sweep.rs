//! Removing what is ours from a namespace, whoever of us put it there.

use std::io;

use super::FAMILIES;
use super::dead_man::{destroy_sets, sets};
use super::netfilter::{Kept, Netfilter};
use super::render::{has_chains, removal, unhooking};
use super::tools::{Tools, Variant};
use crate::netns::Netns;
use crate::{InterceptError, return_path};
use shunt_core::sockets::Family;

#[derive(Default)]
pub(super) struct Swept {
    removed: Vec<String>,
    /// The first; the rest was tried all the same.
    pub(super) failure: Option<InterceptError>,
}

impl Swept {
    fn note(&mut self, result: Result<Option<String>, InterceptError>) {
        match result {
            Ok(removed) => self.removed.extend(removed),
            Err(error) => self.failure = self.failure.take().or(Some(error)),
        }
    }
}

/// Removes chains, what is empty of the tables that came with them, and sets. `foreign`: what is not ours, where that
/// is known; else a table goes only together with chains of ours. `netfilter`: one of the namespace, if there is one.
pub(super) fn sweep(
    tools: &Tools,
    netns: &Netns,
    foreign: Option<&[Kept]>,
    netfilter: Option<Netfilter>,
) -> Swept {
    let mut swept = Swept::default();
    let nft = |netfilter: &Netfilter| remove_from_nft(netfilter, foreign);
    for variant in tools.variants(netns) {
        let had = match (variant, &netfilter) {
            (Variant::Legacy, _) => remove_from_legacy(tools, netns),
            (Variant::Nft, Some(netfilter)) => nft(netfilter).map_err(|error| failed(netns, error)),
            (Variant::Nft, None) => directly(netns, nft),
        };
        match had {
            Ok(had) => {
                let removed = had.into_iter();
                let removed = removed.map(|family| describe(tools, variant, family));
                swept.removed.extend(removed);
            }
            Err(error) => swept.note(Err(error)),
        }
    }
    match destroy_sets(netns) {
        Ok(names) => swept.removed.extend(names.into_iter().map(describe_set)),
        Err(error) => swept.note(Err(error)),
    }
    swept
}

/// Leaves our chains without anything that leads to them.
pub(super) fn unhook(tools: &Tools, netns: &Netns, variant: Variant) -> Result<(), InterceptError> {
    if variant == Variant::Nft {
        return directly(netns, Netfilter::unhook);
    }
    for family in FAMILIES {
        if let Some(text) = unhooking(&tools.save(netns, variant, family)?) {
            tools.restore(netns, variant, family, &text)?;
        }
    }
    Ok(())
}

/// The families that had chains of ours.
fn remove_from_nft(netfilter: &Netfilter, foreign: Option<&[Kept]>) -> io::Result<Vec<Family>> {
    let had = netfilter.remove_ours()?;
    for (index, family) in FAMILIES.into_iter().enumerate() {
        let known = foreign.and_then(|foreign| foreign.get(index));
        let unseen = had.contains(&family).then(Kept::unseen);
        if let Some(keep) = known.or(unseen.as_ref()) {
            netfilter.delete_empty_nat(family, keep)?;
        }
    }
    Ok(had)
}

/// As [`remove_from_nft`]. Its tables stay.
fn remove_from_legacy(tools: &Tools, netns: &Netns) -> Result<Vec<Family>, InterceptError> {
    let mut had = Vec::new();
    for family in FAMILIES {
        if let Some(text) = removal(&tools.save(netns, Variant::Legacy, family)?) {
            tools.restore(netns, Variant::Legacy, family, &text)?;
            had.push(family);
        }
    }
    Ok(had)
}

/// Without a program: it takes a tenth of the time.
fn directly<T>(
    netns: &Netns,
    work: impl FnOnce(&Netfilter) -> io::Result<T>,
) -> Result<T, InterceptError> {
    let done = netns.enter(|| work(&Netfilter::open()?));
    done.and_then(|done| done)
        .map_err(|error| failed(netns, error))
}

fn failed(netns: &Netns, error: io::Error) -> InterceptError {
    InterceptError::io("change the nat tables of", netns.path().display(), error)
}

/// What an earlier agent has left in a namespace. Looks only.
pub fn leftovers(netns: &Netns) -> Vec<String> {
    let mut found = Vec::new();
    if let Ok(tools) = Tools::find() {
        for variant in tools.variants(netns) {
            for family in FAMILIES {
                if tools
                    .save(netns, variant, family)
                    .is_ok_and(|saved| has_chains(&saved))
                {
                    found.push(describe(&tools, variant, family));
                }
            }
        }
    }
    found.extend(sets(netns).into_iter().map(describe_set));
    found.extend(return_path::leftovers(netns));
    found
}

/// Removes every trace that an agent which is gone has left in a namespace, and says what it was. Parts that are
/// missing are no error.
///
/// # Errors
/// Something of ours may still be there; everything was tried.
pub fn cleanup(netns: &Netns) -> Result<Vec<String>, InterceptError> {
    let mut swept = Tools::find()
        .map(|tools| sweep(&tools, netns, None, None))
        .unwrap_or_default();
    match return_path::remove_any(netns) {
        Ok(removed) => swept.removed.extend(removed),
        Err(error) => swept.note(Err(error)),
    }
    swept.failure.map_or(Ok(swept.removed), Err)
}

fn describe(tools: &Tools, variant: Variant, family: Family) -> String {
    format!("chains SHUNT_* ({})", tools.program(variant, family, ""))
}

fn describe_set(name: &str) -> String {
    format!("ipset {name}")
}
