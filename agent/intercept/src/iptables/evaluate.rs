//! A nat table as text, and what it does to the first packet of a connection. Knows the matches that we render; a rule
//! with any other may hold or not.

use std::net::IpAddr;

use ipnet::IpNet;
use shunt_core::sockets::Family;

use super::dead_man::list;
use super::render::OURS;

/// Deeper than any table that the kernel takes, which knows no loops.
const DEEPEST: usize = 64;
/// Modules whose options are known here.
const MODULES: [&str; 6] = ["tcp", "mark", "addrtype", "recent", "set", "comment"];
/// Targets after which a packet goes on.
const GOES_ON: [&str; 4] = ["LOG", "NFLOG", "TRACE", "AUDIT"];

/// A SYN, as the nat chains see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    /// `None`: the kernel has yet to choose it.
    pub(super) source: Option<IpAddr>,
    pub(super) destination: IpAddr,
    pub(super) port: u16,
    pub(super) mark: u32,
    /// The destination is the namespace's own.
    pub(super) local: bool,
    /// The dead-man match holds.
    pub(super) alive: bool,
    /// Somebody listens at the destination.
    pub(super) listening: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    Yes,
    No,
    Unknown,
}

#[derive(Debug)]
pub(super) struct Table<'t> {
    rules: Vec<Rule<'t>>,
}

/// One rule.
#[derive(Debug)]
pub(super) struct Rule<'t> {
    pub(super) chain: &'t str,
    /// As it stands in the table.
    pub(super) text: &'t str,
    pub(super) matches: Vec<(bool, Match<'t>)>,
    pub(super) target: &'t str,
    goes: bool,
    /// Of REDIRECT.
    pub(super) to_port: Option<u16>,
}

/// What a rule looks at; the flag beside it says whether it is negated.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Match<'t> {
    Protocol(&'t str),
    Source(IpNet),
    Destination(IpNet),
    Ports(u16, u16),
    Mark {
        value: u32,
        mask: u32,
    },
    LocalDestination,
    Alive,
    /// As [`LISTENING`](super::render::LISTENING).
    Listening,
    /// A SYN.
    Begins,
    Other(&'t str),
}

/// A rule that was looked at.
#[derive(Debug)]
pub(super) struct Visit<'a, 't> {
    pub(super) rule: &'a Rule<'t>,
    pub(super) held: Holds,
}

/// Where the walk ended.
#[derive(Debug)]
pub(super) enum End<'a, 't> {
    Redirected(&'a Rule<'t>),
    /// Another target that ends the walk.
    Decided(&'a Rule<'t>),
    /// Nothing took the packet.
    Through,
}

impl<'t> Table<'t> {
    /// Reads what iptables-save says, or what we give to iptables-restore.
    pub(super) fn parse(text: &'t str) -> Self {
        let rules = text
            .lines()
            .filter_map(|line| line.strip_prefix("-A "))
            .filter_map(Rule::parse)
            .collect();
        Self { rules }
    }

    /// Everything that `packet` meets, in order.
    pub(super) fn walk<'a>(
        &'a self,
        chain: &str,
        packet: &Packet,
        visits: &mut Vec<Visit<'a, 't>>,
    ) -> End<'a, 't> {
        self.walk_chain(chain, packet, visits, 0)
            .unwrap_or(End::Through)
    }

    fn walk_chain<'a>(
        &'a self,
        chain: &str,
        packet: &Packet,
        visits: &mut Vec<Visit<'a, 't>>,
        depth: usize,
    ) -> Option<End<'a, 't>> {
        for rule in self.rules.iter().filter(|rule| rule.chain == chain) {
            let held = rule.holds(packet);
            visits.push(Visit { rule, held });
            if held != Holds::Yes {
                continue;
            }
            match rule.target {
                "" => {}
                "RETURN" => return None,
                "REDIRECT" => return Some(End::Redirected(rule)),
                target if GOES_ON.contains(&target) => {}
                target if depth < DEEPEST && self.has(target) => {
                    let end = self.walk_chain(target, packet, visits, depth + 1);
                    if end.is_some() || rule.goes {
                        return end;
                    }
                }
                // An empty chain of ours, or of somebody else.
                target if target.starts_with(OURS) => {}
                _ => return Some(End::Decided(rule)),
            }
        }
        None
    }

    fn has(&self, chain: &str) -> bool {
        self.rules.iter().any(|rule| rule.chain == chain)
    }
}

