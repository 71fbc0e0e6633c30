//! Puts the layers together and reports everything that is wrong with them.

use super::OTHER_VARIABLES;
use crate::error::{Error, Reason, Result};
use config::{Config, Environment, File, FileFormat};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

const PREFIX: &str = "ATRIUM_";
/// A settings file larger than this is a mistake.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// A program's settings. Every struct in it derives `Serialize`, `Deserialize` and carries
/// `#[serde(default, deny_unknown_fields)]`. Names are lower case with single underscores.
pub trait Settings: Serialize + DeserializeOwned + Default {
    /// Looks at everything that a type cannot say: ranges, and values that must fit together.
    fn validate(&self, problems: &mut Problems);
}

/// Where a value came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Layer {
    /// Built in.
    Default,
    /// The settings file, with the line.
    File(PathBuf, usize),
    /// An environment variable.
    Environment(String),
    /// The command line.
    Flag(String),
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Layer::Default => f.write_str("default"),
            Layer::File(path, line) => write!(f, "{}:{line}", path.display()),
            Layer::Environment(name) => write!(f, "environment {name}"),
            Layer::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// What is wrong, collected.
#[derive(Debug, Default)]
pub struct Problems(Vec<(String, String)>);

impl Problems {
    /// Notes that the value of `key` ("grpc.listen") is wrong.
    pub fn add(&mut self, key: &str, what: impl Into<String>) {
        self.0.push((key.to_owned(), what.into()));
    }

    /// True if nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Notes it unless the condition holds.
    pub fn require(&mut self, holds: bool, key: &str, what: &str) {
        if !holds {
            self.add(key, what);
        }
    }
}

/// The layers above the defaults, lowest first.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The settings file.
    pub file: Option<PathBuf>,
    /// Names and values of environment variables; those without our prefix are skipped.
    pub environment: Vec<(String, String)>,
    /// Values from the command line: flag ("--listen"), key ("grpc.listen"), value.
    pub flags: Vec<(String, String, String)>,
}

impl Sources {
    /// This process's environment, and a file. Variables that are no UTF-8 are taken with replacement characters, and
    /// so are refused where they matter.
    pub fn process(file: Option<PathBuf>) -> Self {
        let environment = std::env::vars_os()
            .map(|(k, v)| (k.to_string_lossy().into_owned(), v.to_string_lossy().into_owned()))
            .filter(|(k, _)| k.starts_with(PREFIX))
            .collect();
        Self { file, environment, flags: Vec::new() }
    }

    /// Adds a value from the command line, if it was given.
    #[must_use]
    pub fn flag(mut self, flag: &str, key: &str, value: Option<impl fmt::Display>) -> Self {
        if let Some(value) = value {
            self.flags.push((flag.to_owned(), key.to_owned(), value.to_string()));
        }
        self
    }

