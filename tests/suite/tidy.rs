//! The rules of the house that a compiler does not hold: rows, one crate one module, file lengths, a duty at the top of
//! each file, and a README that knows every route.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use chainweb_backup::ROUTES;

use crate::fixture::paths;

/// The longest source file.
const MAX_LINES: usize = 550;

/// Crates that only these modules name.
const ONLY_IN: [(&str, &[&str]); 5] = [
    ("rouille", &["http", "http_head", "listener"]),
    ("rusqlite", &["sqlite", "raw_copy", "sqlite_fold", "sqlite_locks", "sqlite_online"]),
    ("rocksdb", &["engine"]),
    ("crossbeam_channel", &["service"]),
    ("httparse", &["http_head"]),
];

/// The row of the faces, where the program is.
const PROGRAM_ROW: u32 = 6;

/// Modules that may hold `unsafe`.
const UNSAFE_IN: [&str; 1] = ["sys"];

/// Cargo runs tests there; the directory of the compilation may be another checkout that shares the target directory.
fn root() -> &'static Path {
    Path::new(".")
}

/// Every source file of the library and the program, but the demo node's.
fn sources() -> Vec<PathBuf> {
    let all = paths(&root().join("src"));
    let files: Vec<PathBuf> = all.into_iter().filter(|p| p.extension().is_some_and(|e| e == "rs")).collect();
    assert!(files.len() > 20);
    files.into_iter().filter(|p| !p.starts_with(root().join("src/bin"))).collect()
}

/// The module that a file belongs to: `cli` for `src/cli/tests.rs`.
fn module(file: &Path) -> String {
    let below = file.strip_prefix(root().join("src")).unwrap();
    Path::new(below.iter().next().unwrap()).file_stem().unwrap().to_str().unwrap().to_owned()
}

/// A file without its comments.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let without = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    text.lines().map(without).collect::<Vec<_>>().join("\n")
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether a name stands there as a word of its own.
fn names_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back().is_some_and(is_word);
        let after = code[at + word.len()..].chars().next().is_some_and(is_word);
        !before && !after
    })
}

/// The modules that a file names as `crate::x` or `crate::{x, y::Z}`.
fn uses(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::").filter(|(at, _)| !code[..*at].ends_with(is_word)) {
        let rest = &code[at + "crate::".len()..];
        let word = |text: &str| text.trim_start().chars().take_while(|c| is_word(*c)).collect::<String>();
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        let mut depth = 0;
        let end = group.find(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth < 0
        });
        let mut depth = 0;
        let split = group[..end.unwrap()].split(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth == 0 && c == ','
        });
        found.extend(split.map(word).filter(|name| !name.is_empty()));
    }
    found
}

/// The table of rows in the documentation of the crate: module and row.
fn rows() -> BTreeMap<String, u32> {
    let text = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let table =
        text.split("```text\n//! row ").nth(1).expect("lib.rs has the table of rows").split("```").next().unwrap();
    let mut rows = BTreeMap::new();
    let mut row = 0;
    for line in format!("//! row {table}").lines() {
        let mut line = line.trim_start_matches("//!").trim();
        if let Some((number, rest)) = line.strip_prefix("row ").and_then(|l| l.split_once(' ')) {
            row = number.parse().unwrap();
            line = rest.trim();
        }
        // What a row is for stands behind two spaces.
        for name in line.split("   ").next().unwrap().split(',').map(str::trim).filter(|name| !name.is_empty()) {
            assert!(name.chars().all(is_word), "{name:?} in the table of rows");
            assert!(rows.insert(name.to_owned(), row).is_none(), "{name} stands twice in the table of rows");
        }
    }
    rows
}

#[test]
fn the_table_of_rows_is_complete() {
    let modules: BTreeSet<String> = sources().iter().map(|f| module(f)).collect();
    let outside = ["lib".to_owned(), "testing".to_owned()];
    let expected: BTreeSet<String> = modules.into_iter().filter(|m| !outside.contains(m)).collect();
    assert_eq!(rows().into_keys().collect::<BTreeSet<_>>(), expected);
}

