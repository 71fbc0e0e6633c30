//! What files, trash, versions, locks and quotas are meant to do, in the simplest way: trees in memory.

use common::model::fold;
use proptest::prelude::*;
use proptest::sample::select;
use std::collections::{BTreeMap, BTreeSet};

/// The roots that are worked on. Anna and bert have the rights that [`crate::desk::Desk`] gives them.
pub const ROOTS: [&str; 3] = ["home/anna", "public/plans", "public/cases"];
/// Number of different contents.
pub const CONTENTS: u8 = 4;

/// A content: number 0 is empty, the others have some chunks.
pub fn content(number: u8) -> Vec<u8> {
    (0..usize::from(number) * 700).map(|n| (n as u8).wrapping_mul(number)).collect()
}

fn size(number: u8) -> u64 {
    u64::from(number) * 700
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Anna,
    Bert,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Who::Anna => "anna",
            Who::Bert => "bert",
        }
    }
}

/// A fencing token to write with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    None,
    /// The last one that was given out for the file.
    Last,
    /// One that never was.
    Wrong,
}

#[derive(Clone, Debug)]
pub enum Target {
    All,
    Index(usize),
}

#[derive(Clone, Debug)]
pub enum Op {
    Mkdir {
        who: Who,
        at: String,
        parents: bool,
    },
    /// Expected: any, or absent (0), or a version.
    Put {
        who: Who,
        at: String,
        content: u8,
        expected: Option<u64>,
        parents: bool,
        token: Token,
    },
    Move {
        who: Who,
        from: String,
        to: String,
        overwrite: bool,
    },
    Copy {
        who: Who,
        from: String,
        to: String,
    },
    Delete {
        who: Who,
        at: String,
        recursive: bool,
    },
    Restore {
        who: Who,
        root: &'static str,
        index: usize,
        to: Option<String>,
    },
    Purge {
        who: Who,
        root: &'static str,
        target: Target,
    },
    RestoreVersion {
        who: Who,
        at: String,
        version: u64,
    },
    Lock {
        who: Who,
        at: String,
        seconds: u64,
    },
    Unlock {
        who: Who,
        at: String,
        force: bool,
    },
    Limit {
        root: &'static str,
        bytes: u64,
    },
    Wait {
        seconds: u64,
    },
}

/// What came of it, or the reason of the refusal.
pub type Outcome = Result<Done, String>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    Entry { version: u64, size: u64, directory: bool, lock: Option<(String, u64)> },
    Count(u64),
    Deleted,
    Nothing,
}

/// Places to work at: any that may be, and more often those that are there.
pub fn places(there: Vec<String>) -> BoxedStrategy<String> {
    let name = || prop_oneof![5 => Just("a"), 4 => Just("b"), 2 => Just("c"), 1 => Just("A")];
    let root = prop_oneof![2 => Just("home/anna:"), 3 => Just("public:plans/"), 2 => Just("public:cases/")];
    let names = prop_oneof![3 => Just(1), 3 => Just(2), 1 => Just(3)];
    let any = (root, names.prop_flat_map(move |depth| proptest::collection::vec(name(), depth)))
        .prop_map(|(root, names)| format!("{root}{}", names.join("/")));
    if there.is_empty() { any.boxed() } else { prop_oneof![2 => any, 5 => select(there)].boxed() }
}

/// A few places for two people who are to get in each other's way.
pub fn few_places() -> BoxedStrategy<String> {
    let all = ["a", "a", "b", "a/a", "a/b", "a/A", "b/a", "a/a/b"].map(|at| format!("public:plans/{at}"));
    prop_oneof![6 => select(all.to_vec()), 1 => Just("public:cases/a".to_owned())].boxed()
}

