//! Buffers that belong to a worker, not to a connection: leased while bytes move, given back when none do.

use std::cell::RefCell;
use std::rc::Rc;

/// Sizes in bytes. A direction starts with the first and goes on to the next when a read fills its buffer.
const SIZES: [usize; 4] = [4 << 10, 16 << 10, 64 << 10, 256 << 10];
/// Free memory kept per size, so that a burst does not stay for ever.
const KEPT_BYTES: usize = 2 << 20;

/// Free buffers of one size.
type Shelf = Vec<Box<[u8]>>;

/// A worker's pool.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffers {
    free: Rc<RefCell<[Shelf; SIZES.len()]>>,
}

/// How large a direction's buffers are by now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size(usize);

impl Size {
    pub(crate) fn grow(&mut self) {
        self.0 = (self.0 + 1).min(SIZES.len() - 1);
    }
}

/// A buffer on loan.
#[derive(Debug)]
pub(crate) struct Lease {
    bytes: Option<Box<[u8]>>,
    size: Size,
    pool: Buffers,
}

impl Buffers {
    pub(crate) fn lease(&self, size: Size) -> Lease {
        let free = self.free.borrow_mut()[size.0].pop();
        let bytes = free.unwrap_or_else(|| vec![0; SIZES[size.0]].into_boxed_slice());
        Lease {
            bytes: Some(bytes),
            size,
            pool: self.clone(),
        }
    }

    #[cfg(test)]
    pub(crate) fn free_bytes(&self) -> usize {
        self.free
            .borrow()
            .iter()
            .flatten()
            .map(|bytes| bytes.len())
            .sum()
    }
}

impl Lease {
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        self.bytes.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut free = self.pool.free.borrow_mut();
        let shelf = &mut free[self.size.0];
        if (shelf.len() + 1) * SIZES[self.size.0] <= KEPT_BYTES {
            shelf.extend(self.bytes.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_used_again_and_bounded() {
        let pool = Buffers::default();
        let mut size = Size::default();
        drop(pool.lease(size));
        assert_eq!(pool.free_bytes(), SIZES[0]);
        drop(pool.lease(size));
        assert_eq!(pool.free_bytes(), SIZES[0]);
        (0..10).for_each(|_| size.grow());
        let many: Vec<Lease> = (0..100).map(|_| pool.lease(size)).collect();
        drop(many);
        assert!(pool.free_bytes() <= KEPT_BYTES + SIZES[0]);
    }
}
