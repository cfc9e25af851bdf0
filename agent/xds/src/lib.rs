//! Envoy's v3 configuration: read, judged field by field, turned into the agent's own types.
//!
//! ```text
//! YAML or JSON --yaml--> message --support--> faults and notes
//!                           '-----convert---> shunt_core::bootstrap::Bootstrap
//! ```
//! A message is dynamic, known by its descriptor: one that comes by xDS takes the same way from there.

mod convert;
mod descriptors;
mod document;
mod reader;
pub mod reference;
mod support;
mod yaml;

use std::path::Path;

use shunt_core::bootstrap::Bootstrap;
use shunt_core::config::file::{ConfigError, Fault, read_text, yaml_tree};

use self::document::Document;
use self::reader::Reader;

/// A bootstrap that can be served.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub bootstrap: Bootstrap,
    /// What it says that has no effect here, and why that does no harm.
    pub notes: Vec<Fault>,
}

/// Reads an Envoy bootstrap file, YAML or JSON.
///
/// # Errors
/// Every fault: what is no such message, what is not supported and would change traffic, what is wrong in itself.
pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
    parse(&read_text(path)?, path)
}

/// As [`load`]; `file` is only its name for messages.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str, file: &Path) -> Result<Loaded, ConfigError> {
    let tree = yaml_tree(text, &file.display())?;
    let document = Document::default();
    let pool = descriptors::pool();
    let bootstrap = yaml::read(&tree, &pool, descriptors::BOOTSTRAP, &document).map(|message| {
        support::judge(&message, &document);
        let root = Reader::root(message, &document);
        convert::bootstrap(&root)
    });
    let (faults, notes) = document.into_parts();
    match bootstrap {
        Some(bootstrap) if faults.is_empty() => Ok(Loaded { bootstrap, notes }),
        _ => Err(ConfigError::new(file.display(), faults)),
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