/// Any step; what is common comes more often.
pub fn op(places: BoxedStrategy<String>) -> impl Strategy<Value = Op> {
    let place = || places.clone();
    // Mostly a free name in a directory that is there.
    let free = || prop_oneof![1 => place(), 1 => (place(), select(vec!["n", "m"])).prop_map(|(at, name)| format!("{at}/{name}"))];
    let who = || prop_oneof![4 => Just(Who::Anna), 1 => Just(Who::Bert)];
    let expected = || prop_oneof![5 => Just(None), 1 => Just(Some(0)), 1 => (1u64..4).prop_map(Some)];
    let token = || prop_oneof![8 => Just(Token::None), 2 => Just(Token::Last), 1 => Just(Token::Wrong)];
    let root = || select(ROOTS.to_vec());
    prop_oneof![
        3 => (who(), place(), any::<bool>()).prop_map(|(who, at, parents)| Op::Mkdir { who, at, parents }),
        8 => (who(), place(), 0..CONTENTS, expected(), prop::bool::weighted(0.9), token()).prop_map(
            |(who, at, content, expected, parents, token)| Op::Put { who, at, content, expected, parents, token }
        ),
        4 => (who(), place(), free(), any::<bool>())
            .prop_map(|(who, from, to, overwrite)| Op::Move { who, from, to, overwrite }),
        2 => (who(), place(), free()).prop_map(|(who, from, to)| Op::Copy { who, from, to }),
        3 => (who(), place(), prop::bool::weighted(0.7))
            .prop_map(|(who, at, recursive)| Op::Delete { who, at, recursive }),
        2 => (who(), root(), 0..6usize, proptest::option::of(free()))
            .prop_map(|(who, root, index, to)| Op::Restore { who, root, index, to }),
        1 => (who(), root(), prop_oneof![1 => Just(Target::All), 3 => (0..6usize).prop_map(Target::Index)])
            .prop_map(|(who, root, target)| Op::Purge { who, root, target }),
        2 => (who(), place(), 0..4u64).prop_map(|(who, at, version)| Op::RestoreVersion { who, at, version }),
        2 => (who(), place(), 1..100u64).prop_map(|(who, at, seconds)| Op::Lock { who, at, seconds }),
        1 => (who(), place(), any::<bool>()).prop_map(|(who, at, force)| Op::Unlock { who, at, force }),
        1 => (root(), select(vec![0, 0, 1_000, 3_000, 8_000])).prop_map(|(root, bytes)| Op::Limit { root, bytes }),
        1 => (1..120u64).prop_map(|seconds| Op::Wait { seconds }),
    ]
}

#[derive(Clone, Debug)]
struct File {
    version: u64,
    content: u8,
    olds: Vec<(u64, u8)>,
    lock: Option<(&'static str, u64)>,
    last_token: u64,
}

#[derive(Clone, Debug)]
struct Node {
    name: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Directory(BTreeMap<String, Node>),
    File(File),
}

impl Node {
    fn directory(name: &str) -> Self {
        Self { name: name.to_owned(), kind: Kind::Directory(BTreeMap::new()) }
    }

    /// Bytes with old versions, and entries.
    fn sum(&self) -> (u64, u64) {
        match &self.kind {
            Kind::File(f) => (size(f.content) + f.olds.iter().map(|(_, c)| size(*c)).sum::<u64>(), 1),
            Kind::Directory(children) => children.values().map(Node::sum).fold((0, 1), |a, b| (a.0 + b.0, a.1 + b.1)),
        }
    }

    /// As a copy, without history.
    fn twin(&self, case_sensitive: bool) -> Result<Node, String> {
        let kind = match &self.kind {
            Kind::File(f) => {
                Kind::File(File { version: 1, content: f.content, olds: Vec::new(), lock: None, last_token: 0 })
            }
            Kind::Directory(children) => {
                let children = children.values().map(|c| c.twin(case_sensitive));
                Kind::Directory(keyed(children.collect::<Result<_, _>>()?, case_sensitive)?)
            }
        };
        Ok(Node { name: self.name.clone(), kind })
    }

