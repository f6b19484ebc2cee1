//! The shapes that charts are made of, as SVG text, and axes with round numbers. Colours come from the style
//! sheet, by class.

use std::fmt::Write as _;

/// A drawing in its own units, scaled to the page.
#[derive(Debug)]
pub(super) struct Drawing {
    width: f64,
    height: f64,
    body: String,
}

/// Marks that differ without colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Triangle,
    Diamond,
    Square,
    Cross,
    Circle,
    Plus,
}

/// Which end of a text is at the given point.
#[derive(Debug, Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Drawing {
    pub(super) fn new(width: f64, height: f64) -> Self {
        Self {
            width,
            height,
            body: String::new(),
        }
    }

    /// A box; a note is shown when it is pointed at.
    pub(super) fn rect(
        &mut self,
        (x, y): (f64, f64),
        (width, height): (f64, f64),
        class: &str,
        note: &str,
    ) {
        let _ = write!(
            self.body,
            r#"<rect x="{}" y="{}" width="{}" height="{}" class="{class}"{}"#,
            Short(x),
            Short(y),
            Short(width),
            Short(height),
            Note("rect", note)
        );
    }

    pub(super) fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), class: &str) {
        let _ = write!(
            self.body,
            r#"<line x1="{}" y1="{}" x2="{}" y2="{}" class="{class}"/>"#,
            Short(x1),
            Short(y1),
            Short(x2),
            Short(y2)
        );
    }

    pub(super) fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let _ = write!(
            self.body,
            r#"<text x="{}" y="{}" text-anchor="{anchor}">{}</text>"#,
            Short(x),
            Short(y),
            Escaped(text)
        );
    }

    /// A mark of this radius around a point.
    pub(super) fn mark(
        &mut self,
        shape: Shape,
        (x, y): (f64, f64),
        r: f64,
        class: &str,
        note: &str,
    ) {
        // Half a side; a square of the same radius would look larger.
        let half = r * 0.85;
        let n = Short;
        let (left, top, right, bottom) = (n(x - half), n(y - half), n(x + half), n(y + half));
        let (up, down, twice) = (n(r), n(-r), n(2.0 * r));
        let path = match shape {
            Shape::Triangle => format!(
                "M{} {}l{up} {}h{}z",
                n(x),
                n(y - r),
                n(1.8 * r),
                n(-2.0 * r)
            ),
            Shape::Diamond => format!(
                "M{} {}l{up} {up}l{down} {up}l{down} {down}z",
                n(x),
                n(y - r)
            ),
            Shape::Square => format!("M{left} {top}H{right}V{bottom}H{left}z"),
            Shape::Circle => {
                format!(
                    "M{} {}a{up} {up} 0 1 0 {twice} 0a{up} {up} 0 1 0 {} 0z",
                    n(x - r),
                    n(y),
                    n(-2.0 * r)
                )
            }
            Shape::Cross => format!("M{left} {top}L{right} {bottom}M{left} {bottom}L{right} {top}"),
            Shape::Plus => format!(
                "M{} {}h{twice}M{} {}v{twice}",
                n(x - r),
                n(y),
                n(x),
                n(y - r)
            ),
        };
        let is_line = matches!(shape, Shape::Cross | Shape::Plus);
        // The edge around a mark would hide a small one.
        let size = if r < 2.5 { " small" } else { "" };
        let kind = if is_line { " stroked" } else { size };
        let _ = write!(
            self.body,
            r#"<path d="{path}" class="mark {class}{kind}"{}"#,
            Note("path", note)
        );
    }

    /// The finished element; `label` describes it for screen readers, `class` sizes it.
    pub(super) fn finish(self, class: &str, label: &str) -> String {
        format!(
            r#"<svg class="{class}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>"#,
            Short(self.width),
            Short(self.height),
            Escaped(label),
            self.body
        )
    }
}

/// A number without digits too small to see.
struct Short(f64);

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rounded = (self.0 * 10.0).round() / 10.0;
        // No "-0".
        write!(f, "{}", rounded + 0.0)
    }
}