impl<'t> Rule<'t> {
    fn parse(text: &'t str) -> Option<Self> {
        let mut words = words(text).into_iter();
        let mut rule = Self {
            chain: words.next()?,
            text,
            matches: Vec::new(),
            target: "",
            goes: false,
            to_port: None,
        };
        let mut negated = false;
        while let Some(word) = words.next() {
            let mut next = || words.next().unwrap_or_default();
            let found = match word {
                "!" => {
                    negated = true;
                    continue;
                }
                "-j" | "-g" => {
                    rule.target = next();
                    rule.goes = word == "-g";
                    let to = words.skip_while(|word| *word != "--to-ports").nth(1);
                    rule.to_port = to.and_then(|port| port.parse().ok());
                    break;
                }
                "-p" => Match::Protocol(next()),
                "-s" => network(next()).map_or(Match::Other(word), Match::Source),
                "-d" => network(next()).map_or(Match::Other(word), Match::Destination),
                "--dport" => ports(next()).unwrap_or(Match::Other(word)),
                "--mark" => mark(next()).unwrap_or(Match::Other(word)),
                "--dst-type" if next() == "LOCAL" => Match::LocalDestination,
                "--syn" => Match::Begins,
                "--tcp-flags" => match (next(), next()) {
                    ("FIN,SYN,RST,ACK", "SYN") => Match::Begins,
                    _ => Match::Other(word),
                },
                "--name" if is_ours(next()) => Match::Alive,
                "--match-set" => match (is_ours(next()), next()) {
                    (true, "dst") => Match::Alive,
                    _ => Match::Other(word),
                },
                // What stands beside a name of ours, in the form that we render.
                "--rcheck" | "--rdest" => continue,
                "--seconds" | "--mask" | "--comment" => {
                    next();
                    continue;
                }
                "-m" => match next() {
                    module if MODULES.contains(&module) => continue,
                    "socket" if words.as_slice().first() == Some(&"--nowildcard") => {
                        words.next();
                        Match::Listening
                    }
                    module => Match::Other(module),
                },
                other => Match::Other(other),
            };
            rule.matches.push((std::mem::take(&mut negated), found));
        }
        Some(rule)
    }

    pub(super) fn holds(&self, packet: &Packet) -> Holds {
        let each = self.matches.iter().map(|(negated, found)| {
            found.holds(packet).map_or(Holds::Unknown, |holds| {
                if holds != *negated {
                    Holds::Yes
                } else {
                    Holds::No
                }
            })
        });
        // One that surely does not hold settles it, whatever the others are.
        each.fold(Holds::Yes, |all, one| match (all, one) {
            (Holds::No, _) | (_, Holds::No) => Holds::No,
            (Holds::Unknown, _) | (_, Holds::Unknown) => Holds::Unknown,
            _ => Holds::Yes,
        })
    }
}

impl Match<'_> {
    fn holds(&self, packet: &Packet) -> Option<bool> {
        match self {
            Self::Protocol(protocol) => Some(["tcp", "6", "all"].contains(protocol)),
            Self::Source(net) => packet.source.map(|source| net.contains(&source)),
            Self::Destination(net) => Some(net.contains(&packet.destination)),
            Self::Ports(first, last) => Some((*first..=*last).contains(&packet.port)),
            Self::Mark { value, mask } => Some(packet.mark & mask == *value),
            Self::LocalDestination => Some(packet.local),
            Self::Alive => Some(packet.alive),
            Self::Listening => Some(packet.listening),
            // Whoever asks, asks of a connection that is about to be made.
            Self::Begins => Some(true),
            Self::Other(_) => None,
        }
    }
}

/// Words, those in double quotes as one.
fn words(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        found.push(word);
        rest = after.trim_start();
    }
    found
}

fn is_ours(name: &str) -> bool {
    [Family::V4, Family::V6].map(list).contains(&name)
}

fn network(text: &str) -> Option<IpNet> {
    let host = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse().ok().or_else(host)
}

fn ports(text: &str) -> Option<Match<'_>> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    Some(Match::Ports(first.parse().ok()?, last.parse().ok()?))
}

