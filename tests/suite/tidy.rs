//! The rules of this repository that the compiler does not check: folders and circles, one module for each crate, file lengths, a duty at
//! the top of each file, names that stand once, a short README whose links lead somewhere, and a complete manual.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use chainweb_backup::{MANUAL, ROUTES};

use crate::fixture::{names, paths};

/// The longest source file.
const MAX_LINES: usize = 550;

/// The longest function, and the most parameters of one.
const MAX_FUNCTION_LINES: usize = 60;
const MAX_PARAMETERS: usize = 5;

/// The longest README: everything else belongs in the manual.
const MAX_README_LINES: usize = 250;

/// Crates that only these modules, and those below them, name.
const ONLY_IN: [(&str, &str); 5] = [
    ("rouille", "http"),
    ("rusqlite", "capture::sqlite"),
    ("rocksdb", "capture::rocksdb::engine"),
    ("crossbeam_channel", "service"),
    ("httparse", "http::head"),
];

/// The names at the top of the repository, beside those that begin with a dot; `target` is where cargo builds by default.
const TOP: [&str; 8] = ["Cargo.lock", "Cargo.toml", "LICENSE", "README.md", "scripts", "src", "target", "tests"];

/// The module that may hold `unsafe`.
const UNSAFE_IN: &str = "disk::sys";

/// The folders, each of which uses only itself and those before it.
const FOLDERS: [&str; 9] = ["chainweb", WORDS, "config", "disk", "format", "capture", "backups", "service", "http"];

/// Not a folder: the files that are in none.
const WORDS: &str = "words";

/// Parts of the node's names. Each stands in `chainweb` only.
const OF_NODE: [&str; 18] = [
    "rocksDb",
    "pact-v1",
    "chain-",
    ".sqlite",
    "0/",
    "CutHashes",
    "BlockHeader",
    "BlockHistory",
    "ConsensusState",
    "blockheight",
    "/chainweb/",
    "chainwebVersion",
    "databaseDirectory",
    "mainnet01",
    "/chainweb-node/",
    "full-historic-pact-state",
    "fullHistoricPactState",
    "/backups",
];

/// Names of the node that are ordinary words: a literal elsewhere may contain one, but not be one.
const OF_NODE_WHOLE: [&str; 2] = ["sqlite", "chainweb"];

/// Cargo runs tests in the checkout. The directory of the compilation may be another one that shares the target directory.
fn root() -> &'static Path {
    Path::new(".")
}

/// Every source file below `src`, but the demo node's.
fn sources() -> Vec<PathBuf> {
    let all = paths(&root().join("src"));
    let files: Vec<PathBuf> = all.into_iter().filter(|p| p.extension().is_some_and(|e| e == "rs")).collect();
    assert!(files.len() > 20);
    files.into_iter().filter(|p| !p.starts_with(root().join("src/bin/demo-node"))).collect()
}

/// The modules of the library with their files, as `disk::copy` for `src/disk/copy.rs`; without those for tests only.
fn modules() -> BTreeMap<String, PathBuf> {
    let library = sources().into_iter().filter(|file| !file.starts_with(root().join("src/bin")));
    let named = library.map(|file| (module(&file), file));
    named.filter(|(name, _)| !["lib", "testing"].contains(&name.as_str())).collect()
}

fn module(file: &Path) -> String {
    let below = file.strip_prefix(root().join("src")).unwrap().with_extension("");
    let parts: Vec<&str> = below.iter().map(|part| part.to_str().unwrap()).filter(|part| *part != "mod").collect();
    parts.join("::")
}

/// The place of a module's folder in [`FOLDERS`].
fn row(module: &str) -> usize {
    let (folder, _) = module.split_once("::").unwrap_or((module, ""));
    let row = |folder| FOLDERS.iter().position(|known| *known == folder);
    row(folder).or(row(WORDS)).unwrap()
}

/// A file without its comments.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let without = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    text.lines().map(without).collect::<Vec<_>>().join("\n")
}

/// The literals of a file, texts and bytes, as they are written; without those of its unit tests.
fn literals(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    literals_in(&text[..tests_at(&text)])
}

