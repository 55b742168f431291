//! The binary: everything is in the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// For what C allocates, which are the windows of zstd, up to 8 MiB: so large ones go back to the system at once.
const LARGE_BLOCK_BYTES: std::ffi::c_int = 256 << 10;

fn main() -> ExitCode {
    // Refused, the service runs all the same, with more memory.
    let _ = leitstand_malloc::give_back_blocks_of(LARGE_BLOCK_BYTES);
    leitstand::cli::run()
}
