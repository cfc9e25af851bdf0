//! A PostgreSQL server in a pod.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use crate::world::{Pod, Running, World};

const AS_USER: [&str; 3] = ["-u", "postgres", "--"];

/// A server that lets in only `friend`'s addresses, as the user `postgres`, with a database of that name.
///
/// # Panics
/// PostgreSQL is not installed, or does not start.
pub fn start(world: &World, pod: &Pod, friend: &Pod) -> Running {
    let dir = world.dir.path().join("postgres");
    fs::create_dir_all(&dir).expect("a directory");
    // The test's directory is root's alone, and PostgreSQL refuses to run as root.
    fs::set_permissions(world.dir.path(), fs::Permissions::from_mode(0o755)).expect("permitted");
    chown(&dir, Some(id("-u")), Some(id("-g"))).expect("given away");
    let (data, at) = (dir.join("data"), dir.display().to_string());
    let data = data.display().to_string();
    let initdb = program("initdb");
    let words = [&initdb, "-D", &data, "-A", "trust", "-N", "-E", "UTF8"];
    pod.says("runuser", &[&AS_USER[..], &words].concat());
    let rules = format!(
        "host all all {}/32 trust\nhost all all {}/128 trust\nhost all all all reject\n",
        friend.v4, friend.v6
    );
    fs::write(format!("{data}/pg_hba.conf"), rules).expect("written");
    let (server, listen) = (program("postgres"), "listen_addresses=*");
    let words = [
        &server,
        "-D",
        &data,
        "-k",
        &at,
        "-c",
        listen,
        "-c",
        "fsync=off",
    ];
    let running = pod.spawn("runuser", &[&AS_USER[..], &words].concat());
    pod.wait_for_listener(5432);
    running
}

/// Where Debian keeps the newest PostgreSQL's programs.
fn program(name: &str) -> String {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    let newest = versions.flatten().map(|entry| entry.path()).max();
    let path = newest.expect("a version").join("bin").join(name);
    path.display().to_string()
}

/// The package's user and group.
fn id(what: &str) -> u32 {
    let output = Command::new("id").args([what, "postgres"]).output();
    let output = output.expect("`id` runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.trim().parse().expect("the package's user")
}