    /// As it is in a root with the other rule about letters.
    fn rekeyed(self, case_sensitive: bool) -> Result<Node, String> {
        let kind = match self.kind {
            Kind::Directory(children) => {
                let children = children.into_values().map(|c| c.rekeyed(case_sensitive));
                Kind::Directory(keyed(children.collect::<Result<_, _>>()?, case_sensitive)?)
            }
            file => file,
        };
        Ok(Node { name: self.name, kind })
    }
}

fn key(name: &str, case_sensitive: bool) -> String {
    if case_sensitive { name.to_owned() } else { fold(name) }
}

fn keyed(nodes: Vec<Node>, case_sensitive: bool) -> Result<BTreeMap<String, Node>, String> {
    let keys: BTreeSet<String> = nodes.iter().map(|n| key(&n.name, case_sensitive)).collect();
    if keys.len() < nodes.len() {
        return Err("NAME_CLASH".into());
    }
    Ok(nodes.into_iter().map(|n| (key(&n.name, case_sensitive), n)).collect())
}

#[derive(Clone, Debug)]
struct Root {
    top: BTreeMap<String, Node>,
    trash: Vec<(String, Node)>,
    quota: u64,
    case_sensitive: bool,
}

/// See, read, write, manage; none.
fn right(root: &str, who: Who) -> u8 {
    match (root, who) {
        ("home/anna", Who::Anna) | ("public/plans", Who::Bert) | ("public/cases", Who::Anna) => 4,
        ("public/plans", Who::Anna) => 3,
        ("public/cases", Who::Bert) => 2,
        _ => 0,
    }
}

fn need(root: &str, who: Who, needed: u8) -> Result<(), String> {
    match right(root, who) {
        0 => refuse("DIRECTORY_UNKNOWN"),
        has if has < needed => refuse("ACCESS_DENIED"),
        _ => Ok(()),
    }
}

fn refuse<T>(reason: &str) -> Result<T, String> {
    Err(reason.to_owned())
}

fn split(at: &str) -> (String, Vec<String>) {
    let path = crate::desk::path(at);
    (path.root.to_string(), path.segments.iter().map(|s| s.as_str().to_owned()).collect())
}

/// The office as it should be.
#[derive(Clone, Debug)]
pub struct Office {
    roots: BTreeMap<String, Root>,
    now: u64,
    /// What came of the last step.
    pub last: Outcome,
    /// The fencing token that the last step wrote with.
    pub token: u64,
}

type Children = BTreeMap<String, Node>;

impl Root {
    fn walk(&mut self, segments: &[String]) -> Result<&mut Children, String> {
        let case = self.case_sensitive;
        let mut at = &mut self.top;
        for name in segments {
            let node = at.get_mut(&key(name, case)).filter(|n| n.name == *name);
            match node.map(|n| &mut n.kind) {
                Some(Kind::Directory(children)) => at = children,
                Some(Kind::File(_)) => return refuse("NOT_A_DIRECTORY"),
                None => return refuse("ENTRY_UNKNOWN"),
            }
        }
        Ok(at)
    }

    fn find(&mut self, segments: &[String]) -> Result<&mut Node, String> {
        let case = self.case_sensitive;
        let (name, parents) = segments.split_last().expect("never a root itself");
        let node = self.walk(parents)?.get_mut(&key(name, case)).filter(|n| n.name == *name);
        node.ok_or_else(|| "ENTRY_UNKNOWN".to_owned())
    }

    fn find_file(&mut self, segments: &[String]) -> Result<&mut File, String> {
        match &mut self.find(segments)?.kind {
            Kind::File(file) => Ok(file),
            Kind::Directory(_) => refuse("IS_A_DIRECTORY"),
        }
    }

    /// How many of the segments are missing.
    fn missing(&self, segments: &[String]) -> Result<usize, String> {
        let mut at = &self.top;
        for (depth, name) in segments.iter().enumerate() {
            match at.get(&key(name, self.case_sensitive)) {
                None => return Ok(segments.len() - depth),
                Some(node) if node.name != *name => return refuse("NAME_CLASH"),
                Some(Node { kind: Kind::File(_), .. }) => return refuse("NOT_A_DIRECTORY"),
                Some(Node { kind: Kind::Directory(children), .. }) => at = children,
            }
        }
        Ok(0)
    }

