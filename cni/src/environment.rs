//! What the runtime says in variables: the verb, and which container.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, fstatfs};
use shunt_core::config::file;
use shunt_core::workload::WorkloadName;

use crate::failure::{Code, Failure};

/// Of a file that stands for a namespace (linux/magic.h).
const NSFS_MAGIC: i128 = 0x6e73_6673;
/// Bytes of an interface's name (IFNAMSIZ, less its end).
const MAX_IFNAME: usize = 15;
/// The namespace of containers that no Kubernetes made; the agent's own default.
const DEFAULT_NAMESPACE: &str = "default";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    pub(crate) fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, Failure> {
        match required(&variable, "CNI_COMMAND")?.as_str() {
            "ADD" => Ok(Self::Add),
            "DEL" => Ok(Self::Del),
            "CHECK" => Ok(Self::Check),
            "GC" => Ok(Self::Gc),
            "STATUS" => Ok(Self::Status),
            "VERSION" => Ok(Self::Version),
            other => Err(invalid(format!("no such CNI_COMMAND: {other}"))),
        }
    }
}

/// A container that is attached to a network.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) container: String,
    /// As Kubernetes names pods; without a name the container's id, without a namespace `default`.
    pub(crate) workload: WorkloadName,
    /// The pod's, where Kubernetes made it.
    pub(crate) namespace: Option<String>,
    pub(crate) uid: Option<String>,
    netns: Option<PathBuf>,
}

impl Attachment {
    pub(crate) fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, Failure> {
        let container = required(&variable, "CNI_CONTAINERID")?;
        let container =
            file::name(&container).map_err(|error| invalid(format!("CNI_CONTAINERID: {error}")))?;
        let ifname = required(&variable, "CNI_IFNAME")?;
        if !is_interface(&ifname) {
            let text = format!("CNI_IFNAME: `{ifname}` is not an interface's name");
            return Err(invalid(text));
        }
        let (mut namespace, mut pod, mut uid) = (None, None, None);
        let arguments = optional(&variable, "CNI_ARGS")?.unwrap_or_default();
        for pair in arguments.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(invalid(format!("CNI_ARGS: `{pair}` is not KEY=VALUE")));
            };
            let known = match key {
                "K8S_POD_NAMESPACE" => &mut namespace,
                "K8S_POD_NAME" => &mut pod,
                "K8S_POD_UID" => &mut uid,
                _ => continue,
            };
            let value = (!value.is_empty()).then(|| file::name(value)).transpose();
            *known = value.map_err(|error| invalid(format!("CNI_ARGS: {key}: {error}")))?;
        }
        let (namespace_of, name) = match (&namespace, pod) {
            (Some(namespace), Some(name)) => (namespace.as_str(), name),
            // As podman names containers.
            (None, Some(name)) => (DEFAULT_NAMESPACE, name),
            (_, None) => (DEFAULT_NAMESPACE, container.clone()),
        };
        let workload = WorkloadName {
            namespace: namespace_of.into(),
            name,
        };
        Ok(Self {
            container,
            workload,
            namespace,
            uid,
            netns: optional(&variable, "CNI_NETNS")?.map(PathBuf::from),
        })
    }

    /// As the agent knows it.
    pub(crate) fn told(&self, network: &str) -> shunt_cni_protocol::Attachment {
        shunt_cni_protocol::Attachment {
            namespace: self.workload.namespace.clone(),
            name: self.workload.name.clone(),
            container: self.container.clone(),
            network: network.into(),
        }
    }

    /// The container's network namespace, opened, and its path; it is there and is not the runtime's own.
    pub(crate) fn netns(&self) -> Result<(File, &str), Failure> {
        let wrong = |what: &str| invalid(format!("CNI_NETNS: {what}"));
        let path = self.netns.as_ref().ok_or_else(|| wrong("missing"))?;
        let shown = path.display();
        let failed = |error: std::io::Error| wrong(&format!("{shown}: {error}"));
        // A pipe of that name would keep who opens it waiting.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::open(path, flags, Mode::empty());
        let file = File::from(file.map_err(|error| failed(error.into()))?);
        let found = file.metadata().map_err(failed)?;
        let is_namespace =
            fstatfs(&file).is_ok_and(|system| i128::from(system.f_type) == NSFS_MAGIC);
        if !is_namespace {
            return Err(wrong(&format!("{shown} is not a namespace")));
        }
        if fs::metadata("/proc/self/ns/net").is_ok_and(|own| own.ino() == found.ino()) {
            return Err(wrong(&format!("{shown} is the runtime's own namespace")));
        }
        let text = path.to_str().filter(|_| path.is_absolute());
        let text = text.ok_or_else(|| wrong(&format!("{shown} is not an absolute path")))?;
        Ok((file, text))
    }
}

fn is_interface(name: &str) -> bool {
    let allowed = |c: char| !c.is_whitespace() && !matches!(c, '/' | ':');
    name.len() <= MAX_IFNAME && name != "." && name != ".." && name.chars().all(allowed)
}

/// An empty variable is as good as none.
fn optional(
    variable: impl Fn(&str) -> Option<OsString>,
    name: &str,
) -> Result<Option<String>, Failure> {
    let value = variable(name).filter(|value| !value.is_empty());
    let text = value.map(OsString::into_string).transpose();
    text.map_err(|_| invalid(format!("{name} is not UTF-8")))
}

fn required(variable: impl Fn(&str) -> Option<OsString>, name: &str) -> Result<String, Failure> {
    optional(variable, name)?.ok_or_else(|| invalid(format!("{name}: missing")))
}

fn invalid(what: String) -> Failure {
    Failure::new(Code::InvalidEnvironment, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(more: &[(&str, &str)]) -> Result<Attachment, Failure> {
        let given = [("CNI_CONTAINERID", "c0ffee"), ("CNI_IFNAME", "eth0")];
        let last = |name: &str| {
            let mut all = more.iter().chain(&given);
            all.find(|(known, _)| *known == name)
                .map(|(_, value)| OsString::from(value))
        };
        Attachment::read(last)
    }

    #[test]
    fn a_workload_is_named_after_its_pod_or_its_container() {
        let named = |args| {
            read(&[("CNI_ARGS", args)])
                .expect("right")
                .workload
                .to_string()
        };
        assert_eq!(named(""), "default/c0ffee");
        assert_eq!(named("K8S_POD_NAMESPACE=;K8S_POD_NAME="), "default/c0ffee");
        assert_eq!(named("K8S_POD_NAME=db"), "default/db");
        let pod = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;OTHER=a=b";
        assert_eq!(named(pod), "shop/web-0");
    }

    #[test]
    fn wrong_variables_are_refused() {
        for wrong in [
            ("CNI_CONTAINERID", ""),
            ("CNI_CONTAINERID", "../x"),
            ("CNI_IFNAME", ""),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", "sixteen-letters-"),
            ("CNI_ARGS", "K8S_POD_NAME"),
            ("CNI_ARGS", "K8S_POD_NAMESPACE=a/b;K8S_POD_NAME=c"),
        ] {
            let failure = read(&[wrong]).expect_err("refused");
            assert_eq!(failure.code, Code::InvalidEnvironment, "{wrong:?}");
        }
    }

    #[test]
    fn a_namespace_must_be_there_and_another_one() {
        for netns in ["", "/nowhere", "/proc/self/exe", "/proc/self/ns/net"] {
            let attachment = read(&[("CNI_NETNS", netns)]).expect("right");
            let failure = attachment.netns().expect_err("refused");
            assert_eq!(failure.code, Code::InvalidEnvironment, "{netns}");
        }
    }
}
