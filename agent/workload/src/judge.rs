//! Who is enrolled, by labels and annotations.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shunt_core::config::Kubernetes;
use shunt_core::workload::{ModeSetting, WorkloadName, WorkloadSpec};

use crate::annotations::{self, Said};
use crate::object::Pod;
use crate::wish::{PodUid, PodWish, Verdict};

/// What our label says, yes and no.
const INJECT: [&str; 2] = ["enabled", "disabled"];
/// What Istio's says.
const DATAPLANE_MODE: [&str; 2] = ["ambient", "none"];
/// Labels of a pod that become the workload's; the API has no such limit.
const MAX_LABELS: usize = 256;
/// Labels by which the agent knows whose a workload is begin so; a pod cannot give itself one.
const RESERVED: [&str; 2] = ["shunt.io/cni-", "shunt.io/pod-"];
/// Where another mesh works already: annotations that its injector or CNI plugin writes.
const OTHERS: [(&str, &str); 5] = [
    ("sidecar.istio.io/status", "an Istio sidecar"),
    ("ambient.istio.io/redirection", "Istio's ztunnel"),
    ("linkerd.io/proxy-version", "a Linkerd proxy"),
    ("kuma.io/sidecar-injected", "a Kuma sidecar"),
    (
        "consul.hashicorp.com/connect-inject-status",
        "a Consul proxy",
    ),
];

/// What the configuration says of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rules {
    pub kubernetes: Kubernetes,
    /// Of pods that do not say.
    pub mode: ModeSetting,
}

impl Rules {
    /// What shall become of a pod whose namespace has these labels. `None`: nothing, and nobody needs to hear of it.
    pub fn judge(&self, pod: &Pod, namespace: &BTreeMap<String, String>) -> Option<PodWish> {
        let meta = &pod.metadata;
        let name = WorkloadName {
            namespace: meta.namespace.clone()?,
            name: meta.name.clone()?,
        };
        let uid = match PodUid::new(meta.uid.clone()?) {
            Ok(uid) => uid,
            Err(error) => {
                tracing::debug!(pod = %name, error, "a pod is passed over");
                return None;
            }
        };
        let ended = matches!(pod.status.phase.as_deref(), Some("Succeeded" | "Failed"));
        if ended || self.kubernetes.exempts(&name.namespace) {
            return None;
        }
        let host_network = pod.spec.host_network;
        let (none, empty) = (BTreeMap::new(), BTreeMap::new());
        let labels = meta.labels.as_ref().unwrap_or(&none);
        let annotations = meta.annotations.as_ref().unwrap_or(&empty);
        let enrol = || {
            let enrolled = self.enrol(&name, host_network, labels, annotations);
            enrolled.map_err(Verdict::Wrong)
        };
        let wanted = match host_network {
            true => self.wanted_in_the_nodes_network(labels),
            false => self.wanted(labels, namespace),
        };
        let verdict = match wanted {
            Ok(Some(false)) if self.said(labels) == Ok(Some(false)) => Err(Verdict::Refuse),
            Ok(Some(true)) => enrol(),
            Ok(None) if self.kubernetes.default_on => enrol(),
            Ok(_) => return None,
            Err(wrong) => Err(Verdict::Wrong(wrong)),
        };
        let (verdict, said) = match verdict {
            Ok((said, spec)) => (Verdict::Enrol(Box::new(spec)), said),
            Err(verdict) => (verdict, Said::new()),
        };
        Some(PodWish {
            uid,
            name,
            verdict,
            said,
        })
    }

