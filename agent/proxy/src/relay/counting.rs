//! Which handed-over flows have moved bytes past the agent.
//!
//! To ask flow by flow means a wake-up for each, idle or not. So a worker asks for all of them at once, and wakes those that
//! have moved some.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use shunt_core::sockets::{Accelerator, SocketCookie};

/// How often is looked at living flows.
pub(crate) const COUNT: Duration = Duration::from_secs(8);

/// So many are asked about one by one: the kernel's table is everybody's, and may be large.
const FEW: usize = 256;

/// A worker's handed-over directions, by the socket that sends.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counting(Rc<RefCell<HashMap<SocketCookie, Known>>>);

#[derive(Debug)]
struct Known {
    bytes: u64,
    has_moved: bool,
    waker: Waker,
}

impl Known {
    fn heard(&mut self, bytes: u64) {
        if self.bytes != bytes {
            (self.bytes, self.has_moved) = (bytes, true);
            self.waker.wake_by_ref();
        }
    }
}

impl Counting {
    /// Has `from` been seen to move bytes since this was asked last? If not, `cx` is woken when it is.
    pub(super) fn has_moved(&self, from: SocketCookie, cx: &Context<'_>) -> bool {
        let mut all = self.0.borrow_mut();
        let known = all.entry(from).or_insert_with(|| Known {
            bytes: 0,
            has_moved: false,
            waker: cx.waker().clone(),
        });
        known.waker.clone_from(cx.waker());
        std::mem::take(&mut known.has_moved)
    }

    pub(super) fn forget(&self, from: SocketCookie) {
        self.0.borrow_mut().remove(&from);
    }

    /// Looks at all of them.
    pub(crate) fn look(&self, accelerator: &dyn Accelerator) {
        let mut all = self.0.borrow_mut();
        if all.is_empty() {
            return;
        }
        let looked = if all.len() <= FEW {
            let one = |(from, known): (&SocketCookie, &mut Known)| {
                accelerator
                    .moved(*from)
                    .map(|moved| known.heard(moved.bytes))
            };
            all.iter_mut().try_for_each(one)
        } else {
            accelerator.each_moved(&mut |from, bytes| {
                if let Some(known) = all.get_mut(&from) {
                    known.heard(bytes);
                }
            })
        };
        if let Err(error) = looked {
            tracing::debug!(%error, "what went past is told when its flows end");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io;
    use std::os::fd::BorrowedFd;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};
    use std::task::Wake;

    use shunt_core::sockets::{FarEnd, Moved};

    use super::*;

    /// A kernel that knows only this.
    #[derive(Debug, Default)]
    struct Kernel(Mutex<Vec<(SocketCookie, u64)>>);

    impl Accelerator for Kernel {
        fn far_end(&self, _: BorrowedFd<'_>) -> io::Result<FarEnd> {
            Ok(FarEnd::Unknown)
        }

        fn has_delivered(&self, _: BorrowedFd<'_>, _: u64) -> io::Result<bool> {
            Ok(true)
        }

        fn room(&self, _: BorrowedFd<'_>) -> io::Result<Option<u64>> {
            Ok(None)
        }

        fn hand_over(&self, _: SocketCookie, _: SocketCookie, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn moved(&self, from: SocketCookie) -> io::Result<Moved> {
            let all = self.0.lock().expect("not poisoned");
            let known = all.iter().find(|(cookie, _)| *cookie == from);
            Ok(Moved {
                bytes: known.map_or(0, |(_, bytes)| *bytes),
                messages: 0,
            })
        }

        fn each_moved(&self, told: &mut dyn FnMut(SocketCookie, u64)) -> io::Result<()> {
            let all = self.0.lock().expect("not poisoned");
            all.iter().for_each(|(from, bytes)| told(*from, *bytes));
            Ok(())
        }

        fn was_cut(&self, _: SocketCookie) -> io::Result<bool> {
            Ok(false)
        }

        fn forget(&self, _: SocketCookie) {}
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn only_who_has_moved_is_woken() {
        let (kernel, counting) = (Kernel::default(), Counting::default());
        let woken = [(); 2].map(|()| Arc::new(Woken::default()));
        let has_moved = |at: usize| {
            let waker = Arc::clone(&woken[at]).into();
            counting.has_moved(at as SocketCookie, &Context::from_waker(&waker))
        };
        let times = || {
            woken
                .each_ref()
                .map(|woken| woken.0.load(Ordering::Relaxed))
        };
        let looked = Cell::new(0);
        let look = |moved: [u64; 2]| {
            // 7 is somebody else's.
            let all = vec![(0, moved[0]), (7, looked.get()), (1, moved[1])];
            looked.set(looked.get() + 1);
            *kernel.0.lock().expect("not poisoned") = all;
            counting.look(&kernel);
        };
        assert!(!has_moved(0) && !has_moved(1));
        look([0, 0]);
        assert_eq!(times(), [0, 0]);
        look([5, 0]);
        assert_eq!(times(), [1, 0]);
        assert!(has_moved(0) && !has_moved(0) && !has_moved(1));
        look([5, 9]);
        assert_eq!(times(), [1, 1]);
        counting.forget(0);
        look([6, 9]);
        assert_eq!(times(), [1, 1]);
        assert!(has_moved(1) && !has_moved(0));
    }
}
