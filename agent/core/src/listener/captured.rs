//! Which of several listeners serves a captured connection: by where it was going.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::flow::Direction;

/// What is there for connections of one direction: for one destination, for a port of any address, for all the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByDestination<T> {
    /// The unspecified address stands for all of its family.
    at: HashMap<SocketAddr, T>,
    rest: Option<T>,
}

impl<T> ByDestination<T> {
    /// The exact destination counts more than its port, and that more than the rest.
    pub fn find(&self, destination: SocketAddr) -> Option<&T> {
        if self.at.is_empty() {
            return self.rest.as_ref();
        }
        let exact = self.at.get(&destination);
        exact
            .or_else(|| self.at.get(&anywhere(destination)))
            .or(self.rest.as_ref())
    }

    /// What was put at this very place.
    pub fn at(&self, destination: SocketAddr) -> Option<&T> {
        self.at.get(&destination)
    }

    /// Replaces what was there.
    pub fn insert(&mut self, destination: SocketAddr, value: T) {
        self.at.insert(destination, value);
    }

    pub fn set_rest(&mut self, value: T) {
        self.rest = Some(value);
    }

    /// In no order, without the rest.
    pub fn iter(&self) -> impl Iterator<Item = (SocketAddr, &T)> {
        self.at.iter().map(|(addr, value)| (*addr, value))
    }

    pub fn rest(&self) -> Option<&T> {
        self.rest.as_ref()
    }

    pub fn is_empty(&self) -> bool {
        self.at.is_empty() && self.rest.is_none()
    }
}

impl<T> Default for ByDestination<T> {
    fn default() -> Self {
        Self {
            at: HashMap::new(),
            rest: None,
        }
    }
}

/// One of each direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured<T> {
    pub outbound: ByDestination<T>,
    pub inbound: ByDestination<T>,
}

impl<T> Captured<T> {
    pub fn of(&self, direction: Direction) -> &ByDestination<T> {
        match direction {
            Direction::Outbound => &self.outbound,
            Direction::Inbound => &self.inbound,
        }
    }

    pub fn of_mut(&mut self, direction: Direction) -> &mut ByDestination<T> {
        match direction {
            Direction::Outbound => &mut self.outbound,
            Direction::Inbound => &mut self.inbound,
        }
    }
}

impl Captured<String> {
    /// For people; nothing when there are none.
    pub fn summary(&self) -> Option<String> {
        let of = |way: &ByDestination<String>, name: &str| match (way.at.len(), &way.rest) {
            (0, None) => None,
            (0, Some(rest)) => Some(format!("{name} by `{rest}`")),
            (count, None) => Some(format!("{name} by {count} listeners")),
            (count, Some(rest)) => Some(format!("{name} by {count} listeners and `{rest}`")),
        };
        let ways = [of(&self.outbound, "outbound"), of(&self.inbound, "inbound")];
        let ways: Vec<String> = ways.into_iter().flatten().collect();
        (!ways.is_empty()).then(|| {
            format!(
                "the configuration serves its connections: {}",
                ways.join(", ")
            )
        })
    }
}

impl<T> Default for Captured<T> {
    fn default() -> Self {
        Self {
            outbound: ByDestination::default(),
            inbound: ByDestination::default(),
        }
    }
}

fn anywhere(destination: SocketAddr) -> SocketAddr {
    let ip: IpAddr = match destination {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(ip, destination.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_then_port_then_the_rest() {
        let addr = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let mut all = ByDestination::default();
        assert!(all.is_empty());
        for (at, name) in [
            ("10.0.0.1:80", "exact"),
            ("0.0.0.0:80", "port"),
            ("[::]:80", "six"),
        ] {
            all.insert(addr(at), name);
        }
        let found = |all: &ByDestination<&'static str>, to: &str| all.find(addr(to)).copied();
        assert_eq!(found(&all, "10.0.0.1:80"), Some("exact"));
        assert_eq!(found(&all, "10.0.0.2:80"), Some("port"));
        assert_eq!(found(&all, "[fd00::1]:80"), Some("six"));
        assert_eq!(found(&all, "10.0.0.1:81"), None);
        all.set_rest("rest");
        assert_eq!(found(&all, "10.0.0.1:81"), Some("rest"));
        assert_eq!(found(&all, "10.0.0.1:80"), Some("exact"));
    }
}