/// Where the unit tests of a file begin.
fn tests_at(text: &str) -> usize {
    let is_module =
        |after: &str| after.lines().find(|line| !line.starts_with("#[")).is_some_and(|l| l.starts_with("mod "));
    let marks = text.match_indices("#[cfg(test)]\n");
    marks
        .map(|(at, mark)| (at, &text[at + mark.len()..]))
        .find(|(_, after)| is_module(after))
        .map_or(text.len(), |(at, _)| at)
}

fn literals_in(code: &str) -> Vec<String> {
    let (mut found, mut rest) = (Vec::new(), code);
    while let Some(at) = rest.find(['"', '/', '\'']) {
        rest = &rest[at..];
        if rest.starts_with("//") {
            rest = rest.split_once('\n').map_or("", |(_, next)| next);
        } else if let Some(after) = rest.strip_prefix('"') {
            let mut escaped = false;
            let end = after.find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            let (literal, next) = after.split_at(end.expect("a literal ends"));
            found.push(literal.to_owned());
            rest = &next[1..];
        } else {
            // A quote that is a character.
            let skipped = ["'\"'", "'\\''"].into_iter().find(|quote| rest.starts_with(quote)).map_or(1, str::len);
            rest = &rest[skipped..];
        }
    }
    found
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether a name is in the code as a whole word.
fn names_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back().is_some_and(is_word);
        let after = code[at + word.len()..].chars().next().is_some_and(is_word);
        !before && !after
    })
}

/// The paths that a file names as `crate::x::y` or `crate::x::{y, z::Z}`, without `crate`.
fn uses(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::").filter(|(at, _)| !code[..*at].ends_with(|c| is_word(c) || c == '$')) {
        expand("", &code[at + "crate::".len()..], &mut found);
    }
    found
}

/// Adds the path at the beginning of `text`, or all of those in the braces that end it.
fn expand(before: &str, text: &str, found: &mut BTreeSet<String>) {
    let end = text.find(|c| !is_word(c) && c != ':').unwrap_or(text.len());
    let (path, rest) = text.split_at(end);
    let Some(group) = rest.strip_prefix('{') else {
        found.insert(format!("{before}{path}"));
        return;
    };
    let mut depth = 0;
    let end = group.find(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        depth < 0
    });
    let mut depth = 0;
    let parts = group[..end.unwrap()].split(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        depth == 0 && c == ','
    });
    for part in parts.map(str::trim).filter(|part| !part.is_empty()) {
        expand(&format!("{before}{path}"), part, found);
    }
}

/// The modules that a file uses: the longest beginning of each path that is one.
fn used_modules(file: &Path, modules: &BTreeMap<String, PathBuf>) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for path in uses(&code(file)) {
        let mut name = path.trim_end_matches("::self");
        while !modules.contains_key(name) {
            name = name.rsplit_once("::").map_or("", |(above, _)| above);
            if name.is_empty() {
                break;
            }
        }
        used.extend((!name.is_empty()).then(|| name.to_owned()));
    }
    used.remove(&module(file));
    used
}

#[test]
fn the_table_of_folders_is_complete() {
    let text = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let table =
        text.split("# Architecture").nth(1).unwrap().split("```").nth(1).expect("lib.rs has the table of folders");
    let (mut listed, mut order, mut folder) = (BTreeSet::new(), Vec::new(), "");
    for line in table.lines().skip(1).map(|line| line.trim_start_matches("//!").strip_prefix(' ').unwrap_or("")) {
        if let Some(name) = line.split_whitespace().next().filter(|_| !line.starts_with(' ')) {
            folder = name;
            order.push(folder);
        } else {
            let full = |name: &str| if folder == WORDS { name.to_owned() } else { format!("{folder}::{name}") };
            listed.extend(line.split_whitespace().map(|name| full(name).trim_end_matches("::mod").to_owned()));
        }
    }
    assert_eq!(order, FOLDERS);
    let is_folder = |name: &String| FOLDERS.contains(&name.as_str());
    let there: BTreeSet<String> = modules().into_keys().filter(|name| !is_folder(name)).collect();
    assert_eq!(listed, there);
}

