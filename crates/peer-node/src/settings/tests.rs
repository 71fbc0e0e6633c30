use super::*;
use common::settings::Sources;

fn example() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/config/peer-node.toml");
    std::fs::read_to_string(path).expect("the example file")
}

/// The example with its settings switched on, and their names.
fn switched_on() -> (String, Vec<String>) {
    let mut section = String::new();
    let mut names = Vec::new();
    let mut text = String::new();
    for line in example().lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name.to_owned();
        }
        let setting = line.strip_prefix('#').filter(|l| l.starts_with(|c: char| c.is_ascii_lowercase()));
        if let Some((name, _)) = setting.and_then(|l| l.split_once(" = ")) {
            names.push(format!("{section}.{name}"));
        }
        text.push_str(setting.unwrap_or(line));
        text.push('\n');
    }
    (text, names)
}

fn load(text: &str) -> Result<common::settings::Loaded<Settings>> {
    let dir = tempfile::tempdir().expect("temp dir");
    let file = dir.path().join("peer-node.toml");
    std::fs::write(&file, text).expect("write");
    Sources { file: Some(file), ..Sources::default() }.load()
}

#[test]
fn the_example_file_says_what_is_built_in() {
    assert_eq!(load(&example()).expect("loads as it is").settings, Settings::default());
    let (text, names) = switched_on();
    assert_eq!(load(&text).expect("loads switched on").settings, Settings::default());
    let printed = load("").expect("loads").print().expect("prints");
    let mut section = "";
    let mut all = Vec::new();
    for line in printed.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name;
        } else if let Some((name, _)) = line.split_once(" = ") {
            all.push(format!("{section}.{name}"));
        }
    }
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    assert_eq!(sorted(names), sorted(all));
}

#[test]
fn the_example_shows_each_value_as_it_would_be_printed() {
    let (text, _) = switched_on();
    let printed = load("").expect("loads").print().expect("prints");
    for line in text.lines().filter(|l| l.starts_with(|c: char| c.is_ascii_lowercase())) {
        assert!(printed.contains(line), "{line} is not in\n{printed}");
    }
}

#[test]
fn values_out_of_range_are_all_named() {
    let text = "[node]\nstate_directory = 'here'\nlisten = []\nname = 'a/b'\nunit = 'sales//x'\n\
        [discovery]\nbeacon_port = 0\nseeds = ['a b']\n[outbox]\nkeep = '1s'\n\
        [index]\nrescan_interval = '0s'\n[limits]\nschedule = 'sometimes'\n[log]\nlevel = 'loud'\n";
    let error = load(text).expect_err("refused");
    let text = error.message();
    for key in [
        "node.state_directory",
        "node.listen",
        "node.name",
        "node.unit",
        "discovery.beacon_port",
        "discovery.seeds",
        "outbox.keep",
        "limits.schedule",
        "index.rescan_interval",
        "log.level",
    ] {
        assert!(text.contains(key), "{key} is missing in {text}");
    }
    assert!(text.starts_with("10 mistakes"), "{text}");
}

#[test]
fn places_depend_on_who_starts_it() {
    let resolve = |around: &Surroundings| Settings::default().resolve(around);
    let root = Surroundings { root: true, home: Some("/root".into()), ..Surroundings::default() };
    let settings = resolve(&root).expect("root");
    assert_eq!(settings.node.state_directory, Path::new("/var/lib/atrium-peer"));
    assert_eq!(settings.node.socket, Path::new("/run/atrium/peer.sock"));

    let anna = Surroundings { home: Some("/home/anna".into()), ..Surroundings::default() };
    let settings = resolve(&anna).expect("with a home directory");
    assert_eq!(settings.node.state_directory, Path::new("/home/anna/.local/state/atrium-peer"));
    assert_eq!(settings.node.socket, Path::new("/home/anna/.local/state/atrium-peer/peer.sock"));
    assert_eq!(settings.inbox.directory, Path::new("/home/anna/atrium-inbox"));

    let desktop = Surroundings {
        state_home: Some("/home/anna/state".into()),
        runtime_directory: Some("/run/user/1000".into()),
        ..anna
    };
    let settings = resolve(&desktop).expect("with XDG variables");
    assert_eq!(settings.node.state_directory, Path::new("/home/anna/state/atrium-peer"));
    assert_eq!(settings.node.socket, Path::new("/run/user/1000/atrium/peer.sock"));

    assert!(resolve(&Surroundings::default()).is_err(), "nowhere to keep state");
    let far = Surroundings { home: Some(format!("/{}", "x".repeat(200)).into()), ..Surroundings::default() };
    assert!(resolve(&far).expect_err("too long").message().contains("107"));
}

#[test]
fn places_that_were_named_stay() {
    let named = Settings::in_directory(Path::new("/tmp/x"));
    let root = Surroundings { root: true, ..Surroundings::default() };
    assert_eq!(named.clone().resolve(&root).expect("resolves"), named);
    let mut problems = Problems::default();
    common::settings::Settings::validate(&named, &mut problems);
    assert!(problems.is_empty());
}
