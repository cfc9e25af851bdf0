//! Envoy's v3 configuration: read, judged field by field, turned into the agent's own types.
//!
//! ```text
//! YAML or JSON --yaml--> message --support--> faults and notes
//!                           '-----convert---> shunt_core::bootstrap::Bootstrap
//!                                    '-files-> the same for each file that it names (LDS, CDS, RDS, EDS)
//! ```
//! A message is dynamic, known by its descriptor: one that comes by xDS takes the same way from there.

mod convert;
mod descriptors;
mod document;
mod dump;
mod files;
mod reader;
pub mod reference;
mod support;
mod yaml;

use std::path::Path;
use std::time::SystemTime;

use shunt_core::bootstrap::Bootstrap;
use shunt_core::config::file::{ConfigError, Fault, read_text, yaml_tree};

pub use self::descriptors::let_go;
use self::document::Document;
pub use self::files::{Accepted, Kind, Rejected, Resource, Source, Texts, Wanted};
use self::files::{Files, Found};
use self::reader::Reader;

/// A configuration that can be served.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub bootstrap: Bootstrap,
    /// What the bootstrap says that has no effect here, and why that does no harm.
    pub notes: Vec<Fault>,
    /// The files that it names, also those that are wrong.
    pub sources: Vec<Source>,
    /// As Envoy's `/config_dump` has it, JSON: `configs` and, beside them, `sources`.
    pub dump: String,
    text: String,
    since: SystemTime,
}

impl Default for Loaded {
    fn default() -> Self {
        Self {
            bootstrap: Bootstrap::default(),
            notes: Vec::new(),
            sources: Vec::new(),
            dump: r#"{"configs":[]}"#.to_owned(),
            text: String::new(),
            since: SystemTime::UNIX_EPOCH,
        }
    }
}

/// Reads an Envoy bootstrap file, YAML or JSON, and the files that it names. `before`: of such a file that is wrong by
/// now, what was right then is taken. `texts`: what has been read already.
///
/// # Errors
/// Every fault of the bootstrap: what is no such message, what is not supported and would change traffic, what is wrong
/// in itself. Those of the files are in [`Loaded::sources`], but for a file that was right `before` and of which neither
/// what it says now nor what it said then can be served: its faults.
pub fn load(path: &Path, before: Option<&Loaded>, texts: &Texts) -> Result<Loaded, ConfigError> {
    let loaded = match texts.get(path) {
        Some(text) => read(text, path, before, texts),
        None => read(&read_text(path)?, path, before, texts),
    };
    loaded.map_err(|(error, _)| error)
}

/// As [`load`]; `file` is only its name for messages.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str, file: &Path) -> Result<Loaded, ConfigError> {
    read(text, file, None, &Texts::new()).map_err(|(error, _)| error)
}

/// As [`load`], but for whoever wants to know of everything that is wrong anywhere.
///
/// # Errors
/// One for each file with faults.
pub fn check(path: &Path) -> Result<Loaded, Vec<ConfigError>> {
    let text = read_text(path).map_err(|error| vec![error])?;
    let (own, sources) = match read(&text, path, None, &Texts::new()) {
        Ok(loaded) => match loaded
            .sources
            .iter()
            .any(|source| source.rejected.is_some())
        {
            false => return Ok(loaded),
            true => (None, loaded.sources),
        },
        Err((error, sources)) => (Some(error), sources),
    };
    let theirs = sources.into_iter().filter_map(|source| source.rejected);
    Err(own
        .into_iter()
        .chain(theirs.map(|rejected| rejected.error))
        .collect())
}

/// A failure comes with the files, as far as they were read.
fn read(
    text: &str,
    file: &Path,
    before: Option<&Loaded>,
    texts: &Texts,
) -> Result<Loaded, (ConfigError, Vec<Source>)> {
    let tree = yaml_tree(text, &file.display()).map_err(|error| (error, Vec::new()))?;
    let files = Files::new(before.map_or(&[], |before| &before.sources), texts);
    let document = Document::new(std::rc::Rc::clone(&files));
    let made = yaml::read(&tree, files.pool(), descriptors::BOOTSTRAP, &document).map(|message| {
        support::judge(&message, &document);
        let json = dump::json(&message);
        let root = Reader::root(message, &document);
        (convert::bootstrap(&root), json)
    });
    let (faults, notes) = document.into_parts();
    let Found {
        sources,
        routes,
        mut lost,
    } = files.found();
    match made {
        Some(_) if faults.is_empty() && !lost.is_empty() => Err((lost.swap_remove(0), sources)),
        Some((bootstrap, json)) if faults.is_empty() => {
            let same = before.filter(|before| before.text == text);
            let since = same.map_or_else(SystemTime::now, |before| before.since);
            let dump = dump::dump(json, since, &sources, routes).to_string();
            Ok(Loaded {
                bootstrap,
                notes,
                sources,
                dump,
                text: text.to_owned(),
                since,
            })
        }
        _ => Err((ConfigError::new(file.display(), faults), sources)),
    }
}

/// Is this text an Envoy bootstrap rather than the agent's own file? By its keys: the two have none in common.
pub fn is_bootstrap(text: &str) -> bool {
    const KEYS: [&str; 9] = [
        "static_resources",
        "staticResources",
        "dynamic_resources",
        "dynamicResources",
        "node",
        "layered_runtime",
        "layeredRuntime",
        "stats_config",
        "overload_manager",
    ];
    yaml_tree(text, &"")
        .ok()
        .and_then(|tree| {
            let mut keys = tree.as_mapping()?.iter().map(|(key, _)| key.as_str());
            keys.any(|key| KEYS.contains(&key)).then_some(())
        })
        .is_some()
}

#[cfg(test)]
mod tests;
