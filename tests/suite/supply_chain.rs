//! What this crate depends on: licences, sources and bans of `.deny.toml`, a reason beside each dependency, and nothing in the program of
//! what rouille needs to compile only. `cargo deny check` compares with its database of advisories, too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use serde_json::Value;

/// Unmaintained crates that rouille needs to compile.
const UNUSED: [&str; 4] = ["multipart", "buf_redux", "twoway", "safemem"];

/// The quoted words of a list in `.deny.toml`, as `allow = ["MIT"]`.
fn list(section: &str, key: &str) -> Vec<String> {
    let text = fs::read_to_string(".deny.toml").unwrap();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n");
    let section = lines.split(&format!("[{section}]\n")).nth(1).unwrap().split("\n[").next().unwrap();
    let value = section.split(&format!("\n{key} = [")).nth(1).or(section.strip_prefix(&format!("{key} = [")));
    let value = value.unwrap_or_else(|| panic!("no {key} in {section}")).split("\n]").next().unwrap();
    let value = if value.contains('\n') { value } else { value.split(']').next().unwrap() };
    value.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Every package that is compiled for this host, with features of all kinds, for the program and its tests.
fn metadata() -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let rustc = Command::new("rustc").arg("-vV").output().unwrap();
    let host = String::from_utf8(rustc.stdout).unwrap();
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).unwrap().to_owned();
    let flags = ["metadata", "--format-version", "1", "--locked", "--offline", "--all-features", "--filter-platform"];
    let said = Command::new(cargo).args(flags).arg(host).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    serde_json::from_slice(&said.stdout).unwrap()
}

/// Whether a licence expression (SPDX) is satisfied by what is allowed.
fn satisfied(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ").replace(" WITH ", "-WITH-");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let (value, rest) = either(&words, allowed);
    assert!(rest.is_empty(), "{expression}: {rest:?}");
    value
}

fn either<'a, 'b>(words: &'a [&'b str], allowed: &[String]) -> (bool, &'a [&'b str]) {
    let (mut value, mut rest) = both(words, allowed);
    while let ["OR", more @ ..] = rest {
        let (next, after) = both(more, allowed);
        (value, rest) = (value | next, after);
    }
    (value, rest)
}

fn both<'a, 'b>(words: &'a [&'b str], allowed: &[String]) -> (bool, &'a [&'b str]) {
    let (mut value, mut rest) = one(words, allowed);
    while let ["AND", more @ ..] = rest {
        let (next, after) = one(more, allowed);
        (value, rest) = (value & next, after);
    }
    (value, rest)
}

fn one<'a, 'b>(words: &'a [&'b str], allowed: &[String]) -> (bool, &'a [&'b str]) {
    match words {
        ["(", inside @ ..] => {
            let (value, rest) = either(inside, allowed);
            (value, rest.strip_prefix(&[")"]).expect("a closing parenthesis"))
        }
        [licence, rest @ ..] => (allowed.iter().any(|known| known == licence), rest),
        [] => panic!("an expression that ends too early"),
    }
}

#[test]
fn every_licence_and_every_source_is_allowed() {
    let (allowed, registries) = (list("licenses", "allow"), list("sources", "allow-registry"));
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "only {} packages", packages.len());
    let mut used = BTreeSet::new();
    for package in packages {
        let (name, licence) = (package["name"].as_str().unwrap(), package["license"].as_str().unwrap_or("none"));
        assert!(satisfied(licence, &allowed), "{name} has the licence {licence}, which .deny.toml does not allow");
        let alone = |known: &&String| satisfied(licence, std::slice::from_ref(known));
        used.extend(
            allowed.iter().filter(alone).chain(allowed.iter().filter(|known| licence.contains(*known))).cloned(),
        );
        if name != env!("CARGO_PKG_NAME") {
            let source = package["source"].as_str().unwrap_or("a directory");
            assert!(registries.iter().any(|known| source == format!("registry+{known}")), "{name} is from {source}");
        }
    }
    assert_eq!(used.len(), allowed.len(), "nothing needs some of {allowed:?}, only {used:?}");

    let allowed = ["MIT", "Apache-2.0"].map(str::to_owned);
    for (expression, wanted) in [
        ("MIT", true),
        ("MIT/GPL-3.0", true),
        ("GPL-3.0 OR (MIT AND Apache-2.0)", true),
        ("MIT AND GPL-3.0", false),
        ("(MIT OR GPL-3.0) AND GPL-2.0", false),
        ("Apache-2.0 WITH LLVM-exception", false),
        ("none", false),
    ] {
        assert_eq!(satisfied(expression, &allowed), wanted, "{expression}");
    }
}

#[test]
fn what_is_banned_is_not_there_and_what_is_unmaintained_is_only_below_rouille() {
    let metadata = metadata();
    let name = |id: &Value| {
        let found = metadata["packages"].as_array().unwrap().iter().find(|package| package["id"] == *id).unwrap();
        found["name"].as_str().unwrap().to_owned()
    };
    let mut needed_by: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in metadata["resolve"]["nodes"].as_array().unwrap() {
        for dependency in node["dependencies"].as_array().unwrap() {
            needed_by.entry(name(dependency)).or_default().insert(name(&node["id"]));
        }
    }
    assert!(needed_by.len() > 100);
    // A name, then those that may need it, up to the next name.
    let banned = list("bans", "deny");
    for krate in ["tokio", "async-std", "hyper", "openssl-sys", "rustls"] {
        assert!(banned.iter().any(|name| name == krate), "{krate} is not banned");
        assert!(!needed_by.contains_key(krate), "{krate} is needed by {:?}", needed_by[krate]);
    }
    let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
    assert_eq!(needed_by["multipart"], of(&["rouille"]));
    assert_eq!(needed_by["buf_redux"], of(&["multipart"]));
    assert_eq!(needed_by["twoway"], of(&["multipart"]));
    assert_eq!(needed_by["safemem"], of(&["buf_redux", "multipart"]));
}

/// Code that can panic has the path of its source in it: rouille's and httparse's are there, those of what they drag in are not.
#[test]
fn nothing_of_the_unmaintained_crates_is_in_the_program() {
    let program = fs::read(env!("CARGO_BIN_EXE_chainweb-backup")).unwrap();
    let lock = fs::read_to_string("Cargo.lock").unwrap();
    let has = |krate: &str| {
        let version =
            lock.split(&format!("name = \"{krate}\"\nversion = \"")).nth(1).unwrap().split('"').next().unwrap();
        let path = format!("/{krate}-{version}/");
        program.windows(path.len()).any(|window| window == path.as_bytes())
    };
    assert!(has("rouille") && has("httparse") && has("rusqlite"), "the program does not show what is in it");
    for krate in UNUSED {
        assert!(!has(krate), "the program has code of {krate}");
    }
}

#[test]
fn each_dependency_has_its_reason() {
    let text = fs::read_to_string("Cargo.toml").unwrap();
    let (mut section, mut above, mut dependencies_count) = ("", "", 0);
    for line in text.lines() {
        if line.starts_with('[') {
            section = line;
        } else if ["[dependencies]", "[dev-dependencies]"].contains(&section)
            && line.contains(" = ")
            && !line.starts_with('#')
        {
            assert!(above.starts_with("# ") && above.len() > 10, "no reason above: {line}");
            dependencies_count += 1;
        }
        above = line;
    }
    assert!(dependencies_count > 20, "only {dependencies_count} were found");
}