#[test]
fn each_file_uses_its_own_row_and_those_below_only() {
    let rows = rows();
    let mut uses_count = 0;
    for file in sources() {
        let name = module(&file);
        // What is for tests only may use everything; what it is used by is a row like the others.
        let Some(row) = rows.get(&name) else { continue };
        // The program is a crate of its own, whose modules share what stands in main.rs.
        let of_main = |used: &String| row == &PROGRAM_ROW && !used.starts_with(|c: char| c.is_lowercase());
        for used in uses(&code(&file)).iter().filter(|used| !of_main(used)) {
            let Some(other) = rows.get(used) else {
                panic!("{} uses crate::{used}, which is in no row", file.display());
            };
            assert!(other <= row, "{} (row {row}) uses {used} (row {other})", file.display());
            uses_count += 1;
        }
    }
    assert!(uses_count > 50, "only {uses_count} uses were found");
}

#[test]
fn the_parts_of_this_test_see_what_they_look_for() {
    let found = uses("use crate::a::B;\nuse crate::{c, d::{E, F}, g};\nx(crate::h::i()); $crate::j; mycrate::k;");
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["a", "c", "d", "g", "h", "j"]);
    assert!(names_word("use rocksdb::DB;", "rocksdb") && names_word("(rocksdb)", "rocksdb"));
    assert!(!names_word("my_rocksdb::DB; rocksdbx; Rocksdb", "rocksdb"));
}

#[test]
fn a_crate_is_named_only_where_it_belongs() {
    for file in sources() {
        let (name, code) = (module(&file), code(&file));
        if name == "lib" {
            continue;
        }
        for (krate, modules) in ONLY_IN {
            let path = format!("{krate}::");
            let imported = code.lines().any(|l| l.trim_start().starts_with("use ") && names_word(l, krate));
            let at = code.match_indices(&path).any(|(at, _)| !code[..at].ends_with(|c| is_word(c) || c == ':'));
            let named = at || (imported && code.contains(&path));
            assert!(!named || modules.contains(&name.as_str()), "{} names {krate}", file.display());
        }
    }
}

#[test]
fn unsafe_is_only_where_it_may_be() {
    for file in sources() {
        let code = code(&file).replace("unsafe_code", "");
        assert!(UNSAFE_IN.contains(&module(&file).as_str()) || !names_word(&code, "unsafe"), "{}", file.display());
    }
}

#[test]
fn files_are_short_and_open_with_their_duty() {
    let tests = paths(&root().join("tests/suite")).into_iter().filter(|p| p.extension().is_some_and(|e| e == "rs"));
    for file in sources().into_iter().chain(tests) {
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("//! "), "{} does not open with //!", file.display());
        let lines = text.lines().count();
        assert!(lines <= MAX_LINES || file.starts_with(root().join("tests")), "{}: {lines} lines", file.display());
    }
}

#[test]
fn the_readme_lists_every_route_and_no_other() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for route in ROUTES {
        assert!(readme.contains(&format!("`{route}`")), "`{route}` is not in README.md");
    }
    let known: BTreeSet<&str> = ROUTES.iter().map(|r| r.split_once(' ').unwrap().1).collect();
    for (at, method) in
        ["`GET /", "`POST /", "`PUT /", "`DELETE /", "`HEAD /"].iter().flat_map(|m| readme.match_indices(m))
    {
        let path = &readme[at + method.len() - 1..];
        let path = path.split(['`', '?', ' ', '[']).next().unwrap();
        let bare = path.strip_prefix("/chainweb/0.0/{chainwebVersion}").unwrap_or(path);
        assert!(known.contains(bare), "README.md speaks of {method}{} which is no route", &bare[1..]);
    }
}
