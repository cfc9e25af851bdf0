//! Envoy's order of matching: destination port, destination address, server name, transport protocol, application
//! protocols, direct source, source type, source address, source port. Each step keeps the chains that are most
//! specific in it, and there is no way back: a chain that fails a later step does not bring back one that an earlier
//! step has left out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::{ChainMatch, SourceType};

/// What is known of a connection when its chain is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Where it was going.
    pub destination: SocketAddr,
    /// The client, as a PROXY header says it, or as below.
    pub source: SocketAddr,
    /// Whose connection it is.
    pub direct_source: SocketAddr,
    /// Of a TLS ClientHello, in lower case.
    pub server_name: Option<&'a str>,
    pub is_tls: bool,
    /// As the client offered them, best first.
    pub application_protocols: &'a [String],
}

/// The index of the chain which serves this connection.
pub fn choose(chains: &[&ChainMatch], facts: &Facts<'_>) -> Option<usize> {
    let mut left: Vec<usize> = (0..chains.len()).collect();
    let steps: [Step<'_>; 9] = [
        &|chain| port(chain.destination_port, facts.destination.port()),
        &|chain| prefix(&chain.destinations, facts.destination.ip()),
        &|chain| server_name(&chain.server_names, facts.server_name),
        &|chain| transport(&chain.transport_protocol, facts.is_tls),
        &|chain| application(&chain.application_protocols, facts.application_protocols),
        &|chain| prefix(&chain.direct_sources, facts.direct_source.ip()),
        &|chain| source_type(chain.source_type, facts),
        &|chain| prefix(&chain.sources, facts.source.ip()),
        &|chain| source_port(&chain.source_ports, facts.source.port()),
    ];
    for step in steps {
        let best = left.iter().filter_map(|at| step(chains[*at])).max()?;
        left.retain(|at| step(chains[*at]) == Some(best));
    }
    left.first().copied()
}

/// How well a chain fits in one respect.
type Step<'a> = &'a dyn Fn(&ChainMatch) -> Fit;

/// How well something fits: 0 when it says nothing, more when it says more, `None` when it does not fit.
type Fit = Option<usize>;

fn port(wanted: Option<u16>, port: u16) -> Fit {
    match wanted {
        None => Some(0),
        Some(wanted) => (wanted == port).then_some(1),
    }
}

fn prefix(nets: &[IpNet], address: IpAddr) -> Fit {
    if nets.is_empty() {
        return Some(0);
    }
    let containing = nets.iter().filter(|net| net.contains(&address));
    containing
        .map(|net| 1 + usize::from(net.prefix_len()))
        .max()
}

/// The exact name, then the longest of the suffixes.
fn server_name(names: &[String], name: Option<&str>) -> Fit {
    if names.is_empty() {
        return Some(0);
    }
    let name = name.filter(|name| !name.is_empty())?;
    let fit = |pattern: &String| match pattern.strip_prefix('*') {
        Some(suffix) => {
            (name.len() > suffix.len() && name.ends_with(suffix)).then_some(pattern.len())
        }
        None => (pattern == name).then_some(usize::MAX),
    };
    names.iter().filter_map(fit).max()
}

fn transport(wanted: &str, is_tls: bool) -> Fit {
    let is = if is_tls { "tls" } else { "raw_buffer" };
    match wanted {
        "" => Some(0),
        wanted => (wanted == is).then_some(1),
    }
}

/// The client's first protocol that somebody is for.
fn application(wanted: &[String], offered: &[String]) -> Fit {
    if wanted.is_empty() {
        return Some(0);
    }
    let at = offered
        .iter()
        .position(|protocol| wanted.contains(protocol))?;
    Some(offered.len() - at)
}

fn source_type(wanted: SourceType, facts: &Facts<'_>) -> Fit {
    // Of all that is loopback Envoy knows one address a family.
    const LOOPBACK: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    let source = facts.source.ip();
    let is_local = LOOPBACK.contains(&source) || source == facts.destination.ip();
    match wanted {
        SourceType::Any => Some(0),
        SourceType::Local => is_local.then_some(1),
        SourceType::External => (!is_local).then_some(1),
    }
}

