//! The container image: its recipe, carried out by podman, and what comes of it, run as deploy/kubernetes runs it.
//!
//! The two images that it begins with are made here. The builder's compiler brings the binaries under test; the other one
//! has the libraries that they are linked to, and a package manager that installs nothing. Everything else is real.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use shunt_tests::agent::{binary, entry, signal};
use shunt_tests::{Podman, Running, World, admin, require, wait};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Says what it is asked for if it is not what it should be, and if the context has more than is built of.
const CARGO: &str = "#!/bin/sh -e
for absent in target .git rust-toolchain.toml fuzz/target ebpf/target; do test ! -e $absent; done
test -f agent/intercept/src/ebpf/shunt-ebpf.o
test \"$*\" = \"build --release --locked --target TARGET -p shunt -p shunt-cni\"
test \"$RUSTFLAGS\" = \"-C target-feature=+crt-static\"
mkdir -p target/TARGET/release
cp /built/shunt /built/shunt-cni target/TARGET/release/
";
const APT_GET: &str = "#!/bin/sh\necho \"$@\" >> /var/log/apt\n";
const APPLETS: [&str; 9] = [
    "chmod", "cp", "echo", "ln", "mkdir", "rm", "sed", "sh", "test",
];
const SECONDS: Duration = Duration::from_secs(30);

fn executable(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
    fs::write(path, text).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set");
}

/// busybox, and what it is called.
fn tree(dir: &Path) {
    let bin = dir.join("bin");
    fs::create_dir_all(&bin).expect("a directory");
    fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static");
    for applet in APPLETS {
        symlink("busybox", bin.join(applet)).expect("a link");
    }
}

/// The libraries that a program is linked to, and what loads them, where they are here.
fn copy_libraries(of: &Path, to: &Path) {
    let listed = Command::new("ldd").arg(of).output().expect("ldd runs");
    let text = String::from_utf8(listed.stdout).expect("text");
    for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let copy = to.join(library.trim_start_matches('/'));
        fs::create_dir_all(copy.parent().expect("a directory")).expect("a directory");
        fs::copy(library, copy).expect("a library");
    }
}

/// The images that the recipe begins with.
fn import_bases(podman: &Podman, built: &Path) {
    let builder = podman.dir.join("builder");
    tree(&builder);
    let local = builder.join("usr/local/bin");
    executable(&local.join("cargo"), &CARGO.replace("TARGET", TARGET));
    let rustc = format!("#!/bin/sh\necho 'host: {TARGET}'\n");
    executable(&local.join("rustc"), &rustc);
    podman.import(&builder, "builder");
    let runtime = podman.dir.join("runtime");
    tree(&runtime);
    fs::create_dir_all(runtime.join("var/log")).expect("a directory");
    symlink("/run", runtime.join("var/run")).expect("a link");
    fs::create_dir(runtime.join("tmp")).expect("a directory");
    let mode = fs::Permissions::from_mode(0o1777);
    fs::set_permissions(runtime.join("tmp"), mode).expect("set");
    executable(&runtime.join("usr/bin/apt-get"), APT_GET);
    copy_libraries(&built.join("shunt"), &runtime);
    podman.import(&runtime, "runtime");
}

fn build(podman: &Podman, built: &Path, target: &str) {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let volume = format!("--volume={}:/built:ro", built.display());
    podman.must(&[
        "build",
        "--isolation=chroot",
        "--network=host",
        "--build-arg=BUILDER=localhost/builder",
        "--build-arg=RUNTIME=localhost/runtime",
        &volume,
        &format!("--target={target}"),
        &format!("--tag={target}"),
        &format!("--file={root}/deploy/Containerfile"),
        root,
    ]);
}

/// The image's files: mode and path, and where links lead.
fn files(podman: &Podman, image: &str) -> Vec<String> {
    let container = podman.must(&["create", "--network=host", image]);
    let archive = podman.dir.join("files.tar").display().to_string();
    podman.must(&["export", "--output", &archive, &container]);
    podman.must(&["rm", &container]);
    let listed = Command::new("tar").args(["-tvf", &archive]).output();
    let text = String::from_utf8(listed.expect("tar runs").stdout).expect("text");
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        format!("{} {}", words[0], words[5..].join(" "))
    };
    text.lines().map(line).collect()
}