#[test]
fn a_folder_uses_itself_and_those_before_it_only() {
    let modules = modules();
    let mut uses_count = 0;
    for (name, file) in &modules {
        for used in used_modules(file, &modules) {
            assert!(row(&used) <= row(name), "{} uses {used}, which is in a later folder", file.display());
            uses_count += 1;
        }
    }
    assert!(uses_count > 100, "only {uses_count} uses were found");
}

#[test]
fn no_modules_use_each_other_in_a_circle() {
    let modules = modules();
    let mut left: BTreeMap<String, BTreeSet<String>> =
        modules.iter().map(|(name, file)| (name.clone(), used_modules(file, &modules))).collect();
    // What uses nothing that is left is in no circle.
    while let Some(free) =
        left.iter().find(|(_, used)| used.iter().all(|u| !left.contains_key(u))).map(|(n, _)| n.clone())
    {
        left.remove(&free);
    }
    assert!(left.is_empty(), "a circle is among {left:#?}");
}

#[test]
fn the_top_of_the_repository_has_little() {
    let found = names(root());
    let foreign: Vec<_> = found.iter().filter(|name| !name.starts_with('.') && !TOP.contains(&name.as_str())).collect();
    assert!(foreign.is_empty(), "these do not belong at the top: {foreign:?}");
    assert!(TOP.iter().all(|name| *name == "target" || found.iter().any(|there| there == name)));
}

/// Otherwise a test that fails would write a file beside the sources.
#[test]
fn no_property_test_keeps_its_failures() {
    let mut tests_count = 0;
    for file in paths(&root().join("src")).into_iter().chain(paths(&root().join("tests/suite"))) {
        if file.extension().is_none_or(|extension| extension != "rs") || file.ends_with("tidy.rs") {
            continue;
        }
        let code = code(&file);
        let count = |part: &str| code.matches(part).count();
        let tests = count("proptest! {") + count("proptest!(");
        assert_eq!(count("failure_persistence: None"), tests, "{}", file.display());
        tests_count += tests;
    }
    assert!(tests_count > 8, "only {tests_count} were found");
}

#[test]
fn only_disk_may_change_the_file_system() {
    for (name, file) in modules() {
        let allows = fs::read_to_string(&file).unwrap().contains("#![allow(clippy::disallowed_methods)]");
        assert!(!allows || row(&name) == row("disk"), "{} allows itself to change the file system", file.display());
    }
}

#[test]
fn each_name_of_the_node_stands_once() {
    let known = root().join("src/chainweb");
    let theirs: String =
        paths(&known).iter().filter(|path| path.is_file()).map(|file| fs::read_to_string(file).unwrap()).collect();
    for part in OF_NODE.into_iter().filter(|part| !["0/", "/backups", "pact-v1"].contains(part)) {
        assert!(
            theirs.contains(part.trim_matches('.')),
            "src/chainweb does not have {part}: this test looks for the wrong name"
        );
    }
    let mut spelt = Vec::new();
    for file in sources().into_iter().filter(|file| !file.starts_with(&known) && !file.ends_with("plan/tests.rs")) {
        let is_theirs = |literal: &String| {
            OF_NODE.iter().any(|part| literal.contains(part)) || OF_NODE_WHOLE.contains(&literal.as_str())
        };
        spelt.extend(literals(&file).into_iter().filter(is_theirs).map(|literal| (file.clone(), literal)));
        let in_code = ["join(\"0\")", "join(\"backups\")", "852_054"];
        let code = code(&file);
        spelt.extend(in_code.iter().flat_map(|part| code.matches(part)).map(|part| (file.clone(), part.to_owned())));
    }
    assert!(spelt.is_empty(), "{} literals spell what is in src/chainweb: {spelt:#?}", spelt.len());
}