fn mark(text: &str) -> Option<Match<'_>> {
    let (value, mask) = text.split_once('/').unwrap_or((text, "0xffffffff"));
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    Some(Match::Mark {
        value: number(value)?,
        mask: number(mask)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: Packet = Packet {
        source: None,
        destination: IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 0, 1)),
        port: 8050,
        mark: 0,
        local: false,
        alive: true,
        listening: true,
    };

    #[test]
    fn rules_hold_or_not_or_nobody_knows() {
        for (rule, holds) in [
            ("OUTPUT -j X", Holds::Yes),
            ("OUTPUT -p udp -m owner --uid-owner 7 -j X", Holds::No),
            ("OUTPUT -p tcp -m owner --uid-owner 7 -j X", Holds::Unknown),
            ("OUTPUT -m comment --comment \"-p udp \" -j X", Holds::Yes),
            ("OUTPUT -s 10.0.0.1/32 -j X", Holds::Unknown),
            ("OUTPUT -d 10.9.0.0/16 -j X", Holds::Yes),
            ("OUTPUT ! -d 10.9.0.0/16 -j X", Holds::No),
            (
                "OUTPUT -d 10.9.0.1 -p tcp -m tcp --dport 8000:8050 -j X",
                Holds::Yes,
            ),
            ("OUTPUT -p tcp -m tcp --dport 8051 -j X", Holds::No),
            ("OUTPUT -m mark --mark 0x539 -j X", Holds::No),
            ("OUTPUT -m mark ! --mark 0x539/0xfff -j X", Holds::Yes),
            ("OUTPUT -m addrtype --dst-type LOCAL -j X", Holds::No),
            ("OUTPUT -m addrtype ! --dst-type LOCAL -j X", Holds::Yes),
            ("OUTPUT -m addrtype --dst-type UNICAST -j X", Holds::Unknown),
            (
                "OUTPUT -m recent --rcheck --seconds 1 --name shunt4 --mask 0.0.0.0 --rdest -j X",
                Holds::Yes,
            ),
            (
                "OUTPUT -m recent --rcheck --name theirs --mask 0.0.0.0 --rdest -j X",
                Holds::Unknown,
            ),
            ("OUTPUT -m set --match-set shunt6 dst -j X", Holds::Yes),
            ("OUTPUT -m set --match-set theirs dst -j X", Holds::Unknown),
            ("OUTPUT -m socket -j X", Holds::Unknown),
            ("OUTPUT -m socket --nowildcard -j X", Holds::Yes),
            (
                "OUTPUT -m socket --nowildcard --transparent -j X",
                Holds::Unknown,
            ),
        ] {
            assert_eq!(
                Rule::parse(rule).expect("a rule").holds(&PACKET),
                holds,
                "{rule}"
            );
        }
    }

    #[test]
    fn a_walk_follows_jumps_and_comes_back() {
        let text = "*nat\n:A - [0:0]\n:B - [0:0]\n-A OUTPUT -j LOG\n-A OUTPUT -j A\n-A OUTPUT -g B\n-A OUTPUT -j ACCEPT\n\
                    -A A -p udp -j REDIRECT --to-ports 1\n-A A -j RETURN\n-A B -p tcp -j REDIRECT --to-ports 2\nCOMMIT\n";
        let table = Table::parse(text);
        let mut visits = Vec::new();
        let end = table.walk("OUTPUT", &PACKET, &mut visits);
        assert!(
            matches!(end, End::Redirected(rule) if rule.to_port == Some(2)),
            "{end:?}"
        );
        let seen: Vec<&str> = visits.iter().map(|visit| visit.rule.chain).collect();
        assert_eq!(seen, ["OUTPUT", "OUTPUT", "A", "A", "OUTPUT", "B"]);
    }

    #[test]
    fn a_foreign_target_ends_the_walk() {
        let text = "-A OUTPUT -p tcp -j DNAT --to-destination 10.0.0.1:80\n-A OUTPUT -p tcp -j SHUNT_OUTPUT\n";
        let table = Table::parse(text);
        let end = table.walk("OUTPUT", &PACKET, &mut Vec::new());
        assert!(
            matches!(end, End::Decided(rule) if rule.target == "DNAT"),
            "{end:?}"
        );
    }
}
