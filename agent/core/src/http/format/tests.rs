use super::*;

struct Request;

impl RequestView for Request {
    fn method(&self) -> &'static str {
        "GET"
    }

    fn path(&self) -> &'static str {
        "/a?b=c"
    }

    fn authority(&self) -> &'static str {
        "example.com:80"
    }

    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        (name == "x-user").then(|| b"alice".into())
    }

    fn any_line(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> Option<bool> {
        self.header(name).map(|value| test(&value))
    }
}

fn known() -> Known<'static> {
    Known {
        request: &Request,
        response: Some(&|name| (name == "etag").then(|| b"\"1\"".to_vec())),
        protocol: "HTTP/1.1",
        response_code: Some(204),
        client: "10.0.0.9:4000".parse().expect("an address"),
        direct_client: "10.0.0.8:5000".parse().expect("an address"),
        listener: "[fd00::1]:80".parse().expect("an address"),
        upstream: None,
        route: "r1",
        cluster: Some("c1"),
        local_reply: Some(b"sorry"),
        flags: "",
        details: "direct_response",
        so_far: Duration::from_millis(12),
    }
}

fn rendered(text: &str) -> String {
    let known = known();
    let format = Format::parse(text).expect(text);
    String::from_utf8(format.render(&known).into_owned()).expect("text")
}

#[test]
fn formats_are_filled_in() {
    for (text, expected) in [
        ("plain", "plain"),
        ("100%% of %REQ(X-User)%!", "100% of alice!"),
        ("%REQ(x-none?x-user):2%", "al"),
        (
            "%REQ(:METHOD)% %REQ(:path)% %REQ(:authority)%",
            "GET /a?b=c example.com:80",
        ),
        ("<%REQ(x-none)%>", "<>"),
        ("%RESP(etag)% %RESPONSE_CODE%", "\"1\" 204"),
        ("%DOWNSTREAM_REMOTE_ADDRESS%", "10.0.0.9:4000"),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "10.0.0.9"),
        ("%DOWNSTREAM_LOCAL_PORT% %PROTOCOL%", "80 HTTP/1.1"),
        ("%ROUTE_NAME%/%UPSTREAM_CLUSTER%/%UPSTREAM_HOST%", "r1/c1/"),
    ] {
        assert_eq!(rendered(text), expected, "{text}");
    }
}

#[test]
fn what_is_missing_shows() {
    let text = Format::parse("%REQ(x-none)% %RESPONSE_FLAGS% %DURATION% %LOCAL_REPLY_BODY%");
    let text = text.expect("a format").render_or(&known(), "-");
    assert_eq!(String::from_utf8_lossy(&text), "- - 12 sorry");
    for (text, value) in [
        ("%RESPONSE_CODE%", Value::Number(204)),
        ("%REQ(x-none)%", Value::Nothing),
        ("<%RESPONSE_CODE%>", Value::Text(b"<204>".to_vec())),
        ("plain", Value::Text(b"plain".to_vec())),
    ] {
        let format = Format::parse(text).expect("a format");
        assert_eq!(format.value(&known()), value, "{text}");
    }
}

#[test]
fn what_is_not_understood_is_refused() {
    for text in [
        "%",
        "50% off",
        "%REQ%",
        "%REQ(a%",
        "%REQ(a):x%",
        "%START_TIME(1)%",
        "%NONSENSE%",
        "%PROTOCOL(1)%",
    ] {
        assert!(Format::parse(text).is_err(), "{text}");
    }
}

#[test]
fn whose_connection_it_is_is_told_from_whom_it_is_for() {
    let text = "%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS% %DOWNSTREAM_DIRECT_REMOTE_PORT%";
    assert_eq!(rendered(text), "10.0.0.9:4000 10.0.0.8:5000 5000");
    assert_eq!(
        rendered("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"),
        "10.0.0.8"
    );
}