#[test]
fn each_name_of_the_files_of_rocksdb_and_sqlite_stands_once() {
    let known = root().join("src/database_files.rs");
    let names = literals(&known);
    let whole: Vec<&String> = names.iter().filter(|name| !name.contains('{')).collect();
    assert!(whole.len() > 12, "only {whole:?} are in database_files.rs");
    // The name of a point of a test may end as that of a file of SQLite.
    let ends = |literal: &str, mark: &str| match mark.strip_prefix('-') {
        Some(_) => literal.ends_with(&format!("}}{mark}")),
        None => literal.ends_with(mark),
    };
    let is_theirs = |literal: &String| {
        whole.iter().any(|mark| {
            literal == *mark
                || (mark.starts_with(['.', '-']) && ends(literal, mark))
                || (mark.ends_with('-') && literal.starts_with(mark.as_str()))
        })
    };
    let mut spelt = Vec::new();
    for file in sources().into_iter().filter(|file| *file != known && !file.ends_with("plan/tests.rs")) {
        spelt.extend(literals(&file).into_iter().filter(is_theirs).map(|literal| (file.clone(), literal)));
    }
    assert!(spelt.is_empty(), "{} literals spell what is in database_files.rs: {spelt:#?}", spelt.len());
}

#[test]
fn each_name_that_we_put_on_disk_stands_once() {
    let layout = root().join("src/format/layout.rs");
    let names: Vec<String> = literals(&layout).into_iter().map(|name| name.replace("{name}", "")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).filter(|name| !name.contains('{')).collect();
    assert!(names.len() > 18, "only {names:?} are in layout.rs");
    // A literal that begins with a marked name is ours; an ordinary word, as `status`, only if it is the whole literal.
    let is_marked = |name: &str| name.len() > 1 && (name.starts_with('.') || name.ends_with(['-', '.']));
    let is_ours =
        |literal: &String| names.iter().any(|name| literal == name || (is_marked(name) && literal.starts_with(name)));
    let mut spelt = Vec::new();
    for file in sources().into_iter().filter(|file| *file != layout && !file.ends_with("plan/tests.rs")) {
        spelt.extend(literals(&file).into_iter().filter(is_ours).map(|literal| (file.clone(), literal)));
    }
    assert!(spelt.is_empty(), "{} literals spell what is in layout.rs: {spelt:#?}", spelt.len());
}

