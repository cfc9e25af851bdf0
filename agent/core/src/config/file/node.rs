//! A walk through the parsed text that knows where it is and collects faults instead of stopping at the first.

use std::cell::RefCell;

use marked_yaml::types::MarkedMappingNode;
use marked_yaml::{Node, Span};

use super::Fault;

/// The faults so far.
#[derive(Debug, Default)]
pub(super) struct Faults(RefCell<Vec<Fault>>);

/// One value, with its place.
#[derive(Clone, Debug)]
pub(super) struct Field<'a> {
    path: String,
    line: usize,
    node: &'a Node,
    faults: &'a Faults,
}

/// A mapping whose keys are known ones.
#[derive(Debug)]
pub(super) struct Mapping<'a> {
    path: String,
    line: usize,
    node: &'a MarkedMappingNode,
    faults: &'a Faults,
}

impl Faults {
    pub(super) fn add(&self, line: Option<usize>, field: &str, message: impl Into<String>) {
        let fault = Fault {
            line,
            field: field.to_owned(),
            message: message.into(),
        };
        self.0.borrow_mut().push(fault);
    }

    pub(super) fn into_inner(self) -> Vec<Fault> {
        self.0.into_inner()
    }
}

impl<'a> Field<'a> {
    pub(super) fn root(node: &'a Node, faults: &'a Faults) -> Self {
        Self {
            path: String::new(),
            line: line_of(node.span()),
            node,
            faults,
        }
    }

    pub(super) fn fault(&self, message: impl Into<String>) {
        self.faults.add(Some(self.line), &self.path, message);
    }

    /// Nothing stands after the key. Quoted nothing is an empty text, which is something else.
    pub(super) fn is_empty(&self) -> bool {
        self.node.as_scalar().is_some_and(|scalar| {
            scalar.may_coerce() && matches!(scalar.as_str(), "" | "~" | "null")
        })
    }

    /// The text of a single value.
    pub(super) fn text(&self) -> Option<&'a str> {
        let text = self.node.as_scalar().map(|scalar| scalar.as_str());
        if text.is_none() {
            self.fault(format!("{} where one value is expected", self.kind()));
        }
        text
    }

    /// The value, as `parse` understands it.
    pub(super) fn value<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        parse(self.text()?)
            .map_err(|message| self.fault(message))
            .ok()
    }

    /// The entries of a list; an empty value is an empty list.
    pub(super) fn list(&self) -> Vec<Field<'a>> {
        if self.is_empty() {
            return Vec::new();
        }
        let Some(list) = self.node.as_sequence() else {
            self.fault(format!("{} where a list is expected", self.kind()));
            return Vec::new();
        };
        let entry = |(index, node): (usize, &'a Node)| Field {
            path: format!("{}[{index}]", self.path),
            line: line_of(node.span()),
            node,
            faults: self.faults,
        };
        list.iter().enumerate().map(entry).collect()
    }

    /// The value as a mapping with any keys.
    pub(super) fn any_mapping(&self) -> Option<Mapping<'a>> {
        let Some(node) = self.node.as_mapping() else {
            self.fault(format!("{} where a mapping is expected", self.kind()));
            return None;
        };
        Some(Mapping {
            path: self.path.clone(),
            line: self.line,
            node,
            faults: self.faults,
        })
    }

    /// The value as a mapping with no other keys than `known`; an empty value is none, and no fault.
    pub(super) fn mapping(&self, known: &[&str]) -> Option<Mapping<'a>> {
        if self.is_empty() {
            return None;
        }
        let mapping = self.any_mapping()?;
        for (key, field) in mapping.entries() {
            if !known.contains(&key) {
                field.fault(match closest(key, known) {
                    Some(near) => format!("unknown key (did you mean `{near}`?)"),
                    None => format!("unknown key ({})", known.join(", ")),
                });
            }
        }
        Some(mapping)
    }

    pub(super) fn is_mapping(&self) -> bool {
        self.node.as_mapping().is_some()
    }

    pub(super) fn is_list(&self) -> bool {
        self.node.as_sequence().is_some()
    }

    fn kind(&self) -> &'static str {
        match self.node {
            Node::Scalar(_) if self.is_empty() => "nothing",
            Node::Scalar(_) => "a single value",
            Node::Mapping(_) => "a mapping",
            Node::Sequence(_) => "a list",
        }
    }
}

impl<'a> Mapping<'a> {
    /// A fault of the mapping itself, or of a key that is not there.
    pub(super) fn fault(&self, key: &str, message: impl Into<String>) {
        self.faults
            .add(Some(self.line), &self.path_of(key), message);
    }

    pub(super) fn get(&self, key: &str) -> Option<Field<'a>> {
        self.entries()
            .find(|(name, _)| *name == key)
            .map(|(_, field)| field)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a str, Field<'a>)> {
        self.node.iter().map(|(key, node)| {
            // The mark of an empty value is where the parser noticed, a line or more below.
            let line = if node.as_scalar().is_some_and(|scalar| scalar.is_empty()) {
                line_of(key.span())
            } else {
                line_of(node.span())
            };
            let path = self.path_of(key.as_str());
            (
                key.as_str(),
                Field {
                    path,
                    line,
                    node,
                    faults: self.faults,
                },
            )
        })
    }

    /// The value of `key` as `parse` understands it; `None` when it is absent or wrong.
    pub(super) fn value<T>(
        &self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.get(key)?.value(parse)
    }

    /// The list under `key`, each entry as `parse` understands it, wrong ones left out.
    pub(super) fn list<T>(&self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let entries = self.get(key).map(|field| field.list()).unwrap_or_default();
        entries
            .iter()
            .filter_map(|entry| entry.value(&parse))
            .collect()
    }

    /// The mapping under `key`; see [`Field::mapping`].
    pub(super) fn mapping(&self, key: &str, known: &[&str]) -> Option<Mapping<'a>> {
        self.get(key)?.mapping(known)
    }

    fn path_of(&self, key: &str) -> String {
        match (self.path.is_empty(), key.is_empty()) {
            (true, _) => key.to_owned(),
            (_, true) => self.path.clone(),
            _ => format!("{}.{key}", self.path),
        }
    }
}

fn line_of(span: &Span) -> usize {
    span.start().map_or(1, |mark| mark.line())
}

/// The known word that a typing error would turn into `word`.
fn closest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let near = known
        .iter()
        .map(|other| (distance(word, other), *other))
        .min()?;
    (near.0 <= 2 && near.0 < word.chars().count().min(near.1.len())).then_some(near.1)
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
