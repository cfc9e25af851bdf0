//! The allocator: the C library's, before which workers keep the blocks that HTTP is read into. Each request and each
//! response needs one, and they are too large for what the C library itself keeps by thread: it would merge and split them.
#![expect(unsafe_code, reason = "an allocator is")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::null_mut;

/// Bytes; hyper's read buffer as long as what is read at once is shorter.
const BLOCK: usize = 8 << 10;
/// Of a thread: half a megabyte.
const MOST: usize = 64;
/// The C library's blocks are aligned to so much.
const ALIGNED: usize = align_of::<libc::max_align_t>();

pub(crate) struct Blocks;

/// A block of nobody's.
struct Free {
    next: *mut Self,
}

thread_local! {
    static FIRST: Cell<*mut Free> = const { Cell::new(null_mut()) };
    /// So many more may be kept.
    static ROOM: Cell<usize> = const { Cell::new(0) };
}

/// From now on this thread keeps blocks. One that ends before the process does would leave them behind.
pub(crate) fn keep() {
    ROOM.set(MOST);
}

fn is_block(layout: Layout) -> bool {
    layout.size() == BLOCK && layout.align() <= ALIGNED
}

// SAFETY: all memory is the system allocator's. A block that is kept was given back by whoever had it, is given to one at a
// time, and is as large and as aligned as it was.
unsafe impl GlobalAlloc for Blocks {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_block(layout) {
            let first = FIRST.get();
            if !first.is_null() {
                // SAFETY: it is on this thread's list, so nobody has it and its beginning is what `dealloc` has written.
                FIRST.set(unsafe { (*first).next });
                ROOM.set(ROOM.get() + 1);
                return first.cast();
            }
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if is_block(layout)
            && let Some(room) = ROOM.get().checked_sub(1)
        {
            ROOM.set(room);
            let free = block.cast::<Free>();
            // SAFETY: the caller gives it up; it is large enough, and aligned as all blocks of the C library's.
            unsafe {
                free.write(Free { next: FIRST.get() });
            }
            FIRST.set(free);
            return;
        }
        // SAFETY: the caller's promise; what was kept came from there too.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { System.realloc(block, layout, size) }
    }
}
