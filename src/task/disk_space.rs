//! Free space on a disk, and the budget for files of failed tasks. Blocks.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::statvfs::statvfs;

/// The bytes that an ordinary user may still write to the file system of `path`.
///
/// # Errors
/// Returns the errors of `statvfs`.
pub fn free(path: &Path) -> io::Result<u64> {
    let found = statvfs(path)?;
    // The fields' types differ between platforms.
    #[expect(
        clippy::useless_conversion,
        reason = "32 bits on some platforms, 64 here"
    )]
    let (blocks, size) = (
        u64::from(found.blocks_available()),
        u64::from(found.fragment_size()),
    );
    Ok(blocks.saturating_mul(size))
}

/// The bytes that may still be kept of failed tasks' directories.
#[derive(Debug)]
pub struct DiskBudget(AtomicU64);

impl DiskBudget {
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self(AtomicU64::new(bytes))
    }

    /// Takes `bytes` off the budget, if so many are left.
    pub(super) fn afford(&self, bytes: u64) -> BudgetAnswer {
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(bytes)
            });
        match taken {
            Ok(_) => BudgetAnswer::Yes,
            Err(_) => BudgetAnswer::No,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BudgetAnswer {
    Yes,
    No,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_is_known_and_a_missing_path_is_an_error() {
        assert!(free(Path::new("/")).expect("known") > 0);
        assert!(free(Path::new("/nonexistent/x")).is_err());
    }

    #[test]
    fn a_budget_is_spent_once() {
        let budget = DiskBudget::new(10);
        assert_eq!(budget.afford(7), BudgetAnswer::Yes);
        assert_eq!(budget.afford(4), BudgetAnswer::No);
        assert_eq!(budget.afford(3), BudgetAnswer::Yes);
        assert_eq!(budget.afford(1), BudgetAnswer::No);
    }
}
