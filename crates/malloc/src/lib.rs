//! One number of the allocator of glibc, set by a safe function.
//!
//! A crate of its own, because the service forbids `unsafe` and the libraries that it uses do not offer this call.
//! There is one `unsafe` block here, around one call that takes no pointer.

use std::ffi::c_int;

/// From now on, what C code allocates in blocks of `bytes` and more goes back to the system when it is freed.
///
/// By itself glibc raises this bound to the largest block that was freed, and then each thread keeps one
/// (`M_MMAP_THRESHOLD` in mallopt(3)). What Rust allocates is not concerned where another allocator serves it.
///
/// False: the bound stays as it was, because it was refused or because the C library is another one. Memory that is
/// freed may then be kept; nothing else changes.
pub fn give_back_blocks_of(bytes: c_int) -> bool {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: the call takes no pointer; it changes a number of the allocator, under its lock.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, bytes) == 1 }
    }
    #[cfg(not(target_env = "gnu"))]
    {
        let _ = bytes;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, glibc would have been asked for something that it does not know.
    #[test]
    fn glibc_takes_it_and_others_are_not_asked() {
        assert_eq!(give_back_blocks_of(256 << 10), cfg!(target_env = "gnu"));
    }
}
