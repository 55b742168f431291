//! `Domains`: how many domains have a file, and whether there may be one more.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::disk::Disk;
use super::error::StoreError;

/// Counts data files without a listing for each append: once at the start, then those that this process
/// makes. Files that others make or remove are seen with the next count, see [`Domains::count_anew`].
#[derive(Debug)]
pub(crate) struct Domains {
    count: AtomicUsize,
    max: usize,
}

impl Domains {
    pub(crate) fn new(max: usize) -> Domains {
        Domains { count: AtomicUsize::new(0), max }
    }

    /// A place for one more domain, whose file is about to be made.
    ///
    /// # Errors
    /// [`StoreError::TooManyDomains`]; nothing was written, and the count stays as it was.
    pub(crate) fn take(&self) -> Result<(), StoreError> {
        let free = |count| (count < self.max).then_some(count + 1);
        match self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free) {
            Ok(_) => Ok(()),
            Err(_) => Err(StoreError::TooManyDomains { domains_max: self.max }),
        }
    }

    /// Somebody else has taken the place for the same domain.
    pub(crate) fn give_back(&self) {
        // The count may have begun anew meanwhile.
        let _ = self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// Is it time to look whether somebody has made room?
    pub(crate) fn is_full(&self) -> bool {
        self.count() >= self.max
    }

    /// Lists the data directory. If it does not say, the old count stays. A file that is made meanwhile may be
    /// counted twice, until the next count.
    pub(crate) fn count_anew(&self, disk: &impl Disk) {
        let before = self.count();
        if let Ok(Some(counted)) = disk.data_files() {
            let made = self.count().saturating_sub(before);
            self.count.store(counted + made, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, one domain more than allowed could be made, or one less.
    #[test]
    fn places_are_taken_up_to_the_maximum() {
        let domains = Domains::new(2);
        assert!(domains.take().is_ok() && !domains.is_full() && domains.take().is_ok() && domains.is_full());
        assert!(matches!(domains.take(), Err(StoreError::TooManyDomains { domains_max: 2 })));
        assert_eq!(domains.count(), 2, "a refusal takes nothing");
        domains.give_back();
        assert!(domains.take().is_ok());
        (0..3).for_each(|_| domains.give_back());
        assert_eq!(domains.count(), 0);
    }
}
