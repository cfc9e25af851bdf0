//! Comparing the rules in the kernel with what was there right after they were written.

use std::io;

use shunt_core::sockets::Family;

use super::captured;
use super::choice::Choice;
use super::legacy::Legacy;
use super::live::Live;
use super::render::Rendered;
use super::tools::Variant;
use crate::drift::{Drift, Look, Part};
use crate::netns::Netns;
use crate::{Enrolment, InterceptError, Marks};

use super::Installed;

/// Others may change rules while they are read.
const ATTEMPTS: usize = 5;

/// What the kernel had right after our transaction.
#[derive(Debug)]
pub(super) struct Written {
    variant: Variant,
    families: Vec<WrittenFamily>,
}

#[derive(Debug)]
struct WrittenFamily {
    family: Family,
    /// `None`: somebody changed them at once.
    live: Option<Live>,
    legacy: Option<Legacy>,
}

impl Written {
    pub(super) fn read(
        enrolment: &Enrolment,
        choice: &Choice,
        marks: Marks,
    ) -> Result<Self, InterceptError> {
        let variant = choice.variant;
        let read = |family| {
            let rendered = Rendered::of(enrolment, marks, choice, family);
            let wanted = rendered.rules().len();
            let legacy = (variant == Variant::Legacy)
                .then(|| Legacy::open(family, "nat"))
                .transpose()?;
            let live = live(variant, family, legacy.as_ref())?;
            let ours = live.rules() == wanted && live.has_all_jumps(rendered.captures_queries());
            let live = ours.then_some(live);
            Ok(WrittenFamily {
                family,
                live,
                legacy,
            })
        };
        let all = || {
            captured(enrolment)
                .into_iter()
                .map(read)
                .collect::<io::Result<_>>()
        };
        let families = inside(&enrolment.netns, all)?;
        Ok(Self { variant, families })
    }

    fn difference(&self, netns: &Netns) -> Result<Option<String>, InterceptError> {
        let compare = || -> io::Result<Vec<String>> {
            let mut found = Vec::new();
            for WrittenFamily {
                family,
                live: wanted,
                legacy,
            } in &self.families
            {
                let now = live(self.variant, *family, legacy.as_ref())?;
                let found_here = match wanted {
                    Some(wanted) => wanted.difference(&now),
                    None => Some("they were changed while they were written".into()),
                };
                found.extend(found_here.map(|found| format!("{family:?}: {found}")));
            }
            Ok(found)
        };
        let found = match self.variant {
            Variant::Nft => inside(netns, compare)?,
            // Its sockets know their namespace.
            Variant::Legacy => compare().map_err(|error| failed(netns, error))?,
        };
        Ok((!found.is_empty()).then(|| found.join("; ")))
    }
}

impl Installed {
    pub(super) fn inspect(&self, netns: &Netns, look: Look) -> Result<Vec<Drift>, InterceptError> {
        // Changes of nftables are announced.
        let announced = self.choice.variant == Variant::Nft;
        let open = self.switches.iter().any(|switch| !switch.works());
        if look < Look::Close && announced && !open {
            return Ok(Vec::new());
        }
        if let Some(found) = self.written.difference(netns)? {
            return Ok(vec![Drift::new(Part::Rules, found)]);
        }
        let vanished = "the list that keeps the rules closed has vanished";
        Ok(open
            .then(|| Drift::new(Part::DeadMan, vanished))
            .into_iter()
            .collect())
    }
}

fn live(variant: Variant, family: Family, legacy: Option<&Legacy>) -> io::Result<Live> {
    let mut attempts = 0;
    loop {
        match Live::read(variant, family, legacy) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted && attempts < ATTEMPTS => {
                attempts += 1
            }
            read => return read,
        }
    }
}

fn inside<T>(netns: &Netns, work: impl FnOnce() -> io::Result<T>) -> Result<T, InterceptError> {
    netns
        .enter(work)
        .and_then(|done| done)
        .map_err(|error| failed(netns, error))
}

fn failed(netns: &Netns, error: io::Error) -> InterceptError {
    InterceptError::io("read the rules of", netns.path().display(), error)
}
