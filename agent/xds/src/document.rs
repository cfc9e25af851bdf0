//! What is collected while a configuration is read: faults, notes, and in which line each field stands.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use shunt_core::config::file::Fault;

use crate::files::Files;

#[derive(Debug, Default)]
pub(crate) struct Document {
    /// Those that it may name.
    pub(crate) files: Rc<Files>,
    lines: RefCell<HashMap<String, usize>>,
    faults: RefCell<Vec<Fault>>,
    notes: RefCell<Vec<Fault>>,
}

impl Document {
    pub(crate) fn new(files: Rc<Files>) -> Self {
        Self {
            files,
            ..Self::default()
        }
    }

    pub(crate) fn place(&self, path: &str, line: usize) {
        self.lines.borrow_mut().insert(path.to_owned(), line);
    }

    pub(crate) fn fault(&self, path: &str, message: impl Into<String>) {
        let fault = self.at(path, message.into());
        let mut faults = self.faults.borrow_mut();
        // What is wrong once is found by more than one who looks.
        if !faults.contains(&fault) {
            faults.push(fault);
        }
    }

    pub(crate) fn note(&self, path: &str, message: impl Into<String>) {
        let note = self.at(path, message.into());
        self.notes.borrow_mut().push(note);
    }

    pub(crate) fn into_parts(self) -> (Vec<Fault>, Vec<Fault>) {
        (self.faults.into_inner(), self.notes.into_inner())
    }

    fn at(&self, path: &str, message: String) -> Fault {
        let lines = self.lines.borrow();
        // A field that is not there is missed where its message stands.
        let mut place = path;
        let line = loop {
            match (lines.get(place), place.rfind(['.', '['])) {
                (Some(line), _) => break Some(*line),
                (None, Some(end)) => place = &place[..end],
                (None, None) => break None,
            }
        };
        Fault {
            line,
            field: path.to_owned(),
            message,
        }
    }
}

/// The path of a field of the message at `path`.
pub(crate) fn below(path: &str, field: &str) -> String {
    match path {
        "" => field.to_owned(),
        path => format!("{path}.{field}"),
    }
}
