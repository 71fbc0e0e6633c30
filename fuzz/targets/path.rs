//! Names and paths: what is accepted can be written and read again, and has no way out of its root.
#![no_main]

use common::model::{EntryName, EntryPath, fold};

fn inputs() -> Vec<Vec<u8>> {
    seeds::texts(["plan.odt", "home/anna/a/b.txt", "public/sales/Straße/日本.pdf", "../a", "A\u{308}"])
}

libfuzzer_sys::fuzz_target!(init: seeds::plant(inputs), |data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(name) = EntryName::new(text) {
        assert!(!text.contains(['/', '\0']) && text != "." && text != "..");
        assert_eq!(fold(&fold(name.as_str())), fold(name.as_str()));
    }
    if let Ok(path) = EntryPath::parse(text) {
        let again = EntryPath::parse(&path.to_string());
        assert_eq!(again.as_ref().ok(), Some(&path));
        assert!(path.relative().split('/').all(|part| part != ".." && part != "."));
        let root = path.root.to_string();
        assert_eq!(EntryPath::new(&root, &path.relative()).ok(), Some(path));
    }
});
