//! The maps of L4 services. A service's endpoints are a numbered set: changed ones are written beside those in force,
//! and swapped in with the service's one value.

/// Value of `SERVICES`, by address and port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// [`EndpointKey::set`].
    pub endpoints: u32,
    /// How many; 0: connections are refused.
    pub count: u32,
    /// Key of `TURNS`, where all of a service's addresses of one family meet; 0: endpoints are chosen at random.
    pub turns: u32,
}

/// Key of `ENDPOINTS`. Value: where it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointKey {
    pub set: u32,
    /// From 0.
    pub index: u32,
}

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "promising the kernel that there is no padding")]
mod pod {
    // SAFETY: repr(C), words of one size only.
    unsafe impl aya::Pod for super::Service {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::EndpointKey {}
}
