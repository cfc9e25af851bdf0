use super::*;

fn vector_of(width: usize, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    [&length[length.len() - width..], content].concat()
}

fn extension(number: u16, content: &[u8]) -> Vec<u8> {
    [&number.to_be_bytes()[..], &vector_of(2, content)].concat()
}

fn hello(extensions: &[u8]) -> Vec<u8> {
    let body = [
        &[3, 3][..],
        &[7; 32],
        &vector_of(1, &[1, 2, 3]),
        &vector_of(2, &[0x13, 1]),
        &vector_of(1, &[0]),
        &vector_of(2, extensions),
    ]
    .concat();
    [&[CLIENT_HELLO][..], &vector_of(3, &body)].concat()
}

fn records(message: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| [&[HANDSHAKE, 3, 1][..], &vector_of(2, part)].concat();
    message.chunks(size).flat_map(record).collect()
}

fn usual() -> (Vec<u8>, ClientHello) {
    let name = vector_of(2, &[&[0][..], &vector_of(2, b"WWW.Example.com")].concat());
    let protocols = [vector_of(1, b"h2"), vector_of(1, b"http/1.1")].concat();
    let extensions = [
        extension(10, &[0, 0]),
        extension(SERVER_NAME, &name),
        extension(PROTOCOLS, &vector_of(2, &protocols)),
    ]
    .concat();
    let found = ClientHello {
        server_name: Some("www.example.com".into()),
        protocols: vec!["h2".into(), "http/1.1".into()],
    };
    (hello(&extensions), found)
}

#[test]
fn a_client_hello_is_found_however_it_is_cut() {
    let (message, found) = usual();
    for size in [1, 5, 40, 16000] {
        let bytes = records(&message, size);
        assert_eq!(
            client_hello(&bytes),
            Sniffed::Found(found.clone()),
            "{size}"
        );
        for end in 0..bytes.len() {
            assert_eq!(client_hello(&bytes[..end]), Sniffed::More, "{size}: {end}");
        }
        let more = [&bytes[..], b"early data"].concat();
        assert_eq!(client_hello(&more), Sniffed::Found(found.clone()));
    }
    let nothing = records(&hello(&[]), 16000);
    assert_eq!(
        client_hello(&nothing),
        Sniffed::Found(ClientHello::default())
    );
}

#[test]
fn what_is_no_client_hello_is_told_early() {
    for bytes in [
        &b"GET / HTTP/1.1\r\n"[..],
        &[HANDSHAKE, 2],
        &[HANDSHAKE, 3, 1, 0, 0],
        &[HANDSHAKE, 3, 1, 0xff, 0xff],
        &[HANDSHAKE, 3, 1, 0, 1, 2],
        &[HANDSHAKE, 3, 1, 0, 4, CLIENT_HELLO, 0xff, 0xff, 0xff],
        &[21, 3, 1, 0, 2, 1, 0],
    ] {
        assert_eq!(client_hello(bytes), Sniffed::Other, "{bytes:?}");
    }
    // Lengths that lie within a message whose own is right.
    let (message, _) = usual();
    for at in 4..message.len() {
        let mut broken = message.clone();
        broken[at] = 0xff;
        // It must not go wrong, whatever it finds.
        let _ = client_hello(&records(&broken, 16000));
    }
}

#[test]
fn http_is_known_by_its_first_line() {
    for (bytes, found) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n", Sniffed::Found(Http::One)),
        ("POST /x HTTP/1.0\n", Sniffed::Found(Http::OneZero)),
        (
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nmore",
            Sniffed::Found(Http::Two),
        ),
        ("", Sniffed::More),
        ("P", Sniffed::More),
        ("PRI * HTT", Sniffed::More),
        ("GET /", Sniffed::More),
        ("GETX", Sniffed::Other),
        ("GE ", Sniffed::Other),
        ("SSH-2.0-x\r\n", Sniffed::Other),
        ("GET / SPDY/3\r\n", Sniffed::Other),
        ("\u{16}\u{3}", Sniffed::Other),
    ] {
        assert_eq!(http(bytes.as_bytes()), found, "{bytes:?}");
    }
    assert_eq!(
        http(&[b"GET /".to_vec(), vec![b'a'; MAX_LINE]].concat()),
        Sniffed::Other
    );
}
