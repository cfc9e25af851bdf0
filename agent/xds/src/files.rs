//! Files as xDS sources: each holds a `DiscoveryResponse`. One that is wrong is refused whole, and the last one that was
//! right stays in its place. Where that no longer fits either, the whole reading is refused: nothing goes out of force
//! for being wrong.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::SystemTime;

use prost_reflect::DescriptorPool;
use serde_json::Value as Json;
use shunt_core::config::file::{ConfigError, Fault, read_text_of_file, yaml_tree};

use crate::document::Document;
use crate::dump::json;
use crate::reader::Reader;
use crate::{descriptors, support, yaml};

/// What is in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Listeners,
    Clusters,
    Routes,
    Endpoints,
}

impl Kind {
    /// The full name of the resources' message.
    pub fn message(self) -> &'static str {
        match self {
            Self::Listeners => "envoy.config.listener.v3.Listener",
            Self::Clusters => "envoy.config.cluster.v3.Cluster",
            Self::Routes => "envoy.config.route.v3.RouteConfiguration",
            Self::Endpoints => "envoy.config.endpoint.v3.ClusterLoadAssignment",
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Listeners => "lds",
            Self::Clusters => "cds",
            Self::Routes => "rds",
            Self::Endpoints => "eds",
        }
    }

    fn name_field(self) -> &'static str {
        match self {
            Self::Endpoints => "cluster_name",
            _ => "name",
        }
    }
}

/// What files held when they were looked at, by their paths.
pub type Texts = HashMap<PathBuf, String>;

/// A file that a configuration names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub kind: Kind,
    /// Of the route configuration or of the load assignment; else empty.
    pub name: String,
    pub path: PathBuf,
    /// `watched_directory`.
    pub watched: Option<PathBuf>,
}

impl Wanted {
    /// For the same resources, however it is watched.
    pub fn is_same_file(&self, other: &Self) -> bool {
        (self.kind, &self.name, &self.path) == (other.kind, &other.name, &other.path)
    }
}

/// A file as it was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    pub wanted: Wanted,
    /// What is in force.
    pub accepted: Option<Accepted>,
    /// What stands in the file, where that is wrong.
    pub rejected: Option<Rejected>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    text: String,
    /// `version_info`.
    pub version: String,
    pub since: SystemTime,
    pub resources: Vec<Resource>,
    /// What has no effect.
    pub notes: Vec<Fault>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rejected {
    /// As far as it could be read.
    pub version: String,
    pub resources: Vec<Resource>,
    pub error: ConfigError,
    pub since: SystemTime,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    pub name: String,
    /// With its `@type`.
    pub json: String,
}

/// The files of one reading.
#[derive(Debug)]
pub(crate) struct Files {
    pool: DescriptorPool,
    before: Vec<Source>,
    /// Each is read once: what is made of it twice is made of the same.
    texts: RefCell<HashMap<PathBuf, Result<String, ConfigError>>>,
    /// Every cluster that the listeners being read may name is there.
    pub(crate) are_clusters_known: Cell<bool>,
    found: RefCell<Found>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(crate) sources: Vec<Source>,
    /// Route configurations that stand in their listeners.
    pub(crate) routes: Vec<Json>,
    /// What is wrong with files of which something is in force, and can no longer be.
    pub(crate) lost: Vec<ConfigError>,
}

impl Files {
    /// `before`: of the reading before. `texts`: what need not be read any more.
    pub(crate) fn new(before: &[Source], texts: &Texts) -> Rc<Self> {
        let known = texts.iter();
        let known = known.map(|(path, text)| (path.clone(), Ok(text.clone())));
        Rc::new(Self {
            pool: descriptors::pool(),
            before: before.to_vec(),
            texts: RefCell::new(known.collect()),
            are_clusters_known: Cell::default(),
            found: RefCell::default(),
        })
    }

    pub(crate) fn pool(&self) -> &DescriptorPool {
        &self.pool
    }

    pub(crate) fn found(&self) -> Found {
        self.found.take()
    }

    pub(crate) fn note_routes(&self, routes: Json) {
        self.found.borrow_mut().routes.push(routes);
    }

