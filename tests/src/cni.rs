//! A container runtime as small as can be: it does what libcni does, with real plugins, in a namespace of its own for
//! the node.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use crate::world::{Pod, World, cgroup2, ip};
use crate::{agent, wait};

/// Where Debian puts the plugins of the reference.
const PLUGINS: &str = "/usr/lib/cni";

/// A network: a list of plugins, each with its configuration.
#[derive(Debug)]
pub struct Network<'w> {
    world: &'w World,
    pub version: String,
    pub plugins: Vec<Value>,
}

/// A container's namespace and cgroup, removed when dropped.
#[derive(Debug)]
pub struct Container {
    pub id: String,
    pub pod: Pod,
    /// `CNI_ARGS`.
    pub args: String,
    /// What plugins are told that ask for it.
    pub capabilities: Value,
    /// Of the last ADD.
    pub result: Value,
}

/// What a plugin said.
#[derive(Debug)]
pub struct Said {
    pub succeeded: bool,
    /// Null: nothing.
    pub answer: Value,
    pub stderr: String,
}

/// `shunt-cni` beside the agent.
pub fn binary() -> PathBuf {
    agent::binary().with_file_name("shunt-cni")
}

impl<'w> Network<'w> {
    /// bridge with host-local, portmap, then `shunt_cni`.
    pub fn new(world: &'w World, version: &str, shunt_cni: Value) -> Self {
        let addresses = world.dir.path().join("addresses");
        let ranges = json!([[{"subnet": "10.77.0.0/16"}], [{"subnet": "fd77::/64"}]]);
        let plugins = vec![
            json!({
                "type": "bridge", "bridge": "cni0", "isGateway": true,
                "ipam": {"type": "host-local", "ranges": ranges, "dataDir": addresses},
            }),
            json!({"type": "portmap", "capabilities": {"portMappings": true}}),
            shunt_cni,
        ];
        Self {
            world,
            version: version.into(),
            plugins,
        }
    }

    /// A new one, not yet added.
    ///
    /// # Panics
    /// The host does not allow it.
    pub fn container(&self, namespace: &str, name: &str) -> Container {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let netns = format!("{}-c{number}", self.world.label());
        ip(&format!("netns add {netns}"));
        ip(&format!("-n {netns} link set lo up"));
        let cgroup = self.world.cgroup().join(format!("c{number}"));
        fs::create_dir_all(&cgroup).expect("a cgroup");
        let below = cgroup.strip_prefix(cgroup2()).expect("below the mount");
        Container {
            id: format!("{}{number:04}", "c0ffee".repeat(8)),
            args: format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}"),
            capabilities: json!({"cgroupPath": format!("/{}", below.display())}),
            result: Value::Null,
            pod: Pod {
                netns,
                v4: String::new(),
                v6: String::new(),
                cgroup,
            },
        }
    }

    /// Every plugin in its order; the first error ends it.
    ///
    /// # Errors
    /// What the plugin said.
    pub fn add(&self, container: &mut Container) -> Result<(), Said> {
        self.add_first(container, self.plugins.len())
    }

    /// Only the first `count` plugins.
    ///
    /// # Errors
    /// What the plugin said.
    pub fn add_first(&self, container: &mut Container, count: usize) -> Result<(), Said> {
        container.result = Value::Null;
        for index in 0..count {
            self.add_one(container, index)?;
        }
        Ok(())
    }

    /// Only this plugin, after those before it.
    ///
    /// # Errors
    /// What it said.
    pub fn add_one(&self, container: &mut Container, index: usize) -> Result<Said, Said> {
        let said = self.invoke("ADD", index, container).ok()?;
        container.result = said.answer.clone();
        let addresses = container.result["ips"].as_array();
        for address in addresses.into_iter().flatten() {
            let text = address["address"].as_str().unwrap_or_default();
            let (ip, _) = text.split_once('/').unwrap_or_default();
            match ip.contains(':') {
                true => container.pod.v6 = ip.into(),
                false => container.pod.v4 = ip.into(),
            }
        }
        Ok(said)
    }

    /// In the other order; each plugin has its turn, whatever the others say.
    ///
    /// # Errors
    /// What the first plugin said that failed.
    pub fn del(&self, container: &Container) -> Result<(), Said> {
        let every = (0..self.plugins.len()).rev();
        let said: Vec<_> = every
            .map(|index| self.invoke("DEL", index, container).ok())
            .collect();
        said.into_iter().collect::<Result<Vec<_>, _>>().map(|_| ())
    }

    /// `verb` of one plugin, as libcni runs it.
    ///
    /// # Panics
    /// The plugin cannot be run, or says what is no JSON.
    pub fn invoke(&self, verb: &str, index: usize, container: &Container) -> Said {
        let mut config = self.plugins[index].clone();
        config["name"] = "pods".into();
        config["cniVersion"] = self.version.as_str().into();
        if !container.result.is_null() {
            config["prevResult"] = container.result.clone();
        }
        let asked = config["capabilities"].as_object().cloned();
        for (name, _) in asked.unwrap_or_default() {
            let told = &container.capabilities[&name];
            if !told.is_null() {
                config["runtimeConfig"][&name] = told.clone();
            }
        }
        let kind = config["type"].as_str().expect("a type");
        let program = match kind {
            "shunt-cni" => binary(),
            _ => PathBuf::from(PLUGINS).join(kind),
        };
        let environment = container.environment();
        self.run(&program, verb, &environment, config.to_string().as_bytes())
    }

    /// A plugin with this environment and input.
    ///
    /// # Panics
    /// As [`Network::invoke`].
    pub fn run(
        &self,
        program: &std::path::Path,
        verb: &str,
        environment: &[(&str, String)],
        input: &[u8],
    ) -> Said {
        let mut child = Command::new("ip")
            .args(["netns", "exec", self.world.label()])
            .arg(program)
            .env("CNI_COMMAND", verb)
            .env("CNI_PATH", PLUGINS)
            .envs(environment.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the plugin runs");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input).expect("it reads");
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        let answer = match output.stdout.trim_ascii() {
            [] => Value::Null,
            text => serde_json::from_slice(text).expect("JSON"),
        };
        Said {
            succeeded: output.status.success(),
            answer,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Container {
    /// Of every verb that is about a container.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("CNI_CONTAINERID", self.id.clone()),
            ("CNI_NETNS", format!("/var/run/netns/{}", self.pod.netns)),
            ("CNI_IFNAME", "eth0".into()),
            ("CNI_ARGS", self.args.clone()),
        ]
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let netns = &self.pod.netns;
        let _ = Command::new("ip").args(["netns", "del", netns]).output();
        let _ = fs::write(self.pod.cgroup.join("cgroup.kill"), "1");
        for _ in 0..200 {
            if fs::remove_dir(&self.pod.cgroup).is_ok() || !self.pod.cgroup.exists() {
                break;
            }
            wait::pause(std::time::Duration::from_millis(10));
        }
    }
}

impl Said {
    /// # Errors
    /// It failed.
    pub fn ok(self) -> Result<Self, Self> {
        if self.succeeded { Ok(self) } else { Err(self) }
    }

    /// The error's code.
    ///
    /// # Panics
    /// It is no error as the specification describes it.
    pub fn code(&self) -> u64 {
        assert!(!self.succeeded, "{self:?}");
        assert!(self.answer["msg"].is_string(), "{self:?}");
        assert!(self.answer["cniVersion"].is_string(), "{self:?}");
        self.answer["code"].as_u64().expect("a code")
    }
}
