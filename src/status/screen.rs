//! Stdout as a person sees it: a terminal of so many columns and rows, or a stream of lines.

use std::io::{self, IsTerminal};

/// Columns where stdout is no terminal.
const COLUMNS: usize = 120;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StatusScreen {
    Terminal { columns: usize, rows: usize },
    Stream,
}

impl StatusScreen {
    pub(super) fn of_stdout() -> Self {
        let stdout = io::stdout();
        if !stdout.is_terminal() {
            return Self::Stream;
        }
        match rustix::termios::tcgetwinsize(&stdout) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => Self::Terminal {
                columns: size.ws_col.into(),
                rows: size.ws_row.into(),
            },
            _ => Self::Stream,
        }
    }

    pub(super) fn columns(self) -> usize {
        match self {
            Self::Terminal { columns, .. } => columns,
            Self::Stream => COLUMNS,
        }
    }

    /// The text in the place of the one before. On a terminal, lines and columns that have no room are cut, because
    /// the cursor couldn't go back to the beginning of a text that scrolled; a stream gets an empty line behind it.
    pub(super) fn frame(self, text: &str) -> String {
        let Self::Terminal { columns, rows } = self else {
            return format!("{text}\n");
        };
        // To the upper left; each line is erased behind its text, then all that is below.
        let mut frame = "\x1b[H".to_owned();
        for line in text.lines().take(rows.saturating_sub(1)) {
            frame.extend(line.chars().take(columns));
            frame.push_str("\x1b[K\n");
        }
        frame + "\x1b[J"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_drawn_from_its_corner_and_never_scrolls() {
        let screen = StatusScreen::Terminal {
            columns: 4,
            rows: 3,
        };
        let frame = screen.frame("one\nlonger\nthird\nfourth\n");
        assert_eq!(frame, "\x1b[Hone\x1b[K\nlong\x1b[K\n\x1b[J");
    }

    #[test]
    fn a_stream_gets_whole_blocks_without_control_characters() {
        let frame = StatusScreen::Stream.frame("one\ntwo\n");
        assert_eq!(frame, "one\ntwo\n\n");
    }
}
