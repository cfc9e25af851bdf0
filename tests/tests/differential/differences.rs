//! In what shunt may differ from Envoy, and why. One that is not met any more must go.

#[derive(Debug)]
pub struct Difference {
    /// The case, or all.
    case: Option<&'static str>,
    /// What the fact begins with, after its place.
    fact: &'static str,
    /// Facts of shunt's, exactly: without them it is another difference.
    pub shows: &'static [&'static str],
    /// For people.
    #[expect(dead_code, reason = "it is read where it stands")]
    why: &'static str,
}

impl Difference {
    pub fn is(&self, case: &str, fact: &str) -> bool {
        self.is_about(case) && fact.contains(self.fact)
    }

    pub fn is_about(&self, case: &str) -> bool {
        self.case.is_none_or(|own| own == case)
    }
}

const fn in_case(case: &'static str, fact: &'static str, why: &'static str) -> Difference {
    Difference {
        case: Some(case),
        fact,
        shows: &[],
        why,
    }
}

/// All of the outcome differs, but shunt's is known.
const fn another(
    case: &'static str,
    shows: &'static [&'static str],
    why: &'static str,
) -> Difference {
    Difference {
        shows,
        ..in_case(case, "", why)
    }
}

const REFUSED: &[&str] = &[
    "response 1: first line: HTTP/1.1 400 Bad Request",
    "connection: closed",
    "upstream requests: 0",
];

const ENCODING: &str = "hyper says 400 where Envoy says 501; both close";
const HOSTS: &str =
    "RFC 9112, section 3.2, wants it refused; Envoy makes one host of both, with a comma between";
const SPACES: &str = "hyper takes one space only; RFC 9112, section 3, lets it refuse all else";

const NO_SWITCH: &[&str] = &[
    "response 1: first line: HTTP/1.1 502 Bad Gateway",
    "upstream requests: 1",
];
const TRAILERS: &str =
    "hyper writes only trailers that the `trailer` header names; RFC 9110, section 6.5.1, lets it";