/// As the manifest has it: capabilities, namespaces and mounts. `run` and `etc` are what it has of its own.
fn deployed(podman: &Podman, run: &Path, etc: &Path) -> Vec<String> {
    let mut words = podman.confined();
    let flags = [
        "--rm",
        "--network=host",
        "--pid=host",
        "--read-only",
        "--cap-drop=all",
    ];
    words.extend(flags.map(str::to_owned));
    let capabilities = require::service_capabilities().into_iter();
    words.extend(capabilities.map(|name| format!("--cap-add={name}")));
    let mounts = [
        format!("{}:/etc/shunt:ro", etc.display()),
        format!("{}:/run/shunt", run.display()),
        "/run/netns:/run/netns:rslave".into(),
        "/sys/fs/bpf:/sys/fs/bpf:rslave".into(),
        "/sys/fs/cgroup:/sys/fs/cgroup:rslave".into(),
        "/run/xtables.lock:/run/xtables.lock".into(),
    ];
    words.extend(mounts.map(|mount| format!("--volume={mount}")));
    words
}

#[test]
fn what_the_recipe_makes_runs_as_it_is_deployed() {
    require::everything();
    let world = World::new();
    let podman = Podman::new(&world, "");
    let built = binary();
    let built = built.parent().expect("a directory");
    import_bases(&podman, built);
    build(&podman, built, "ebpf");
    build(&podman, built, "full");
    let has = |image: &str, wanted: &[&str]| {
        let files = files(&podman, image);
        for line in wanted {
            assert!(files.iter().any(|file| file == line), "{line}: {files:#?}");
        }
    };
    let both = [
        "-rwxr-xr-x usr/local/bin/shunt",
        "-rwxr-xr-x usr/local/bin/shunt-cni",
        "drwxr-xr-x etc/shunt/",
        "drwxr-xr-x run/shunt/",
        "drwxrwxrwt tmp/",
        "lrwxrwxrwx var/run -> /run",
    ];
    has("ebpf", &both);
    has("full", &both);
    has("full", &["lrwxrwxrwx bin/sh -> busybox"]);
    let asked = ["run", "--rm", "--network=host", "--entrypoint=/bin/busybox"];
    let confined = podman.confined();
    let confined = confined.iter().map(String::as_str);
    let asked: Vec<&str> = asked.into_iter().chain(confined).collect();
    let installed = podman.must(&[&asked[..], &["full", "cat", "/var/log/apt"]].concat());
    assert_eq!(
        installed,
        "update\ninstall -y --no-install-recommends iptables nftables"
    );

    let (client, server) = (world.pod(), world.pod());
    let _nginx = server.nginx(&world);
    let before = client.state();
    let [run, etc] = ["shunt-run", "shunt-etc"].map(|name| world.dir.path().join(name));
    for dir in [&run, &etc] {
        fs::create_dir(dir).expect("a directory");
    }
    let entry = entry("client", &client, "");
    let config = format!(
        "mode: ebpf\nconcurrency: 2\nlog: {{format: json, access: /run/shunt/access.log}}\nworkloads:\n{entry}"
    );
    fs::write(etc.join("shunt.yaml"), config).expect("written");
    let deployed = deployed(&podman, &run, &etc);
    let mut words = vec!["run"];
    words.extend(deployed.iter().map(String::as_str));
    words.push("full");
    let version = podman.must(&[&words[..], &["--version"]].concat());
    assert_eq!(version, format!("shunt {}", env!("CARGO_PKG_VERSION")));

    words.extend(["run", "-c", "/etc/shunt/shunt.yaml", "--writable-sysctls"]);
    let log = fs::File::create(world.dir.path().join("log")).expect("a log");
    let child = podman.command(&words).stderr(log).spawn();
    let mut agent = Running(child.expect("podman runs"));
    let socket = run.join("admin.sock");
    wait::until("it is ready", SECONDS, || {
        let answered = admin::request(&socket, "GET", "/ready", "");
        answered
            .is_ok_and(|(status, _)| status == 200)
            .then_some(())
    });
    let url = format!("http://{}/", server.v4);
    assert_eq!(client.says("curl", &["-sSf", "-m", "5", &url]), client.v4);
    wait::until("it was intercepted", SECONDS, || {
        let log = fs::read_to_string(run.join("access.log")).ok()?;
        let line: Value = serde_json::from_str(log.lines().next()?).ok()?;
        (line["workload"] == "default/client").then_some(())
    });
    // podman hands it on.
    signal("-TERM", agent.0.id());
    let ended = wait::until("it ends", SECONDS, || agent.0.try_wait().expect("a status"));
    assert!(ended.success(), "{ended}");
    assert_eq!(client.state(), before);
}
