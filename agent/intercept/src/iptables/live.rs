//! Our rules as the kernel has them, without a program and without a text: to be compared with what they were right
//! after we wrote them. Counters, handles and everything of others is left out.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;

use shunt_core::sockets::Family;

use super::legacy::Legacy;
use super::netfilter::Netfilter;
use super::render::{JUMPS, all_chains, all_jumps};
use super::tools::Variant;
use crate::netlink::attributes;

/// The rules of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Live {
    /// By chain, what each rule is, in order.
    chains: BTreeMap<&'static str, Vec<u64>>,
    /// By chain of ours, how many jumps lead to it.
    jumps: BTreeMap<&'static str, usize>,
}

impl Live {
    /// In this thread's namespace. `legacy` is asked where the rules are in its tables.
    pub(super) fn read(
        variant: Variant,
        family: Family,
        legacy: Option<&Legacy>,
    ) -> io::Result<Self> {
        let mut live = Self::default();
        match (variant, legacy) {
            (Variant::Legacy, Some(legacy)) => {
                legacy.rules(|chain, rule, to| live.add(chain, rule, to))?
            }
            (Variant::Legacy, None) => {}
            (Variant::Nft, _) => {
                Netfilter::open()?.nat_rules(family, |chain, _, expressions| {
                    let rule = without_counters(expressions);
                    let to = all_jumps().map(|(_, to)| to).find(|to| contains(&rule, to));
                    live.add(chain, &rule, to);
                })?;
            }
        }
        Ok(live)
    }

    fn add(&mut self, chain: &str, rule: &[u8], to: Option<&str>) {
        if let Some(ours) = all_chains().find(|ours| *ours == chain) {
            let mut hasher = DefaultHasher::new();
            rule.hash(&mut hasher);
            self.chains.entry(ours).or_default().push(hasher.finish());
        } else if let Some((_, ours)) =
            all_jumps().find(|jump| (jump.0, Some(jump.1)) == (chain, to))
        {
            *self.jumps.entry(ours).or_default() += 1;
        }
    }

    /// How many rules there are in our chains.
    pub(super) fn rules(&self) -> usize {
        self.chains.values().map(Vec::len).sum()
    }

    /// `queries`: those are led away too.
    pub(super) fn has_all_jumps(&self, queries: bool) -> bool {
        self.jumps.len() == JUMPS.len() + usize::from(queries)
    }

    /// What `now` has less, more or otherwise, for people. `None`: nothing.
    pub(super) fn difference(&self, now: &Self) -> Option<String> {
        if self == now {
            return None;
        }
        if now.rules() == 0 && now.jumps.is_empty() {
            return Some("none of the rules is left".into());
        }
        let mut found = Vec::new();
        for (from, to) in all_jumps() {
            let (wanted, there) = (self.jumps.get(to), now.jumps.get(to));
            match there {
                _ if wanted == there => {}
                None => found.push(format!("the jump from {from} to {to} is gone")),
                Some(count) => found.push(format!("{count} jumps lead from {from} to {to}")),
            }
        }
        for chain in all_chains() {
            let of = |live: &Self| live.chains.get(chain).cloned().unwrap_or_default();
            let (wanted, there) = (of(self), of(now));
            if wanted.len() != there.len() {
                found.push(format!(
                    "{chain} has {} rules, not {}",
                    there.len(),
                    wanted.len()
                ));
            } else if wanted != there {
                found.push(format!("rules of {chain} were changed"));
            }
        }
        Some(found.join(", "))
    }
}

/// NFTA_LIST_ELEM, and within it NFTA_EXPR_NAME and NFTA_EXPR_DATA.
const ELEMENT: u16 = 1;
const NAME: u16 = 1;
const DATA: u16 = 2;

/// The expressions of an nft rule, names and data, counters without their counts.
fn without_counters(expressions: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(expressions.len());
    for (_, element) in attributes(expressions).filter(|(kind, _)| *kind == ELEMENT) {
        let part =
            |wanted| attributes(element).find_map(|(kind, data)| (kind == wanted).then_some(data));
        let name: &[u8] = part(NAME).unwrap_or_default();
        bytes.extend(name);
        if name != b"counter\0" {
            bytes.extend(part(DATA).unwrap_or_default());
        }
    }
    bytes
}

fn contains(rule: &[u8], chain: &str) -> bool {
    let name = [chain.as_bytes(), b"\0"].concat();
    rule.windows(name.len()).any(|window| window == name)
}
