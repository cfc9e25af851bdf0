//! Matches of texts.

use std::fmt;
use std::sync::OnceLock;

use regex::bytes::Regex;
use serde::{Deserialize, Serialize};

/// Bytes of a compiled expression; one that needs more is refused.
const MAX_PROGRAM: usize = 1 << 20;

/// A regular expression that compiles. Written as its text.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    text: String,
    whole: Regex,
    /// Made when something is rewritten by it.
    anywhere: OnceLock<Option<Regex>>,
}

impl Pattern {
    /// # Errors
    /// It is none, or too large.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |error| format!("not a regular expression: {error}");
        // `a)(b` is none, though it is one between the brackets.
        let syntax = regex_syntax::ParserBuilder::new()
            .unicode(false)
            .utf8(false)
            .build();
        let parsed = { syntax }.parse(text);
        parsed.map_err(|error| wrong(error.to_string()))?;
        let whole = compile(&format!(r"\A(?:{text})\z"));
        Ok(Self {
            text: text.to_owned(),
            anywhere: OnceLock::new(),
            whole: whole.map_err(|error| wrong(error.to_string()))?,
        })
    }

    /// `None`: too large, which substitutions are checked for.
    fn anywhere(&self) -> Option<&Regex> {
        let regex = self.anywhere.get_or_init(|| compile(&self.text).ok());
        regex.as_ref()
    }

    /// From beginning to end.
    pub fn matches(&self, text: &[u8]) -> bool {
        self.whole.is_match(text)
    }

    /// With `substitution` in every place that matches; `\1` is the first group, `\0` all of it.
    pub fn replace_all(&self, text: &str, substitution: &str) -> String {
        let Some(anywhere) = self.anywhere() else {
            return text.to_owned();
        };
        let replaced = anywhere
            .replace_all(text.as_bytes(), |found: &regex::bytes::Captures<'_>| {
                expand(found, substitution)
            });
        String::from_utf8_lossy(&replaced).into_owned()
    }

    /// # Errors
    /// It names a group that is not there, or ends in a backslash.
    pub fn check_substitution(&self, substitution: &str) -> Result<(), String> {
        let anywhere = self.anywhere();
        let groups = anywhere
            .ok_or("the expression is too large")?
            .captures_len();
        let mut characters = substitution.chars();
        while let Some(character) = characters.next() {
            if character != '\\' {
                continue;
            }
            match characters.next() {
                Some('\\') => {}
                Some(digit)
                    if digit
                        .to_digit(10)
                        .is_some_and(|group| (group as usize) < groups) => {}
                Some(other) => return Err(format!("`\\{other}` is no group of the expression")),
                None => return Err("ends in a backslash".to_owned()),
            }
        }
        Ok(())
    }
}

fn compile(text: &str) -> Result<Regex, regex::Error> {
    // As RE2 has it: `\d` and the like are of ASCII.
    regex::bytes::RegexBuilder::new(text)
        .unicode(false)
        .size_limit(MAX_PROGRAM)
        .build()
}

fn expand(found: &regex::bytes::Captures<'_>, substitution: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = substitution.bytes();
    while let Some(byte) = bytes.next() {
        match (byte, bytes.clone().next()) {
            (b'\\', Some(digit)) if digit.is_ascii_digit() => {
                bytes.next();
                let group = found.get(usize::from(digit - b'0'));
                out.extend_from_slice(group.map_or(&[][..], |group| group.as_bytes()));
            }
            (b'\\', Some(next)) => {
                bytes.next();
                out.push(next);
            }
            _ => out.push(byte),
        }
    }
    out
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.text
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pattern").field(&self.text).finish()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// `envoy.type.matcher.v3.StringMatcher`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StringMatch {
    pub kind: StringMatchKind,
    /// Regular expressions say it themselves.
    pub ignore_case: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StringMatchKind {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Contains(String),
    Regex(Pattern),
}

impl StringMatch {
    pub fn matches(&self, text: &[u8]) -> bool {
        use StringMatchKind::{Contains, Exact, Prefix, Regex, Suffix};
        let same = |a: &[u8], b: &[u8]| match self.ignore_case {
            true => a.eq_ignore_ascii_case(b),
            false => a == b,
        };
        match &self.kind {
            Exact(wanted) => same(text, wanted.as_bytes()),
            Prefix(wanted) => text
                .get(..wanted.len())
                .is_some_and(|start| same(start, wanted.as_bytes())),
            Suffix(wanted) => text
                .len()
                .checked_sub(wanted.len())
                .is_some_and(|at| same(&text[at..], wanted.as_bytes())),
            Contains(wanted) => {
                wanted.is_empty()
                    || text
                        .windows(wanted.len())
                        .any(|window| same(window, wanted.as_bytes()))
            }
            Regex(pattern) => pattern.matches(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_match() {
        use StringMatchKind::{Contains, Exact, Prefix, Regex, Suffix};
        let is = |kind: &StringMatchKind, ignore_case, text: &str| {
            let matcher = StringMatch {
                kind: kind.clone(),
                ignore_case,
            };
            matcher.matches(text.as_bytes())
        };
        let rows = [
            (Exact("Ab".into()), "Ab", "Abc"),
            (Prefix("Ab".into()), "Abc", "xAb"),
            (Suffix("Ab".into()), "xAb", "b"),
            (Contains("Ab".into()), "xAbx", "xbAx"),
        ];
        for (kind, yes, no) in rows {
            assert!(is(&kind, false, yes), "{kind:?}");
            assert!(!is(&kind, false, no), "{kind:?}");
            assert!(!is(&kind, false, &yes.to_uppercase()), "{kind:?}");
            assert!(is(&kind, true, &yes.to_uppercase()), "{kind:?}");
        }
        let pattern = Pattern::parse("a|bc").expect("a pattern");
        let regex = Regex(pattern);
        assert!(is(&regex, false, "a") && is(&regex, false, "bc"));
        assert!(!is(&regex, false, "abc") && !is(&regex, false, "ac"));
    }

    #[test]
    fn groups_are_put_where_the_substitution_says() {
        let pattern = Pattern::parse("^/service/([^/]+)(/.*)$").expect("a pattern");
        let rewritten = pattern.replace_all("/service/foo/v1/api", r"\2/instance/\1");
        assert_eq!(rewritten, "/v1/api/instance/foo");
        let every = Pattern::parse("one").expect("a pattern");
        assert_eq!(
            every.replace_all("/xxx/one/yyy/one/zzz", "two"),
            "/xxx/two/yyy/two/zzz"
        );
        assert!(pattern.check_substitution(r"\2\\\0").is_ok());
        assert!(pattern.check_substitution(r"\3").is_err());
        for wrong in ["(", "a)(b", "[z-a]"] {
            assert!(Pattern::parse(wrong).is_err(), "{wrong}");
        }
    }
}
