//! Settings of the pilot's own process.

use nix::libc;
use nix::sys::signal::{self, SigHandler, Signal};

/// Makes the allocator give the memory of large buffers back as soon as they are freed, and share one
/// heap between all threads. By default it keeps what it once had of them, for each thread: measured
/// with events of 16 MiB, twice as much. To be called before there are threads.
pub fn spare_memory() {
    /// Buffers from this size on are the kernel's to grow, without a copy, and to take back.
    const LARGE: libc::c_int = 256 * 1024;
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers; a value that it refuses changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Makes this process one that a limit on the size of files doesn't end: batch systems set one, and the
/// kernel's answer to a file that grows beyond it is `SIGXFSZ`, unless that is ignored; then it is
/// `EFBIG`. Children get the default back, like that of all signals.
pub fn survive_file_size_limit() {
    // SAFETY: no handler is installed, only a disposition. It can't fail: the signal exists.
    let _ = unsafe { signal::signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
}

/// Keeps the memory of this process, which holds tokens, from other processes of the same user, and out
/// of core files, where the kernel lets us say so. A program that is executed begins anew, so that
/// children keep what the job had.
pub fn keep_memory_private() {
    // Refused by a seccomp filter at most: then all is as it would be without.
    let _ = nix::sys::prctl::set_dumpable(false);
}