    fn make(&mut self, segments: &[String]) {
        let case = self.case_sensitive;
        let mut at = &mut self.top;
        for name in segments {
            let node = at.entry(key(name, case)).or_insert_with(|| Node::directory(name));
            match &mut node.kind {
                Kind::Directory(children) => at = children,
                Kind::File(_) => unreachable!("it was looked at before"),
            }
        }
    }

    /// A name that must be free: refused if it is taken.
    fn free(&mut self, segments: &[String]) -> Result<(), String> {
        let case = self.case_sensitive;
        let (name, parents) = segments.split_last().expect("never a root itself");
        match self.walk(parents)?.get(&key(name, case)) {
            None => Ok(()),
            Some(node) if node.name == *name => refuse("ENTRY_EXISTS"),
            Some(_) => refuse("NAME_CLASH"),
        }
    }

    fn insert(&mut self, segments: &[String], mut node: Node) {
        let case = self.case_sensitive;
        let (name, parents) = segments.split_last().expect("never a root itself");
        node.name.clone_from(name);
        self.walk(parents).expect("it was looked at before").insert(key(name, case), node);
    }

    fn remove(&mut self, segments: &[String]) -> Node {
        let case = self.case_sensitive;
        let (name, parents) = segments.split_last().expect("never a root itself");
        let parent = self.walk(parents).expect("it was found before");
        parent.remove(&key(name, case)).expect("it was found before")
    }

    fn discard(&mut self, segments: &[String]) {
        let mut node = self.remove(segments);
        if let Kind::File(file) = &mut node.kind {
            file.lock = None;
        }
        self.trash.push((segments.join("/"), node));
    }

    fn used(&self) -> (u64, u64) {
        let nodes = self.top.values().chain(self.trash.iter().map(|(_, n)| n));
        nodes.map(Node::sum).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    }

    fn fits(&self, more: u64) -> Result<(), String> {
        if more > 0 && self.quota > 0 && self.used().0 + more > self.quota {
            return refuse("QUOTA_EXCEEDED");
        }
        Ok(())
    }
}

impl Office {
    pub fn new() -> Self {
        let root = |case_sensitive| Root { top: Children::new(), trash: Vec::new(), quota: 0, case_sensitive };
        let roots = ROOTS.iter().map(|name| ((*name).to_owned(), root(*name == "public/cases"))).collect();
        Self { roots, now: 0, last: Ok(Done::Nothing), token: 0 }
    }

    pub fn used(&self, root: &str) -> (u64, u64) {
        self.roots[root].used()
    }

    /// A step: all of it, or nothing and the reason.
    pub fn step(&mut self, op: &Op) -> Outcome {
        self.token = 0;
        if let Op::Put { at, token, .. } = op {
            let (root, segments) = split(at);
            let last = self.roots.get_mut(&root).and_then(|r| r.find_file(&segments).ok()).map_or(0, |f| f.last_token);
            self.token = match token {
                Token::None => 0,
                Token::Last => last,
                Token::Wrong => 999,
            };
        }
        let mut next = self.clone();
        let outcome = next.act(op);
        if outcome.is_ok() {
            *self = next;
        }
        outcome
    }

    fn root(&mut self, name: &str) -> &mut Root {
        self.roots.get_mut(name).expect("one of the three")
    }

    fn held(&self, file: &File) -> Option<&'static str> {
        file.lock.filter(|(_, end)| *end > self.now).map(|(who, _)| who)
    }

    fn shown(&self, node: &Node) -> Done {
        match &node.kind {
            Kind::Directory(_) => Done::Entry { version: 0, size: 0, directory: true, lock: None },
            Kind::File(file) => {
                let lock = self.held(file).map(|who| (who.to_owned(), file.last_token));
                Done::Entry { version: file.version, size: size(file.content), directory: false, lock }
            }
        }
    }

    fn show(&mut self, root: &str, segments: &[String]) -> Outcome {
        let node = self.root(root).find(segments)?.clone();
        Ok(self.shown(&node))
    }

