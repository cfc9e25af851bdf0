//! Paths that mean the same made the same, before anything is matched.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathRules {
    /// Dots resolved, needless escapes undone, as RFC 3986, section 6, and browsers have it.
    pub normalize: bool,
    pub merge_slashes: bool,
}

impl PathRules {
    /// The same path as it is matched and passed on; the query stays as it is.
    pub fn apply(self, path: &str) -> String {
        let (path, query) = path.split_at(path.find('?').unwrap_or(path.len()));
        let mut path = match self.normalize {
            true => resolve_dots(&unescape(path)),
            false => path.to_owned(),
        };
        if self.merge_slashes {
            let mut last = ' ';
            path.retain(|character| {
                let doubled = character == '/' && last == '/';
                last = character;
                !doubled
            });
        }
        path + query
    }
}

/// What need not be escaped is not, what must be is; backslashes are slashes.
fn unescape(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(character) = rest.chars().next() {
        let code = rest
            .strip_prefix('%')
            .and_then(|after| after.get(..2))
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match code.map(char::from) {
            Some(meant) if meant.is_ascii_alphanumeric() || "-._~".contains(meant) => {
                out.push(meant);
                rest = &rest[3..];
            }
            _ => {
                match character {
                    '\\' => out.push('/'),
                    '"' | '<' | '>' | '^' | '`' | '{' | '|' | '}' => {
                        out.push_str(&format!("%{:02X}", u32::from(character)));
                    }
                    other => out.push(other),
                }
                rest = &rest[character.len_utf8()..];
            }
        }
    }
    out
}

/// RFC 3986, section 5.2.4.
fn resolve_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if is_last {
                    kept.push("");
                }
            }
            other => kept.push(other),
        }
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_the_same() {
        let all = PathRules {
            normalize: true,
            merge_slashes: true,
        };
        for (path, expected) in [
            ("/", "/"),
            ("/a/./b/../c", "/a/c"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/../../a", "/a"),
            ("/%2e%2E/a", "/a"),
            ("/a%2fb%41%7e%zz", "/a%2fbA~%zz"),
            ("/a\\b", "/a/b"),
            ("/{a|b}", "/%7Ba%7Cb%7D"),
            ("//a///b//?c//d/../e", "/a/b/?c//d/../e"),
        ] {
            assert_eq!(all.apply(path), expected, "{path}");
        }
        let merge = PathRules {
            normalize: false,
            merge_slashes: true,
        };
        assert_eq!(merge.apply("//a/../b"), "/a/../b");
        assert_eq!(PathRules::default().apply("//a/../b"), "//a/../b");
    }
}
