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
            for (method, want) in [("GET /ready", "200"), ("POST /drain", "403")] {
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
