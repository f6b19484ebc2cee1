//! No files import each other in a circle, because such files can only be understood together. Imports
//! through a module that re-exports the name count, too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::support::source::{code_of, is_of_tests, rust_files};
use crate::support::source_dir;

/// A module's path below the crate, by names.
type Module = Vec<String>;

#[test]
fn no_files_import_each_other_in_a_circle() {
    let top = source_dir().join("src");
    let files = rust_files(&top);
    let sources = files.iter().filter(|file| !is_of_tests(file));
    let sources: BTreeMap<Module, String> = sources
        .map(|file| {
            (
                module_of(&top, file),
                code_of(&fs::read_to_string(file).expect("it is text")),
            )
        })
        .collect();
    assert!(
        sources.len() > 100,
        "only {} files were found",
        sources.len()
    );
    let circles = circles(&graph(&sources));
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn a_circle_is_found_through_a_re_export_and_a_parent_is_none() {
    let sources = [
        ("a", "pub use self::x::X;\nmod x;\nmod y;"),
        ("a::x", "use super::{y::{self, Y}, Other};"),
        ("a::y", "fn f() -> crate::a::X {}"),
        ("b", "use crate::a::{X, x};"),
    ];
    let sources = sources.map(|(module, code)| (names(module), code.to_owned()));
    let circles = circles(&graph(&BTreeMap::from(sources)));
    assert_eq!(circles, [BTreeSet::from(["a::x", "a::y"].map(names))]);
}

fn names(path: &str) -> Module {
    path.split("::").map(str::to_owned).collect()
}

fn module_of(top: &Path, file: &Path) -> Module {
    let inside = file.strip_prefix(top).expect("it is below");
    let mut names: Module = inside
        .with_extension("")
        .iter()
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    if names.last().is_some_and(|name| name == "mod") {
        names.pop();
    }
    names
}

/// Which modules each one imports, its parents and children left out.
fn graph(sources: &BTreeMap<Module, String>) -> BTreeMap<Module, BTreeSet<Module>> {
    let mut exports = BTreeMap::new();
    for (module, code) in sources {
        for path in re_exports(code) {
            let name = path.last().cloned().unwrap_or_default();
            if let Some((target, _)) = resolve(sources, module, &path)
                && target != *module
            {
                exports.insert((module.clone(), name), target);
            }
        }
    }
    let mut graph = BTreeMap::new();
    for (module, code) in sources {
        let targets: &mut BTreeSet<Module> = graph.entry(module.clone()).or_default();
        for path in paths(code) {
            let Some((mut target, name)) = resolve(sources, module, &path) else {
                continue;
            };
            while let Some(further) = exports.get(&(target.clone(), name.clone())) {
                target.clone_from(further);
            }
            if !module.starts_with(&target) && !target.starts_with(module) {
                targets.insert(target);
            }
        }
    }
    graph
}

/// The module that a path in `module` leads to, and the name in it.
fn resolve(
    sources: &BTreeMap<Module, String>,
    module: &Module,
    path: &[String],
) -> Option<(Module, String)> {
    let mut full = match path.first()?.as_str() {
        "crate" => Vec::new(),
        _ => module.clone(),
    };
    for name in path {
        match name.as_str() {
            "crate" | "self" => {}
            "super" => drop(full.pop()),
            name => full.push(name.to_owned()),
        }
    }
    let known = (1..=full.len()).rev();
    let length = known
        .into_iter()
        .find(|length| sources.contains_key(&full[..*length]))?;
    let name = full.get(length).cloned().unwrap_or_default();
    full.truncate(length);
    Some((full, name))
}

/// The paths that a file names from `crate`, `super` or `self` on, those of `use` one by one.
fn paths(code: &str) -> Vec<Vec<String>> {
    let starts = ["crate::", "super::", "self::"];
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(at) = starts.iter().filter_map(|start| rest.find(start)).min() {
        let tail = &rest[at..];
        let end = end_of_tree(tail);
        found.extend(expand(&tail[..end]));
        rest = &tail[end.max(1)..];
    }
    found
}

/// The paths of `pub use`.
fn re_exports(code: &str) -> Vec<Vec<String>> {
    let lines = code.split(';').filter_map(|statement| {
        let (before, tree) = statement.rsplit_once("use ")?;
        let reach = before.rsplit('\n').next()?.trim();
        (reach == "pub" || reach.starts_with("pub(") && reach.ends_with(')')).then_some(tree)
    });
    lines.flat_map(expand).collect()
}

/// Where a tree of imports ends: at the first letter that is none of its own, outside of braces.
fn end_of_tree(code: &str) -> usize {
    let mut depth = 0_u32;
    for (at, letter) in code.char_indices() {
        match letter {
            '{' if code[..at].ends_with("::") || depth > 0 => depth += 1,
            '}' if depth > 1 => depth -= 1,
            '}' if depth == 1 => return at + 1,
            _ if depth > 0 || letter.is_alphanumeric() || ":_".contains(letter) => {}
            _ => return at,
        }
    }
    code.len()
}

/// `a::{b, c::{self, d}}` is `a::b`, `a::c::self` and `a::c::d`.
fn expand(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let Some((before, inside)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        let names = path.split("::").map(|name| name.trim().to_owned());
        return vec![names.filter(|name| !name.is_empty()).collect()];
    };
    let inside = inside.strip_suffix('}').unwrap_or(inside);
    let mut members = vec![String::new()];
    let mut depth = 0_u32;
    for letter in inside.chars() {
        match letter {
            ',' if depth == 0 => members.push(String::new()),
            _ => {
                depth += u32::from(letter == '{');
                depth -= u32::from(letter == '}');
                members.last_mut().expect("there is one").push(letter);
            }
        }
    }
    let full = members.iter().filter(|member| !member.trim().is_empty());
    full.flat_map(|member| expand(&format!("{before}{}", member.trim())))
        .collect()
}

/// Sets of modules of which each reaches each.
fn circles(graph: &BTreeMap<Module, BTreeSet<Module>>) -> Vec<BTreeSet<Module>> {
    let reached: BTreeMap<&Module, BTreeSet<Module>> = graph
        .keys()
        .map(|module| (module, reach(graph, module)))
        .collect();
    let mut circles = BTreeSet::new();
    for (module, reach) in &reached {
        let mutual = reach.iter().filter(|other| {
            reached
                .get(other)
                .is_some_and(|back| back.contains(*module))
        });
        let circle: BTreeSet<Module> = mutual.cloned().collect();
        if circle.len() > 1 {
            circles.insert(circle);
        }
    }
    circles.into_iter().collect()
}

fn reach(graph: &BTreeMap<Module, BTreeSet<Module>>, from: &Module) -> BTreeSet<Module> {
    let mut seen = BTreeSet::new();
    let mut open = vec![from];
    while let Some(module) = open.pop() {
        for next in graph.get(module).into_iter().flatten() {
            if seen.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    seen
}
