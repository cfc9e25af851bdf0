//! The section on pods and the Kubernetes API.

use super::node::Mapping;
use super::values;
use crate::config::Kubernetes;

const KEYS: &[&str] = &[
    "enabled",
    "node_name",
    "kubeconfig",
    "default",
    "labels",
    "exempt_namespaces",
];
/// Kubernetes' own limits, bytes: a prefix, `/` and a name.
const MAX_LABEL: usize = 253 + 1 + 63;

/// `None` when it is not there, or not enabled.
pub(super) fn section(file: &Mapping<'_>) -> Option<Kubernetes> {
    let section = file.mapping("kubernetes", KEYS)?;
    let mut kubernetes = Kubernetes::default();
    let either = |key, words: [(&'static str, bool); 2]| {
        section.value(key, |text| values::choice(text, &words))
    };
    let enabled = either("enabled", [("true", true), ("false", false)]).unwrap_or(true);
    if let Some(on) = either("default", [("on", true), ("off", false)]) {
        kubernetes.default_on = on;
    }
    if let Some(field) = section.get("node_name").filter(|field| !field.is_empty()) {
        kubernetes.node_name = field.value(values::name);
    }
    if let Some(field) = section.get("kubeconfig").filter(|field| !field.is_empty()) {
        kubernetes.kubeconfig = field.value(values::absolute_path);
    }
    if let Some(labels) = section.mapping("labels", &["inject", "dataplane_mode"]) {
        for (key, place) in [
            ("inject", &mut kubernetes.inject_label),
            ("dataplane_mode", &mut kubernetes.dataplane_mode_label),
        ] {
            if let Some(label) = labels.value(key, label) {
                *place = label;
            }
        }
    }
    if section.get("exempt_namespaces").is_some() {
        kubernetes.exempt_namespaces = section.list("exempt_namespaces", values::name);
    }
    enabled.then_some(kubernetes)
}

fn label(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    if !text.is_empty() && text.len() <= MAX_LABEL && text.chars().all(allowed) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "`{text}` is not the key of a label (as shunt.io/inject)"
    ))
}
