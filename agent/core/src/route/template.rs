//! Path templates, `/users/{id}/**`: Envoy's URI templates, as regular expressions.

use super::Pattern;

/// Envoy's bounds.
const MAX_VARIABLES: usize = 5;
const MAX_NAME: usize = 16;
/// What a segment is made of; RFC 3986's pchar without `*`.
const SEGMENT: &str = r"[a-zA-Z0-9\-._~%!$&'()+,;:@=]+";
const ANYTHING: &str = r"[a-zA-Z0-9\-._~%!$&'()+,;:@=/]*";

/// A template that was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    /// Of a path without its query; a group for each variable, in their order.
    pub pattern: Pattern,
    variables: Vec<String>,
}

impl Template {
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut reading = Reading::default();
        if !text.starts_with('/') || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("must start with `/` and consist of visible characters".to_owned());
        }
        let mut rest = text;
        while let Some(next) = rest.chars().next() {
            rest = match next {
                '{' => {
                    let (inner, after) = rest[1..].split_once('}').ok_or("`{` has no `}`")?;
                    reading.variable(inner)?;
                    after
                }
                _ => reading.piece(rest)?,
            };
        }
        Ok(Self {
            pattern: Pattern::parse(&format!("^{}$", reading.pattern))?,
            variables: reading.variables,
        })
    }

    /// What [`Pattern::replace_all`] puts in place of a path that matched.
    ///
    /// # Errors
    /// The text names what is no variable, or is no path.
    pub fn substitution(&self, text: &str) -> Result<String, String> {
        if !text.starts_with('/') {
            return Err("must start with `/`".to_owned());
        }
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            literal(before)?;
            out += before;
            let (name, after) = after.split_once('}').ok_or("`{` has no `}`")?;
            let at = self.variables.iter().position(|known| known == name);
            let at = at.ok_or_else(|| format!("the match has no variable `{name}`"))?;
            out += &format!("\\{}", at + 1);
            rest = after;
        }
        literal(rest)?;
        Ok(out + rest)
    }
}

#[derive(Default)]
struct Reading {
    pattern: String,
    variables: Vec<String>,
    /// A `**` was there.
    is_last: bool,
}

impl Reading {
    /// `name` or `name=pattern`.
    fn variable(&mut self, inner: &str) -> Result<(), String> {
        let (name, inner) = inner.split_once('=').unwrap_or((inner, "*"));
        let starts = name.starts_with(|first: char| first.is_ascii_alphabetic());
        let is_word = name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !starts || !is_word || name.len() > MAX_NAME {
            return Err(format!("`{name}` is no variable's name"));
        }
        if self.variables.iter().any(|known| known == name) {
            return Err(format!("`{name}` is there twice"));
        }
        if self.variables.len() == MAX_VARIABLES {
            return Err(format!("more than {MAX_VARIABLES} variables"));
        }
        if inner.is_empty() {
            return Err(format!("`{name}=` says nothing"));
        }
        self.variables.push(name.to_owned());
        self.pattern.push('(');
        let mut rest = inner;
        while !rest.is_empty() {
            rest = self.piece(rest)?;
        }
        self.pattern.push(')');
        Ok(())
    }

    /// The first operator or literal of a text; the rest of it.
    fn piece<'t>(&mut self, text: &'t str) -> Result<&'t str, String> {
        if text.starts_with('*') {
            if self.is_last {
                return Err("nothing may match anything after `**`".to_owned());
            }
            let (pattern, rest) = match text.strip_prefix("**") {
                Some(rest) => (ANYTHING, rest),
                None => (SEGMENT, &text[1..]),
            };
            self.is_last = pattern == ANYTHING;
            self.pattern += pattern;
            return Ok(rest);
        }
        let end = text.find(['*', '{']).unwrap_or(text.len());
        literal(&text[..end])?;
        self.pattern += &regex::escape(&text[..end]);
        Ok(&text[end..])
    }
}

fn literal(text: &str) -> Result<(), String> {
    let other = |character: &char| {
        !character.is_ascii_alphanumeric() && !"-._~%!$&'()+,;:@=/".contains(*character)
    };
    match text.chars().find(other) {
        Some(character) => Err(format!("`{character}` may not stand in a path")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_match_whole_paths() {
        for (template, yes, no) in [
            ("/a/*/c", "/a/b/c", "/a/b/x/c"),
            ("/a/{x}.json", "/a/b.json", "/a/b.xml"),
            ("/v{x}/**", "/v2/", "/v/"),
            ("/**.mpd", "/a/b.mpd", "/a/b"),
            ("/{x=a/*}/c", "/a/b/c", "/b/b/c"),
            ("/a", "/a", "/a/"),
        ] {
            let template = Template::parse(template).expect(template);
            assert!(template.pattern.matches(yes.as_bytes()), "{template:?}");
            assert!(!template.pattern.matches(no.as_bytes()), "{template:?}");
        }
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for text in [
            "",
            "a",
            "/{",
            "/{}",
            "/{a}{a}",
            "/{1}",
            "/**/*",
            "/a b",
            "/{a=}",
            "/}",
            "/a?b",
            "/{a}/{b}/{c}/{d}/{e}/{f}",
        ] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn variables_are_put_elsewhere() {
        let template = Template::parse("/{one}/{two=**}").expect("a template");
        let to = template.substitution("/x/{two}/{one}").expect("a rewrite");
        assert_eq!(template.pattern.replace_all("/a/b/c", &to), "/x/b/c/a");
        assert!(template.substitution("/{three}").is_err());
        assert!(template.substitution("{one}").is_err());
        assert!(template.substitution("/*").is_err());
    }
}