    /// Loads and checks.
    ///
    /// # Errors
    /// `SETTINGS_INVALID` with one line per problem.
    pub fn load<T: Settings>(&self) -> Result<Loaded<T>> {
        let defaults = leaves_of(&T::default())?;
        let mut wrong: Vec<String> = Vec::new();
        let mut given: Vec<(String, Value, Layer)> = Vec::new();
        let text = self.read_file(&mut wrong);
        if let (Some(path), Some(text)) = (&self.file, &text) {
            from_file(path, text, &defaults, &mut given, &mut wrong);
        }
        let from_file = given.len();
        from_environment(&self.environment, &defaults, &mut given, &mut wrong);
        for (flag, key, value) in &self.flags {
            let layer = Layer::Flag(flag.clone());
            match defaults.get(key) {
                Some(default) => given.push((key.clone(), typed(default, value), layer)),
                None => wrong.push(format!("{layer}: there is no setting {key}")),
            }
        }
        // Every value by itself first: so each mistake is named with its layer, not just the first one.
        for (key, value, layer) in &given {
            let alone = Config::builder()
                .set_override(key, to_config(value))
                .and_then(|b| b.build())
                .and_then(Config::try_deserialize::<T>);
            if let Err(error) = alone {
                wrong.push(format!("{layer}: {key}: {}", plain(&error)));
            }
        }
        if !wrong.is_empty() {
            return Err(refuse(wrong));
        }
        let mut builder = Config::builder().add_source(Config::try_from(&T::default()).map_err(|e| defect(&e))?);
        if let Some(text) = &text {
            builder = builder.add_source(File::from_str(text, FileFormat::Toml));
        }
        builder = builder.add_source(environment_source(&self.environment, &defaults));
        for (key, value, _) in given[from_file..].iter().filter(|(_, value, layer)| {
            // Lists are beyond the environment source, which would have to guess types to split them.
            matches!(layer, Layer::Flag(_)) || value.is_array()
        }) {
            builder = builder.set_override(key, to_config(value)).map_err(|e| defect(&e))?;
        }
        let settings: T = builder.build().and_then(Config::try_deserialize).map_err(|e| refuse(vec![plain(&e)]))?;
        // The highest layer that names a key wins, and is the one that a problem is reported under.
        let origins: BTreeMap<String, Layer> = given.into_iter().map(|(key, _, layer)| (key, layer)).collect();
        let mut problems = Problems::default();
        settings.validate(&mut problems);
        if !problems.0.is_empty() {
            let lines = problems
                .0
                .into_iter()
                .map(|(key, what)| format!("{}: {key}: {what}", origins.get(&key).unwrap_or(&Layer::Default)));
            return Err(refuse(lines.collect()));
        }
        Ok(Loaded { settings, origins })
    }

    fn read_file(&self, wrong: &mut Vec<String>) -> Option<String> {
        let path = self.file.as_deref()?;
        let read = || -> std::io::Result<String> {
            let meta = std::fs::metadata(path)?;
            if meta.len() > MAX_FILE_BYTES {
                return Err(std::io::Error::other("larger than 1 MiB"));
            }
            std::fs::read_to_string(path)
        };
        match read() {
            Ok(text) => Some(text),
            Err(error) => {
                wrong.push(format!("{}: {error}", path.display()));
                None
            }
        }
    }
}

/// Checked settings and where each value came from.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The settings.
    pub settings: T,
    origins: BTreeMap<String, Layer>,
}

impl<T: Settings> Loaded<T> {
    /// Where this key's value came from.
    pub fn origin(&self, key: &str) -> Layer {
        self.origins.get(key).cloned().unwrap_or(Layer::Default)
    }

    /// Everything as a TOML file, each value that is no default with its origin as a comment.
    ///
    /// # Errors
    /// `INTERNAL` if the settings cannot be written, which is a defect.
    pub fn print(&self) -> Result<String> {
        let mut out = String::new();
        let mut section = String::new();
        let leaves = leaves_of(&self.settings)?;
        let mut ordered: Vec<_> = leaves
            .iter()
            .map(|(key, value)| {
                let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
                (section, name, key, value)
            })
            .collect();
        // Values without a section must come first, and each section once.
        ordered.sort_by_key(|(section, name, ..)| (*section, *name));
        for (in_section, name, key, value) in ordered {
            if in_section != section {
                if !out.is_empty() {
                    out.push('\n');
                }
                out.push_str(&format!("[{in_section}]\n"));
                section = in_section.to_owned();
            }
            let origin = self.origin(key);
            match toml::Value::try_from(value) {
                Ok(text) if origin == Layer::Default => out.push_str(&format!("{name} = {text}\n")),
                Ok(text) => out.push_str(&format!("{name} = {text}  # {origin}\n")),
                // TOML has no null: a setting that may be left out and is.
                Err(_) => out.push_str(&format!("# {name} is not set\n")),
            }
        }
        Ok(out)
    }
}

fn defect(error: &config::ConfigError) -> Error {
    Error::internal(format!("the built-in settings cannot be represented: {error}"))
}

fn refuse(lines: Vec<String>) -> Error {
    let many = if lines.len() == 1 { "1 mistake".to_owned() } else { format!("{} mistakes", lines.len()) };
    Error::new(Reason::SettingsInvalid, format!("{many} in the settings:\n  {}", lines.join("\n  ")))
}

