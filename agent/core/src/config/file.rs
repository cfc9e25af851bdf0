//! Reading the configuration file, and writing it back out.
//!
//! A wrong file is refused as a whole, with every fault named by line and field. Scalars are read as the text that
//! stands in the file: YAML's own guesses (`off` is a boolean, `0x539` a number) play no part.

use std::fmt;
use std::io::Read;
use std::path::Path;

use marked_yaml::{LoadError, LoaderOptions, Node, parse_yaml_with_options};
use serde::Serialize;

pub use self::dump::dump;
pub use self::flags::{apply_flags, conflict};
use self::node::{Faults, Field};
pub use self::values::{check_level, duration, name};
use crate::config::Config;
use crate::workload::{ModeSetting, WorkloadName, WorkloadSpec};

mod dump;
mod flags;
mod kubernetes;
mod node;
mod policy;
mod sections;
mod services;
#[cfg(test)]
mod tests;
mod values;
mod workloads;

/// Bytes of a configuration; above it is not one.
const MAX_SIZE: usize = 16 << 20;
/// Columns of indentation. The parser recurses, each level takes at least one column, and the stack has an end.
const MAX_INDENT: usize = 128;

/// A configuration that is refused: every fault found, in the order of lines. Displayed as one fault a line,
/// `FILE:LINE: FIELD: what is wrong (what is allowed)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    source: String,
    faults: Vec<Fault>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// From 1; absent where the fault is in no line, as of flags or an unreadable file.
    pub line: Option<usize>,
    /// As `workloads[0].outbound.exclude_ports[1]`; empty for the file as a whole.
    pub field: String,
    pub message: String,
}

impl ConfigError {
    pub fn new(source: impl fmt::Display, mut faults: Vec<Fault>) -> Self {
        faults.sort_by_key(|fault| fault.line);
        Self {
            source: source.to_string(),
            faults,
        }
    }

    fn whole(source: impl fmt::Display, line: Option<usize>, message: String) -> Self {
        Self::new(
            source,
            vec![Fault {
                line,
                field: String::new(),
                message,
            }],
        )
    }

    /// The file, or what stands in its place (`command line`, `request body`).
    pub fn source_name(&self) -> &str {
        &self.source
    }

    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            f.write_str(&self.source)?;
            if let Some(line) = fault.line {
                write!(f, ":{line}")?;
            }
            if !fault.field.is_empty() {
                write!(f, ": {}", fault.field)?;
            }
            write!(f, ": {}", fault.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// Reads a configuration from `text`; `file` is only its name for messages. An empty text is a valid configuration:
/// all defaults.
///
/// # Errors
/// Every fault in the text.
pub fn parse(text: &str, file: &Path) -> Result<Config, ConfigError> {
    read_yaml(text, &file.display(), sections::config)
}

/// Reads the file at `path`; see [`parse`].
///
/// # Errors
/// It cannot be read, or it has faults.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    parse(&read_text(path)?, path)
}

/// The text of a configuration file.
///
/// # Errors
/// It cannot be read, or it is no text.
pub fn read_text(path: &Path) -> Result<String, ConfigError> {
    let refuse = |line, message| ConfigError::whole(path.display(), line, message);
    let bytes = read_up_to(path, MAX_SIZE + 1)
        .map_err(|error| refuse(None, format!("cannot read the file: {error}")))?;
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        refuse(Some(line), "this is not UTF-8 text".to_owned())
    })
}

/// The text of a file that a running agent reads: not of a pipe, nobody waits for its writer.
///
/// # Errors
/// As of [`read_text`], or it is no file.
pub fn read_text_of_file(path: &Path) -> Result<String, ConfigError> {
    check_is_file(path).map_err(|message| ConfigError::whole(path.display(), None, message))?;
    read_text(path)
}

/// The content of a file that a running agent reads; `most`: bytes.
///
/// # Errors
/// It cannot be read, is no file, or is longer.
pub fn read_file(path: &Path, most: usize) -> Result<Vec<u8>, String> {
    check_is_file(path)?;
    let bytes = read_up_to(path, most + 1)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    match bytes.len() > most {
        true => Err(format!("{} has more than {most} bytes", path.display())),
        false => Ok(bytes),
    }
}

/// What is not there is told of when it is read.
fn check_is_file(path: &Path) -> Result<(), String> {
    match std::fs::metadata(path) {
        Ok(other) if !other.is_file() => Err("this is no file".to_owned()),
        _ => Ok(()),
    }
}

fn read_up_to(path: &Path, most: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path)?;
    file.take(most as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The YAML tree of a text whose meaning somebody else knows. Its scalars are what stands in the text.
///
/// # Errors
/// It is no YAML mapping, or a key is given twice.
pub fn yaml_tree(text: &str, source: &dyn fmt::Display) -> Result<Node, ConfigError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    check_shape(text).map_err(|(line, message)| ConfigError::whole(source, line, message))?;
    let faults = Faults::default();
    let root = parse_text(text, &faults)
        .map_err(|(line, message)| ConfigError::whole(source, Some(line), message))?;
    let faults = faults.into_inner();
    match faults.is_empty() {
        true => Ok(root),
        false => Err(ConfigError::new(source, faults)),
    }
}

