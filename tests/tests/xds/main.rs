//! Files as xDS sources: read, followed, refused, and changed a hundred times under load. The admin API beside Envoy's.

mod admin;
mod load;
mod scene;

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use shunt_tests::{Script, wait};

use crate::scene::Scene;

const SOON: Duration = Duration::from_secs(5);

#[test]
fn a_file_is_followed_however_it_is_written() {
    let scene = Scene::new();
    let agent = scene.agent();
    assert_eq!(scene.version(80), "v1");
    // By a rename, as Envoy wants it.
    scene.routes("v2");
    wait::until("the rename is seen", SOON, || {
        (scene.version(80) == "v2").then_some(())
    });
    // In place.
    let path = scene.at("rds.yaml");
    let text = fs::read_to_string(&path).expect("a file");
    fs::write(&path, text.replace("v2", "v3")).expect("written");
    wait::until("the write is seen", SOON, || {
        (scene.version(80) == "v3").then_some(())
    });
    // As a ConfigMap does it: the file is a link through `..data`, which is turned.
    for version in ["v4", "v5", "v6"] {
        let directory = scene.at(&format!("..{version}"));
        fs::create_dir(&directory).expect("a directory");
        fs::write(directory.join("rds.yaml"), text.replace("v2", version)).expect("written");
        let turned = scene.at("..data_tmp");
        symlink(&directory, &turned).expect("a link");
        fs::rename(&turned, scene.at("..data")).expect("renamed");
        if !path.is_symlink() {
            fs::remove_file(&path).expect("removed");
            symlink("..data/rds.yaml", &path).expect("a link");
        }
        wait::until("the turned link is seen", SOON, || {
            (scene.version(80) == version).then_some(())
        });
    }
    let dump = scene::dump(&agent, "");
    assert_eq!(scene::source(&dump, "rds")["version_info"], "v6");
}

#[test]
fn a_wrong_file_is_refused_whole_and_told_of() {
    let scene = Scene::new();
    let agent = scene.agent();
    let wrong = scene.route_text("v2").replace("prefix: /", "prefx: /");
    scene.write("rds.yaml", &wrong);
    wait::until("the refusal", SOON, || {
        agent.log().contains("prefx").then_some(())
    });
    assert_eq!(scene.version(80), "v1");
    let error = wait::until("it is in the dump", SOON, || {
        let dump = scene::dump(&agent, "?resource=dynamic_route_configs");
        let error = dump["configs"][0]["error_state"].clone();
        error.is_object().then_some((dump, error))
    });
    let (dump, error) = error;
    assert_eq!(dump["configs"][0]["version_info"], "v1");
    assert_eq!(error["version_info"], "v2");
    let details = error["details"].as_str().expect("details");
    assert!(
        details.contains("rds.yaml:") && details.contains("resources[0].virtual_hosts[0].routes")
    );
    // Another file changes meanwhile.
    scene.listener("web", "also");
    wait::until("the new listener", SOON, || {
        (scene.version(81) == "v1").then_some(())
    });
    scene.routes("v3");
    wait::until("the mended one", SOON, || {
        (scene.version(80) == "v3").then_some(())
    });
    let dump = scene::dump(&agent, "?resource=dynamic_route_configs");
    assert!(dump["configs"][0]["error_state"].is_null(), "{dump:#}");
}

#[test]
fn a_taken_address_is_told_of() {
    let scene = Scene::new();
    let agent = scene.agent();
    let script = "import socket, sys
taken = socket.create_server((sys.argv[1], 81))
print('there', flush=True)
sys.stdin.read()";
    let mut squatter = Script::start(&scene.gateway, script, &[&scene.gateway.v4]);
    assert_eq!(squatter.says(), "there");
    scene.listener("web", "also");
    wait::until("the refusal", SOON, || {
        let dump = scene::dump(&agent, "");
        let error = dump["cannot_serve"].as_str()?;
        error.contains("listener `also`").then_some(())
    });
    assert_eq!(scene.version(80), "v1");
    squatter.succeeds();
    scene.routes("v2");
    wait::until("all of it", SOON, || {
        (scene.version(81) == "v2").then_some(())
    });
    assert!(scene::dump(&agent, "")["cannot_serve"].is_null());
}

