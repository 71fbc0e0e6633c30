//! The words of enrolment codes.
//!
//! 256 of them, so that a word is eight bits. Any two differ in at least three letters and in their first three
//! letters, so that a mistyped word is recognized, and none is rude or hard to spell. The list is part of the protocol:
//! a word must not be taken away while codes with it may live (a day).

pub(super) const WORDS: [&str; 256] = [
    "abacus", "acorn", "adobe", "agent", "album", "almond", "alpine", "amber", "anchor", "ankle", "anvil", "apron",
    "arctic", "aspen", "atlas", "autumn", "avenue", "badge", "bamboo", "banjo", "barley", "basket", "beacon", "border",
    "bottle", "branch", "bread", "bronze", "bugle", "butter", "cabin", "cactus", "canal", "carpet", "castle", "cedar",
    "cello", "chalk", "cherry", "cinema", "circus", "cliff", "clover", "cobalt", "coffee", "comet", "copper", "cotton",
    "cousin", "coyote", "cradle", "crystal", "curtain", "cushion", "cyclone", "daisy", "delta", "dentist", "desert",
    "diamond", "dolphin", "domino", "donkey", "dragon", "drummer", "duck", "dungeon", "dynamo", "easel", "echo",
    "eclipse", "elbow", "emerald", "engine", "fabric", "falcon", "farmer", "feather", "fennel", "fiddle", "filter",
    "flute", "forest", "fossil", "fox", "fridge", "galaxy", "garden", "ginger", "giraffe", "glacier", "goblet",
    "gondola", "granite", "guitar", "hammock", "harbor", "helmet", "hiking", "hobby", "horizon", "hotel", "hyena",
    "iceberg", "igloo", "iguana", "indigo", "iris", "island", "ivory", "jaguar", "jasmine", "jewel", "jigsaw",
    "jukebox", "juniper", "karate", "kayak", "kimono", "kitten", "kiwi", "koala", "ladder", "lagoon", "lantern",
    "laurel", "leopard", "lettuce", "library", "lilac", "lion", "lizard", "lobster", "locket", "lotus", "lunch",
    "machine", "magnet", "mammoth", "maple", "meadow", "melon", "meteor", "mirror", "mosaic", "muffin", "museum",
    "mystery", "napkin", "nectar", "needle", "nephew", "nickel", "nomad", "north", "nugget", "nutmeg", "oasis",
    "oatmeal", "ocean", "octopus", "olive", "omelet", "opal", "opera", "orange", "orchid", "osprey", "ostrich",
    "oxygen", "palace", "panda", "papaya", "parrot", "peacock", "pebble", "pelican", "pencil", "petal", "piano",
    "picnic", "pigeon", "pilot", "planet", "polar", "pony", "potato", "prairie", "pretzel", "pumpkin", "puzzle",
    "pyramid", "quartz", "quill", "rabbit", "radio", "raisin", "raven", "rhino", "ribbon", "rubber", "safari",
    "sailor", "saturn", "scarf", "school", "scooter", "seagull", "sesame", "skate", "sketch", "skyline", "slipper",
    "sofa", "spider", "spruce", "stadium", "stereo", "stork", "sugar", "sunset", "swallow", "tadpole", "teapot",
    "temple", "tennis", "thimble", "thunder", "toast", "tractor", "tripod", "trolley", "trumpet", "tulip", "tundra",
    "turtle", "tuxedo", "twig", "vanilla", "vinegar", "violin", "volcano", "voyage", "vulture", "waffle", "walnut",
    "wasabi", "water", "window", "wombat", "yacht", "zebra", "zenith", "zigzag", "zinc", "zodiac",
];

/// The word that was meant, if one is close: the same first three letters, or at most two letters wrong.
pub(super) fn nearest(word: &str) -> Option<&'static str> {
    let by_distance = |w: &&&str| distance(word, w);
    let closest = WORDS.iter().min_by_key(by_distance)?;
    if distance(word, closest) <= 2 {
        return Some(closest);
    }
    let start = word.get(..3)?;
    WORDS.iter().find(|w| w.starts_with(start)).copied()
}

/// How many letters must be put in, taken out or changed (Levenshtein). Both are short.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = changed.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_told_apart_easily() {
        for (i, a) in WORDS.iter().enumerate() {
            assert!((3..=9).contains(&a.len()) && a.bytes().all(|b| b.is_ascii_lowercase()), "{a}");
            for b in &WORDS[..i] {
                assert!(distance(a, b) >= 3, "{a} {b}");
                assert_ne!(a[..3], b[..3], "{a} {b}");
            }
        }
    }

    #[test]
    fn a_mistyped_word_is_recognized() {
        assert_eq!(nearest("lyon"), Some("lion"));
        assert_eq!(nearest("canall"), Some("canal"));
        assert_eq!(nearest("ambulance"), Some("amber"));
        assert_eq!(nearest("qqqqqqqq"), None);
        assert_eq!(nearest("ä"), None);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