/// The rest of an element after its attributes.
struct Note<'a>(&'static str, &'a str);

impl std::fmt::Display for Note<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(element, text) = self;
        if text.is_empty() {
            f.write_str("/>")
        } else {
            write!(f, "><title>{}</title></{element}>", Escaped(text))
        }
    }
}

/// Escapes text for HTML and attributes.
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\n' | '\t' => f.write_char(letter)?,
                letter if letter.is_control() => f.write_char('\u{fffd}')?,
                letter => f.write_char(letter)?,
            }
        }
        Ok(())
    }
}

/// The smallest round step (1, 2 or 5 times a power of ten) that divides `range` into at most `most` parts.
pub(super) fn round_step(range: f64, most: f64) -> f64 {
    let wanted = (range / most).max(1e-9);
    let power = 10_f64.powf(wanted.log10().floor());
    let digits = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power);
    digits
        .into_iter()
        .find(|step| *step >= wanted * 0.999_999)
        .unwrap_or(10.0 * power)
}

/// The smallest step of clocks and calendars, in seconds, that divides `range` into at most `most` parts.
pub(super) fn time_step(range: f64, most: f64) -> f64 {
    const STEPS: [f64; 19] = [
        1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_200.0, 1_800.0, 3_600.0,
        7_200.0, 10_800.0, 21_600.0, 43_200.0, 86_400.0, 604_800.0,
    ];
    let wanted = range / most;
    let days = (wanted / 86_400.0).ceil() * 86_400.0;
    STEPS
        .into_iter()
        .find(|step| *step >= wanted * 0.999_999)
        .unwrap_or(days)
}

/// Multiples of `step` from the first that isn't below `from` to the last that isn't above `to`.
pub(super) fn multiples(from: f64, to: f64, step: f64) -> impl Iterator<Item = f64> {
    let first = (from / step).ceil();
    (0..)
        .map(move |number| (first + f64::from(number)) * step)
        .take_while(move |value| *value <= to + step * 1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_and_no_more_than_wanted() {
        let found = [(10.0, 5.0), (11.0, 5.0), (0.3, 5.0), (1_000_000.0, 4.0)]
            .map(|(range, most)| round_step(range, most));
        for (step, expected) in found.iter().zip([2.0, 5.0, 0.1, 500_000.0]) {
            assert!(
                (step - expected).abs() < 1e-9 * expected,
                "{step} for {expected}"
            );
        }
        let found =
            [(50.0, 6.0), (86_400.0, 8.0), (1e9, 8.0)].map(|(range, most)| time_step(range, most));
        assert!(
            (found[0] - 10.0).abs() < 1e-9 && (found[1] - 10_800.0).abs() < 1e-9,
            "{found:?}"
        );
        assert!(
            1e9 / found[2] <= 8.0 && (found[2] % 86_400.0).abs() < 1e-9,
            "{found:?}"
        );
    }

    #[test]
    fn multiples_hold_both_ends() {
        let found: Vec<f64> = multiples(10.0, 30.0, 10.0).collect();
        assert_eq!(found, [10.0, 20.0, 30.0]);
        assert_eq!(multiples(11.0, 19.0, 10.0).count(), 0);
    }

    #[test]
    fn what_a_task_says_stays_text() {
        let mut drawing = Drawing::new(10.0, 10.0);
        drawing.rect(
            (0.0, 0.04),
            (1.26, 1.0),
            "done",
            "</title><script>alert('x')</script>\u{1b}",
        );
        let svg = drawing.finish("wide", "a \"chart\"");
        assert!(
            !svg.contains("<script") && svg.contains("&lt;script&gt;alert(&#39;x&#39;)"),
            "{svg}"
        );
        assert!(
            svg.contains(r#"aria-label="a &quot;chart&quot;""#) && svg.contains(r#"width="1.3""#),
            "{svg}"
        );
    }
}
