//! The binary: everything is in the library.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// For what C allocates, which are the windows of zstd: so large ones, up to 8 MiB, go back to the system when they are
/// freed. By itself glibc raises this bound to the largest that was freed, and then each thread keeps one.
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD_BYTES: std::ffi::c_int = 256 << 10;

#[cfg(target_env = "gnu")]
fn give_large_blocks_back() {
    /// `M_MMAP_THRESHOLD` of malloc.h.
    const M_MMAP_THRESHOLD: std::ffi::c_int = -3;
    // SAFETY: the signature is that of mallopt(3). It changes a number of the allocator under its lock.
    unsafe extern "C" {
        safe fn mallopt(param: std::ffi::c_int, value: std::ffi::c_int) -> std::ffi::c_int;
    }
    // Refused, the service runs all the same, with more memory.
    let _ = mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES);
}

fn main() -> ExitCode {
    #[cfg(target_env = "gnu")]
    give_large_blocks_back();
    leitstand::cli::run()
}