/// Reads one workload, written as an entry of the file's `workloads` list, in YAML or JSON. Its name comes from
/// elsewhere; where the text says it too, both must agree. `default_mode` is the global mode.
///
/// # Errors
/// Every fault in the text and in the name.
pub fn parse_workload(
    text: &str,
    name: &WorkloadName,
    default_mode: ModeSetting,
) -> Result<WorkloadSpec, ConfigError> {
    read_yaml(text, &"request body", |root| {
        workloads::named(root, name, default_mode)
    })
}

/// Parses the text and lets `read` make something of it; what `read` gives counts only when there is no fault.
fn read_yaml<T>(
    text: &str,
    source: &dyn fmt::Display,
    read: impl FnOnce(&Field<'_>) -> Option<T>,
) -> Result<T, ConfigError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    check_shape(text).map_err(|(line, message)| ConfigError::whole(source, line, message))?;
    let faults = Faults::default();
    let root = parse_text(text, &faults)
        .map_err(|(line, message)| ConfigError::whole(source, Some(line), message))?;
    let result = read(&Field::root(&root, &faults));
    let faults = faults.into_inner();
    match result {
        Some(result) if faults.is_empty() => Ok(result),
        _ => Err(ConfigError::new(source, faults)),
    }
}

/// What the parser does not check itself, or does not survive.
fn check_shape(text: &str) -> Result<(), (Option<usize>, String)> {
    if text.len() > MAX_SIZE {
        return Err((
            None,
            format!("the text is larger than {} MiB", MAX_SIZE >> 20),
        ));
    }
    let (mut content, mut ended) = (false, false);
    for (index, line) in text.lines().enumerate() {
        let fault = |message: &str| Err((Some(index + 1), message.to_owned()));
        let trimmed = line.trim_start();
        let blank = trimmed.is_empty() || trimmed.starts_with('#');
        let indent = line.len() - line.trim_start_matches([' ', '\t', '-', '?', ':']).len();
        if indent > MAX_INDENT && !blank {
            return fault("nested too deeply");
        }
        let is_marker = |marker| {
            line.strip_prefix(marker)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        };
        if is_marker("...") {
            ended = true;
        } else if is_marker("---") && content || ended && !blank {
            return fault("only one YAML document is read; this begins another");
        } else {
            content |= !blank && !line.starts_with('%');
        }
    }
    Ok(())
}

fn parse_text(text: &str, faults: &Faults) -> Result<Node, (usize, String)> {
    // The loader gives up at the first duplicate key: it is noted, and the rest is looked at without that check.
    let options = |unique| {
        LoaderOptions::default()
            .prevent_coercion(true)
            .error_on_duplicate_keys(unique)
    };
    let parsed = match parse_yaml_with_options(0, text, options(true)) {
        Err(LoadError::DuplicateKey(keys)) => {
            let line_of = |span: &marked_yaml::Span| span.start().map(marked_yaml::Marker::line);
            let message = match line_of(keys.prev_key.span()) {
                Some(line) => format!("the key is given twice, here and in line {line}"),
                None => "the key is given twice".to_owned(),
            };
            faults.add(line_of(keys.key.span()), keys.key.as_str(), message);
            parse_yaml_with_options(0, text, options(false))
        }
        parsed => parsed,
    };
    parsed.or_else(|error| match error {
        // `---` and nothing after it: an empty file in a longer coat.
        LoadError::TopLevelMustBeMapping(_) if is_empty_document(text) => Ok(Node::from(
            marked_yaml::types::MarkedMappingNode::new_empty(marked_yaml::Span::new_blank()),
        )),
        error => Err(yaml_fault(&error)),
    })
}

fn is_empty_document(text: &str) -> bool {
    text.lines().all(|line| {
        let line = line.split('#').next().unwrap_or_default().trim();
        matches!(line, "" | "---" | "...") || line.starts_with('%')
    })
}

fn yaml_fault(error: &LoadError) -> (usize, String) {
    let (marker, message) = match error {
        LoadError::TopLevelMustBeMapping(marker) | LoadError::TopLevelMustBeSequence(marker) => (
            marker,
            "the text must be a mapping, as `mode: auto`".to_owned(),
        ),
        LoadError::UnexpectedAnchor(marker) => {
            (marker, "YAML anchors are not supported here".to_owned())
        }
        LoadError::UnexpectedTag(marker) => (marker, "YAML tags are not supported here".to_owned()),
        LoadError::MappingKeyMustBeScalar(marker) => (marker, "a key must be one word".to_owned()),
        LoadError::ScanError(marker, scan) => (marker, format!("not YAML: {}", scan.info())),
        LoadError::DuplicateKey(_) => return (1, "a key is given twice".to_owned()),
    };
    (marker.line(), message)
}
