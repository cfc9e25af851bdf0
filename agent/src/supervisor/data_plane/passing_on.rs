//! Data planes that go on under another supervisor.

use std::io;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::DataPlane;
use super::plane::{Brought, Plane};
use crate::will::{self, Leaving};

impl DataPlane {
    /// Goes on with those of the supervisor before this one.
    ///
    /// # Errors
    /// One of them did not come whole.
    pub(in crate::supervisor) fn adopt(
        &mut self,
        left: Vec<will::Plane>,
        workers: usize,
        next: u64,
        brought: Brought,
    ) -> Result<()> {
        self.next = next;
        for left in left {
            let retires_in = left.retires_in_ms.map(Duration::from_millis);
            let plane = Plane::adopt(left, workers, brought.clone())?;
            match retires_in {
                Some(time) => self.retired.push((plane, Instant::now() + time)),
                None => self.serving = Some(plane),
            }
        }
        Ok(())
    }

    /// For the next supervisor, with the number of the next one. `None`: one of them does not read its messages.
    ///
    /// # Errors
    /// Descriptors ran out.
    pub(in crate::supervisor) fn bequeath(
        &self,
        leaving: &mut Leaving,
    ) -> io::Result<Option<(Vec<will::Plane>, u64)>> {
        let serving = self.serving.iter().map(|plane| (plane, None));
        let retired = self.retired.iter().map(|(plane, until)| {
            let time = until.saturating_duration_since(Instant::now());
            (plane, Some(time))
        });
        let all = serving.chain(retired);
        let left: io::Result<Option<Vec<_>>> = all
            .map(|(plane, time)| plane.bequeath(leaving, time))
            .collect();
        Ok(left?.map(|planes| (planes, self.next)))
    }

    /// Does one serve that the supervisor before this one has started?
    pub(in crate::supervisor) fn serves_adopted(&self) -> bool {
        self.serving.as_ref().is_some_and(Plane::is_adopted)
    }
}
