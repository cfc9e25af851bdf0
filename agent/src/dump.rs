//! `/config_dump`: Envoy's part and the agent's own.

use serde_json::{Map, Value, json};
use shunt_core::config::Config;

/// `envoy`: `configs` and `sources`, JSON. The keys of the agent's own configuration stand beside them: who knows only
/// Envoy's passes over them.
pub fn with_own(envoy: &str, config: &Config) -> Value {
    let mut whole = match serde_json::from_str(envoy) {
        Ok(Value::Object(envoy)) => envoy,
        _ => Map::from_iter([("configs".to_owned(), json!([]))]),
    };
    if let Ok(Value::Object(own)) = serde_json::to_value(config) {
        whole.extend(own);
    }
    Value::Object(whole)
}
