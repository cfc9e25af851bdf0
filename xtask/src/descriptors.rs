//! `cargo xtask descriptors`: what Envoy's messages look like, as far as a bootstrap reaches, out of the file in which the
//! crate `envoy-types` has them all.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use prost::Message;
use prost_reflect::prost_types::{FileDescriptorProto, FileDescriptorSet};

use crate::run::{root, say};

const OURS: &str = "agent/xds/src/envoy.bin";

/// What a bootstrap and xDS need of themselves, and the extensions that a bootstrap may name: those that are supported,
/// and those that people have, so that they are refused field by field.
const ROOTS: [&str; 41] = [
    "config/bootstrap/v3/bootstrap",
    "service/discovery/v3/discovery",
    "extensions/filters/network/http_connection_manager/v3/http_connection_manager",
    "extensions/filters/network/tcp_proxy/v3/tcp_proxy",
    "extensions/filters/http/router/v3/router",
    "extensions/filters/listener/http_inspector/v3/http_inspector",
    "extensions/filters/listener/tls_inspector/v3/tls_inspector",
    "extensions/filters/listener/original_dst/v3/original_dst",
    "extensions/filters/listener/proxy_protocol/v3/proxy_protocol",
    "extensions/upstreams/http/v3/http_protocol_options",
    "extensions/filters/http/cors/v3/cors",
    "extensions/filters/http/buffer/v3/buffer",
    "extensions/filters/http/fault/v3/fault",
    "extensions/filters/http/header_mutation/v3/header_mutation",
    "extensions/filters/http/health_check/v3/health_check",
    "extensions/filters/http/local_ratelimit/v3/local_rate_limit",
    "extensions/filters/http/rbac/v3/rbac",
    "extensions/filters/http/ext_authz/v3/ext_authz",
    "extensions/filters/http/lua/v3/lua",
    "extensions/filters/http/jwt_authn/v3/config",
    "extensions/filters/http/ratelimit/v3/rate_limit",
    "extensions/filters/http/compressor/v3/compressor",
    "extensions/filters/http/grpc_web/v3/grpc_web",
    "extensions/filters/http/grpc_stats/v3/config",
    "extensions/filters/http/wasm/v3/wasm",
    "extensions/transport_sockets/tls/v3/tls",
    "extensions/transport_sockets/raw_buffer/v3/raw_buffer",
    "extensions/path/match/uri_template/v3/uri_template_match",
    "extensions/path/rewrite/uri_template/v3/uri_template_rewrite",
    "extensions/access_loggers/file/v3/file",
    "extensions/access_loggers/stream/v3/stream",
    "extensions/filters/network/rbac/v3/rbac",
    "extensions/filters/network/direct_response/v3/config",
    "extensions/filters/network/echo/v3/echo",
    "extensions/filters/network/ratelimit/v3/rate_limit",
    "extensions/load_balancing_policies/round_robin/v3/round_robin",
    "extensions/load_balancing_policies/least_request/v3/least_request",
    "extensions/load_balancing_policies/random/v3/random",
    "extensions/load_balancing_policies/ring_hash/v3/ring_hash",
    "extensions/load_balancing_policies/maglev/v3/maglev",
    "extensions/load_balancing_policies/common/v3/common",
];

#[derive(Debug, clap::Args)]
pub struct Args {
    /// `src/generated/types.bin` of the crate envoy-types
    #[arg(value_name = "TYPES.BIN")]
    from: PathBuf,
}

pub fn run(args: &Args) -> Result<()> {
    let bytes = fs::read(&args.from).with_context(|| args.from.display().to_string())?;
    let all = FileDescriptorSet::decode(bytes.as_slice()).context("no descriptors")?;
    let mut kept = Kept {
        all: &all.file,
        seen: BTreeSet::new(),
        files: Vec::new(),
    };
    for root in ROOTS {
        kept.keep(&format!("envoy/{root}.proto"))?;
    }
    let set = FileDescriptorSet { file: kept.files };
    let bytes = set.encode_to_vec();
    fs::write(root().join(OURS), &bytes).context(OURS)?;
    say(&format!(
        "wrote {OURS}: {} files, {} bytes",
        set.file.len(),
        bytes.len()
    ));
    Ok(())
}

struct Kept<'a> {
    all: &'a [FileDescriptorProto],
    seen: BTreeSet<String>,
    files: Vec<FileDescriptorProto>,
}

impl Kept<'_> {
    /// A file after those that it needs, without its comments.
    fn keep(&mut self, name: &str) -> Result<()> {
        if !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let mut files = self.all.iter().filter(|file| file.name() == name);
        let mut file = files.next().with_context(|| format!("no {name}"))?.clone();
        for needed in &file.dependency {
            self.keep(needed)?;
        }
        file.source_code_info = None;
        self.files.push(file);
        Ok(())
    }
}
