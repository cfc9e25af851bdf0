//! A client that is enrolled and a server that is not.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use shunt_tests::{Agent, AgentBuilder, Pod, Running, Script, World, wait};

/// What the agent promises, two seconds, and one for a machine that runs other tests too.
pub const WITHIN: Duration = Duration::from_secs(3);

pub struct Scene {
    pub agent: Agent,
    _programs: Vec<Running>,
    pub client: Pod,
    pub server: Pod,
    pub world: World,
}

/// Of the agent, and of the client's entry in its list.
#[derive(Clone, Copy, Default)]
pub struct Settings<'a> {
    pub agent: &'a str,
    pub client: &'a str,
}

impl Scene {
    pub fn new(mode: &str, variant: &str) -> Self {
        Self::with(mode, variant, |_| None)
    }

    /// `before`: what runs in the client before it is enrolled.
    pub fn with(mode: &str, variant: &str, before: impl FnOnce(&Pod) -> Option<Running>) -> Self {
        Self::configured(mode, variant, Settings::default(), before)
    }

    pub fn configured(
        mode: &str,
        variant: &str,
        settings: Settings<'_>,
        before: impl FnOnce(&Pod) -> Option<Running>,
    ) -> Self {
        let world = World::new();
        let (client, server) = (world.pod(), world.pod());
        let mut programs = vec![server.nginx(&world)];
        programs.push(server.spawn("socat", &["TCP-LISTEN:7,fork,reuseaddr", "EXEC:cat"]));
        server.wait_for_listener(7);
        programs.extend(before(&client));
        if variant == "legacy" {
            for program in ["iptables-legacy", "ip6tables-legacy"] {
                client.says(
                    program,
                    &["-t", "nat", "-A", "INPUT", "-p", "udp", "-j", "RETURN"],
                );
            }
        }
        let agent = AgentBuilder::new(&world, mode)
            .set(settings.agent)
            .enrol("client", &client, settings.client)
            .start();
        if mode == "iptables" {
            let reason = agent.workload("client")["mode_reason"].to_string();
            assert!(reason.contains(&format!("iptables {variant}:")), "{reason}");
        }
        let scene = Self {
            agent,
            _programs: programs,
            client,
            server,
            world,
        };
        scene.captured();
        scene
    }

    /// A shell line in the client's namespace, not in its cgroup.
    pub fn in_client(&self, line: &str) {
        run(
            "ip",
            &["netns", "exec", &self.client.netns, "sh", "-ec", line],
        );
    }

    fn is_captured(&self) -> bool {
        let before = self.agent.access_log().len();
        let url = format!("http://{}/", self.server.v4);
        assert_eq!(
            self.client.says("curl", &["-sS", "-m", "5", &url]),
            self.client.v4
        );
        let start = Instant::now();
        // A connection that went directly has no line, however long one waits.
        while start.elapsed() < Duration::from_millis(200) {
            if self.agent.access_log().len() > before {
                return true;
            }
            wait::pause(Duration::from_millis(5));
        }
        false
    }

    pub fn captured(&self) {
        wait::until("a captured connection", Duration::from_secs(5), || {
            self.is_captured().then_some(())
        });
    }

    pub fn repairs(&self, what: &str) -> usize {
        let (_, text) = self.agent.admin("GET", "/stats/prometheus", "");
        let name = format!("shunt_interception_repairs_total{{what=\"{what}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.map_or(0, |count| count.parse().expect("a number"))
    }

    pub fn repaired_so_far(&self, what: &str, times: usize) {
        assert_eq!(self.repairs(what), times, "{what}\n{}", self.agent.log());
    }

    /// Something happens, and within two seconds it is as if it had not; the log says what was `found`.
    #[track_caller]
    pub fn repaired(&self, what: &str, found: &str, happens: impl FnOnce()) {
        let before = self.repairs(what);
        let log = self.agent.log().len();
        happens();
        wait::until(&format!("{what} repaired ({found})"), WITHIN, || {
            (self.repairs(what) > before).then_some(())
        });
        self.captured();
        assert_eq!(self.repairs(what), before + 1, "once");
        self.names(&self.agent.log()[log..], found);
    }

    /// As [`Scene::repaired`], of what happened right before.
    pub fn repaired_within(&self, what: &str, found: &str, longest: Duration) {
        wait::until(
            &format!("{what} repaired\n{}", self.agent.log()),
            longest,
            || (self.repairs(what) == 1).then_some(()),
        );
        wait::until("captured again", longest, || {
            self.is_captured().then_some(())
        });
        self.names(&self.agent.log(), found);
    }

    #[track_caller]
    fn names(&self, log: &str, found: &str) {
        let told = log
            .lines()
            .filter(|line| line.contains("somebody changed what steers it"));
        let told: Vec<&str> = told.collect();
        assert!(
            told.iter().any(|line| line.contains(found)),
            "{found}: {told:#?}"
        );
    }

    /// Connections without a pause, eight at a time.
    pub fn load(&self, time: Duration) -> Load {
        let script = format!(
            "import socket, threading, time\nend = time.time() + {}\nmade, failed = [0] * 8, []\n\
             def run(n):\n while time.time() < end:\n  try:\n   s = socket.create_connection(('{}', 80), 2)\n   \
             s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\n   got = b''\n   \
             while True:\n    more = s.recv(999)\n    if not more: break\n    got += more\n   \
             assert b'200 OK' in got, got\n   made[n] += 1; s.close()\n  \
             except Exception as error: failed.append(repr(error))\n\
             all = [threading.Thread(target=run, args=(n,)) for n in range(8)]\n\
             [t.start() for t in all]; [t.join() for t in all]\nprint(sum(made), ' '.join(failed[:5]))",
            time.as_secs(),
            self.server.v4
        );
        let mut command = self.client.command("python3");
        let child = command.args(["-c", &script]).stdout(Stdio::piped()).spawn();
        Load(child.expect("python3 runs"))
    }
}

pub struct Load(Child);

impl Load {
    /// How many connections were served, and what failed.
    pub fn result(mut self) -> (u32, String) {
        let mut said = String::new();
        self.0
            .stdout
            .take()
            .expect("piped")
            .read_to_string(&mut said)
            .expect("text");
        let _ = self.0.wait();
        let (made, failed) = said
            .trim_end_matches('\n')
            .split_once(' ')
            .expect("two words");
        (made.parse().expect("a number"), failed.to_owned())
    }
}

/// A captured connection on which something is always said.
pub struct Echo(Script);

impl Echo {
    pub fn start(scene: &Scene) -> Self {
        let script = format!(
            "import socket, select, sys\ns = socket.create_connection(('{}', 7), 5)\nsaid = 0\n\
             while True:\n s.sendall(b'%08d' % said)\n got = b''\n \
             while len(got) < 8: got += s.recv(8 - len(got)) or sys.exit('closed')\n \
             assert got == b'%08d' % said, got\n said += 1\n if said == 1: print('on', flush=True)\n \
             if select.select([sys.stdin], [], [], 0.01)[0]: break\nprint(said)",
            scene.server.v4
        );
        let mut script = Script::start(&scene.client, &script, &[]);
        assert_eq!(script.says(), "on");
        Self(script)
    }

    /// It went on until now, without a gap.
    #[track_caller]
    pub fn goes_on(mut self) {
        self.0.told_all();
        let said = self.0.says();
        self.0.succeeds();
        assert!(said.parse::<u32>().expect("a number") > 20, "{said}");
    }
}

/// What a program says; it must succeed.
#[track_caller]
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .expect("installed");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
