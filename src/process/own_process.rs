//! Settings of the pilot's own process.

use nix::libc;
use nix::sys::signal::{self, SigHandler, Signal};

/// Makes the allocator return the memory of large buffers as soon as they are freed, and share one heap
/// between all threads. By default it keeps such memory for each thread: measured with events of 16 MiB,
/// twice as much. Call this before any thread starts.
pub fn spare_memory() {
    /// From this size on, in bytes, the kernel grows buffers without a copy and takes them back.
    const LARGE: libc::c_int = 256 * 1024;
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers; a value that it refuses changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Makes this process survive a limit on the size of files, which batch systems set. A write beyond the limit
/// raises `SIGXFSZ`; if that is ignored, it fails with `EFBIG`. Children get the default disposition back, as
/// for all signals.
pub fn survive_file_size_limit() {
    // SAFETY: no handler is installed, only a disposition. It can't fail: the signal exists.
    let _ = unsafe { signal::signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
}

/// Protects the memory of this process, which holds tokens, from other processes of the same user and from
/// core files, as far as the kernel allows. An exec resets the setting, so children have the job's own.
pub fn keep_memory_private() {
    // Only a seccomp filter refuses this; the memory is then as readable as before.
    let _ = nix::sys::prctl::set_dumpable(false);
}
