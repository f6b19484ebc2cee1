//! Numbers and texts as people read them: grouped digits, seconds as hours, bytes as GiB, times in UTC, a
//! text of several lines as one. Shared by the commands that print them.

/// The format that a command prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// Lines or tables for a person.
    Text,
    Json,
}

/// `1,234,567`
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 pilot`, `2,000 pilots`
pub(crate) fn counted(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", count(number))
}

/// `34 %`, with a decimal where the number is small.
pub(crate) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let exact = percent == 0.0 || (percent - 100.0).abs() < 1e-9;
    match percent {
        _ if exact => format!("{percent:.0} %"),
        ..0.005 => "< 0.01 %".to_owned(),
        ..0.995 => format!("{percent:.2} %"),
        ..9.95 => format!("{percent:.1} %"),
        // Never 100 % unless it is all.
        99.5.. => format!("{:.1} %", percent.min(99.9)),
        _ => format!("{percent:.0} %"),
    }
}

/// A part of a whole; nothing where there is no whole.
pub(crate) fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        String::new()
    } else {
        percent(as_float(part) / as_float(whole))
    }
}

/// `0.35 s`, `12.3 s`, `4 min 5 s`, `3 h 20 min`, `5 d 3 h`; three or four digits in all.
pub(crate) fn seconds(seconds: f64) -> String {
    let whole = to_integer(seconds);
    match seconds {
        ..9.95 => format!("{seconds:.2} s"),
        ..99.5 => format!("{seconds:.1} s"),
        ..3_600.0 => two(whole, 60, "min", 1, "s"),
        ..172_800.0 => two(whole, 3_600, "h", 60, "min"),
        _ => two(whole, 86_400, "d", 3_600, "h"),
    }
}

/// Like [`seconds`], for a round number: `10 s`, `0.5 s`, `20 min`.
pub(crate) fn round_seconds(value: f64) -> String {
    if value < 99.5 {
        format!("{} s", (value * 1e3).round() / 1e3)
    } else {
        seconds(value)
    }
}

fn two(seconds: u64, large: u64, large_name: &str, small: u64, small_name: &str) -> String {
    let (first, rest) = (seconds / large, seconds % large / small);
    match rest {
        0 => format!("{} {large_name}", count(first)),
        _ => format!("{} {large_name} {rest} {small_name}", count(first)),
    }
}

/// `512 B`, `1.5 GiB`
pub(crate) fn bytes(bytes: f64) -> String {
    let mut value = bytes;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if value < 1023.5 || unit == "TiB" {
            let decimals = usize::from(unit != "B" && value < 99.95);
            return format!("{value:.decimals$} {unit}");
        }
        value /= 1024.0;
    }
    unreachable!("the last unit takes all")
}

/// `2026-11-23 17:31:10`, from seconds since 1970.
pub(crate) fn utc(unix_secs: f64) -> String {
    let (year, month, day, second) = civil(unix_secs);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// Year, month, day and second of the day. (Howard Hinnant's `civil_from_days`, for times after 1970.)
fn civil(unix_secs: f64) -> (u64, u64, u64, u64) {
    let whole = unix_secs.floor().max(0.0);
    let all = to_integer(whole);
    let days = all / 86_400 + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day, all % 86_400)
}

/// Shortens a text to one line of at most `most` characters: its first line, or its first and last, because
/// the last line of a traceback says what happened. An exception group ends in a line of its frame, so such
/// lines are skipped.
pub(crate) fn one_line(text: &str, most: usize) -> String {
    let frame = |c| "+-| ".contains(c);
    let mut lines = text
        .lines()
        .map(|line| line.trim().trim_start_matches("| "))
        .filter(|line| !line.trim_matches(frame).is_empty());
    let first = lines.next().unwrap_or("(no text)");
    let line = match lines.next_back() {
        None => first.to_owned(),
        Some(last) => {
            let room = most.saturating_sub(last.chars().count() + 3).max(most / 3);
            format!("{} … {last}", cut(first, room))
        }
    };
    // Control characters of a task's output would move the cursor.
    cut(&line, most)
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let kept: String = text.chars().take(most.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

#[expect(
    clippy::cast_precision_loss,
    reason = "values stay far below 2^53, or a rounded last digit does no harm"
)]
pub(crate) fn as_float(number: u64) -> f64 {
    number as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rounding is what is wanted, and `as` saturates"
)]
pub(crate) fn to_integer(number: f64) -> u64 {
    number.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits_or_so_and_their_unit() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(count),
            ["0", "999", "1,000", "1,234,567"]
        );
        let found = [0.0, 0.00001, 0.004, 0.034, 0.34, 0.99999, 1.0].map(percent);
        assert_eq!(
            found,
            [
                "0 %", "< 0.01 %", "0.40 %", "3.4 %", "34 %", "99.9 %", "100 %"
            ]
        );
        let found = [0.346, 12.34, 245.0, 3_600.0, 12_000.0, 442_800.0, 1e8].map(seconds);
        assert_eq!(
            found,
            [
                "0.35 s",
                "12.3 s",
                "4 min 5 s",
                "1 h",
                "3 h 20 min",
                "5 d 3 h",
                "1,157 d 9 h"
            ]
        );
        let found = [512.0, 1536.0, 1_073_741_824.0, 2e15].map(bytes);
        assert_eq!(found, ["512 B", "1.5 KiB", "1.0 GiB", "1819 TiB"]);
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        // date -u -d @…
        for (secs, text) in [
            (0.0, "1970-01-01 00:00:00"),
            (951_782_400.0, "2000-02-29 00:00:00"),
            (1_795_455_070.9, "2026-11-23 17:31:10"),
            (4_102_444_799.0, "2099-12-31 23:59:59"),
        ] {
            assert_eq!(utc(secs), text);
        }
    }

    #[test]
    fn a_traceback_in_one_line_shows_its_beginning_and_what_happened() {
        let text = "task failed (exit code 1): Traceback (most recent call last):\n  File \"a.py\"\nValueError: no\n";
        let line = one_line(text, 60);
        assert!(
            line.starts_with("task failed (exit code 1)") && line.ends_with("… ValueError: no"),
            "{line}"
        );
        assert!(line.chars().count() <= 60, "{line}");
        let group = "task failed: + Exception Group Traceback:\n  | many\n  +-+---- 1 ----\n    | ValueError: a\n    +-----\n";
        assert!(one_line(group, 60).ends_with("… ValueError: a"));
        assert_eq!(one_line("\x1b[31mred", 60), "\u{fffd}[31mred");
        assert_eq!(one_line("", 60), "(no text)");
        assert!(one_line(&"x\n".repeat(9), 2).chars().count() <= 2);
    }
}
