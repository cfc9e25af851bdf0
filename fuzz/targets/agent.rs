//! The agent's own file: understood or refused, and what is understood is written back as the same.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use shunt_core::config::file;

fuzz_target!(|text: &str| {
    if let Ok(config) = file::parse(text, Path::new("f")) {
        let written = file::dump(&config);
        match file::parse(&written, Path::new("g")) {
            Ok(again) => assert_eq!(again, config, "{written}"),
            Err(error) => panic!("{error}\n{written}"),
        }
    }
    let _ = shunt_xds::is_bootstrap(text);
});
