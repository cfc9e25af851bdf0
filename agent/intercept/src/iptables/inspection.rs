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
    /// Of the legacy table, when it was last as it should be.
    outline: Option<Vec<u8>>,
}

impl Written {
    pub(super) fn read(
        enrolment: &Enrolment,
        choice: &Choice,
        marks: Marks,
    ) -> Result<Self, InterceptError> {
        let variant = choice.variant;
        let read = |family| {
            let wanted = Rendered::of(enrolment, marks, choice.dead_man, family)
                .rules()
                .len();
            let legacy = (variant == Variant::Legacy)
                .then(|| Legacy::open(family, "nat"))
                .transpose()?;
            let outline = legacy.as_ref().map(Legacy::outline).transpose()?;
            let live = live(variant, family, legacy.as_ref())?;
            let ours = live.rules() == wanted && live.has_all_jumps();
            let live = ours.then_some(live);
            Ok(WrittenFamily {
                family,
                outline: outline.filter(|_| live.is_some()),
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

    fn difference(&mut self, netns: &Netns, look: Look) -> Result<Option<String>, InterceptError> {
        let (variant, families) = (self.variant, &mut self.families);
        let mut compare = || {
            let found = families
                .iter_mut()
                .map(|family| family.difference(variant, look));
            found.collect::<io::Result<Vec<Option<String>>>>()
        };
        let found = match variant {
            Variant::Nft => inside(netns, compare)?,
            // Its sockets know their namespace.
            Variant::Legacy => compare().map_err(|error| failed(netns, error))?,
        };
        let found: Vec<String> = found.into_iter().flatten().collect();
        Ok((!found.is_empty()).then(|| found.join("; ")))
    }
}

impl WrittenFamily {
    fn difference(&mut self, variant: Variant, look: Look) -> io::Result<Option<String>> {
        let outline = self.legacy.as_ref().map(Legacy::outline).transpose()?;
        if look == Look::Glance && outline.is_some() && outline == self.outline {
            return Ok(None);
        }
        let now = live(variant, self.family, self.legacy.as_ref())?;
        let found = match &self.live {
            Some(wanted) => wanted.difference(&now),
            None => Some("they were changed while they were written".into()),
        };
        // Read before the rules: what comes after is seen at the next look.
        self.outline = outline.filter(|_| found.is_none());
        Ok(found.map(|found| format!("{:?}: {found}", self.family)))
    }
}

impl Installed {
    pub(super) fn inspect(
        &mut self,
        netns: &Netns,
        look: Look,
    ) -> Result<Vec<Drift>, InterceptError> {
        // Changes of nftables are announced.
        let announced = self.choice.variant == Variant::Nft;
        let open = self.switches.iter().any(|switch| !switch.works());
        if look < Look::Close && announced && !open {
            return Ok(Vec::new());
        }
        if let Some(found) = self.written.difference(netns, look)? {
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