    fn enrol(
        &self,
        name: &WorkloadName,
        host_network: bool,
        labels: &BTreeMap<String, String>,
        annotations: &BTreeMap<String, String>,
    ) -> Result<(Said, WorkloadSpec), String> {
        let other = |(key, _): &&(&str, &str)| {
            annotations
                .get(*key)
                .is_some_and(|value| !matches!(value.as_str(), "" | "disabled" | "false"))
        };
        if let Some((_, other)) = OTHERS.iter().find(other) {
            return Err(format!("{other} carries its connections already"));
        }
        if labels.len() > MAX_LABELS {
            return Err(format!("it has more than {MAX_LABELS} labels"));
        }
        let (said, mut spec) = annotations::read(name, host_network, annotations, self.mode)?;
        if !host_network {
            spec.netns.clear();
        }
        spec.cgroup = None;
        spec.labels = labels
            .iter()
            .filter(|(key, _)| !RESERVED.iter().any(|start| key.starts_with(start)))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        Ok((said, spec))
    }

    /// The pod's word, else its namespace's.
    fn wanted(
        &self,
        pod: &BTreeMap<String, String>,
        namespace: &BTreeMap<String, String>,
    ) -> Result<Option<bool>, String> {
        match self.said(pod)? {
            Some(said) => Ok(Some(said)),
            None => self
                .said(namespace)
                .map_err(|wrong| format!("its namespace's {wrong}")),
        }
    }

    /// Of a pod with `hostNetwork`: its own word, in our label. Who labels a namespace, or turns the default on, does not
    /// mean what belongs to the node; and Istio's label does not mean such pods.
    fn wanted_in_the_nodes_network(
        &self,
        pod: &BTreeMap<String, String>,
    ) -> Result<Option<bool>, String> {
        let said = said(pod, &self.kubernetes.inject_label, INJECT)?;
        Ok(said.or(Some(false)))
    }

    /// Our label, else Istio's.
    fn said(&self, labels: &BTreeMap<String, String>) -> Result<Option<bool>, String> {
        match said(labels, &self.kubernetes.inject_label, INJECT)? {
            Some(said) => Ok(Some(said)),
            None => said(
                labels,
                &self.kubernetes.dataplane_mode_label,
                DATAPLANE_MODE,
            ),
        }
    }
}

