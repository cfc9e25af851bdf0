//! The API as a cluster has it: by TLS, with an account's token or a client's certificate, and all of that renewed.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use shunt_tests::kubernetes::{ApiServer, Authority, ServiceAccount};
use shunt_tests::{Agent, AgentBuilder, World, require, wait};

use crate::{is_intercepted, put_namespaces, served, shown, two, wait_for};

const IN_CLUSTER: &str = "kubernetes: {node_name: n1}";

const OF_ANOTHER: &str = "the server's certificate is not of the authority that is configured";

/// What `status` says of the API, once it says this.
fn outage(agent: &Agent, says: &str) -> String {
    wait::until(says, Duration::from_secs(15), || {
        let outage = agent.status()["agent"]["pods"]["outage"].clone();
        let outage = outage.as_str().filter(|told| told.contains(says));
        outage.map(str::to_owned)
    })
}

/// Filters of system calls apply to the watcher, and it may do nothing that others may not.
fn is_confined(agent: &Agent) -> bool {
    let watcher = agent.watcher_pid().expect("a watcher");
    let status = std::fs::read_to_string(format!("/proc/{watcher}/status")).expect("a status");
    status.contains("Seccomp:\t2") && status.contains("CapEff:\t0000000000000000")
}

fn with_a_service_account(address: IpAddr) {
    require::everything();
    let world = World::new();
    let (client, server) = two(&world);
    let _nginx = server.pod.nginx(&world);
    let authority = Authority::new();
    let api = ApiServer::start_tls(address, &authority);
    put_namespaces(&api);
    api.put(shown("client", &client, Some("enabled")));
    let account = ServiceAccount::new(&world, "t0ken", &authority);
    let agent = AgentBuilder::new(&world, "ebpf")
        .set(IN_CLUSTER)
        .with_account(&account, api.address())
        .start();
    wait_for(&agent, &["client"]);
    assert!(is_intercepted(&agent, &client, &server));
    assert!(is_confined(&agent));

    api.accept_only("renewed");
    api.wait_for_refused();
    outage(&agent, "Unauthorized");
    api.put(shown("server", &server, Some("enabled")));
    assert_eq!(served(&agent), ["client"]);
    account.renew("renewed", &authority);
    wait_for(&agent, &["client", "server"]);

    let next = Authority::new();
    api.certify(&next);
    outage(&agent, OF_ANOTHER);
    account.renew("renewed", &next);
    api.put(shown("server", &server, None));
    wait_for(&agent, &["client"]);
    assert!(is_intercepted(&agent, &client, &server));
}

#[test]
fn with_a_service_account_by_ipv4() {
    with_a_service_account([127, 0, 0, 1].into());
}

#[test]
fn with_a_service_account_by_ipv6() {
    with_a_service_account("::1".parse().expect("an address"));
}

/// No token, and files that are renewed one after another.
#[test]
fn with_a_clients_certificate() {
    require::everything();
    let world = World::new();
    let (client, server) = two(&world);
    let _nginx = server.pod.nginx(&world);
    let api = ApiServer::start_tls([127, 0, 0, 1].into(), &Authority::new());
    put_namespaces(&api);
    let dir = world.dir.path();
    let renew = |authority: &Authority| {
        let (certificate, key) = authority.client();
        let files = [
            ("ca.crt", authority.pem()),
            ("client.crt", certificate),
            ("client.key", key),
        ];
        for (name, text) in files {
            std::fs::write(dir.join(name), text).expect("written");
        }
    };
    let kubeconfig = api.kubeconfig(
        dir,
        json!({"certificate-authority": "ca.crt"}),
        json!({"client-certificate": "client.crt", "client-key": "client.key"}),
    );
    let section = |path: &Path| {
        format!(
            "kubernetes: {{node_name: n1, kubeconfig: {}}}",
            path.display()
        )
    };
    // There are none yet.
    let agent = AgentBuilder::new(&world, "ebpf")
        .set(&section(&kubeconfig))
        .start();
    outage(&agent, "the kubeconfig cannot be used");
    let first = Authority::new();
    api.certify(&first);
    renew(&first);
    api.put(shown("client", &client, Some("enabled")));
    wait_for(&agent, &["client"]);
    assert!(is_intercepted(&agent, &client, &server));

    let next = Authority::new();
    api.certify(&next);
    outage(&agent, OF_ANOTHER);
    renew(&next);
    api.put(shown("server", &server, Some("enabled")));
    wait_for(&agent, &["client", "server"]);
}

#[test]
fn a_server_of_another_authority_is_not_believed() {
    require::everything();
    let world = World::new();
    let (client, _other) = two(&world);
    let (right, wrong) = (Authority::new(), Authority::called("another"));
    let api = ApiServer::start_tls([127, 0, 0, 1].into(), &right);
    put_namespaces(&api);
    api.put(shown("client", &client, Some("enabled")));
    let dir = world.dir.path();
    std::fs::write(dir.join("ca.crt"), wrong.pem()).expect("written");
    let kubeconfig = api.kubeconfig(
        dir,
        json!({"certificate-authority": "ca.crt"}),
        json!({"token": "t0ken"}),
    );
    let section = format!(
        "kubernetes: {{node_name: n1, kubeconfig: {}}}",
        kubeconfig.display()
    );
    let agent = AgentBuilder::new(&world, "ebpf").set(&section).start();
    let reason = outage(&agent, OF_ANOTHER);
    assert!(reason.contains("UnknownIssuer"), "{reason}");
    assert!(agent.log().contains(OF_ANOTHER));
    assert_eq!(served(&agent), [""; 0]);
    assert_eq!(api.requests(), [""; 0], "no token was shown to it");
    api.wait_for_strangers(8);
    assert_eq!(agent.log().matches("cannot be had").count(), 1, "told once");
    assert_eq!(outage(&agent, OF_ANOTHER), reason);
    std::fs::write(dir.join("ca.crt"), right.pem()).expect("written");
    wait_for(&agent, &["client"]);
}