    /// What `convert` makes of the file's resources, or of those that were right last; `None`: there are none.
    pub(crate) fn read<T>(
        self: &Rc<Self>,
        wanted: Wanted,
        convert: &dyn Fn(&[Reader<'_>]) -> T,
    ) -> Option<T> {
        let before = self
            .before
            .iter()
            .find(|source| source.wanted.is_same_file(&wanted));
        let read = self
            .text(&wanted.path)
            .map_err(|error| (error, Response::default()))
            .and_then(|text| {
                let (made, response) = self.parse(&text, &wanted, convert)?;
                Ok((made, response, text))
            });
        let known = before.and_then(|source| source.accepted.as_ref());
        let now = SystemTime::now();
        let (accepted, rejected, made) = match read {
            Ok((made, response, text)) => {
                let since = known.filter(|known| known.text == text);
                let since = since.map_or(now, |known| known.since);
                (Some(response.accepted(text, since)), None, Some(made))
            }
            Err((error, response)) => {
                let same = before.and_then(|source| source.rejected.as_ref());
                let since = same.filter(|same| same.error == error);
                let rejected = Rejected {
                    since: since.map_or(now, |same| same.since),
                    version: response.version,
                    resources: response.resources,
                    error,
                };
                // What was right once may hang together with something that has changed.
                let again = known.and_then(|known| {
                    let (made, response) = self.parse(&known.text, &wanted, convert).ok()?;
                    Some((made, response.accepted(known.text.clone(), known.since)))
                });
                if known.is_some() && again.is_none() {
                    self.found.borrow_mut().lost.push(rejected.error.clone());
                }
                let (made, accepted) = again.unzip();
                (accepted, Some(rejected), made)
            }
        };
        let mut found = self.found.borrow_mut();
        let is_new = |known: &Source| known.wanted != wanted;
        if found.sources.iter().all(is_new) {
            found.sources.push(Source {
                wanted,
                accepted,
                rejected,
            });
        }
        made
    }

    pub(crate) fn text(&self, path: &Path) -> Result<String, ConfigError> {
        let mut texts = self.texts.borrow_mut();
        let text = texts.entry(path.to_owned());
        text.or_insert_with(|| read_text_of_file(path)).clone()
    }

    fn parse<T>(
        self: &Rc<Self>,
        text: &str,
        wanted: &Wanted,
        convert: &dyn Fn(&[Reader<'_>]) -> T,
    ) -> Result<(T, Response), (ConfigError, Response)> {
        const RESPONSE: &str = "envoy.service.discovery.v3.DiscoveryResponse";
        let tree = yaml_tree(text, &wanted.path.display())
            .map_err(|error| (error, Response::default()))?;
        let document = Document::new(Rc::clone(self));
        let mark = self.found.borrow().mark();
        let mut response = Response::default();
        let made = yaml::read(&tree, &self.pool, RESPONSE, &document).map(|message| {
            support::judge(&message, &document);
            let root = Reader::root(message, &document);
            let coats = root.list("resources");
            let readers: Vec<_> = coats.iter().filter_map(Reader::unpacked).collect();
            response = Response {
                version: root.text("version_info"),
                resources: readers
                    .iter()
                    .zip(&coats)
                    .map(|(reader, coat)| Resource {
                        name: reader.raw_text(wanted.kind.name_field()),
                        json: json(coat.raw()).to_string(),
                    })
                    .collect(),
                notes: Vec::new(),
            };
            for reader in &readers {
                if reader.type_name() != wanted.kind.message() {
                    reader.fault("", format!("{} is expected here", wanted.kind.message()));
                    return None;
                }
            }
            Some(convert(&readers))
        });
        let (faults, notes) = document.into_parts();
        match made.flatten() {
            Some(made) if faults.is_empty() => {
                response.notes = notes;
                Ok((made, response))
            }
            _ => {
                // The files that it names are none of the configuration's.
                self.found.borrow_mut().back_to(mark);
                Err((ConfigError::new(wanted.path.display(), faults), response))
            }
        }
    }
}

impl Found {
    fn mark(&self) -> [usize; 3] {
        [self.sources.len(), self.routes.len(), self.lost.len()]
    }

    fn back_to(&mut self, [sources, routes, lost]: [usize; 3]) {
        self.sources.truncate(sources);
        self.routes.truncate(routes);
        self.lost.truncate(lost);
    }
}

/// A file's content.
#[derive(Debug, Default)]
struct Response {
    version: String,
    resources: Vec<Resource>,
    notes: Vec<Fault>,
}

impl Response {
    fn accepted(self, text: String, since: SystemTime) -> Accepted {
        Accepted {
            text,
            version: self.version,
            since,
            resources: self.resources,
            notes: self.notes,
        }
    }
}

impl Default for Files {
    fn default() -> Self {
        Self {
            pool: descriptors::pool(),
            before: Vec::new(),
            texts: RefCell::default(),
            are_clusters_known: Cell::default(),
            found: RefCell::default(),
        }
    }
}
