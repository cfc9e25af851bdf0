//! The command line.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};
use shunt_core::config::{Config, file};
use shunt_core::tap::TapRequest;
use shunt_core::workload::ModeSetting;
use shunt_intercept::ebpf::battery::Fault;

/// Wrong usage or configuration, as in sysexits.h.
pub const EX_USAGE: u8 = 64;

/// eBPF-accelerated transparent interception agent
#[derive(Debug, Parser)]
#[command(name = "shunt", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent in the foreground
    Run(RunArgs),
    /// The data plane; started by `run`
    #[command(hide = true)]
    Worker,
    /// Watch the Kubernetes API; started by `run`
    #[command(hide = true)]
    Pods,
    /// Ask this kernel what its queues past TCP do; started by `run` and `check`
    #[command(hide = true)]
    Battery(BatteryArgs),
    /// Say what this host can do, with the evidence
    Check(CheckArgs),
    /// Show workloads, how they are steered and why, connections and bytes
    Status(StatusArgs),
    /// Say whether a connection would be intercepted, by which rule, and why
    Explain(ExplainArgs),
    /// Watch flows begin and end; copy what is sent past the TCP stack to a file
    Tap(TapArgs),
    /// Remove everything that agents which are gone have left behind
    Cleanup(CleanupArgs),
    /// Put the program on disk in the place of the one that runs; nobody is refused, reset or let past
    Upgrade(UpgradeArgs),
    /// Look at a configuration
    Config(ConfigArgs),
    /// Put the CNI plugin in its place on this node, keep it there, or take it away
    Cni(CniArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  shunt run -c /etc/shunt/shunt.yaml
  shunt run --mode iptables --workload client=podA --workload web=/proc/4711/ns/net")]
pub struct RunArgs {
    /// Configuration file; without it, defaults and flags alone (the default file is used when it exists)
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How connections are steered, for workloads that do not say
    #[arg(long, value_name = "auto|ebpf|iptables")]
    pub mode: Option<ModeSetting>,
    /// Enrol a workload: a name, and a namespace under /run/netns or a path
    #[arg(long = "workload", value_name = "NAME=NETNS", value_parser = parse_workload)]
    pub workloads: Vec<(String, String)>,
    /// In a container: make its own /proc/sys writable, by which clients' addresses are kept
    #[arg(long)]
    pub writable_sysctls: bool,
    /// Go on from what the program before has left in this process, under this number
    #[arg(long, hide = true, value_name = "NUMBER")]
    pub succeeds: Option<i32>,
    /// Only say whether this program could go on from one of this line, with this configuration
    #[arg(long, hide = true, value_name = "LINE")]
    pub could_succeed: Option<String>,
}

#[derive(Debug, Args)]
pub struct BatteryArgs {
    /// An empty cgroup, for its sockets
    #[arg(value_name = "CGROUP")]
    pub cgroup: PathBuf,
    /// Break something, to see that it is found: detached, unbounded, crossed or deleted
    #[arg(long, value_name = "FAULT")]
    pub fault: Option<Fault>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  shunt check
  shunt check -o json | jq '.findings[] | select(.ok | not)'

Exit code 1 when neither eBPF nor iptables would work.")]
pub struct CheckArgs {
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  shunt status
  shunt status -o json | jq '.workloads[] | {name, mode, mode_reason}'")]
pub struct StatusArgs {
    #[command(flatten)]
    pub output: Output,
    /// The agent's admin socket
    #[arg(long, value_name = "PATH", default_value = "/run/shunt/admin.sock")]
    pub socket: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  shunt explain client 10.0.0.7:443
  shunt explain default/client '[fd00::7]:443'
  shunt explain --inbound --from 10.0.0.9 web 10.0.0.7:80
  shunt explain -o json client 10.0.0.7:443 | jq '{outcome, rule, drift}'

The answer is what the kernel would do right now, judged by the maps or rules that are live in it, for a plain TCP
socket of an application; where that differs from the configuration, the answer says so (drift).
Exit code 0: answered, whatever the answer; 1: no agent or no such workload; 64: wrong usage.")]
pub struct ExplainArgs {
    #[command(flatten)]
    pub output: Output,
    /// A connection to the workload, instead of one that it makes
    #[arg(long)]
    pub inbound: bool,
    /// Who connects; without it, somebody who is not on this node
    #[arg(long, value_name = "ADDR", requires = "inbound")]
    pub from: Option<IpAddr>,
    /// The agent's admin socket
    #[arg(long, value_name = "PATH", default_value = "/run/shunt/admin.sock")]
    pub socket: PathBuf,
    /// NAME or NAMESPACE/NAME
    #[arg(value_name = "WORKLOAD")]
    pub workload: String,
    /// Where to; with --inbound, the workload's own address and port
    #[arg(value_name = "ADDR:PORT")]
    pub destination: SocketAddr,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  shunt tap
  shunt tap client --count 10
  shunt tap -o json | jq -r 'select(.event == \"close\") | [.client, .path, .close_reason] | @tsv'
  shunt tap web -w web.pcapng --bytes 512 --duration 10s
  shunt tap -w - | wireshark -k -i -

A flow is shown when it begins, when it takes a faster path, and when it ends, with what its client
sent and received. Flows that were there before show when they end.

With -w, what goes past the TCP stack is copied from now on (queue to queue: `acceleration: always`,
or `auto` once it is proven), as TCP packets with the connection's addresses. What goes by TCP is not
in the file: tcpdump sees it. Where a direction changes to TCP, an empty packet's comment says so.

Ends with Ctrl-C. Exit code 0: as asked; 1: no agent, no such workload, or the agent ended;
64: wrong usage.")]
pub struct TapArgs {
    #[command(flatten)]
    pub output: Output,
    /// Copy bytes to a pcapng file, - for stdout; it is readable for its owner alone
    #[arg(short, long, value_name = "FILE", conflicts_with = "output")]
    pub write: Option<PathBuf>,
    /// How many bytes of each direction of a flow: 1 to 65536
    #[arg(long, value_name = "N", default_value_t = 4096, requires = "write",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(TapRequest::MOST_BYTES)))]
    pub bytes: u32,
    /// End after so many lines; with -w, after so many packets
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// End after this time, as 10s or 500ms
    #[arg(long, value_name = "TIME", value_parser = file::duration)]
    pub duration: Option<Duration>,
    /// The agent's admin socket
    #[arg(long, value_name = "PATH", default_value = "/run/shunt/admin.sock")]
    pub socket: PathBuf,
    /// Only flows of this one, at either end: NAME or NAMESPACE/NAME
    #[arg(value_name = "WORKLOAD")]
    pub workload: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  shunt cleanup
  shunt cleanup --dry-run

Namespaces which a running agent serves, or through which flows of one still go, are left alone.")]
pub struct CleanupArgs {
    /// The dead agent's configuration, for its `bpffs`; default: /etc/shunt/shunt.yaml when it is there
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  install -m 755 shunt.new /usr/bin/shunt && shunt upgrade
  shunt upgrade data-plane
  shunt upgrade -o json | jq .after.worker_pid

The program is the file that the agent was started from. The supervisor keeps its process id. A new data
plane is told everything and takes the same listening sockets; then the one before accepts no more, and
lets its connections end for as long as `timeouts.upgrade` says (15 min). A program that cannot take over
is found out before anything has changed.

Exit code 0: the new one serves; 1: no agent, or it is not upgraded, and why; 64: wrong usage.")]
pub struct UpgradeArgs {
    #[command(flatten)]
    pub output: Output,
    /// The agent's admin socket
    #[arg(long, value_name = "PATH", default_value = "/run/shunt/admin.sock")]
    pub socket: PathBuf,
    /// What is replaced
    #[arg(value_enum, value_name = "PART", default_value = "all")]
    pub part: Part,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The process that carries connections
    DataPlane,
    /// The supervisor, in the same process, and then the data plane
    All,
}

#[derive(Debug, Args)]
pub struct CniArgs {
    #[command(subcommand)]
    pub command: CniCommand,
}

#[derive(Debug, Subcommand)]
pub enum CniCommand {
    /// Put it in place once; only when the agent is ready
    #[command(after_help = "Examples:
  shunt cni install
  shunt cni install --bin-dir /usr/lib/cni --settings /etc/shunt/cni.json --wait 2m

The network's own file stays as it is: a copy with the plugin at its end gets a name that comes first.")]
    Install {
        #[command(flatten)]
        place: CniPlace,
        /// How long to wait for the agent, as 10s or 2m
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = file::duration)]
        wait: Duration,
    },
    /// Take away what `install` and `watch` have put
    #[command(after_help = "Example:
  shunt cni uninstall --keep-binary

A runtime that remembers each pod's list (CRI-O, podman) deletes old pods with the plugin: keep it until they are gone.")]
    Uninstall {
        #[command(flatten)]
        place: CniPlace,
        /// Only the list; the plugin stays
        #[arg(long)]
        keep_binary: bool,
    },
    /// Put it in place, and again whenever somebody changes the network or takes ours away
    #[command(after_help = "Example:
  shunt cni watch --settings /etc/shunt/cni.json

Waits for the agent first. Runs until it is ended by a signal; what is in place stays.")]
    Watch {
        #[command(flatten)]
        place: CniPlace,
    },
}

#[derive(Debug, Args)]
pub struct CniPlace {
    /// What becomes the plugin; default: shunt-cni beside this program
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
    /// Where the runtime looks for plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,
    /// Where the runtime looks for networks
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// A JSON object with the plugin's settings, as docs/cni.md lists them
    #[arg(long, value_name = "FILE")]
    pub settings: Option<PathBuf>,
    /// The agent's socket for the plugin; default: the plugin's own
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say whether a configuration file is right; list every fault with its line
    #[command(
        after_help = "Examples:\n  shunt config validate /etc/shunt/shunt.yaml\n  shunt config validate /etc/shunt/bootstrap.yaml\n\nAn Envoy bootstrap is known by its keys. The files that it names (LDS, CDS, RDS, EDS) are read too. Of what is\nright, the fields that have no effect are listed."
    )]
    Validate {
        /// The file is an Envoy bootstrap, whatever is in it
        #[arg(long)]
        bootstrap: bool,
        #[command(flatten)]
        output: Output,
        #[arg(value_name = "FILE", default_value = Config::DEFAULT_PATH)]
        file: PathBuf,
    },
    /// Print the configuration with every default filled in
    #[command(
        after_help = "Examples:\n  shunt config dump -c /etc/shunt/shunt.yaml\n  shunt config dump -o json | jq '.configs[].\"@type\"'\n  shunt config dump --running\n\nWith -o json, what `/config_dump?include_eds` of an agent with this file says: also the Envoy bootstrap and\nthe files that it names."
    )]
    Dump {
        /// What the running agent says, as JSON
        #[arg(long, conflicts_with_all = ["config", "output"])]
        running: bool,
        /// The agent's admin socket
        #[arg(
            long,
            value_name = "PATH",
            default_value = "/run/shunt/admin.sock",
            requires = "running"
        )]
        socket: PathBuf,
        #[command(flatten)]
        output: Output,
        #[arg(short, long, value_name = "FILE", default_value = Config::DEFAULT_PATH)]
        config: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, Args)]
pub struct Output {
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
}

fn parse_workload(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, netns)) if !name.is_empty() && !netns.is_empty() => {
            Ok((name.to_owned(), netns.to_owned()))
        }
        _ => Err(format!("`{text}` is not NAME=NETNS")),
    }
}

/// Help and version go to stdout with 0, everything else to stderr with 64.
pub fn report_usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(EX_USAGE),
    }
}

/// An answer, on stdout. A reader that has gone away is no error of ours.
pub fn answer(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// A message, on stderr.
pub fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "shunt: {text}");
}

/// Says what went wrong, with its causes, and gives the exit code for it.
pub fn failed(error: &anyhow::Error) -> ExitCode {
    complain(&format!("{error:#}"));
    ExitCode::FAILURE
}
