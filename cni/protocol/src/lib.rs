//! What the CNI plugin and the agent say to each other, over a `SEQPACKET` unix socket that only root may connect to:
//!
//! ```text
//! plugin ── connect ── one packet: a request, beside it the pod's network namespace as a descriptor ──► agent
//!        ◄─────────── one packet: a reply, once what was asked for is in force, or cannot be ───────────
//! ```
//! One question for each connection. A request that was sent is carried out also when nobody waits for the reply any
//! more, in the order in which requests were sent.

pub mod socket;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Both ends speak this one, or tell each other that they do not.
pub const VERSION: u32 = 1;
/// Bytes of a packet. The longest is a GC with the ids of some thousand containers.
pub const MAX_PACKET: usize = 1 << 20;
/// Bytes of a workload as the plugin describes it.
pub const MAX_WORKLOAD: usize = 64 << 10;
/// Workloads that an agent enrols for the plugin: more than a node has pods.
pub const MAX_ATTACHMENTS: usize = 4096;
/// In the agent's `state_dir`: whom it enrolled for the plugin.
pub const REMEMBERED: &str = "cni.json";
/// Bytes of it: every workload as it was described, with names and a path.
pub const MAX_REMEMBERED: u64 = (MAX_ATTACHMENTS * (MAX_WORKLOAD + MAX_NAMES)) as u64;
/// Bytes of an attachment's names and its namespace's path, which is not longer than the kernel takes.
const MAX_NAMES: usize = 8 << 10;
/// The socket's name in the agent's `state_dir`.
pub const SOCKET: &str = "cni.sock";
/// Beside the socket, a directory: an empty file for each container that was deleted while no agent was there to be told,
/// named after it.
pub const DELETED: &str = "cni.deleted";

/// A container's place in a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The workload's.
    pub namespace: String,
    /// The workload's.
    pub name: String,
    /// The runtime's id of the container.
    pub container: String,
    pub network: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Request {
    /// Intercept it. Beside it: its network namespace. Again is the same as once.
    Add {
        attachment: Attachment,
        /// The namespace's name on the runtime's side, for people.
        netns: String,
        /// As an entry of the agent's `workloads`, without name and namespaces.
        workload: serde_json::Value,
    },
    /// Let it go, if it is this container's still. No error if it is not there.
    Del { attachment: Attachment },
    /// Is it intercepted, for this container, in the namespace beside?
    Check { attachment: Attachment },
    /// Let go whoever is of this network, and none of these containers.
    Gc { network: String, valid: Vec<String> },
    /// Can workloads be added?
    Status,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It is in force for every new connection; yes.
    Done,
    /// It was tried in vain, for this reason, and is tried again.
    NotYet(String),
    /// It is not done and will not be, for this reason; nothing was noted.
    Refused(String),
    /// To [`Request::Check`]: no.
    NotEnrolled(String),
    /// To [`Request::Status`]: no.
    NotReady(String),
}

#[derive(Debug, Error)]
pub enum ProtocolError {
    #[error("the other side speaks version {theirs} of the protocol, this one {VERSION}")]
    Version { theirs: u32 },
    #[error("a packet of {0} bytes is too long")]
    TooLong(usize),
    #[error("a packet cannot be read")]
    Malformed(#[from] serde_json::Error),
}

#[derive(Serialize, Deserialize)]
struct Packet<Body> {
    version: u32,
    body: Body,
}

/// Read first: the rest of another version need not be understood.
#[derive(Deserialize)]
struct Envelope {
    version: u32,
}

/// # Errors
/// It is too long, or cannot be written as JSON.
pub fn encode(body: &impl Serialize) -> Result<Vec<u8>, ProtocolError> {
    let packet = serde_json::to_vec(&Packet {
        version: VERSION,
        body,
    })?;
    match packet.len() {
        0..=MAX_PACKET => Ok(packet),
        length => Err(ProtocolError::TooLong(length)),
    }
}

/// # Errors
/// It is of another version, or not understood.
pub fn decode<Body: DeserializeOwned>(packet: &[u8]) -> Result<Body, ProtocolError> {
    let Envelope { version } = serde_json::from_slice(packet)?;
    if version != VERSION {
        return Err(ProtocolError::Version { theirs: version });
    }
    Ok(serde_json::from_slice::<Packet<Body>>(packet)?.body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_written_as_they_always_were() {
        let attachment = Attachment {
            namespace: "shop".into(),
            name: "web".into(),
            container: "c0ffee".into(),
            network: "pods".into(),
        };
        let request = Request::Add {
            attachment,
            netns: "/run/netns/a".into(),
            workload: serde_json::json!({"mode": "ebpf"}),
        };
        let text = r#"{"version":1,"body":{"verb":"add","attachment":{"namespace":"shop","name":"web","container":"c0ffee","network":"pods"},"netns":"/run/netns/a","workload":{"mode":"ebpf"}}}"#;
        let packet = encode(&request).expect("written");
        assert_eq!(String::from_utf8(packet).expect("text"), text);
        assert_eq!(
            decode::<Request>(text.as_bytes()).expect("understood"),
            request
        );
        let reply = encode(&Reply::Refused("no".into())).expect("written");
        assert_eq!(reply, br#"{"version":1,"body":{"refused":"no"}}"#);
    }

    #[test]
    fn other_versions_are_told_from_nonsense() {
        let newer = br#"{"version":2,"body":{"verb":"levitate"}}"#;
        let told = decode::<Request>(newer);
        assert!(matches!(told, Err(ProtocolError::Version { theirs: 2 })));
        let deep = format!(r#"{{"version":1,"body":{}"#, "[".repeat(100_000));
        for wrong in [
            "",
            "\0",
            "{}",
            r#"{"version":1}"#,
            r#"{"version":1,"body":{"verb":"levitate"}}"#,
            r#"{"version":-1,"body":{"verb":"status"}}"#,
            &deep,
        ] {
            let told = decode::<Request>(wrong.as_bytes());
            assert!(
                matches!(told, Err(ProtocolError::Malformed(_))),
                "{wrong:.40}"
            );
        }
        let long = Request::Gc {
            network: "x".repeat(MAX_PACKET),
            valid: Vec::new(),
        };
        assert!(matches!(encode(&long), Err(ProtocolError::TooLong(_))));
    }
}