#[test]
fn a_sentence_about_a_module_names_one_that_is_there() {
    let modules = modules();
    // Paths such as `capture::rocksdb::engine` and `disk::replace`, and every module after "see".
    let is_there = |name: &str| modules.keys().any(|known| known == name || known.ends_with(&format!("::{name}")));
    let (mut named_count, mut missing) = (0, Vec::new());
    for file in sources() {
        let text = fs::read_to_string(&file).unwrap();
        for line in
            text.lines().map(str::trim_start).filter(|line| line.starts_with("//! ") || line.starts_with("/// "))
        {
            let quoted: Vec<&str> = line.split('`').collect();
            for at in (1..quoted.len()).step_by(2) {
                let (before, name) = (quoted[at - 1], quoted[at]);
                let is_path = FOLDERS.iter().any(|folder| name.starts_with(&format!("{folder}::")));
                let is_module = name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
                if !is_path && !(is_module && (before.ends_with("see ") || before.ends_with("See "))) {
                    continue;
                }
                named_count += 1;
                // A function is named after its module.
                let above = name.rsplit_once("::").map_or(name, |(above, _)| above);
                let found = is_there(name) || (is_path && is_there(above));
                missing.extend((!found).then(|| format!("{}: `{name}`", file.display())));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(named_count > 8, "only {named_count} such names were found");
}

/// The first literals of the lines that the library writes to the log.
fn log_lines(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    let starts = ["log::error!(", "log::warn!(", "log::info!("].into_iter().flat_map(|call| text.match_indices(call));
    starts.filter_map(|(at, _)| literals_in(&text[at..]).into_iter().next()).collect()
}

#[test]
fn a_log_line_says_what_happened_and_then_keys_with_values() {
    let mut lines_count = 0;
    for file in modules().values() {
        for line in log_lines(file) {
            let event = line.split_once('=').map_or(line.as_str(), |(event, _)| event);
            let words = event.rsplit_once(' ').map_or("", |(words, _)| words);
            let is_plain = words.chars().all(|c| c.is_ascii_lowercase() || " -{}".contains(c));
            assert!(!words.is_empty() && is_plain && line.contains('='), "{}: {line:?}", file.display());
            lines_count += 1;
        }
    }
    assert!(lines_count > 30, "only {lines_count} lines were found");
}

#[test]
fn the_parts_of_this_test_see_what_they_look_for() {
    let code = "a(\"0/rocksDb\"); // \"no\"\n b(b\"-\\\"x\", '\"', \"http://y\");";
    assert_eq!(literals_in(code), ["0/rocksDb", "-\\\"x", "http://y"]);
    let found = uses("use crate::a::B;\nuse crate::c::{self, d::{E, F}, g};\nx(crate::h::i()); $crate::j; mycrate::k;");
    let expected = ["a::B", "c::d::E", "c::d::F", "c::g", "c::self", "h::i"];
    assert_eq!(found.into_iter().collect::<Vec<_>>(), expected);
    assert!(names_word("use rocksdb::DB;", "rocksdb") && names_word("(rocksdb)", "rocksdb"));
    assert!(!names_word("my_rocksdb::DB; rocksdbx; Rocksdb", "rocksdb"));
}

#[test]
fn a_crate_is_named_only_where_it_belongs() {
    for (name, file) in modules() {
        let code = code(&file);
        for (krate, only_in) in ONLY_IN {
            // A module of ours may have the name of a crate.
            let code = if only_in.ends_with("engine") { without_own_paths(&code, krate) } else { code.clone() };
            let path = format!("{krate}::");
            let named = code.match_indices(&path).any(|(at, _)| !code[..at].ends_with(|c| is_word(c) || c == ':'));
            let is_below = name == only_in || name.starts_with(&format!("{only_in}::"));
            assert!(!named || is_below, "{} names {krate}", file.display());
        }
    }
}

/// The code without the uses of a module of ours that has the name of the crate.
fn without_own_paths(code: &str, krate: &str) -> String {
    let imports = code.lines().any(|l| l.trim_start().starts_with("use crate::") && names_word(l, krate));
    let use_line = |line: &&str| line.trim_start().starts_with("use ");
    if imports { code.lines().filter(use_line).collect::<Vec<_>>().join("\n") } else { code.to_owned() }
}

#[test]
fn unsafe_is_only_where_it_may_be() {
    for file in sources() {
        let code = code(&file).replace("unsafe_code", "");
        assert!(module(&file) == UNSAFE_IN || !names_word(&code, "unsafe"), "{}", file.display());
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

/// The functions in a file: name, lines, and number of parameters without `self`.
fn functions(code: &str) -> Vec<(&str, usize, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let (mut rest, indent) = (line.trim_start(), &line[..line.len() - line.trim_start().len()]);
        while let Some(after) = ["pub(crate) ", "pub ", "const ", "unsafe "].iter().find_map(|w| rest.strip_prefix(w)) {
            rest = after;
        }
        let Some(rest) = rest.strip_prefix("fn ") else { continue };
        let name = &rest[..rest.find(|c| !is_word(c)).unwrap()];
        let signed = at + lines[at..].iter().position(|line| line.ends_with(['{', '}', ';'])).unwrap();
        let end = |line: &&str| line.strip_prefix(indent) == Some("}");
        let last =
            if lines[signed].ends_with('{') { signed + lines[signed..].iter().position(end).unwrap() } else { signed };
        found.push((name, last - at + 1, parameters(&lines[at..=signed].join(" "))));
    }
    found
}

/// The number of parameters in a signature, without `self`.
fn parameters(signature: &str) -> usize {
    let (mut depth, mut angles, mut current, mut all) = (0, 0, String::new(), Vec::new());
    let after_name = &signature[signature.find("fn ").unwrap() + 3..];
    for c in after_name.chars() {
        let is_arrow = c == '>' && current.ends_with(['-', '=']);
        angles += i32::from(c == '<') - i32::from(c == '>' && !is_arrow);
        depth += i32::from("([{".contains(c)) - i32::from(")]}".contains(c));
        match (c, depth, angles) {
            ('(', 1, 0) => current.clear(),
            (')', 0, 0) => break,
            (',', 1, 0) => all.push(std::mem::take(&mut current)),
            _ => current.push(c),
        }
    }
    all.push(current);
    let is_self = |p: &str| p.split(':').next().unwrap().split([' ', '&']).any(|word| word == "self");
    all.iter().filter(|p| !p.trim().is_empty() && !is_self(p)).count()
}

#[test]
fn functions_are_short_and_have_few_parameters() {
    let mut functions_count = 0;
    for file in sources().into_iter().filter(|file| !file.ends_with("plan/tests.rs")) {
        let text = fs::read_to_string(&file).unwrap();
        for (name, lines, parameters) in functions(&text[..tests_at(&text)]) {
            functions_count += 1;
            assert!(lines <= MAX_FUNCTION_LINES, "{}: {name} has {lines} lines", file.display());
            assert!(parameters <= MAX_PARAMETERS, "{}: {name} has {parameters} parameters", file.display());
        }
    }
    assert!(functions_count > 1000, "only {functions_count} functions were found");
    let code = "    pub(crate) fn a<T: Fn(u8) -> B<C, D>>(&'a mut self, x: &[(u8, u8)], y: impl Fn(u8, u8) -> E<F, G>,) -> H {\n    }";
    assert_eq!(functions(code), [("a", 2, 2)]);
}

/// The README and the pages of the manual: path and text.
fn pages() -> Vec<(PathBuf, String)> {
    let manual = paths(&root().join("src/manual")).into_iter().filter(|p| p.extension().is_some_and(|e| e == "md"));
    let files = manual.chain([root().join("README.md")]);
    files.map(|file| (file.clone(), fs::read_to_string(file).unwrap())).collect()
}

#[test]
fn the_manual_lists_every_route_and_no_page_another() {
    let known: BTreeSet<&str> = ROUTES.iter().map(|r| r.split_once(' ').unwrap().1).collect();
    let (_, api) = MANUAL.iter().find(|(topic, _)| *topic == "api").unwrap();
    for route in ROUTES {
        assert!(api.contains(&format!("`{route}`")), "`{route}` is not in the manual");
    }
    for (file, page) in pages() {
        let methods = ["`GET /", "`POST /", "`PUT /", "`DELETE /", "`HEAD /"];
        for (at, method) in methods.iter().flat_map(|m| page.match_indices(m)) {
            let path = &page[at + method.len() - 1..];
            let path = path.split(['`', '?', ' ', '[']).next().unwrap();
            let bare = path.strip_prefix("/chainweb/0.0/{chainwebVersion}").unwrap_or(path);
            assert!(known.contains(bare), "{} speaks of {method}{}, which is no route", file.display(), &bare[1..]);
        }
    }
}

#[test]
fn the_readme_is_short_and_the_manual_is_whole() {
    let crate_doc = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let mut topics = BTreeSet::new();
    for (file, page) in pages() {
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        if name == "README" {
            let lines = page.lines().count();
            assert!(lines <= MAX_README_LINES, "README.md has {lines} lines");
            continue;
        }
        let printed = MANUAL.iter().find(|(topic, _)| *topic == name);
        assert!(printed.is_some_and(|(_, text)| *text == page), "MANUAL does not have {}", file.display());
        let doc = format!("#[doc = include_str!(\"manual/{name}.md\")]");
        assert!(crate_doc.contains(&doc), "{} is not in the documentation of the crate", file.display());
        // A link between pages works either on GitHub or in the documentation of the crate, not in both.
        assert!(!page.contains("]("), "{} has a link: name the page instead", file.display());
        topics.insert(name);
    }
    assert_eq!(topics, MANUAL.iter().map(|(topic, _)| (*topic).to_owned()).collect());
}

#[test]
fn the_readme_leads_to_what_is_there() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let targets = readme.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
    let files: Vec<&str> = targets.filter(|target| !target.starts_with("https://")).collect();
    assert!(files.len() > MANUAL.len());
    files.iter().for_each(|file| assert!(root().join(file).is_file(), "README.md links to {file}"));

    // The map of the rooms: every one in it is there, and every folder is in it.
    let map = readme.split("| to change |").nth(1).unwrap().split("\n\n").next().unwrap();
    let rooms: Vec<&str> = map.lines().skip(2).flat_map(|line| line.split('`').skip(1).step_by(2)).collect();
    rooms.iter().for_each(|room| assert!(root().join("src").join(room).exists(), "README.md leads to src/{room}"));
    for folder in FOLDERS.iter().filter(|folder| **folder != WORDS) {
        let is_in = rooms.iter().any(|room| room.split('/').next() == Some(folder));
        assert!(is_in, "the map of README.md lacks src/{folder}");
    }
}
