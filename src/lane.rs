//! `PerLane`: one copy of something for each of a few threads, so that they do not share cache lines.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Independent copies. Threads take them in turn, so that the first this many have one each.
const LANES: usize = 8;

thread_local! {
    static LANE: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The lane of this thread, the same for its whole life.
pub(crate) fn current() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    LANE.with(|lane| {
        if lane.get() == usize::MAX {
            lane.set(NEXT.fetch_add(1, Ordering::Relaxed) % LANES);
        }
        lane.get()
    })
}

/// One `T` a lane. On the heap, because many of them make a struct too large for a stack.
#[derive(Debug)]
pub(crate) struct PerLane<T>(Box<[Aligned<T>]>);

/// Two lines of 64 bytes, because processors fetch them in pairs.
#[derive(Debug)]
#[repr(align(128))]
struct Aligned<T>(T);

impl<T: Default> Default for PerLane<T> {
    fn default() -> Self {
        PerLane::new(T::default)
    }
}

impl<T> PerLane<T> {
    pub(crate) fn new(make: impl Fn() -> T) -> PerLane<T> {
        PerLane((0..LANES).map(|_| Aligned(make())).collect())
    }

    /// The copy of this thread's lane.
    pub(crate) fn here(&self) -> &T {
        &self.0[current()].0
    }

    /// The copy of lane number `lane`, a value of [`current`].
    pub(crate) fn at(&self, lane: usize) -> &T {
        &self.0[lane].0
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|aligned| &aligned.0)
    }
}