/// The message without the parts that the layer says better.
fn plain(error: &config::ConfigError) -> String {
    match error {
        config::ConfigError::At { error, .. } => plain(error),
        config::ConfigError::Type { unexpected, expected, .. } => format!("{unexpected} is not {expected}"),
        config::ConfigError::Message(text) => text.clone(),
        other => other.to_string(),
    }
}

/// All keys with their values, "section.name" to value; sections in alphabetical order.
fn leaves_of<T: Serialize>(settings: &T) -> Result<BTreeMap<String, Value>> {
    let tree = serde_json::to_value(settings)
        .map_err(|e| Error::internal("the built-in settings cannot be represented").caused_by(e))?;
    let mut leaves = BTreeMap::new();
    let mut open = vec![(String::new(), tree)];
    while let Some((key, value)) = open.pop() {
        match value {
            Value::Object(map) => open.extend(map.into_iter().map(|(name, value)| (join(&key, &name), value))),
            leaf => {
                leaves.insert(key, leaf);
            }
        }
    }
    Ok(leaves)
}

fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// A value from the environment or a flag. It stays text, so that "007" is not turned into 7 on the way to a text
/// setting; only lists are taken apart here.
fn typed(default: &Value, text: &str) -> Value {
    match default {
        Value::Array(_) => text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(Value::from).collect(),
        _ => Value::from(text),
    }
}

fn to_config(value: &Value) -> config::Value {
    use config::ValueKind;
    let kind = match value {
        Value::Null => ValueKind::Nil,
        Value::Bool(b) => ValueKind::Boolean(*b),
        Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => ValueKind::I64(i),
            (None, Some(u)) => ValueKind::U64(u),
            (None, None) => ValueKind::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(s) => ValueKind::String(s.clone()),
        Value::Array(items) => ValueKind::Array(items.iter().map(to_config).collect()),
        Value::Object(map) => ValueKind::Table(map.iter().map(|(k, v)| (k.clone(), to_config(v))).collect()),
    };
    config::Value::new(None, kind)
}

fn from_file(
    path: &Path,
    text: &str,
    defaults: &BTreeMap<String, Value>,
    given: &mut Vec<(String, Value, Layer)>,
    wrong: &mut Vec<String>,
) {
    let line_of = |at: usize| text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1;
    let (root, errors) = toml::de::DeTable::parse_recoverable(text);
    for error in &errors {
        let line = error.span().map_or(1, |span| line_of(span.start));
        wrong.push(format!("{}:{line}: {}", path.display(), error.message()));
    }
    if !errors.is_empty() {
        return;
    }
    let Ok(values) = text.parse::<toml::Table>() else { return };
    let mut open = vec![(String::new(), root.get_ref(), &values)];
    while let Some((section, table, values)) = open.pop() {
        for (name, spanned) in table {
            let key = join(&section, name.get_ref());
            let layer = Layer::File(path.to_owned(), line_of(name.span().start));
            let value = values.get(name.get_ref().as_ref());
            match (spanned.get_ref().as_table(), value) {
                (Some(inner), Some(toml::Value::Table(value))) if is_section(defaults, &key) => {
                    open.push((key, inner, value));
                }
                (_, Some(value)) if defaults.contains_key(&key) => {
                    // A TOML value is a JSON value except for dates and special numbers, which no setting takes.
                    let value = serde_json::to_value(value).unwrap_or(Value::Null);
                    given.push((key, value, layer));
                }
                _ if is_section(defaults, &key) => wrong.push(format!("{layer}: {key} is a section: write [{key}]")),
                _ => wrong.push(format!("{layer}: there is no setting {key}{}", suggestion(defaults, &key))),
            }
        }
    }
}

