//! Settings of the pilot's own process.

use std::ops::Range;

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

/// Gives back the memory that an idle pilot doesn't need: free parts of the heap, and the pages of its program,
/// of which the kernel maps 16 for each that is used. Those that are used again come from the page cache.
/// Measured by `scripts/bench`, section c.
pub fn give_idle_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, and only frees what is free.
    unsafe {
        libc::malloc_trim(0);
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    if let Some(code) = mapping_of(&maps, give_idle_memory_back as fn() as usize) {
        // SAFETY: the range is one mapping, of the program's file, and can't be written: its pages are read
        // again from the file. A failure changes nothing.
        unsafe {
            libc::madvise(
                std::ptr::with_exposed_provenance_mut(code.start),
                code.len(),
                libc::MADV_DONTNEED,
            );
        }
    }
}

/// The addresses of the mapping that holds a function, in the text of `/proc/PID/maps` (proc(5)); `None` if it
/// can be written.
fn mapping_of(maps: &str, function: usize) -> Option<Range<usize>> {
    maps.lines().find_map(|line| {
        let (addresses, rest) = line.split_once(' ')?;
        let (start, end) = addresses.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        let range = number(start)?..number(end)?;
        (rest.starts_with("r-xp") && range.contains(&function)).then_some(range)
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_code_of_the_program_is_given_back() {
        let maps = "1000-2000 r--p 00000000 fe:00 7 /x\n2000-5000 r-xp 00001000 fe:00 7 /x\n\
                    5000-6000 rw-p 00004000 fe:00 7 /x\n6000-7000 rwxp 00000000 00:00 0\n";
        assert_eq!(mapping_of(maps, 0x2000), Some(0x2000..0x5000));
        assert_eq!(mapping_of(maps, 0x4fff), Some(0x2000..0x5000));
        for other in [0x1800, 0x5000, 0x6800, 0x9000] {
            assert_eq!(mapping_of(maps, other), None, "{other:x}");
        }
    }

    #[test]
    fn a_process_without_its_idle_memory_goes_on() {
        let before = vec![7_u8; 1 << 20];
        give_idle_memory_back();
        assert_eq!(
            before.iter().map(|byte| u64::from(*byte)).sum::<u64>(),
            7 << 20
        );
    }
}
