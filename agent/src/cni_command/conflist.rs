//! A network's list with the plugin at its end: text in, text out.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// The plugin's name, in lists and as a file.
pub(super) const PLUGIN: &str = "shunt-cni";
/// Ours are called so. Runtimes take the first of a directory in the order of names.
const NAMES: [&str; 3] = [
    "00-shunt.conflist",
    "00--shunt.conflist",
    "!00-shunt.conflist",
];
/// What runtimes take for a configuration.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];
/// The plugin speaks these; a list of another version would fail with it in it.
const VERSIONS: [&str; 3] = ["0.4.0", "1.0.0", "1.1.0"];

/// A file of the directory.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) text: String,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// There is no network to be chained into; nothing of ours shall be there.
    Nothing,
    /// Its own file has the plugin already, by somebody else's hand; nothing of ours shall be there.
    Chained(String),
    /// This file shall have this text.
    Put {
        name: &'static str,
        text: String,
        primary: String,
    },
}

pub(super) fn is_configuration(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension))
}

/// Is this a file of ours?
pub(super) fn is_ours(entry: &Entry) -> bool {
    NAMES.contains(&entry.name.as_str()) && has_plugin(&entry.text)
}

/// Names that ours may have.
pub(super) fn our_paths(dir: &Path) -> impl Iterator<Item = PathBuf> {
    NAMES.iter().map(|name| dir.join(name))
}

/// What shall be there, beside `entries`, which are in the order of their names.
///
/// # Errors
/// The file that the runtime takes is not understood, or cannot have the plugin: for people, it is named.
pub(super) fn plan(entries: &[Entry], plugin: &Map<String, Value>) -> Result<Plan, String> {
    let Some(primary) = entries.iter().find(|entry| !is_ours(entry)) else {
        return Ok(Plan::Nothing);
    };
    let wrong = |what: &str| format!("{} is left alone: {what}", primary.name);
    let list: Value = serde_json::from_str(&primary.text)
        .map_err(|error| wrong(&format!("it is not understood ({error})")))?;
    if has_plugin(&primary.text) {
        return Ok(Plan::Chained(primary.name.clone()));
    }
    let mut list = as_list(list).map_err(&wrong)?;
    let version = list.get("cniVersion").and_then(Value::as_str);
    if !version.is_some_and(|version| VERSIONS.contains(&version)) {
        let (version, known) = (version.unwrap_or("none"), VERSIONS.join(", "));
        let text = format!("its cniVersion is {version}, and the plugin speaks {known}");
        return Err(wrong(&text));
    }
    match list.get_mut("plugins") {
        Some(Value::Array(plugins)) if !plugins.is_empty() => {
            plugins.push(Value::Object(plugin.clone()));
        }
        _ => return Err(wrong("it has no plugins")),
    }
    let before = |name: &&&str| **name < primary.name.as_str();
    let name = NAMES
        .iter()
        .find(before)
        .ok_or_else(|| wrong("no name of ours comes before it; rename it"))?;
    let mut text = serde_json::to_string_pretty(&list).map_err(|error| error.to_string())?;
    text.push('\n');
    Ok(Plan::Put {
        name,
        text,
        primary: primary.name.clone(),
    })
}

/// A single plugin is a list of one.
fn as_list(config: Value) -> Result<Map<String, Value>, &'static str> {
    let Value::Object(mut config) = config else {
        return Err("it is not an object");
    };
    if !config.get("name").is_some_and(Value::is_string) {
        return Err("it has no name");
    }
    if config.contains_key("plugins") {
        return Ok(config);
    }
    if !config.get("type").is_some_and(Value::is_string) {
        return Err("it has neither plugins nor a type");
    }
    let mut list = Map::new();
    for key in ["cniVersion", "name"] {
        if let Some(value) = config.remove(key) {
            list.insert(key.into(), value);
        }
    }
    list.insert("plugins".into(), json!([config]));
    Ok(list)
}

fn has_plugin(text: &str) -> bool {
    let list: Value = serde_json::from_str(text).unwrap_or_default();
    let all = list["plugins"].as_array().cloned().unwrap_or_default();
    all.iter().any(|plugin| plugin["type"] == PLUGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str =
        r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}]}"#;

    fn planned(files: &[(&str, &str)]) -> Result<Plan, String> {
        let entry = |(name, text): &(&str, &str)| Entry {
            name: (*name).into(),
            text: (*text).into(),
        };
        let entries: Vec<Entry> = files.iter().map(entry).collect();
        let Value::Object(plugin) = json!({"type": PLUGIN}) else {
            return Err("no object".into());
        };
        plan(&entries, &plugin)
    }

    fn put(files: &[(&str, &str)]) -> (&'static str, Value) {
        match planned(files) {
            Ok(Plan::Put { name, text, .. }) => (name, serde_json::from_str(&text).expect("JSON")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_network_is_copied_with_the_plugin_at_its_end() {
        let expected = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}, {"type": PLUGIN}]});
        let (name, list) = put(&[("10-a.conflist", LIST), ("20-b.conflist", "nonsense")]);
        assert_eq!((name, &list), ("00-shunt.conflist", &expected));
        let single = r#"{"cniVersion": "1.0.0", "name": "pods", "type": "bridge"}"#;
        assert_eq!(put(&[("10-a.conf", single)]).1, expected);
        // Ours is not the network.
        let ours = expected.to_string();
        let both = [
            ("00-shunt.conflist", ours.as_str()),
            ("10-a.conflist", LIST),
        ];
        assert_eq!(put(&both), (name, expected));
        assert_eq!(planned(&both[..1]), Ok(Plan::Nothing));
    }

    #[test]
    fn our_name_comes_first() {
        assert_eq!(put(&[("00-multus.conf", LIST)]).0, "00--shunt.conflist");
        assert_eq!(put(&[("!a.conf", LIST)]).0, "!00-shunt.conflist");
        let error = planned(&[("!.conf", LIST)]).expect_err("refused");
        assert!(error.contains("rename it"), "{error}");
    }

    #[test]
    fn what_cannot_be_chained_is_named() {
        let chained = LIST.replace("bridge", PLUGIN);
        let chained = planned(&[("10-a.conflist", &chained)]);
        assert_eq!(chained, Ok(Plan::Chained("10-a.conflist".into())));
        for text in [
            "",
            "{",
            "[]",
            "{}",
            r#"{"name": "a", "cniVersion": "1.0.0"}"#,
            r#"{"name": "a", "cniVersion": "1.0.0", "plugins": []}"#,
            r#"{"name": "a", "cniVersion": "1.0.0", "plugins": {}}"#,
            r#"{"name": "a", "cniVersion": "0.3.1", "plugins": [{"type": "bridge"}]}"#,
            r#"{"name": "a", "plugins": [{"type": "bridge"}]}"#,
        ] {
            let error = planned(&[("10-a.conflist", text)]).expect_err("refused");
            assert!(error.starts_with("10-a.conflist is left alone"), "{error}");
        }
    }
}