fn is_section(defaults: &BTreeMap<String, Value>, key: &str) -> bool {
    defaults.keys().any(|k| k.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
}

fn from_environment(
    environment: &[(String, String)],
    defaults: &BTreeMap<String, Value>,
    given: &mut Vec<(String, Value, Layer)>,
    wrong: &mut Vec<String>,
) {
    for (name, value) in environment {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        if OTHER_VARIABLES.iter().any(|(other, _)| other == name) {
            continue;
        }
        let layer = Layer::Environment(name.clone());
        let key = rest.to_lowercase().replace("__", ".");
        match defaults.get(&key) {
            Some(default) => given.push((key, typed(default, value), layer)),
            None => {
                let hint = if rest.contains("__") {
                    suggestion(defaults, &key)
                } else {
                    "; section and name are separated by two underscores".to_owned()
                };
                wrong.push(format!("{layer}: there is no setting {key}{hint}"));
            }
        }
    }
}

fn environment_source(environment: &[(String, String)], defaults: &BTreeMap<String, Value>) -> Environment {
    let ours: HashMap<String, String> = environment
        .iter()
        .filter(|(name, _)| {
            let key = name.strip_prefix(PREFIX).map(|rest| rest.to_lowercase().replace("__", "."));
            key.and_then(|key| defaults.get(&key)).is_some_and(|default| !default.is_array())
        })
        .cloned()
        .collect();
    Environment::with_prefix("ATRIUM")
        .prefix_separator("_")
        .separator("__")
        .try_parsing(false)
        .source(Some(ours.into_iter().collect()))
}

/// The nearest existing key, if one is near.
fn suggestion(defaults: &BTreeMap<String, Value>, key: &str) -> String {
    let last = |k: &str| k.rsplit('.').next().unwrap_or(k).to_owned();
    defaults
        .keys()
        .map(|known| (distance(known, key).min(distance(&last(known), &last(key)) + 1), known))
        .min()
        .filter(|(distance, known)| *distance <= 1 + known.len() / 5)
        .map_or_else(String::new, |(_, known)| format!("; did you mean {known}?"))
}

/// Levenshtein distance. Keys are short; a long one is cut.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(100).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(100).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::super::{ByteSize, HumanDuration};
    use super::*;
    use serde::Deserialize;
    use std::net::SocketAddr;

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        name: String,
        net: Net,
    }

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Net {
        listen: SocketAddr,
        max_streams: u32,
        window: ByteSize,
        timeout: HumanDuration,
        names: Vec<String>,
        proxy: Option<String>,
        quick: bool,
    }

    impl Default for Sample {
        fn default() -> Self {
            Self { name: "office".into(), net: Net::default() }
        }
    }

    impl Default for Net {
        fn default() -> Self {
            Self {
                listen: "[::]:7443".parse().expect("address"),
                max_streams: 256,
                window: ByteSize::mib(4),
                timeout: HumanDuration::secs(5),
                names: vec![],
                proxy: None,
                quick: true,
            }
        }
    }

    impl Settings for Sample {
        fn validate(&self, problems: &mut Problems) {
            problems.require(self.net.max_streams > 0, "net.max_streams", "must be at least 1");
            problems.require(self.net.window.bytes() >= 65_535, "net.window", "must be at least 64KiB");
        }
    }

    struct Given {
        _dir: tempfile::TempDir,
        sources: Sources,
    }

    fn given(file: &str, environment: &[(&str, &str)]) -> Given {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("x.toml");
        std::fs::write(&path, file).expect("write");
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Given { _dir: dir, sources: Sources { file: Some(path), environment, flags: Vec::new() } }
    }

    fn error(file: &str, environment: &[(&str, &str)]) -> String {
        let given = given(file, environment);
        let error = given.sources.load::<Sample>().expect_err("refused");
        assert!(error.is(Reason::SettingsInvalid));
        error.message().to_owned()
    }

    #[test]
    fn later_layers_win() {
        let mut given = given(
            "name = 'file'\n[net]\nmax_streams = 1\nwindow = '1MiB'\nnames = ['a']\n",
            &[
                ("ATRIUM_NET__WINDOW", "2MiB"),
                ("ATRIUM_NET__TIMEOUT", "1m"),
                ("ATRIUM_NET__NAMES", "b, c"),
                ("ATRIUM_NET__QUICK", "false"),
                ("ATRIUM_NET__PROXY", "007"),
                ("ATRIUM_LOG", "debug"),
                ("PATH", "/bin"),
            ],
        );
        given.sources =
            given.sources.flag("--timeout", "net.timeout", Some("3s")).flag("--none", "name", None::<String>);
        let loaded = given.sources.load::<Sample>().expect("loads");
        let net = &loaded.settings.net;
        assert_eq!(loaded.settings.name, "file");
        assert_eq!((net.max_streams, net.window, net.quick), (1, ByteSize::mib(2), false));
        assert_eq!(net.timeout, HumanDuration::secs(3));
        assert_eq!(net.names, ["b", "c"]);
        assert_eq!(net.proxy.as_deref(), Some("007"));
        assert_eq!(loaded.origin("net.timeout"), Layer::Flag("--timeout".into()));
        assert_eq!(loaded.origin("net.listen"), Layer::Default);
        assert!(matches!(loaded.origin("net.max_streams"), Layer::File(_, 3)));
    }

    #[test]
    fn all_mistakes_are_reported_at_once_with_their_layer() {
        let text = error(
            "nme = 'x'\n[net]\nmax_steams = 3\nlisten = 'nowhere'\nwindow = 'big'\n[nothing]\na = 1\n",
            &[("ATRIUM_NET_LISTEN", "x"), ("ATRIUM_NET__TIMEOUT", "5 parsecs"), ("ATRIUM_NET__TIMEOT", "5s")],
        );
        for part in [
            "8 mistakes",
            "x.toml:1: there is no setting nme; did you mean name?",
            "x.toml:3: there is no setting net.max_steams; did you mean net.max_streams?",
            "x.toml:4: net.listen: ",
            "x.toml:5: net.window: \"big\" is not a size",
            "x.toml:6: there is no setting nothing",
            "environment ATRIUM_NET_LISTEN: there is no setting net_listen; section and name",
            "environment ATRIUM_NET__TIMEOUT: net.timeout: \"5 parsecs\" is not a duration",
            "environment ATRIUM_NET__TIMEOT: there is no setting net.timeot; did you mean net.timeout?",
        ] {
            assert!(text.contains(part), "{part:?} is missing in:\n{text}");
        }
    }

    #[test]
    fn values_of_the_wrong_type_or_out_of_range_name_their_layer() {
        assert!(error("[net]\nmax_streams = 'many'", &[]).contains("x.toml:2: net.max_streams"));
        assert!(error("[net]\nmax_streams = -1", &[]).contains("net.max_streams"));
        assert!(error("[net]\ntimeout = 5", &[]).contains("needs a unit"));
        assert!(error("net = 5", &[]).contains("net is a section: write [net]"));
        assert!(error("[name]\nx = 1", &[]).contains("x.toml:1: name"));
        let text = error("[net]\nmax_streams = 0", &[("ATRIUM_NET__WINDOW", "1KiB")]);
        assert!(text.contains("x.toml:2: net.max_streams: must be at least 1"), "{text}");
        assert!(text.contains("environment ATRIUM_NET__WINDOW: net.window: must be"), "{text}");
        assert!(error("[net\n", &[]).contains("x.toml:1"));
        let missing = Sources { file: Some("/nonexistent/x.toml".into()), ..Sources::default() };
        assert!(missing.load::<Sample>().expect_err("refused").message().contains("/nonexistent/x.toml"));
    }

    #[test]
    fn what_is_printed_loads_again_and_is_the_same() {
        let first = given("[net]\nnames = ['a', 'b']\nwindow = '3MiB'\nproxy = 'a\"b'", &[]);
        let printed = first.sources.load::<Sample>().expect("loads").print().expect("prints");
        assert!(printed.contains("x.toml:2") && printed.contains("max_streams = 256\n"), "{printed}");
        let again = given(&printed, &[]).sources.load::<Sample>().expect("loads again");
        assert_eq!(leaves_of(&again.settings).expect("leaves").len(), 8);
        assert_eq!(again.settings.net.window, ByteSize::mib(3));
        assert_eq!(again.settings.net.proxy.as_deref(), Some("a\"b"));
        let defaults = Sources::default().load::<Sample>().expect("loads").print().expect("prints");
        assert!(defaults.contains("# proxy is not set"), "{defaults}");
        given(&defaults, &[]).sources.load::<Sample>().expect("defaults load");
    }
}