fn said(
    labels: &BTreeMap<String, String>,
    key: &str,
    [yes, no]: [&str; 2],
) -> Result<Option<bool>, String> {
    match labels.get(key).map(String::as_str) {
        None => Ok(None),
        Some(word) if word == yes => Ok(Some(true)),
        Some(word) if word == no => Ok(Some(false)),
        Some(word) => Err(format!("label {key}: `{word}` is neither {yes} nor {no}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(more: Value) -> Pod {
        let mut pod = json!({
            "metadata": {"namespace": "shop", "name": "web", "uid": "6b0a6f2e-2a3c-4a7e-9d0b-0d7c2f1f3a11"},
            "spec": {"nodeName": "n1"}, "status": {"phase": "Running"},
        });
        for (section, fields) in more.as_object().expect("an object") {
            let section = pod[section].as_object_mut().expect("an object");
            section.extend(fields.as_object().expect("an object").clone());
        }
        serde_json::from_value(pod).expect("a pod")
    }

    fn labelled(labels: Value) -> Pod {
        pod(json!({"metadata": {"labels": labels}}))
    }

    fn judge(pod: &Pod, namespace: Value) -> Option<&'static str> {
        let rules = Rules {
            kubernetes: Kubernetes::default(),
            mode: ModeSetting::Auto,
        };
        let labels = serde_json::from_value(namespace).expect("labels");
        rules.judge(pod, &labels).map(|wish| match wish.verdict {
            Verdict::Enrol(_) => "enrol",
            Verdict::Refuse => "refuse",
            Verdict::Wrong(_) => "wrong",
        })
    }

    #[test]
    fn the_pods_word_then_the_namespaces_then_the_default() {
        let yes = json!({"shunt.io/inject": "enabled"});
        let no = json!({"shunt.io/inject": "disabled"});
        let silent = json!({"app": "web"});
        for (of_pod, of_namespace, wanted) in [
            (&silent, json!({}), None),
            (&silent, yes.clone(), Some("enrol")),
            (&yes, json!({}), Some("enrol")),
            (&yes, no.clone(), Some("enrol")),
            (&no, yes.clone(), Some("refuse")),
            (&silent, no.clone(), None),
            (
                &silent,
                json!({"istio.io/dataplane-mode": "ambient"}),
                Some("enrol"),
            ),
            (
                &json!({"istio.io/dataplane-mode": "none"}),
                yes.clone(),
                Some("refuse"),
            ),
            (
                &json!({"istio.io/dataplane-mode": "ambient", "shunt.io/inject": "disabled"}),
                json!({}),
                Some("refuse"),
            ),
            (&json!({"shunt.io/inject": "yes"}), json!({}), Some("wrong")),
            (&silent, json!({"shunt.io/inject": "true"}), Some("wrong")),
        ] {
            let seen = judge(&labelled(of_pod.clone()), of_namespace.clone());
            assert_eq!(seen, wanted, "{of_pod} in {of_namespace}");
        }
    }

    #[test]
    fn some_are_never_enrolled() {
        let label = json!({"labels": {"shunt.io/inject": "enabled"}});
        let never = [
            json!({"metadata": label, "status": {"phase": "Succeeded"}}),
            json!({"metadata": {"labels": label["labels"], "namespace": "kube-system"}}),
            json!({"metadata": {"labels": label["labels"], "uid": "../../etc"}}),
        ];
        for more in never {
            assert_eq!(judge(&pod(more.clone()), json!({})), None, "{more}");
        }
        let injected = json!({"metadata": {"labels": label["labels"], "annotations": {"sidecar.istio.io/status": "{}"}}});
        assert_eq!(judge(&pod(injected), json!({})), Some("wrong"));
    }

    #[test]
    fn in_the_nodes_network_the_pods_own_word_alone_counts() {
        let rules = Rules {
            kubernetes: Kubernetes {
                default_on: true,
                ..Kubernetes::default()
            },
            mode: ModeSetting::Auto,
        };
        let judge = |labels: Value, annotations: Value| {
            let metadata = json!({"labels": labels, "annotations": annotations});
            let pod = pod(json!({"metadata": metadata, "spec": {"hostNetwork": true}}));
            let namespace = BTreeMap::from([("shunt.io/inject".to_owned(), "enabled".to_owned())]);
            rules.judge(&pod, &namespace).map(|wish| wish.verdict)
        };
        let yes = json!({"shunt.io/inject": "enabled"});
        assert_eq!(judge(json!({}), json!({})), None);
        let ambient = json!({"istio.io/dataplane-mode": "ambient"});
        assert_eq!(judge(ambient, json!({})), None);
        let no = json!({"shunt.io/inject": "disabled"});
        assert_eq!(judge(no, json!({})), Some(Verdict::Refuse));
        let Some(Verdict::Enrol(spec)) =
            judge(yes.clone(), json!({"shunt.io/on-failure": "closed"}))
        else {
            panic!("it is enrolled")
        };
        assert!(spec.shares_netns());
        assert_eq!(spec.cgroup, None, "the node knows");
        for (key, value, says) in [
            ("shunt.io/mode", "iptables", "needs eBPF mode"),
            ("shunt.io/exclude-inbound-ports", "22", "are not captured"),
            ("shunt.io/dns-capture", "true", "are not captured"),
        ] {
            let verdict = judge(yes.clone(), json!({key: value}));
            let told = matches!(&verdict, Some(Verdict::Wrong(why)) if why.contains(says));
            assert!(told, "{verdict:?}");
        }
    }

    #[test]
    fn labels_are_the_pods_without_those_that_tell_whose_it_is() {
        let rules = Rules {
            kubernetes: Kubernetes {
                default_on: true,
                ..Kubernetes::default()
            },
            mode: ModeSetting::Auto,
        };
        let pod = labelled(json!({"app": "web", "shunt.io/cni-container": "forged"}));
        let wish = rules.judge(&pod, &BTreeMap::new()).expect("enrolled");
        let Verdict::Enrol(spec) = wish.verdict else {
            panic!("{wish:?}")
        };
        assert_eq!(
            spec.labels,
            BTreeMap::from([("app".to_owned(), "web".to_owned())])
        );
    }
}
