//! An Envoy bootstrap, YAML or JSON: understood or refused, and what is understood survives the way to the data plane.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use shunt_core::bootstrap::{Bootstrap, Tables};

fuzz_target!(|text: &str| {
    // Files are named by those who may name any.
    if text.contains("path") && text.contains("config") || text.contains("filename") {
        return;
    }
    if let Ok(loaded) = shunt_xds::parse(text, Path::new("f")) {
        let said = serde_json::to_string(&loaded.bootstrap).expect("JSON");
        let back: Bootstrap = serde_json::from_str(&said).expect("the same");
        assert_eq!(back, loaded.bootstrap);
        serde_json::from_str::<serde_json::Value>(&loaded.dump).expect("JSON");
        Tables::new(back, &Tables::default());
    }
});
