//! The page of `ewms-pilot report --html`, opened in a real browser without network: it shows the same
//! numbers as the tables, fits a phone, sorts its tables, and explains a mark when it is tapped.

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
const sizes = [...document.querySelectorAll("svg text")].map((text) => Math.round(text.getScreenCTM().a * parseFloat(getComputedStyle(text).fontSize)));
root.dataset.type = [...new Set(sizes)].join(" ");
root.dataset.lanes = [...document.querySelectorAll(".lane")].map((lane) => lane.textContent).join(";");
const column = (table, name) => [...table.rows].map((row) => row.cells[[...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === name)].textContent);
const sites = [...document.querySelectorAll("section")].find((section) => section.querySelector("h2").textContent === "Sites").querySelector("table");
root.dataset.heads = [...sites.tHead.rows[0].cells].map((cell) => cell.textContent).join(";");
[...sites.tHead.rows[0].cells].find((cell) => cell.textContent === "done").querySelector("button").click();
root.dataset.most = column(sites, "done").slice(1).join(";");
sites.tHead.rows[0].cells[0].querySelector("button").click();
root.dataset.first = column(sites, "site").slice(1).join(";");
const lines = (cell) => cell.getBoundingClientRect().height / parseFloat(getComputedStyle(cell).lineHeight);
root.dataset.broken = [...document.querySelectorAll("td.name")].filter((cell) => lines(cell) > 2).length;
document.querySelector("[data-copies]").click();
root.dataset.copied = getSelection().toString();
root.dataset.hint = getComputedStyle(document.querySelector(".hint")).display;
const names = document.querySelector(".names"), scroller = names.parentElement;
const before = names.getBoundingClientRect().left;
scroller.scrollLeft = 300;
root.dataset.scrolled = scroller.scrollLeft;
root.dataset.moved = names.getBoundingClientRect().left - before;
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
    assert_eq!(probed(&dom, "charts"), "2");
    assert_eq!(probed(&dom, "type"), "12", "equal in all charts");
    assert_eq!(probed(&dom, "hint"), "none", "all of it is seen");
}

#[test]
fn the_page_names_the_bad_site_with_the_evidence_and_copies_what_to_paste() {
    let (scene, table) = page_of(1200, 12);
    let dom = opened(&scene, "probe.html", 1200);
    let evidence = "<li><b>SITE-03</b>: 33 of 98 tasks failed by its machines, elsewhere 0 % (p&nbsp;&lt;&nbsp;0.001)</li>";
    assert!(
        dom.contains(evidence),
        "{}",
        dom.split("<li>").nth(1).unwrap_or_default()
    );
    let pasted = table
        .lines()
        .find(|line| line.starts_with("condor_submit excluded_sites=SITE-03 "))
        .expect("what to paste");
    assert_eq!(probed(&dom, "copied").replace("&quot;", "\""), pasted);
    // A pilot has four slots and one name; the one with the most faults is first.
    let lanes: Vec<&str> = probed(&dom, "lanes").split(';').collect();
    assert_eq!(lanes.len(), 48);
    assert_eq!(lanes[..5], ["h0 · job 4711.3", "", "", "", lanes[4]]);
    assert_eq!(lanes.iter().filter(|name| !name.is_empty()).count(), 12);
    assert!(
        probed(&dom, "heads").starts_with("site;failure rate;"),
        "{}",
        probed(&dom, "heads")
    );
}

#[test]
fn the_heading_is_the_title_or_else_the_taskforce() {
    let heading = |arguments: &[&str]| {
        let scene = Scene::new()
            .arg("report")
            .arg(".")
            .arg("--html")
            .arg("page.html");
        let scene = arguments.iter().fold(scene, Scene::arg);
        make_up(3, 1, scene.dir());
        scene.run(SOON).assert_code(0);
        let page = fs::read_to_string(scene.dir().join("page.html")).expect("it was written");
        let (_, rest) = page.split_once("<h1>").expect("a heading");
        rest.split_once("</h1>").expect("its end").0.to_owned()
    };
    assert_eq!(heading(&[]), "Taskforce tf-sky-7");
    assert_eq!(heading(&["--title", "Sky <7>"]), "Sky &lt;7&gt;");
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
    let numbers: Vec<u32> = probed(&dom, "most")
        .split(';')
        .map(|cell| cell.replace(',', "").parse().expect("a number"))
        .collect();
    assert!(
        numbers.len() == 12 && numbers.is_sorted_by(|left, right| left >= right),
        "{numbers:?}"
    );
    assert!(numbers[0] > 1000, "{numbers:?}");
    let names: Vec<&str> = probed(&dom, "first").split(';').collect();
    assert!(
        names.starts_with(&["SITE-00", "SITE-01"]) && names.is_sorted(),
        "{names:?}"
    );
    assert_eq!(probed(&dom, "broken"), "0", "no name takes two lines");
    assert_eq!(probed(&dom, "type"), "12", "equal in all charts");
    assert_eq!(probed(&dom, "hint"), "block");
    assert_eq!(
        (probed(&dom, "scrolled"), probed(&dom, "moved")),
        ("300", "0"),
        "the names stay"
    );
    let bars: u32 = probed(&dom, "bars").parse().expect("a number");
    assert!((100..7000).contains(&bars), "{bars} boxes");
    assert!(
        probed(&dom, "note").contains("tasks ran on average"),
        "{}",
        probed(&dom, "note")
    );
}
