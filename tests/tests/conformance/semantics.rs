//! The table of docs/semantics.md, which is what the tests assert.

use std::collections::BTreeSet;
use std::path::Path;

use crate::{SCENES, Scene, expected};

/// A line of the table.
#[derive(Debug)]
pub(crate) struct Difference {
    pub(crate) id: String,
    pub(crate) row: Pattern,
    paths: Vec<String>,
    /// What is seen without us.
    without: String,
    /// What is seen with us; a star stands for anything.
    pub(crate) with: String,
}

/// A row's name, or that and some words of its variants: `reset/blocking`.
#[derive(Clone, Debug)]
pub(crate) struct Pattern(pub(crate) String);

impl Pattern {
    pub(crate) fn covers(&self, variant: &str) -> bool {
        let (mut words, all) = (self.0.split('/'), BTreeSet::from_iter(variant.split('/')));
        let of_row = words.next() == variant.split('/').next();
        of_row && words.all(|word| all.contains(word))
    }
}

impl Difference {
    pub(crate) fn allows(&self, seen: &str) -> bool {
        matches(&self.with, seen)
    }

    pub(crate) fn applies(&self, scene: &Scene) -> bool {
        let Some(mode) = scene.mode else {
            return false;
        };
        let names = ["all", mode, scene.path, scene.name];
        self.paths.iter().any(|path| names.contains(&path.as_str()))
    }
}

/// Is this text of that form, in which a star stands for anything?
fn matches(form: &str, text: &str) -> bool {
    match form.split_once('*') {
        None => form == text,
        Some((head, tail)) => text.strip_prefix(head).is_some_and(|rest| {
            let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
            ends.into_iter().any(|at| matches(tail, &rest[at..]))
        }),
    }
}

fn document() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/semantics.md");
    std::fs::read_to_string(path).expect("docs/semantics.md")
}

/// All of the table.
pub(crate) fn differences() -> Vec<Difference> {
    let text = document();
    let lines = text.lines().filter(|line| line.starts_with("| S-"));
    lines.map(difference).collect()
}

fn difference(line: &str) -> Difference {
    let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
    let [id, row, paths, without, with, _why] = cells[..] else {
        panic!("six cells, not {}: {line}", cells.len());
    };
    let quoted = |cell: &str| {
        let inner = cell.strip_prefix('`');
        let inner = inner.and_then(|cell| cell.strip_suffix('`'));
        let inner = inner.unwrap_or_else(|| panic!("{cell} in {line}"));
        inner.to_owned()
    };
    Difference {
        id: id.to_owned(),
        row: Pattern(quoted(row)),
        paths: paths.split(", ").map(str::to_owned).collect(),
        without: quoted(without),
        with: quoted(with),
    }
}

/// The document says what the tests know: of rows and paths that there are, and what is seen without us.
#[test]
fn the_document_is_right() {
    let differences = differences();
    let ids: BTreeSet<&str> = differences.iter().map(|line| line.id.as_str()).collect();
    assert_eq!(ids.len(), differences.len(), "an id twice");
    for line in &differences {
        let row = line.row.0.as_str();
        assert_eq!(
            expected::plain(row),
            Some(line.without.as_str()),
            "{}: {row}",
            line.id
        );
        assert_ne!(line.with, line.without, "{}: no difference", line.id);
        for path in &line.paths {
            let of = |scene: &Scene| {
                scene.mode.is_some()
                    && [
                        "all",
                        scene.name,
                        scene.path,
                        scene.mode.unwrap_or_default(),
                    ]
                    .contains(&path.as_str())
            };
            assert!(SCENES.iter().any(of), "{}: no scene of {path}", line.id);
        }
    }
}

/// Tests that the document names are there.
#[test]
fn tests_of_their_own_exist() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut sources = String::new();
    let mut folders = vec![tests];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path => sources += &std::fs::read_to_string(path).expect("text"),
            }
        }
    }
    let text = document();
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("| T-"))
        .collect();
    assert!(!lines.is_empty(), "the table is gone");
    for line in lines {
        let test = line.split('`').nth(1).expect("a test's name");
        assert!(sources.contains(&format!("fn {test}(")), "{line}");
    }
}

#[test]
fn a_star_stands_for_anything() {
    for (form, text, expected) in [
        ("near *; far 1", "near a, b; far 1", true),
        ("near *; far 1", "near a; far 2", false),
        ("near *", "near ", true),
        ("*EAGAIN*", "near EAGAIN; far", true),
        ("near", "near a", false),
    ] {
        assert_eq!(matches(form, text), expected, "{form} {text}");
    }
}