#[test]
fn resources_come_and_go() {
    let scene = Scene::new();
    // Nothing of it is there yet: the agent starts, and serves what comes.
    for file in ["lds.yaml", "cds.yaml", "eds.yaml"] {
        fs::rename(scene.at(file), scene.at(&format!("{file}.later"))).expect("moved");
    }
    let agent = scene.agent();
    let later = |file: &str| {
        fs::rename(scene.at(&format!("{file}.later")), scene.at(file)).expect("moved");
    };
    assert!(agent.log().contains("nothing of it is served"));
    later("lds.yaml");
    wait::until("a listener without its cluster", SOON, || {
        (scene.status(80) == "503").then_some(())
    });
    later("cds.yaml");
    wait::until("a cluster without endpoints", SOON, || {
        scene.text(80).contains("no healthy upstream").then_some(())
    });
    later("eds.yaml");
    wait::until("all of it", SOON, || {
        (scene.status(80) == "200").then_some(())
    });
    // One listener more, on a socket of its own; the other keeps its.
    let inode = scene.socket(80);
    scene.listener("web", "also");
    wait::until("another listener", SOON, || {
        (scene.status(81) == "200").then_some(())
    });
    assert_eq!(scene.socket(80), inode);
    scene.listener("also", "");
    wait::until("the first is gone", SOON, || {
        (scene.status(80) == "000").then_some(())
    });
    assert_eq!(scene.status(81), "200");
    // A cluster that is gone is not there for whoever is connected already either.
    scene.write("cds.yaml", "version_info: none\n");
    wait::until("no cluster", SOON, || {
        (scene.status(81) == "503").then_some(())
    });
    let dump = scene::dump(&agent, "");
    assert_eq!(scene::source(&dump, "cds")["version_info"], "none");
    assert!(scene::source(&dump, "eds").is_null());
}

/// Answers at once, and every other time when it is told to, in two pieces.
const HOLDS: &str = r"
import socket, sys
listener = socket.create_server(('', 8000))
print('ready', flush=True)
end, _ = listener.accept()
file = end.makefile('rb')
def asked():
    while file.readline() not in (b'\r\n', b''): pass
head = b'HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n'
asked()
end.sendall(head + b'at once...')
asked()
print('asked', flush=True)
sys.stdin.readline()
end.sendall(head + b'later')
sys.stdin.readline()
end.sendall(b', too')
sys.stdin.read()
";

const ASKS: &str = r"
import socket, sys
end = socket.create_connection((sys.argv[1], 80), 10)
idle = socket.create_connection((sys.argv[1], 80), 10)
def read(until):
    got = b''
    while not until(got):
        byte = end.recv(1)
        assert byte, got
        got += byte
    return got.decode()
for _ in range(2):
    end.sendall(b'GET / HTTP/1.1\r\nhost: a\r\n\r\n')
    head = read(lambda got: got.endswith(b'\r\n\r\n'))
    print('connection: close' in head, flush=True)
    print(read(lambda got: len(got) == 10), flush=True)
print(end.recv(1), idle.recv(1), flush=True)
";

#[test]
fn who_is_being_answered_when_a_listener_goes_has_all_of_it() {
    let scene = Scene::new();
    let mut upstream = Script::start(&scene.server, HOLDS, &[]);
    assert_eq!(upstream.says(), "ready");
    let text = fs::read_to_string(scene.at("eds.yaml")).expect("a file");
    scene.write(
        "eds.yaml",
        &text.replace("port_value: 80", "port_value: 8000"),
    );
    let _agent = scene.agent();
    let mut client = Script::start(&scene.client, ASKS, &[&scene.gateway.v4]);
    assert_eq!([client.says(), client.says()], ["False", "at once..."]);
    assert_eq!(upstream.says(), "asked");
    scene.listener("also", "");
    wait::until("the listener is gone", SOON, || {
        scene.socket(80).is_empty().then_some(())
    });
    upstream.tell("begin");
    assert_eq!(client.says(), "True");
    upstream.tell("go on");
    assert_eq!(client.says(), "later, too");
    assert_eq!(client.says(), "b'' b''");
    client.succeeds();
}
