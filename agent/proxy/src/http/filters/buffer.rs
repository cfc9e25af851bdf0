//! Holds a request back until all of its body is there.

use std::pin::pin;

use hyper::Response;
use hyper::body::Body;
use hyper::header::{self, HeaderValue};
use shunt_core::http::filters::Buffer;

use super::Asked;
use crate::http::Client;
use crate::http::body::{NotHeld, ResponseBody};
use crate::http::failure::late;
use crate::http::received::Head;
use crate::http::reply;

pub(super) struct At<'a> {
    buffer: &'a Buffer,
}

impl<'a> At<'a> {
    pub(super) fn new(buffer: &'a Buffer) -> Self {
        Self { buffer }
    }

    pub(super) async fn ask(&mut self, asked: &mut Asked<'_>) -> Option<Response<ResponseBody>> {
        if asked.body.is_end_stream() {
            return None;
        }
        let held = pin!(asked.body.hold(self.buffer.max_bytes));
        let held = asked.progress.in_time(held).await;
        match held {
            Ok(Ok(bytes)) => {
                let length = HeaderValue::from(bytes);
                let headers = &mut asked.head.headers;
                headers.entry(header::CONTENT_LENGTH).or_insert(length);
                None
            }
            Ok(Err(NotHeld::TooLarge)) => {
                asked.progress.entry().close();
                let reply = reply::local(413, "Payload Too Large");
                Some(reply::because(reply, "", "request_payload_too_large"))
            }
            Ok(Err(NotHeld::BrokenOff)) => Some(reply::because(
                reply::local(400, "Bad Request"),
                "DPE",
                "codec_error",
            )),
            Err(expired) => Some(late(expired)),
        }
    }

    #[expect(clippy::unused_self, reason = "as filters have it")]
    pub(super) fn answer(&mut self, _: &mut Response<ResponseBody>, _: &Head, _: &Client<'_>) {}
}
