//! Where resources come from that stand in files of their own.

use std::path::PathBuf;

use crate::files::{Kind, Wanted};
use crate::reader::Reader;

/// What `convert` makes of the resources in the file that this `ConfigSource` names. `None`: no such file was ever right.
pub(super) fn read<T>(
    source: &Reader<'_>,
    kind: Kind,
    name: &str,
    convert: impl Fn(&[Reader<'_>]) -> T,
) -> Option<T> {
    let version = source.choice("resource_api_version");
    if version == "V2" {
        source.fault("resource_api_version", "only V3 is supported");
    }
    let (path, watched) = match source.message("path_config_source") {
        Some(file) => {
            let directory = file.message("watched_directory");
            let directory = directory.map(|directory| directory.text("path"));
            (file.text("path"), directory.filter(|path| !path.is_empty()))
        }
        None => (source.text("path"), None),
    };
    if path.is_empty() {
        source.fault("", "a file is required (path_config_source.path)");
        return None;
    }
    let wanted = Wanted {
        kind,
        name: name.to_owned(),
        path: PathBuf::from(path),
        watched: watched.map(PathBuf::from),
    };
    source.files().read(wanted, &convert)
}

/// The resource of a file that has one, and of that name.
pub(super) fn only<'a>(readers: &[Reader<'a>], field: &str, name: &str) -> Option<Reader<'a>> {
    let [reader] = readers else {
        if let Some(second) = readers.get(1) {
            second.fault("", "one resource is expected here");
        }
        return None;
    };
    if reader.text(field) != name {
        reader.fault(field, format!("`{name}` is expected here"));
    }
    Some(reader.clone())
}