    fn check_lock(&self, node: &Node, who: Who) -> Result<(), String> {
        match &node.kind {
            Kind::File(file) if self.held(file).is_some_and(|holder| holder != who.name()) => refuse("LOCKED"),
            _ => Ok(()),
        }
    }

    fn act(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Mkdir { who, at, parents } => self.mkdir(*who, at, *parents),
            Op::Put { who, at, content, expected, parents, .. } => self.put(*who, at, *content, *expected, *parents),
            Op::Move { who, from, to, overwrite } => self.rename(*who, from, to, *overwrite),
            Op::Copy { who, from, to } => self.copy(*who, from, to),
            Op::Delete { who, at, recursive } => {
                let (root, segments) = split(at);
                need(&root, *who, 3)?;
                let node = self.root(&root).find(&segments)?.clone();
                self.check_lock(&node, *who)?;
                if matches!(&node.kind, Kind::Directory(children) if !children.is_empty() && !recursive) {
                    return refuse("DIRECTORY_NOT_EMPTY");
                }
                self.root(&root).discard(&segments);
                Ok(Done::Deleted)
            }
            Op::Restore { who, root, index, to } => self.restore(*who, root, *index, to.as_deref()),
            Op::Purge { who, root, target } => {
                need(root, *who, 3)?;
                let trash = &mut self.root(root).trash;
                let count = trash.len();
                match target {
                    Target::All => trash.clear(),
                    Target::Index(index) if index % (count + 1) < count => {
                        trash.remove(index % (count + 1));
                    }
                    Target::Index(_) => return refuse("TRASH_UNKNOWN"),
                }
                Ok(Done::Count((count - self.root(root).trash.len()) as u64))
            }
            Op::RestoreVersion { who, at, version } => self.restore_version(*who, at, *version),
            Op::Lock { who, at, seconds } => {
                let (root, segments) = split(at);
                need(&root, *who, 3)?;
                let now = self.now;
                let file = self.root(&root).find_file(&segments)?.clone();
                match self.held(&file) {
                    Some(holder) if holder != who.name() => return refuse("LOCKED"),
                    held => {
                        let file = self.root(&root).find_file(&segments)?;
                        file.last_token += u64::from(held.is_none());
                        file.lock = Some((who.name(), now + seconds));
                    }
                }
                self.show(&root, &segments)
            }
            Op::Unlock { who, at, force } => {
                let (root, segments) = split(at);
                need(&root, *who, 3)?;
                let file = self.root(&root).find_file(&segments)?.clone();
                match self.held(&file) {
                    None => return refuse("NOT_LOCKED"),
                    Some(holder) if holder == who.name() => {}
                    Some(_) if !force => return refuse("LOCKED"),
                    Some(_) if right(&root, *who) < 4 => return refuse("ACCESS_DENIED"),
                    Some(_) => {}
                }
                self.root(&root).find_file(&segments)?.lock = None;
                self.show(&root, &segments)
            }
            Op::Limit { root, bytes } => {
                self.root(root).quota = *bytes;
                Ok(Done::Nothing)
            }
            Op::Wait { seconds } => {
                self.now += seconds;
                Ok(Done::Nothing)
            }
        }
    }

    fn mkdir(&mut self, who: Who, at: &str, parents: bool) -> Outcome {
        let (name, segments) = split(at);
        need(&name, who, 3)?;
        let root = self.root(&name);
        if parents {
            root.missing(&segments)?;
        } else {
            root.free(&segments)?;
        }
        root.make(&segments);
        self.show(&name, &segments)
    }

    fn put(&mut self, who: Who, at: &str, content: u8, expected: Option<u64>, parents: bool) -> Outcome {
        let (name, segments) = split(at);
        need(&name, who, 3)?;
        let token = self.token;
        let (leaf, above) = segments.split_last().expect("never a root itself");
        let root = self.root(&name);
        let missing = if parents { root.missing(above)? } else { root.walk(above).map(|_| 0)? };
        let case = root.case_sensitive;
        let present = if missing > 0 { None } else { root.walk(above)?.get(&key(leaf, case)).cloned() };
        let Some(present) = present else {
            return match expected {
                Some(1..) => refuse("VERSION_STALE"),
                _ if token != 0 => refuse("LOCK_LOST"),
                _ => {
                    root.fits(size(content))?;
                    root.make(above);
                    let file = File { version: 1, content, olds: Vec::new(), lock: None, last_token: 0 };
                    root.insert(&segments, Node { name: leaf.clone(), kind: Kind::File(file) });
                    self.show(&name, &segments)
                }
            };
        };
        if present.name != *leaf {
            return refuse("NAME_CLASH");
        }
        let Kind::File(file) = &present.kind else {
            return refuse(if expected == Some(0) { "ENTRY_EXISTS" } else { "IS_A_DIRECTORY" });
        };
        match expected {
            Some(0) => return refuse("ENTRY_EXISTS"),
            Some(version) if version != file.version => return refuse("VERSION_STALE"),
            _ => {}
        }
        self.check_lock(&present, who)?;
        if token != 0 && token != file.last_token {
            return refuse("LOCK_LOST");
        }
        if file.content != content {
            self.replace(&name, &segments, content)?;
        }
        self.show(&name, &segments)
    }

    fn replace(&mut self, name: &str, segments: &[String], content: u8) -> Result<(), String> {
        self.root(name).fits(size(content))?;
        let file = self.root(name).find_file(segments)?;
        file.olds.push((file.version, file.content));
        file.version += 1;
        file.content = content;
        Ok(())
    }

    fn rename(&mut self, who: Who, from: &str, to: &str, overwrite: bool) -> Outcome {
        let ((from_name, from), (to_name, to)) = (split(from), split(to));
        need(&from_name, who, 3)?;
        need(&to_name, who, 3)?;
        let node = self.root(&from_name).find(&from)?.clone();
        self.check_lock(&node, who)?;
        let (leaf, above) = to.split_last().expect("never a root itself");
        let (from_case, to_case) = (self.root(&from_name).case_sensitive, self.root(&to_name).case_sensitive);
        let present = self.root(&to_name).walk(above)?.get(&key(leaf, to_case)).cloned();
        let directory = matches!(node.kind, Kind::Directory(_));
        if directory && from_name == to_name && above.starts_with(&from) {
            return refuse("MOVE_INTO_ITSELF");
        }
        let same_place = from_name == to_name
            && from.len() == to.len()
            && from[..from.len() - 1] == *above
            && key(&from[from.len() - 1], from_case) == key(leaf, to_case);
        if same_place && from == to {
            return Ok(self.shown(&node));
        }
        if let Some(present) = present.filter(|_| !same_place) {
            if present.name != *leaf {
                return refuse("NAME_CLASH");
            }
            if matches!(present.kind, Kind::Directory(_)) || !overwrite {
                return refuse("ENTRY_EXISTS");
            }
            self.check_lock(&present, who)?;
            self.root(&to_name).discard(&to);
        }
        let mut node = self.root(&from_name).remove(&from);
        if from_name != to_name {
            node = node.rekeyed(to_case)?;
            self.root(&to_name).fits(node.sum().0)?;
        }
        self.root(&to_name).insert(&to, node);
        self.show(&to_name, &to)
    }

    fn copy(&mut self, who: Who, from: &str, to: &str) -> Outcome {
        let ((from_name, from), (to_name, to)) = (split(from), split(to));
        need(&from_name, who, 2)?;
        need(&to_name, who, 3)?;
        let node = self.root(&from_name).find(&from)?.clone();
        let (_, above) = to.split_last().expect("never a root itself");
        self.root(&to_name).walk(above)?;
        let directory = matches!(node.kind, Kind::Directory(_));
        if directory && from_name == to_name && above.starts_with(&from) {
            return refuse("MOVE_INTO_ITSELF");
        }
        self.root(&to_name).free(&to)?;
        let twin = node.twin(self.root(&to_name).case_sensitive)?;
        let (bytes, count) = twin.sum();
        self.root(&to_name).fits(bytes)?;
        self.root(&to_name).insert(&to, twin);
        Ok(Done::Count(count))
    }

    fn restore(&mut self, who: Who, from: &str, index: usize, to: Option<&str>) -> Outcome {
        need(from, who, 3)?;
        // Who may not read the trash gets an unknown id; the right is checked first in any case.
        let count = self.root(from).trash.len();
        let at = index % (count + 1);
        if at == count {
            return refuse("TRASH_UNKNOWN");
        }
        let (path, mut node) = self.root(from).trash[at].clone();
        let (to_name, to_path) = match to {
            Some(to) => split(to),
            None => (from.to_owned(), path.split('/').map(str::to_owned).collect()),
        };
        need(&to_name, who, 3)?;
        let above = &to_path[..to_path.len() - 1];
        let root = self.root(&to_name);
        if to.is_none() {
            root.missing(above)?;
            root.make(above);
        }
        root.free(&to_path)?;
        self.root(from).trash.remove(at);
        if to_name != from {
            node = node.rekeyed(self.root(&to_name).case_sensitive)?;
            self.root(&to_name).fits(node.sum().0)?;
        }
        self.root(&to_name).insert(&to_path, node);
        self.show(&to_name, &to_path)
    }

    fn restore_version(&mut self, who: Who, at: &str, version: u64) -> Outcome {
        let (name, segments) = split(at);
        need(&name, who, 3)?;
        let file = self.root(&name).find_file(&segments)?.clone();
        if version == 0 {
            return refuse("VERSION_UNKNOWN");
        }
        let node = self.root(&name).find(&segments)?.clone();
        self.check_lock(&node, who)?;
        let old = file.olds.iter().find(|(v, _)| *v == version).map(|(_, c)| *c);
        let content = if version == file.version { Some(file.content) } else { old };
        match content {
            None => return refuse("VERSION_UNKNOWN"),
            Some(content) if content == file.content => {}
            Some(content) => self.replace(&name, &segments, content)?,
        }
        self.show(&name, &segments)
    }

    /// Paths of all entries.
    pub fn there(&self) -> Vec<String> {
        fn walk(above: &str, children: &Children, out: &mut Vec<String>) {
            for node in children.values() {
                let at = format!("{above}{}", node.name);
                if let Kind::Directory(children) = &node.kind {
                    walk(&format!("{at}/"), children, out);
                }
                out.push(at);
            }
        }
        let mut out = Vec::new();
        for (name, root) in &self.roots {
            let above = match name.strip_prefix("public/") {
                Some(public) => format!("public:{public}/"),
                None => format!("{name}:"),
            };
            walk(&above, &root.top, &mut out);
        }
        out
    }

    /// Everything that a change changes: what can be seen, and when locks end.
    pub fn seen(&self) -> String {
        format!("{:?}", self.roots)
    }

    /// Everything that can be seen, as lines.
    pub fn picture(&self) -> Vec<String> {
        let mut out = Vec::new();
        for (name, root) in &self.roots {
            self.draw(name, "", &root.top, &mut out);
            for (path, node) in &root.trash {
                let version = if let Kind::File(f) = &node.kind { f.version } else { 0 };
                out.push(format!("{name} trash {path} {version}"));
            }
        }
        out.sort();
        out
    }

    fn draw(&self, root: &str, above: &str, children: &Children, out: &mut Vec<String>) {
        for node in children.values() {
            let at = if above.is_empty() { node.name.clone() } else { format!("{above}/{}", node.name) };
            match &node.kind {
                Kind::Directory(children) => {
                    out.push(format!("{root}:{at}/"));
                    self.draw(root, &at, children, out);
                }
                Kind::File(file) => {
                    let mut versions = vec![(file.version, size(file.content))];
                    versions.extend(file.olds.iter().rev().map(|(v, c)| (*v, size(*c))));
                    let lock = self.held(file).map(|who| (who.to_owned(), file.last_token));
                    out.push(format!("{root}:{at} {versions:?} {lock:?}"));
                }
            }
        }
    }
}
