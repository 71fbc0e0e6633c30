//! Exports of the store: bytes as they come, and files whose digests fit, made of what the input says.
#![no_main]

use common::store::{EngineKind, Store, StoreSettings};

fn import(bytes: &[u8]) -> Option<Store> {
    let settings = StoreSettings { engine: EngineKind::Memory, ..StoreSettings::default() };
    Store::import(&settings, &mut &bytes[..]).ok()
}

/// The next number of the input; 0 at its end.
fn next(input: &mut &[u8]) -> u8 {
    let Some((first, rest)) = input.split_first() else { return 0 };
    *input = rest;
    *first
}

fn take<'a>(input: &mut &'a [u8], most: u8) -> &'a [u8] {
    let (taken, rest) = input.split_at(usize::from(most).min(input.len()));
    *input = rest;
    taken
}

/// A file in the format of `store/export.rs`.
fn made(mut input: &[u8]) -> Vec<u8> {
    let mut file = b"ATRIUM-EXPORT\n".to_vec();
    file.extend_from_slice(&1u32.to_le_bytes());
    file.extend_from_slice(&u32::from(next(&mut input) % 3).to_le_bytes());
    file.extend_from_slice(&[7; 16]);
    let oldest = u64::from(next(&mut input) % 4);
    let revision = oldest + u64::from(next(&mut input) % 4);
    file.extend_from_slice(&revision.to_le_bytes());
    file.extend_from_slice(&oldest.to_le_bytes());
    let digest = blake3::hash(&file);
    file.extend_from_slice(digest.as_bytes());
    let (mut records, mut bytes) = (0u64, 0u64);
    while !input.is_empty() && records < 64 {
        let how = next(&mut input);
        let mut key = Vec::new();
        match how % 4 {
            // A block of the change log.
            0 => {
                key.push(1);
                key.extend_from_slice(&u64::from(next(&mut input)).to_be_bytes());
                key.extend_from_slice(&u32::from(next(&mut input)).to_be_bytes());
            }
            1 | 2 => {
                key.push(2);
                key.extend_from_slice(&(records as u32).to_be_bytes());
            }
            _ => {
                let most = next(&mut input);
                key.extend_from_slice(take(&mut input, most));
            }
        }
        let most = next(&mut input);
        let value = take(&mut input, most);
        let from = file.len();
        file.push(1);
        file.extend_from_slice(&(key.len() as u32).to_le_bytes());
        file.extend_from_slice(&(value.len() as u32).to_le_bytes());
        file.extend_from_slice(&key);
        file.extend_from_slice(value);
        let digest = blake3::hash(&file[from..]);
        file.extend_from_slice(digest.as_bytes());
        records += 1;
        bytes += (key.len() + value.len()) as u64;
    }
    file.push(2);
    file.extend_from_slice(&records.to_le_bytes());
    file.extend_from_slice(&bytes.to_le_bytes());
    let digest = blake3::hash(&file);
    file.extend_from_slice(digest.as_bytes());
    file
}

fn inputs() -> Vec<Vec<u8>> {
    // Recipes for `made`: of nothing, of keys of the state, of blocks of the change log; and a whole file.
    let recipes: [&[u8]; 3] = [
        &[1, 0, 0],
        &[1, 1, 2, 1, 3, 7, 7, 7, 2, 0, 3, 4, 1, 2, 3, 4, 2, 9, 9],
        &[2, 0, 2, 0, 1, 0, 4, 8, 1, 18, 0, 0, 2, 0, 1, 10],
    ];
    recipes.iter().map(|recipe| recipe.to_vec()).chain(recipes.iter().map(|recipe| made(recipe))).collect()
}

libfuzzer_sys::fuzz_target!(init: seeds::plant(inputs), |data: &[u8]| {
    drop(import(data));
    if let Some(store) = import(&made(data)) {
        // What was taken is sound, and what it gives back is taken again.
        assert!(store.verify().expect("a report").is_sound());
        let mut again = Vec::new();
        let summary = store.export(&mut again).expect("an export");
        let second = import(&again).expect("its own export");
        assert_eq!(second.revision(), summary.revision);
    }
});
