//! The text of the agent's configuration.

use std::path::Path;

use crate::world::Pod;

/// Most tests are about connections that the agent carries.
pub(super) const THROUGH_THE_AGENT: &str = "acceleration: off";

/// A line of the list of workloads. Unless `more` says something of acceleration, it is off.
pub fn entry(name: &str, pod: &Pod, more: &str) -> String {
    let mut fields = Vec::from_iter((!more.is_empty()).then_some(more));
    if !more.contains("acceleration") {
        fields.push(THROUGH_THE_AGENT);
    }
    let more = fields.join(", ");
    format!(
        "  - {{name: {name}, netns: {}, cgroup: {}, {more}}}\n",
        pod.netns,
        pod.cgroup.display()
    )
}

pub(super) fn config(dir: &Path, mode: &str, settings: &str, workloads: &[String]) -> String {
    let at = dir.display();
    let workloads = if workloads.is_empty() {
        " []\n".to_owned()
    } else {
        format!("\n{}", workloads.concat())
    };
    let log = match settings.contains("log: {") {
        true => String::new(),
        false => format!("log: {{level: info, format: json, access: {at}/access.log}}\n"),
    };
    format!(
        "mode: {mode}\nconcurrency: 2\nstate_dir: {at}/state\nadmin: {{socket: {at}/admin.sock}}\n\
         {log}{settings}workloads:{workloads}"
    )
}
