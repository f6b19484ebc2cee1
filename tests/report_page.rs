//! The page of `ewms-pilot report --html`, opened in a real browser without network: it shows the same
//! numbers as the tables, fits a phone, and explains a mark when it is tapped.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::report::make_up;
use crate::support::SOON;
use crate::support::scene::Scene;

/// Appended to the page: what a person would try, the results as attributes of the root.
const PROBE: &str = r#"<script>
const root = document.documentElement, note = document.getElementById("note");
root.dataset.overflow = root.scrollWidth - root.clientWidth;
root.dataset.hidden = note.hidden;
const mark = document.querySelector("svg.wide .mark");
mark.dispatchEvent(new MouseEvent("click", { bubbles: true }));
root.dataset.note = note.textContent;
root.dataset.seen = mark.querySelector("title").textContent;
root.dataset.ink = getComputedStyle(document.querySelector(".mark.task")).fill;
root.dataset.bars = document.querySelectorAll("svg.wide rect").length;
root.dataset.charts = document.querySelectorAll("svg.small").length;
</script>"#;

/// What the browser made of a page after its scripts ran.
fn opened(scene: &Scene, page: &str, width: u32) -> String {
    let home = scene.dir().join("browser");
    let output = Command::new("timeout")
        .args([
            "60",
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
        ])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ])
        .arg(format!("--user-data-dir={}", home.display()))
        .arg(format!("--window-size={width},900"))
        .arg("--dump-dom")
        .arg(format!("file://{}", scene.dir().join(page).display()))
        .env("HOME", scene.dir())
        .output()
        .expect("chromium is in the execution point");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The value of an attribute of the root that the probe set.
#[track_caller]
fn probed<'a>(dom: &'a str, name: &str) -> &'a str {
    let start = format!("data-{name}=\"");
    let found = dom
        .split_once(&start)
        .and_then(|(_, rest)| rest.split_once('"'));
    found
        .unwrap_or_else(|| panic!("the probe's script didn't come to `{name}`"))
        .0
}

fn page_of(tasks: u32, pilots: u32) -> (Scene, String) {
    let scene = Scene::new()
        .arg("report")
        .arg(".")
        .arg("--html")
        .arg("page.html");
    make_up(tasks, pilots, scene.dir());
    let outcome = scene.run(SOON + Duration::from_secs(30));
    outcome.assert_code(0);
    let page = fs::read_to_string(scene.dir().join("page.html")).expect("it was written");
    for outside in ["http:", "https:", "src=", "@import", "url("] {
        assert!(
            !page.contains(outside),
            "the page needs nothing from outside: {outside}"
        );
    }
    fs::write(
        scene.dir().join("probe.html"),
        page.replace("</body>", &format!("{PROBE}</body>")),
    )
    .expect("writable");
    (scene, outcome.stdout)
}

#[test]
fn the_browser_shows_the_tables_numbers_and_explains_a_mark_that_is_tapped() {
    let (scene, table) = page_of(1200, 12);
    let dom = opened(&scene, "probe.html", 1200);
    let mut compared = 0;
    for line in table.lines().filter(|line| line.starts_with("  ")) {
        // Errors are longer on the page, and commands stand in a box of their own.
        let cells = line
            .split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty() && cell.len() < 60);
        for cell in cells.filter(|cell| cell.starts_with(|letter: char| letter.is_ascii_digit())) {
            let shown = format!(">{}<", cell.replace('<', "&lt;"));
            assert!(dom.contains(&shown), "the page lacks `{cell}` of `{line}`");
            compared += 1;
        }
    }
    assert!(compared > 60, "only {compared} numbers in:\n{table}");
    assert_eq!(probed(&dom, "hidden"), "true");
    let note = probed(&dom, "note");
    assert!(!note.is_empty() && note == probed(&dom, "seen"), "`{note}`");
    assert!(
        note.contains("task ") && note.contains(".example.org"),
        "the record itself: `{note}`"
    );
    assert_eq!(
        probed(&dom, "ink"),
        "rgb(213, 94, 0)",
        "the style sheet is in force"
    );
    assert_eq!(probed(&dom, "charts"), "3");
}

#[test]
fn with_more_tasks_than_a_screen_has_points_the_page_stays_small_and_fits_a_phone() {
    let (scene, _) = page_of(30_000, 100);
    let dom = opened(&scene, "probe.html", 390);
    assert_eq!(
        probed(&dom, "overflow"),
        "0",
        "nothing sticks out to the right"
    );
    let bars: u32 = probed(&dom, "bars").parse().expect("a number");
    assert!((100..7000).contains(&bars), "{bars} boxes");
    assert!(
        probed(&dom, "note").contains("tasks ran on average"),
        "{}",
        probed(&dom, "note")
    );
}
