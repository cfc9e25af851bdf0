//! Classes of sockets: those of one workload that connect to one server port, or are called at it. A class is accelerated
//! when its sockets were watched and none did anything that would be different in the kernel's queues.

use crate::maps::Workload;

/// Key of `CLASSES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClassKey {
    /// [`Workload::id`]: an enrolment learns anew.
    pub workload: u32,
    /// The server's port.
    pub port: u16,
    /// One of this type's.
    pub role: u16,
}

impl ClassKey {
    /// Its sockets connect, and do not block while they do.
    pub const CLIENT: u16 = 0;
    /// Its sockets are called.
    pub const SERVER: u16 = 1;
    /// Its sockets connect, and block while they do. Most such programs block later too, and shall not be taken for
    /// others of their workload.
    pub const BLOCKING_CLIENT: u16 = 2;
}

/// Value of `CLASSES`: what was seen of a class. Written by the kernel only. Two CPUs at once may lose a count, never a
/// fault.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Class {
    /// Connections that were watched to their end, or for [`Class::LONG`] reads, and are not known to have a fault.
    pub good: u32,
    /// Connections that were watched, those under way too.
    pub watched: u32,
    /// Moving average of a connection's reads, at most [`Class::LONG`] of each, times [`Class::SCALE`].
    pub reads: u32,
    /// The first fault, one of [`fault`]'s; it is for good.
    pub fault: u32,
    /// When that was, ns of CLOCK_MONOTONIC.
    pub fault_at: u64,
    /// Who it was: `comm` of the thread, and the process.
    pub program: [u8; 16],
    pub process: u32,
    /// Sockets that had a fault after they had been accelerated.
    pub late: u32,
}

impl Class {
    /// Connections to see before a class is accelerated. Eight: the number of different ways a program uses its
    /// connections to one port is small, a pool has about as many, and those that stay plain are soon made up for.
    pub const ENOUGH: u32 = 8;
    /// Reads after which a connection that goes on has shown how it is used.
    pub const LONG: u32 = 32;
    /// Connections with fewer reads than this, on average, are short. Two to four entries in the socket hash double the
    /// slowest connects (by some 100 us) and cost a twelfth of the rate; a message gains 5 to 20 us.
    pub const SHORT: u32 = 8;
    pub const SCALE: u32 = 16;

    #[inline(always)]
    pub fn verdict(&self) -> Verdict {
        if self.fault != fault::NONE {
            Verdict::Fault
        } else if self.good < Self::ENOUGH {
            Verdict::Learning
        } else if self.reads < Self::SHORT * Self::SCALE {
            Verdict::Short
        } else {
            Verdict::Proven
        }
    }

    /// A connection had so many reads. The first counts whole, later ones an eighth.
    #[inline(always)]
    pub fn average(&self, reads: u32) -> u32 {
        let reads = if reads > Self::LONG {
            Self::LONG
        } else {
            reads
        };
        let scaled = reads * Self::SCALE;
        if self.good == 0 {
            scaled
        } else {
            self.reads - self.reads / 8 + scaled / 8
        }
    }
}

/// What an accelerated socket does differently, so that it must not be one.
pub mod fault {
    pub const NONE: u32 = 0;
    /// A read that may wait.
    pub const BLOCKING: u32 = 1;
    /// A read with a flag that the kernel's reader of queues does not know: `MSG_WAITALL`, `MSG_TRUNC`, `MSG_OOB`,
    /// `MSG_ERRQUEUE`.
    pub const FLAGS: u32 = 2;
    /// Bytes left the socket and nobody read them: splice(2), mmap(2), a program in the kernel.
    pub const OTHERWISE: u32 = 3;
    /// `SO_ZEROCOPY` or `SO_RCVLOWAT`.
    pub const OPTION: u32 = 4;
}

/// May one end of a connection be accelerated, or why not? What is worse comes later.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It is configured so.
    Always = 0,
    /// The class was watched.
    Proven,
    /// Its connections end too soon.
    Short,
    /// Not enough were seen.
    Learning,
    /// The class has a fault.
    Fault,
    /// It is configured so.
    Off,
}

impl Verdict {
    pub const ALL: [Self; 6] = [
        Self::Always,
        Self::Proven,
        Self::Short,
        Self::Learning,
        Self::Fault,
        Self::Off,
    ];
    /// Entries of `VERDICTS`: connections by verdict, and then how often a class's verdict changed.
    pub const SLOTS: u32 = 7;
    pub const CHANGES: u32 = 6;

    #[inline(always)]
    pub fn accelerates(self) -> bool {
        matches!(self, Self::Always | Self::Proven)
    }

    /// Do more connections tell more?
    #[inline(always)]
    pub fn is_watched(self) -> bool {
        matches!(self, Self::Proven | Self::Short | Self::Learning)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Proven => "proven",
            Self::Short => "short",
            Self::Learning => "learning",
            Self::Fault => "fault",
            Self::Off => "off",
        }
    }

    /// The name of its connections' counter.
    pub fn event(self) -> &'static str {
        match self {
            Self::Always => "verdict_always",
            Self::Proven => "verdict_proven",
            Self::Short => "verdict_short",
            Self::Learning => "verdict_learning",
            Self::Fault => "verdict_fault",
            Self::Off => "verdict_off",
        }
    }
}

/// What the configuration says of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Off,
    Always,
    Auto,
}

impl Wish {
    /// Among the bits of [`Workload::flags`], and of a port's own value in [`RuleKey::ACCELERATION`](crate::maps::RuleKey).
    #[inline(always)]
    pub fn of(bits: u32) -> Self {
        if bits & Workload::ACCELERATE != 0 {
            Self::Always
        } else if bits & Workload::ACCELERATE_PROVEN != 0 {
            Self::Auto
        } else {
            Self::Off
        }
    }

    pub fn bits(self) -> u32 {
        match self {
            Self::Off => 0,
            Self::Always => Workload::ACCELERATE,
            Self::Auto => Workload::ACCELERATE_PROVEN,
        }
    }
}

#[cfg(feature = "user")]
#[expect(
    unsafe_code,
    reason = "promising the kernel that these types have no padding"
)]
mod pod {
    use super::{Class, ClassKey};

    // SAFETY: repr(C), plain integers only, and no padding, by the test below.
    unsafe impl aya::Pod for ClassKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Class {}
}

#[cfg(test)]
mod tests;
