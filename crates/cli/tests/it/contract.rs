//! The JSON contract only grows.

use atrium_cli::output::schema::descriptions;
use std::collections::BTreeSet;

const GOLDEN: &str = include_str!("json_schema.txt");

fn current() -> BTreeSet<String> {
    let objects = descriptions();
    let line = |kind: &str, name: &str, json: &str| format!("{kind}.{}: {json}", name.trim_start_matches("r#"));
    objects.iter().flat_map(|o| o.fields.iter().map(move |(n, t, _)| line(o.kind, n, t))).collect()
}

#[test]
fn fields_are_only_added() {
    let current = current();
    let promised: BTreeSet<String> = GOLDEN.lines().filter(|l| !l.starts_with('#')).map(str::to_owned).collect();
    let gone: Vec<_> = promised.difference(&current).collect();
    assert!(gone.is_empty(), "the contract promises these: {gone:?}");
    let new: Vec<_> = current.difference(&promised).collect();
    assert!(new.is_empty(), "promise these in tests/it/json_schema.txt: {new:#?}");
}

#[test]
fn kinds_are_unique_and_everything_is_explained() {
    let objects = descriptions();
    let kinds: BTreeSet<&str> = objects.iter().map(|o| o.kind).collect();
    assert_eq!(kinds.len(), objects.len());
    for object in &objects {
        assert!(object.about.len() > 8, "{}", object.kind);
        for (name, kind, about) in &object.fields {
            assert!(about.len() > 3 && !kind.is_empty(), "{}.{name}", object.kind);
            // What a field refers to is described too.
            let base = kind.trim_start_matches("array of ").trim_end_matches(" or null");
            let plain = ["string", "integer", "boolean", "number"].contains(&base);
            assert!(plain || kinds.contains(base), "{}.{name} is a {base}", object.kind);
        }
    }
}
