//! Files as xDS sources: read, followed, refused, and changed a hundred times under load. The admin API beside Envoy's.

mod admin;
mod load;
mod scene;

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use shunt_tests::wait;

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
