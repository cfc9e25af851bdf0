//! Objects as an API server prints them, with everything that is not looked at.

use serde_json::{Value, json};

/// A running pod of node `n1` in namespace `shop`.
pub fn pod(name: &str, uid: &str, ip: &str, labels: Value, annotations: Value) -> Value {
    let time = "2026-03-01T09:00:00Z";
    let condition = |kind: &str| json!({"lastProbeTime": null, "lastTransitionTime": time, "observedGeneration": 1, "status": "True", "type": kind});
    let conditions = [
        "PodReadyToStartContainers",
        "Initialized",
        "Ready",
        "ContainersReady",
        "PodScheduled",
    ]
    .map(condition);
    let mount = json!({"mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "name": "kube-api-access-x7k2p", "readOnly": true});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "shop", "uid": uid, "generation": 1, "generateName": "web-6d4b75cb6d-",
            "creationTimestamp": time, "labels": labels, "annotations": annotations,
            "managedFields": [{
                "apiVersion": "v1", "fieldsType": "FieldsV1", "manager": "kubelet", "operation": "Update",
                "subresource": "status", "time": time,
                "fieldsV1": {"f:status": {"f:conditions": {"k:{\"type\":\"Ready\"}": {".": {}, "f:status": {}}}, "f:podIP": {}}},
            }],
            "ownerReferences": [{
                "apiVersion": "apps/v1", "blockOwnerDeletion": true, "controller": true, "kind": "ReplicaSet",
                "name": "web-6d4b75cb6d", "uid": "0f7c7b52-90b5-4e47-8d62-2b5c7a0e9a10",
            }],
        },
        "spec": {
            "nodeName": "n1", "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
            "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority", "priority": 0, "securityContext": {},
            "serviceAccount": "default", "serviceAccountName": "default", "terminationGracePeriodSeconds": 30,
            "initContainers": [{
                "image": "busybox:1.36", "imagePullPolicy": "IfNotPresent", "name": "migrate", "command": ["sh", "-c", "true"],
                "resources": {}, "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File", "volumeMounts": [mount],
            }],
            "containers": [{
                "image": "nginx:1.27", "imagePullPolicy": "IfNotPresent", "name": "web",
                "ports": [{"containerPort": 80, "name": "http", "protocol": "TCP"}],
                "livenessProbe": {"failureThreshold": 3, "periodSeconds": 10, "successThreshold": 1, "tcpSocket": {"port": 80}, "timeoutSeconds": 1},
                "readinessProbe": {"failureThreshold": 3, "httpGet": {"path": "/", "port": "http", "scheme": "HTTP"}, "periodSeconds": 10, "successThreshold": 1, "timeoutSeconds": 1},
                "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "10m", "memory": "64Mi"}},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File", "volumeMounts": [mount],
            }],
            "tolerations": [{"effect": "NoExecute", "key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 300}],
            "volumes": [{"name": "kube-api-access-x7k2p", "projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}]}}],
        },
        "status": {
            "phase": "Running", "qosClass": "Burstable", "startTime": time, "hostIP": "10.66.0.1", "hostIPs": [{"ip": "10.66.0.1"}],
            "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": conditions,
            "containerStatuses": [{
                "containerID": format!("containerd://{}", uid.replace('-', "")), "image": "docker.io/library/nginx:1.27",
                "imageID": "docker.io/library/nginx@sha256:0a399eb16751829e1af26fea27b20c3ec28d7ab1fb72182879dcae1cca21206a",
                "lastState": {}, "name": "web", "ready": true, "restartCount": 0, "started": true,
                "state": {"running": {"startedAt": time}},
            }],
        },
    })
}

pub fn namespace(name: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {
            "name": name, "uid": format!("5f0d3c1a-0000-4000-8000-{:012x}", name.len()), "creationTimestamp": "2026-03-01T08:00:00Z",
            "labels": labels,
            "managedFields": [{"apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:labels": {}}}, "manager": "kubectl-create", "operation": "Update", "time": "2026-03-01T08:00:00Z"}],
        },
        "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
    })
}
