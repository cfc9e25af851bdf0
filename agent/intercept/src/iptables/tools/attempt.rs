//! What the host's programs and kernel take, tried in namespaces made for it.

use nix::sched::{CloneFlags, unshare};
use shunt_core::sockets::Family;

use super::{Tools, Variant, WITHOUT_FLUSHING, checked, command, feed, wait_for_the_lock};
use crate::InterceptError;
use crate::iptables::dead_man::{DeadMan, list};
use crate::iptables::netfilter::Netfilter;
use crate::iptables::render::LISTENING;

impl Tools {
    /// Installs rules like ours in a namespace which ends with the attempt.
    pub(in crate::iptables) fn attempt(
        &self,
        variant: Variant,
        family: Family,
        dead_man: Option<DeadMan>,
    ) -> Result<(), InterceptError> {
        self.attempt_with(variant, family, dead_man, "")
    }

    /// As [`Tools::attempt`]: the match for listening sockets.
    pub(in crate::iptables) fn attempt_sockets(
        &self,
        variant: Variant,
        family: Family,
    ) -> Result<(), InterceptError> {
        let rule = format!("-A PREROUTING -p tcp {LISTENING}-j RETURN\n");
        self.attempt_with(variant, family, None, &rule)
    }

    fn attempt_with(
        &self,
        variant: Variant,
        family: Family,
        dead_man: Option<DeadMan>,
        more: &str,
    ) -> Result<(), InterceptError> {
        let program = self.program(variant, family, "-restore");
        let alive = dead_man.map_or(String::new(), |dead_man| dead_man.matching(family));
        let text = format!(
            "*nat\n:SHUNT_OUTPUT - [0:0]\n\
             -A OUTPUT -p tcp -m mark --mark 0x1 -j RETURN\n\
             -A OUTPUT -m addrtype --dst-type LOCAL -j RETURN\n\
             -A OUTPUT -p tcp -j SHUNT_OUTPUT\n\
             -A SHUNT_OUTPUT -p tcp {alive}-j REDIRECT --to-ports 1\n{more}COMMIT\n"
        );
        let mut command = command(&program)?;
        command.args(WITHOUT_FLUSHING);
        if variant == Variant::Legacy {
            wait_for_the_lock()?;
        }
        elsewhere(move || {
            if dead_man == Some(DeadMan::Set) {
                Netfilter::open()
                    .and_then(|netfilter| netfilter.create_set(family, list(family)))
                    .map_err(|error| InterceptError::io("make", "an ipset", error))?;
            }
            let output = feed(&mut command, text.as_bytes())
                .map_err(|error| InterceptError::io("run", &program, error))?;
            checked(output, &program).map(|_| ())
        })
    }
}

/// Runs `work` in a network namespace made for it, on a thread made for it.
pub(in crate::iptables) fn elsewhere<T: Send>(
    work: impl FnOnce() -> Result<T, InterceptError> + Send,
) -> Result<T, InterceptError> {
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|error| InterceptError::io("make", "a network namespace", error.into()))?;
        work()
    };
    std::thread::scope(|scope| scope.spawn(inside).join())
        .unwrap_or_else(|_| Err(InterceptError::Unsupported("the attempt panicked".into())))
}
