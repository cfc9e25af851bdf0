//! Versions of the specification, and the verb that asks for them.

use serde_json::{Value, json};

pub(crate) const SUPPORTED: [&str; 3] = ["0.4.0", "1.0.0", "1.1.0"];
/// Spoken to whoever does not say what he speaks.
const NEWEST: &str = "1.1.0";

/// The input's version, if it is one of ours.
pub(crate) fn spoken(input: Option<&Value>) -> &'static str {
    let asked = input.and_then(|input| input.get("cniVersion")?.as_str());
    let ours = SUPPORTED.iter().find(|ours| Some(**ours) == asked);
    ours.unwrap_or(&NEWEST)
}

/// Whatever is wrong with the input: whoever asks wants to find a version in common.
pub(crate) fn answer(input: Option<&Value>) -> Value {
    json!({"cniVersion": spoken(input), "supportedVersions": SUPPORTED})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_askers_version_is_spoken_when_it_is_known() {
        for (input, version) in [
            (Some(json!({"cniVersion": "0.4.0"})), "0.4.0"),
            (Some(json!({"cniVersion": "0.3.1"})), "1.1.0"),
            (Some(json!([])), "1.1.0"),
            (None, "1.1.0"),
        ] {
            assert_eq!(spoken(input.as_ref()), version, "{input:?}");
        }
    }
}
