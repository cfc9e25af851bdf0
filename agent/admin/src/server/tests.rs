use tokio::task::LocalSet;

use super::*;
use crate::client;

struct Echo;

impl AdminApi for Echo {
    async fn answer(&self, call: Call) -> Answer {
        Answer::text(StatusCode::OK, format!("{call:?}"))
    }
}

#[tokio::test]
async fn questions_are_answered_over_a_unix_socket() {
    LocalSet::new()
        .run_until(async {
            let dir = tempfile::tempdir().expect("a directory");
            let socket = dir.path().join("admin.sock");
            let listener = Listener::Unix(UnixListener::bind(&socket).expect("bound"));
            tokio::task::spawn_local(serve(listener, Rc::new(Echo)));
            let (status, body) = client::request(&socket, "GET", "/ready", None)
                .await
                .expect("an answer");
            assert_eq!((status, &body[..]), (StatusCode::OK, &b"Ready"[..]));
            let (status, _) = client::request(&socket, "GET", "/nothing", None)
                .await
                .expect("an answer");
            assert_eq!(status, StatusCode::NOT_FOUND);
            let huge = "x".repeat(MAX_BODY + 1);
            let path = "/workloads/default/web";
            let (status, _) = client::request(&socket, "PUT", path, Some(huge))
                .await
                .expect("an answer");
            assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
        })
        .await;
}

#[tokio::test]
async fn nobody_answers() {
    let error = client::request(std::path::Path::new("/nonexistent"), "GET", "/ready", None).await;
    assert!(
        matches!(error, Err(client::ClientError::NotRunning(_))),
        "{error:?}"
    );
}

#[tokio::test]
async fn over_tcp_only_reading_is_allowed() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    LocalSet::new()
        .run_until(async {
            let tcp = TcpListener::bind("127.0.0.1:0").await.expect("bound");
            let addr = tcp.local_addr().expect("an address");
            tokio::task::spawn_local(serve(Listener::Tcp(tcp), Rc::new(Echo)));
            let explain = "GET /explain?workload=web&destination=10.0.0.1:80";
            for (method, want) in [
                ("GET /ready", "200"),
                ("POST /drain", "403"),
                (explain, "403"),
                ("GET /tap", "403"),
                ("GET /tap?bytes=64", "403"),
            ] {
                let mut stream = tokio::net::TcpStream::connect(addr)
                    .await
                    .expect("connected");
                let request = format!("{method} HTTP/1.1\r\nhost: x\r\n\r\n");
                stream.write_all(request.as_bytes()).await.expect("sent");
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.expect("an answer");
                assert!(answer.starts_with(&format!("HTTP/1.1 {want}")), "{answer}");
            }
        })
        .await;
}

/// Sends `bytes` and reads until the server ends the connection.
async fn told(socket: &std::path::Path, bytes: &[u8]) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::UnixStream::connect(socket)
        .await
        .expect("connected");
    stream.write_all(bytes).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("the end");
    answer
}

/// With the clock paused, a timer fires as soon as nothing else is to be done.
#[tokio::test(start_paused = true)]
async fn a_slow_client_loses_its_place() {
    LocalSet::new()
        .run_until(async {
            let dir = tempfile::tempdir().expect("a directory");
            let socket = dir.path().join("admin.sock");
            let listener = Listener::Unix(UnixListener::bind(&socket).expect("bound"));
            tokio::task::spawn_local(serve(listener, Rc::new(Echo)));
            let started = tokio::time::Instant::now();
            told(&socket, b"GET /ready HT").await;
            let headers = b"PUT /workloads/a/b HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{";
            let answer = told(&socket, headers).await;
            assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
            assert!(started.elapsed() < 3 * READ_TIME, "{:?}", started.elapsed());

            let mut idle = Vec::new();
            for _ in 0..MAX_CONNECTIONS {
                let stream = tokio::net::UnixStream::connect(&socket).await;
                idle.push(stream.expect("connected"));
            }
            let answer = told(&socket, b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n").await;
            assert!(answer.ends_with("Ready"), "{answer}");
        })
        .await;
}

struct Silent;

impl AdminApi for Silent {
    async fn answer(&self, _: Call) -> Answer {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_come_is_told() {
    LocalSet::new()
        .run_until(async {
            let dir = tempfile::tempdir().expect("a directory");
            let socket = dir.path().join("admin.sock");
            let listener = Listener::Unix(UnixListener::bind(&socket).expect("bound"));
            tokio::task::spawn_local(serve(listener, Rc::new(Silent)));
            let (status, body) = client::request(&socket, "GET", "/stats", None)
                .await
                .expect("an answer");
            assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{body:?}");
        })
        .await;
}