fn source_port(ports: &[u16], port: u16) -> Fit {
    if ports.is_empty() {
        return Some(0);
    }
    ports.contains(&port).then_some(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(destination: &str) -> Facts<'static> {
        Facts {
            destination: destination.parse().expect("an address"),
            source: "10.0.0.9:4000".parse().expect("an address"),
            direct_source: "10.0.0.9:4000".parse().expect("an address"),
            server_name: None,
            is_tls: false,
            application_protocols: &[],
        }
    }

    fn choice(chains: &[ChainMatch], facts: &Facts<'_>) -> Option<usize> {
        choose(&chains.iter().collect::<Vec<_>>(), facts)
    }

    fn nets(text: &str) -> Vec<IpNet> {
        vec![text.parse().expect("a network")]
    }

    #[test]
    fn a_chosen_port_is_not_given_up_for_an_address() {
        let chains = [
            ChainMatch {
                destination_port: Some(80),
                destinations: nets("192.168.0.0/16"),
                ..ChainMatch::default()
            },
            ChainMatch {
                destinations: nets("10.0.0.0/8"),
                ..ChainMatch::default()
            },
        ];
        assert_eq!(choice(&chains, &facts("192.168.1.1:80")), Some(0));
        // Under port 80 no address fits, and the other chain is not looked at any more.
        assert_eq!(choice(&chains, &facts("10.1.1.1:80")), None);
        assert_eq!(choice(&chains, &facts("10.1.1.1:81")), Some(1));
        assert_eq!(choice(&chains, &facts("11.1.1.1:81")), None);
    }

    #[test]
    fn the_longest_prefix_is_chosen() {
        let chains = ["0.0.0.0/0", "10.1.0.0/16", "10.0.0.0/8"].map(|net| ChainMatch {
            destinations: nets(net),
            ..ChainMatch::default()
        });
        assert_eq!(choice(&chains, &facts("10.1.2.3:1")), Some(1));
        assert_eq!(choice(&chains, &facts("10.2.2.3:1")), Some(2));
        assert_eq!(choice(&chains, &facts("1.2.2.3:1")), Some(0));
        assert_eq!(choice(&chains, &facts("[fd00::1]:1")), None);
    }

    #[test]
    fn names_go_from_exact_to_the_shortest_suffix_to_none() {
        let named = |names: &[&str]| ChainMatch {
            server_names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..ChainMatch::default()
        };
        let chains = [
            named(&[]),
            named(&["*.com", "*.example.com"]),
            named(&["www.example.com"]),
            named(&["*.www.example.com"]),
        ];
        let chosen = |name| {
            let facts = Facts {
                server_name: name,
                is_tls: true,
                ..facts("10.0.0.1:443")
            };
            choice(&chains, &facts)
        };
        assert_eq!(chosen(Some("www.example.com")), Some(2));
        assert_eq!(chosen(Some("a.www.example.com")), Some(3));
        assert_eq!(chosen(Some("api.example.com")), Some(1));
        assert_eq!(chosen(Some("example.com")), Some(1));
        assert_eq!(chosen(Some("com")), Some(0));
        assert_eq!(chosen(None), Some(0));
    }

    #[test]
    fn the_protocol_that_the_client_likes_best_is_chosen() {
        let speaks = |protocols: &[&str]| ChainMatch {
            application_protocols: protocols.iter().map(|p| (*p).to_owned()).collect(),
            ..ChainMatch::default()
        };
        let chains = [speaks(&[]), speaks(&["http/1.1"]), speaks(&["h2"])];
        let chosen = |offered: &[&str]| {
            let offered: Vec<String> = offered.iter().map(|p| (*p).to_owned()).collect();
            let facts = Facts {
                application_protocols: &offered,
                ..facts("10.0.0.1:443")
            };
            choice(&chains, &facts)
        };
        assert_eq!(chosen(&["h2", "http/1.1"]), Some(2));
        assert_eq!(chosen(&["http/1.1", "h2"]), Some(1));
        assert_eq!(chosen(&["spdy"]), Some(0));
    }

    #[test]
    fn who_comes_and_how_is_looked_at_last() {
        let tls = ChainMatch {
            transport_protocol: "tls".into(),
            ..ChainMatch::default()
        };
        let local = ChainMatch {
            source_type: SourceType::Local,
            ..ChainMatch::default()
        };
        let near = ChainMatch {
            source_type: SourceType::External,
            sources: nets("10.0.0.0/24"),
            ..ChainMatch::default()
        };
        let port = ChainMatch {
            source_ports: vec![4000],
            ..near.clone()
        };
        let chains = [tls, local, near, port];
        let mut asked = facts("10.0.0.1:80");
        assert_eq!(choice(&chains, &asked), Some(3));
        asked.source.set_port(4001);
        assert_eq!(choice(&chains, &asked), Some(2));
        asked.source = "127.0.0.2:4000".parse().expect("an address");
        assert_eq!(choice(&chains, &asked), None);
        asked.source = "127.0.0.1:4000".parse().expect("an address");
        assert_eq!(choice(&chains, &asked), Some(1));
        asked.is_tls = true;
        assert_eq!(choice(&chains, &asked), Some(0));
        asked.is_tls = false;
        asked.source = "11.0.0.1:4000".parse().expect("an address");
        assert_eq!(choice(&chains, &asked), None);
    }
}
