//! How many threads there are for work that may block. The code under test is the product's own file.

mod sync {
    pub use std::sync::{Mutex, MutexGuard};
}
#[path = "../../src/storage/ready.rs"]
#[allow(clippy::duplicate_mod, reason = "handover builds it on another mutex")]
#[allow(dead_code, reason = "the checks do not need every function")]
mod ready;

use std::time::Instant;

use ready::{Call, IN_LINE, LINGERING_MAX, Ready, SIDE_BY_SIDE, SLOW_AFTER};

fn never() -> bool {
    panic!("there is work")
}

/// Broken, a slow disk would make everybody wait in line behind a few files, or a quick one would
/// get more threads than do it good.
#[test]
fn a_few_threads_while_they_come_back_and_more_when_they_do_not() {
    let ready = Ready::new();
    let now = Instant::now();
    for n in 0..SIDE_BY_SIDE.quick {
        assert_eq!(ready.put(n, now, SIDE_BY_SIDE), Call::New);
        assert_eq!(ready.take(now, never), Some(n));
    }
    assert_eq!(ready.put(100, now, SIDE_BY_SIDE), Call::Nobody, "all have just been here");
    let now = now + SLOW_AFTER;
    assert_eq!(ready.call(now, SIDE_BY_SIDE), Call::New, "nobody has come for it");
    assert_eq!(ready.put(101, now, SIDE_BY_SIDE), Call::New);
    assert_eq!((ready.take(now, never), ready.take(now, never)), (Some(100), Some(101)));
    // Now one comes back.
    assert_eq!(ready.put(102, now, SIDE_BY_SIDE), Call::Nobody);
    assert_eq!(ready.take(now, never), Some(102));
}

/// Broken, a thread would be woken although one is awake, or more would look around than is good.
#[test]
fn who_looks_around_gets_what_comes_and_ends_when_nothing_does() {
    let ready = Ready::new();
    let now = Instant::now();
    assert_eq!(ready.put(1, now, SIDE_BY_SIDE), Call::New);
    assert_eq!(ready.take(now, never), Some(1));
    let mut looks = 0;
    let look_again = || {
        looks += 1;
        if looks == 3 {
            assert_eq!(ready.put(2, now, SIDE_BY_SIDE), Call::Sleeper, "one is looking, or sleeps");
            assert_eq!(ready.put(3, now, SIDE_BY_SIDE), Call::New, "but only one");
        }
        true
    };
    assert_eq!(ready.take(now, look_again), Some(2));
    assert_eq!(ready.take(now, never), Some(3));
    // Two threads: both look around, and end.
    let inner = || {
        assert_eq!(ready.take(now, || false), None);
        false
    };
    assert_eq!(ready.take(now, inner), None);
    assert_eq!(ready.put(4, now, SIDE_BY_SIDE), Call::New, "nobody is left");
    ready.died();
    assert_eq!(ready.call(now, SIDE_BY_SIDE), Call::New, "the one that was to come for it has died");
}

/// Broken, threads that have ended, or died, would count for ever, and work would wait for them.
#[test]
fn who_has_ended_counts_no_more() {
    let ready = Ready::new();
    let now = Instant::now();
    for dies in [false, true] {
        for n in 0..SIDE_BY_SIDE.quick {
            assert_eq!(ready.put(n, now, SIDE_BY_SIDE), Call::New);
            assert_eq!(ready.take(now, never), Some(n));
        }
        for _ in 0..SIDE_BY_SIDE.quick {
            if dies { ready.died() } else { assert_eq!(ready.take(now, || false), None) }
        }
    }
    for n in 0..SIDE_BY_SIDE.quick {
        assert_eq!(ready.put(n, now, SIDE_BY_SIDE), Call::New, "{n} of none");
    }
    assert_eq!(ready.put(SIDE_BY_SIDE.quick, now, SIDE_BY_SIDE), Call::Nobody);
}

/// Broken, small work would take a processor from who syncs, or wait behind a disk that hangs.
#[test]
fn work_in_line_waits_for_who_syncs_unless_that_takes_long() {
    let ready = Ready::new();
    let now = Instant::now();
    let later = now + SLOW_AFTER;
    assert_eq!(ready.put(1, now, IN_LINE), Call::New);
    assert_eq!(ready.take(now, never), Some(1));
    assert_eq!(ready.put(2, now, IN_LINE), Call::Nobody, "the one that syncs comes back");
    assert_eq!(ready.call(later, IN_LINE), Call::New, "it did not");
    assert_eq!(ready.take(later, never), Some(2));
    let mut looks = 0;
    let look_again = || {
        looks += 1;
        if looks == 2 {
            assert_eq!(ready.put(3, now, IN_LINE), Call::Nobody, "nobody is woken for it");
            assert_eq!(ready.call(later, IN_LINE), Call::Nobody, "two were at work a moment ago");
            let much_later = later + 2 * SLOW_AFTER;
            assert_eq!(ready.call(much_later, IN_LINE), Call::Sleeper);
            assert_eq!(ready.call(now, SIDE_BY_SIDE), Call::Sleeper);
        }
        true
    };
    // The second thread has nothing to do, while the first one syncs.
    assert_eq!(ready.take(later, look_again), Some(3));
}

/// Broken, an event would wait until megabytes of another domain are on the disk.
#[test]
fn nobody_waits_for_a_thread_that_is_away() {
    let ready = Ready::new();
    let now = Instant::now();
    assert_eq!(ready.put(1, now, SIDE_BY_SIDE), Call::New);
    assert_eq!(ready.take(now, never), Some(1));
    assert_eq!(ready.leaves(now), Call::Nobody, "nothing is left lying");
    assert_eq!(ready.put(2, now, IN_LINE), Call::New);
    assert_eq!(ready.take(now, never), Some(2));
    assert_eq!(ready.put(3, now, IN_LINE), Call::Nobody, "the second one comes back");
    assert_eq!(ready.leaves(now), Call::New, "it does not");
    ready.returns();
    ready.returns();
    assert_eq!(ready.put(4, now, IN_LINE), Call::Nobody);
}

#[test]
fn no_more_than_two_look_around() {
    let ready = Ready::new();
    let now = Instant::now();
    for n in 0..=LINGERING_MAX {
        assert_eq!(ready.put(n, now, SIDE_BY_SIDE), Call::New);
    }
    (0..=LINGERING_MAX).for_each(|n| assert_eq!(ready.take(now, never), Some(n)));
    let third = || {
        assert_eq!(ready.take(now, never), None);
        false
    };
    let second = || {
        assert_eq!(ready.take(now, third), None);
        false
    };
    // The innermost of three does not look, so it cannot panic.
    assert_eq!(ready.take(now, second), None);
}
