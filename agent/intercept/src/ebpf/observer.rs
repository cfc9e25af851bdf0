//! The program that sees how programs read their sockets: without it nothing is learned.

use aya::Btf;
use aya::programs::BtfTracePoint;
use aya::programs::tp_btf::BtfTracePointLink;

use super::object::{Object, failed, missing};
use super::offsets;
use crate::{InterceptError, btf};

const PROGRAM: &str = "shunt_read";
/// From Linux 6.3 on.
const TRACEPOINT: &str = "sock_recv_length";

/// By the name of the programs' static: the structure and the path of members in it.
const MEMBERS: [offsets::Member; 6] = [
    ("SOCKET_OFFSET", "sock", &["sk_socket"]),
    ("FILE_OFFSET", "socket", &["file"]),
    ("FILE_FLAGS_OFFSET", "file", &["f_flags"]),
    ("LOW_WATER_OFFSET", "sock", &["sk_rcvlowat"]),
    ("FLAGS_OFFSET", "sock", &["__sk_common", "skc_flags"]),
    ("COPIED_OFFSET", "tcp_sock", &["copied_seq"]),
];

/// Where the running kernel keeps what the programs read.
pub(super) fn statics(types: &btf::Kernel) -> offsets::Statics {
    let mut statics = offsets::find(types, &MEMBERS)?;
    let zerocopy = types.enumerator("sock_flags", "SOCK_ZEROCOPY")?;
    statics.push(("ZEROCOPY_BIT", zerocopy));
    Ok(statics)
}

/// Attached only while somebody is to be learned about: every read of a socket on this host passes it.
#[derive(Debug, Default)]
pub(super) struct Observer {
    link: Option<BtfTracePointLink>,
}

impl Observer {
    /// # Errors
    /// This kernel has no such tracepoint, or no types.
    pub(super) fn load(object: &mut Object) -> Result<Self, InterceptError> {
        std::mem::replace(&mut object.observed, Ok(()))?;
        let types = Btf::from_sys_fs();
        let types = types.map_err(|error| failed("read the kernel's types", &error))?;
        let loaded = program(object)?.load(TRACEPOINT, &types);
        loaded.map_err(|error| failed(&format!("watch {TRACEPOINT}"), &error))?;
        Ok(Self::default())
    }

    /// Attached already, nothing happens.
    ///
    /// # Errors
    /// Nothing is attached.
    pub(super) fn attach(&mut self, object: &mut Object) -> Result<(), InterceptError> {
        if self.link.is_none() {
            let program = program(object)?;
            let link = program.attach().and_then(|id| program.take_link(id));
            let link = link.map_err(|error| failed(&format!("watch {TRACEPOINT}"), &error))?;
            self.link = Some(link);
        }
        Ok(())
    }

    pub(super) fn detach(&mut self) {
        self.link = None;
    }
}

fn program(object: &mut Object) -> Result<&mut BtfTracePoint, InterceptError> {
    let program = object.main.program_mut(PROGRAM);
    let program = program.ok_or_else(|| missing("program", PROGRAM))?;
    program
        .try_into()
        .map_err(|error| failed(&format!("use {PROGRAM}"), &error))
}
