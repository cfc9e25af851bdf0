//! The kernel programs: one hook per file. They decide nothing by themselves: `shunt_ebpf_common::decision` does.
#![no_std]
#![no_main]

mod agent_sockets;
mod bulk;
mod classes;
mod connect;
mod connect4;
mod connect6;
mod direct;
mod dns;
mod getpeername;
mod getsockname;
mod getsockopt;
mod handshake;
mod kernel_memory;
mod ledger;
mod listeners;
mod maps;
mod observer;
mod pairing;
mod policy;
mod rules;
mod scope;
mod services;
mod setsockopt;
mod sk_lookup;
mod sk_msg;
mod tap;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that nothing gets here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
