//! The inbound hook in a workload's namespace, and the listeners that it leads to.

mod template;

use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{Map, MapData, SockMap};
use shunt_core::flow::Direction;
use shunt_core::sockets::Family;

pub(super) use self::template::Template;
use super::kernel::{Hook, Link};
use super::object::{NOEXIST, exists, failed};
use super::pins::Pins;
use crate::{Enrolment, InterceptError};

/// The inbound hook of one workload. Detaches when dropped.
pub(super) struct Inbound {
    pub(super) link: Option<Link>,
    program: OwnedFd,
    listeners: SockMap<MapData>,
}

impl Inbound {
    /// `None`: it has no inbound listener.
    pub(super) fn attach_to(
        enrolment: &Enrolment,
        template: &Template,
        pins: Option<&Pins>,
    ) -> Result<Option<Self>, InterceptError> {
        if inbound(enrolment).next().is_none() {
            return Ok(None);
        }
        let (program, listeners) = template.load(enrolment.netns.cookie())?;
        let listeners = Map::from_map_data(listeners).and_then(TryInto::try_into);
        let mut filled = Self {
            link: None,
            program,
            listeners: listeners
                .map_err(|error| failed("use the map of inbound listeners", &error))?,
        };
        filled.fill(enrolment)?;
        filled.attach(enrolment, pins)?;
        Ok(Some(filled))
    }

    pub(super) fn is_attached(&self) -> bool {
        let target = self.link.as_ref().map(Link::target);
        target.is_some_and(|target| target.is_ok_and(|inode| inode != 0))
    }

    pub(super) fn has_lost_its_pin(&self) -> bool {
        self.link.as_ref().is_some_and(Link::has_lost_its_pin)
    }

    /// In place of a link that is dead.
    pub(super) fn attach(
        &mut self,
        enrolment: &Enrolment,
        pins: Option<&Pins>,
    ) -> Result<(), InterceptError> {
        // With it its pin goes, which has the same name.
        self.link = None;
        let link = Link::attach(
            self.program.as_fd(),
            enrolment.netns.as_fd(),
            Hook::SkLookup,
        );
        let link = self
            .link
            .insert(link.map_err(|error| failed("attach sk_lookup", &error))?);
        pins.map_or(Ok(()), |pins| {
            pins.pin(link, enrolment.netns.cookie(), "sk_lookup")
        })
    }

    /// Attaches or pins again, if it is not.
    pub(super) fn repair(
        &mut self,
        enrolment: &Enrolment,
        pins: Option<&Pins>,
    ) -> Result<(), InterceptError> {
        if !self.is_attached() || self.has_lost_its_pin() && pins.is_some() {
            return self.attach(enrolment, pins);
        }
        Ok(())
    }

    /// Puts the listeners where the hook finds them. Says how many were not there: a slot cannot be read, only filled
    /// if it is empty.
    pub(super) fn fill(&mut self, enrolment: &Enrolment) -> Result<usize, InterceptError> {
        let mut empty = 0;
        for (index, socket) in inbound(enrolment) {
            match self.listeners.set(index, socket, NOEXIST) {
                Ok(()) => empty += 1,
                Err(error) if exists(&error) => {}
                Err(error) => return Err(failed("note the inbound listener", &error)),
            }
        }
        Ok(empty)
    }
}

/// By slot. One of a SO_REUSEPORT group stands for all: the kernel picks among them by hash.
fn inbound(enrolment: &Enrolment) -> impl Iterator<Item = (u32, &OwnedFd)> {
    let families = [(0, Family::V4), (1, Family::V6)].into_iter();
    families.filter_map(|(index, family)| {
        let listener = enrolment.listener(Direction::Inbound, family)?;
        Some((index, listener.sockets.first()?))
    })
}