pub const ALLOWED: &[Difference] = &[
    in_case(
        "fault: the upstream breaks off in a body",
        "connection: ",
        "who did not get all of it gets a reset, on any path of the agent, and never an end that looks like one",
    ),
    in_case(
        "fault: the client goes away",
        "connection: ",
        "the same: an exchange without its end is a reset",
    ),
    in_case(
        "response: before the request's end",
        "connection: ",
        "Envoy reads no more of such a client and resets it a second later; here it has its time, and an end in order",
    ),
    in_case(
        "fault: HTTP/1.0",
        "first line: ",
        "hyper answers an HTTP/1.0 client as HTTP/1.0; RFC 9110, section 6.2, lets it",
    ),
    another(
        "fault: a fragment",
        &[
            "response 1: first line: HTTP/1.1 200 OK",
            "response 1: x-answer: 0",
            "upstream requests: 0",
        ],
        "hyper drops the fragment as it reads the target; nothing of it is matched or passed on",
    ),
    in_case(
        "health: HEAD",
        "transfer-encoding: ",
        "Envoy says that a body which nobody asks for would come in chunks; hyper says nothing of it",
    ),
    another(
        "fault: another version",
        REFUSED,
        "hyper knows no such version and says 400; Envoy takes it for an old one",
    ),
    another(
        "fault: length and chunks",
        &[
            "response 1: first line: HTTP/1.1 200 OK",
            "upstream requests: 1",
            "upstream request 1: transfer-encoding: chunked",
            "upstream request 1: body: ",
        ],
        "hyper does what RFC 9112, section 6.3, says: the chunks count, the length is taken out and not passed on",
    ),
    another(
        "fault: an encoding that is not known",
        REFUSED,
        "hyper says 400 where Envoy says 501; both close",
    ),
    another(
        "fault: a folded line",
        REFUSED,
        "hyper refuses what RFC 9112, section 5.2, wants refused or mended; Envoy mends it",
    ),
    another(
        "hostile: the same length twice",
        &[
            "response 1: first line: HTTP/1.1 200 OK",
            "upstream requests: 1",
            "upstream request 1: content-length: 2",
        ],
        "hyper makes one line of lines that say the same; RFC 9112, section 6.3, lets it",
    ),
    another("hostile: nearly chunked", REFUSED, ENCODING),
    another("hostile: chunked, then identity", REFUSED, ENCODING),
    another(
        "hostile: a chunk that is longer",
        REFUSED,
        "hyper refuses a chunk without its end; Envoy takes it for as long as it was said to be",
    ),
    another(
        "hostile: HTTP/1.0 with chunks",
        REFUSED,
        "hyper says 400 where Envoy says 426; both close",
    ),
    another("hostile: two hosts", REFUSED, HOSTS),
    another("hostile: the same host twice", REFUSED, HOSTS),
    another(
        "hostile: a bare CR",
        REFUSED,
        "hyper refuses it; Envoy takes it out. RFC 9112, section 2.2, wants either, or a space",
    ),
    another(
        "hostile: a connection that names the host",
        &[
            "response 1: first line: HTTP/1.1 200 OK",
            "upstream request 1: host: all.test",
        ],
        "Envoy takes the host away, and then has none; here it stays, whatever connection names",
    ),
    another(
        "hostile: HTTP/0.9",
        REFUSED,
        "hyper says 400 where Envoy says 426; both close",
    ),
    another(
        "hostile: HTTP/1.2",
        REFUSED,
        "hyper knows no such version and says 400; Envoy takes it for an old one",
    ),
    another("hostile: two spaces", REFUSED, SPACES),
    another("hostile: a tab", REFUSED, SPACES),
    another(
        "hostile: an empty host",
        REFUSED,
        "nobody is asked in the name of nobody",
    ),
    another(
        "upstream: half a head",
        &[
            "response 1: first line: HTTP/1.1 503 Service Unavailable",
            "upstream requests: 1",
            "connection: open",
        ],
        "hyper tells a head that breaks off from one that is none: 503 where Envoy says 502",
    ),
    another(
        "upgrade: what connection names stays or goes",
        &[
            "upstream request 1: connection: Upgrade",
            "upstream request 1: te: trailers",
            "response 2: body: in",
        ],
        "Envoy passes on what the client has named as about its own hop",
    ),
    another(
        "upgrade: not heard by the upstream",
        &[
            "response 1: first line: HTTP/1.1 200 OK",
            "response 1: connection: close",
            "response 1: body: ok",
        ],
        "Envoy drops the body of a success that is no 101; RFC 9110, section 7.8, lets servers not hear of an upgrade",
    ),
    another(
        "upgrade: to nothing",
        NO_SWITCH,
        "Envoy passes on a 101 that names no protocol",
    ),
    another(
        "upgrade: that nobody asked for",
        NO_SWITCH,
        "Envoy takes it for a response as any other, and uses the connection again",
    ),
    another(
        "interim: others",
        &[
            "response 1: first line: HTTP/1.1 150 Unknown",
            "response 2: body: ok",
        ],
        "Envoy drops those that it does not know; RFC 9110, section 15.2, has proxies pass them on",
    ),
    another(
        "interim: with a length",
        &["response 1: first line: HTTP/1.1 100 Continue"],
        "Envoy refuses it; hyper reads no body there, and the length is not passed on",
    ),
    another(
        "trailers: not announced",
        &["upstream request 1: body: abc"],
        TRAILERS,
    ),
    another(
        "trailers: of a response, not announced",
        &["response 1: body: abc"],
        TRAILERS,
    ),
    another(
        "trailers: of a response, not asked for",
        &["response 1: body: abc"],
        "hyper writes trailers only for who sends `te: trailers`; RFC 9110, section 6.5.1, lets it",
    ),
];
