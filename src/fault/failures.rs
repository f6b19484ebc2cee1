//! All failed tasks of one pilot, in memory that does not grow with their number.

use super::TaskError;

/// How many failures [`Failures::fatal_line`] lists, and how many different ones are counted separately.
const LISTED: usize = 100;
/// How many bytes of a failure's text are kept. A Python traceback has a few thousand.
const TEXT_BYTES: usize = 8 * 1024;

/// Counts every failure. Keeps the first 100 in order, and the counts of the first 100 different ones, in at
/// most 800 KiB.
#[derive(Debug, Default)]
pub struct Failures {
    total: u64,
    /// Different texts in the order of their first appearance, with their counts.
    distinct: Vec<(String, u64)>,
    /// The first failures, as indices into `distinct`.
    first: Vec<usize>,
}

impl Failures {
    pub fn record(&mut self, error: &TaskError) {
        self.total += 1;
        let text = shorten(error.repr());
        let known = self.distinct.iter().position(|(known, _)| *known == text);
        let place = match known {
            Some(place) => place,
            None if self.distinct.len() < LISTED => {
                self.distinct.push((text, 0));
                self.distinct.len() - 1
            }
            None => return,
        };
        self.distinct[place].1 += 1;
        if self.first.len() < LISTED {
            self.first.push(place);
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// The different failures with their counts, the most frequent first.
    #[must_use]
    pub fn by_frequency(&self) -> Vec<(&str, u64)> {
        let mut counted: Vec<_> = self
            .distinct
            .iter()
            .map(|(text, count)| (text.as_str(), *count))
            .collect();
        counted.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        counted
    }

    /// The pilot's last line, `RuntimeError: N TASK(S) FAILED: …`, as the Python pilot writes it. Of more
    /// than 100 failures it lists the first 100, then `… and N more`. `None` without failures.
    #[must_use]
    pub fn fatal_line(&self) -> Option<String> {
        if self.is_empty() {
            return None;
        }
        let mut parts: Vec<String> = self
            .first
            .iter()
            .map(|&place| self.distinct[place].0.clone())
            .collect();
        let unlisted = self.total - self.first.len() as u64;
        if unlisted > 0 {
            parts.push(format!("… and {unlisted} more"));
        }
        let (total, list) = (self.total, parts.join(", "));
        Some(format!("RuntimeError: {total} TASK(S) FAILED: {list}"))
    }
}

/// Cuts the middle: a text starts with the error's name and ends with the last line of a traceback.
fn shorten(text: String) -> String {
    if text.len() <= TEXT_BYTES {
        return text;
    }
    let head = text.floor_char_boundary(TEXT_BYTES / 4);
    let tail = text.ceil_char_boundary(text.len() - TEXT_BYTES * 3 / 4);
    format!("{} … {}", &text[..head], &text[tail..])
}
