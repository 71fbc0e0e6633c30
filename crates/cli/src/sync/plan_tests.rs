//! The planner against a model: random trees with a common past, plans carried out on them, interrupted anywhere.

use super::*;
use proptest::prelude::*;

fn digest(n: u8) -> Digest {
    [n; 32]
}

fn names(trees: [&Tree; 3]) -> ConflictNames {
    ConflictNames::new("anna", "2026-11-22", trees.into_iter().flat_map(|t| t.keys()))
}

/// Both sides and their memory, with what went to a trash or became an old version.
#[derive(Clone, Debug)]
struct World {
    local: Tree,
    remote: Tree,
    base: Tree,
    kept: Vec<Digest>,
}

fn remove(tree: &mut Tree, path: &str) -> Vec<Digest> {
    let gone: Vec<String> = tree.keys().filter(|p| *p == path || is_below(p, path)).cloned().collect();
    let nodes = gone.iter().filter_map(|p| tree.remove(p));
    nodes.filter_map(|n| if let Node::File(d) = n { Some(d) } else { None }).collect()
}

fn insert(tree: &mut Tree, path: &str, node: Node) {
    assert!(!tree.contains_key(path), "{path} is taken");
    if let Some((parent, _)) = path.rsplit_once('/') {
        assert_eq!(tree.get(parent), Some(&Node::Directory), "{path} has no parent");
    }
    tree.insert(path.to_owned(), node);
}

impl World {
    /// Carries out one step the way the executor does, with its checks.
    fn apply(&mut self, action: &Action, seen: &World) {
        match action {
            Action::Record(path) => {
                assert_eq!(self.local[path], self.remote[path]);
                self.base.insert(path.clone(), self.local[path]);
            }
            Action::Forget(path) => {
                self.base.remove(path);
            }
            Action::RenameLocal { path, to } => {
                let node = self.local.remove(path).expect("a file to rename");
                insert(&mut self.local, to, node);
                self.base.remove(path);
            }
            Action::MoveRemote { path, to } => {
                let node = self.remote.remove(path).expect("a file to move");
                insert(&mut self.remote, to, node);
                self.base.remove(path);
            }
            Action::DeleteLocal(path) => {
                for (p, node) in seen.local.iter().filter(|(p, _)| *p == path || is_below(p, path)) {
                    assert_eq!(seen.base.get(p), Some(node), "{p} was changed here and must not be deleted");
                }
                assert!(self.local.contains_key(path));
                self.kept.extend(remove(&mut self.local, path));
                remove(&mut self.base, path);
            }
            Action::DeleteRemote(path) => {
                for (p, node) in seen.remote.iter().filter(|(p, _)| *p == path || is_below(p, path)) {
                    assert_eq!(seen.base.get(p), Some(node), "{p} was changed there and must not be deleted");
                }
                assert!(self.remote.contains_key(path));
                self.kept.extend(remove(&mut self.remote, path));
                remove(&mut self.base, path);
            }
            Action::MakeLocal(path) => {
                insert(&mut self.local, path, Node::Directory);
                self.base.insert(path.clone(), Node::Directory);
            }
            Action::MakeRemote(path) => {
                insert(&mut self.remote, path, Node::Directory);
                self.base.insert(path.clone(), Node::Directory);
            }
            Action::Upload { path, before } => {
                let node = self.local[path];
                if *before == Before::AsSeen {
                    assert_eq!(seen.remote.get(path), seen.base.get(path), "{path} was changed there");
                    self.kept.extend(remove(&mut self.remote, path));
                }
                insert(&mut self.remote, path, node);
                self.base.insert(path.clone(), node);
            }
            Action::Download { path, before } => {
                let node = self.remote[path];
                if *before == Before::AsSeen {
                    assert_eq!(seen.local.get(path), seen.base.get(path), "{path} was changed here");
                    remove(&mut self.local, path);
                }
                insert(&mut self.local, path, node);
                self.base.insert(path.clone(), node);
            }
        }
    }

    fn sync(&mut self, stop_after: usize) -> usize {
        let seen = self.clone();
        let plan = plan(&self.local, &self.remote, &self.base, &mut names([&seen.local, &seen.remote, &seen.base]));
        for action in plan.actions.iter().take(stop_after) {
            self.apply(action, &seen);
        }
        plan.changes().count()
    }

    fn contents(&self) -> HashSet<Digest> {
        let files = self.local.values().filter(|n| self.remote.values().any(|r| r == *n));
        files.filter_map(|n| if let Node::File(d) = n { Some(*d) } else { None }).collect()
    }
}

/// Content that a side has and the past has not: somebody's work.
fn work(world: &World) -> HashSet<Digest> {
    let mut found = HashSet::new();
    for tree in [&world.local, &world.remote] {
        for (path, node) in tree {
            if let Node::File(d) = node
                && world.base.get(path) != Some(node)
            {
                found.insert(*d);
            }
        }
    }
    found
}

fn everything(world: &World) -> HashSet<Digest> {
    let nodes = world.local.values().chain(world.remote.values());
    nodes
        .filter_map(|n| if let Node::File(d) = n { Some(*d) } else { None })
        .chain(world.kept.iter().copied())
        .collect()
}

#[derive(Clone, Debug)]
enum Edit {
    Write(String, u8),
    Make(String),
    Delete(String),
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c.txt"]), 1..4).prop_map(|v| v.join("/"))
}

fn edits(max: usize, contents: std::ops::Range<u8>) -> impl Strategy<Value = Vec<Edit>> {
    let edit = prop_oneof![
        4 => (path(), contents).prop_map(|(p, n)| Edit::Write(p, n)),
        1 => path().prop_map(Edit::Make),
        2 => path().prop_map(Edit::Delete),
    ];
    prop::collection::vec(edit, 0..max)
}

fn edit(tree: &mut Tree, edits: &[Edit]) {
    for edit in edits {
        let (path, node) = match edit {
            Edit::Write(path, n) => (path, Some(Node::File(digest(*n)))),
            Edit::Make(path) => (path, Some(Node::Directory)),
            Edit::Delete(path) => (path, None),
        };
        let Some(node) = node else {
            remove(tree, path);
            continue;
        };
        for (i, _) in path.match_indices('/') {
            if tree.get(&path[..i]) != Some(&Node::Directory) {
                tree.insert(path[..i].to_owned(), Node::Directory);
            }
        }
        if tree.get(path) != Some(&Node::Directory) || node != Node::Directory {
            remove(tree, path);
            tree.insert(path.clone(), node);
        }
    }
}

prop_compose! {
    /// Contents below 50 belong to the past, 50 to 99 are written here, 100 and above there, some on both sides.
    fn world()(past in edits(12, 0..50), here in edits(10, 40..100), there in edits(10, 90..150)) -> World {
        let mut base = Tree::new();
        edit(&mut base, &past);
        let (mut local, mut remote) = (base.clone(), base.clone());
        edit(&mut local, &here);
        edit(&mut remote, &there);
        World { local, remote, base, kept: Vec::new() }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, ..ProptestConfig::default() })]

    #[test]
    fn both_sides_become_equal_and_no_work_is_lost(mut world in world()) {
        let (mine, all) = (work(&world), everything(&world));
        world.sync(usize::MAX);
        prop_assert_eq!(&world.local, &world.remote);
        prop_assert_eq!(&world.local, &world.base);
        prop_assert!(mine.is_subset(&world.contents()), "work must stay on both sides");
        prop_assert!(all.is_subset(&everything(&world).union(&past(&all)).copied().collect()));
        prop_assert_eq!(world.sync(usize::MAX), 0, "a second run has nothing to do");
    }

    #[test]
    fn an_interruption_anywhere_loses_nothing(mut world in world(), at in 0usize..40, forget in any::<bool>()) {
        let mine = work(&world);
        let before = world.base.clone();
        world.sync(at);
        if forget {
            // The memory of what was done before the interruption did not reach the disk.
            world.base = before;
        }
        prop_assert!(mine.is_subset(&everything(&world)), "nothing may be missing in between");
        world.sync(usize::MAX);
        prop_assert_eq!(&world.local, &world.remote);
        prop_assert!(mine.is_subset(&world.contents()));
    }

    #[test]
    fn without_a_memory_nothing_is_deleted(mut world in world()) {
        world.base.clear();
        let all = everything(&world);
        let seen = world.clone();
        let plan = plan(&seen.local, &seen.remote, &seen.base, &mut names([&seen.local, &seen.remote, &seen.base]));
        prop_assert!(!plan.actions.iter().any(|a| matches!(a, Action::DeleteLocal(_) | Action::DeleteRemote(_))));
        world.sync(usize::MAX);
        prop_assert!(all.is_subset(&world.contents()));
    }
}

/// Contents of the past are on the server as old versions even where they were overwritten here.
fn past(all: &HashSet<Digest>) -> HashSet<Digest> {
    all.iter().filter(|d| d[0] < 50).copied().collect()
}

fn tree(entries: &[(&str, u8)]) -> Tree {
    entries
        .iter()
        .map(|(p, n)| ((*p).to_owned(), if *n == 0 { Node::Directory } else { Node::File(digest(*n)) }))
        .collect()
}

fn planned(local: &Tree, remote: &Tree, base: &Tree) -> Plan {
    plan(local, remote, base, &mut names([local, remote, base]))
}

#[test]
fn an_edit_wins_over_a_deletion() {
    let base = tree(&[("d", 0), ("d/a", 1), ("d/b", 2)]);
    let local = tree(&[]);
    let remote = tree(&[("d", 0), ("d/a", 9), ("d/b", 2)]);
    let actions = planned(&local, &remote, &base).actions;
    assert_eq!(
        actions,
        [
            Action::MakeLocal("d".into()),
            Action::Download { path: "d/a".into(), before: Before::Absent },
            Action::DeleteRemote("d/b".into()),
        ]
    );
}

#[test]
fn a_deleted_directory_is_one_step() {
    let base = tree(&[("d", 0), ("d/a", 1), ("d/e", 0), ("d/e/b", 2), ("d2", 3)]);
    let actions = planned(&base, &tree(&[("d2", 3)]), &base).actions;
    assert_eq!(actions, [Action::DeleteLocal("d".into())]);
}

#[test]
fn two_edits_are_both_kept() {
    let plan = planned(&tree(&[("a.txt", 2)]), &tree(&[("a.txt", 3)]), &tree(&[("a.txt", 1)]));
    let copy = "a (conflict anna 2026-11-22).txt".to_owned();
    assert_eq!(
        plan.actions,
        [
            Action::RenameLocal { path: "a.txt".into(), to: copy.clone() },
            Action::Upload { path: copy.clone(), before: Before::Absent },
            Action::Download { path: "a.txt".into(), before: Before::Absent },
        ]
    );
    assert_eq!(plan.conflicts, [("a.txt".to_owned(), copy)]);
}

#[test]
fn a_name_that_changed_only_its_case_makes_room_first() {
    let base = tree(&[("a.txt", 1)]);
    let actions = planned(&tree(&[("A.txt", 1)]), &base, &base).actions;
    assert_eq!(actions[0], Action::DeleteRemote("a.txt".into()));
}

#[test]
fn the_same_edit_on_both_sides_is_no_conflict() {
    let plan = planned(&tree(&[("a", 2)]), &tree(&[("a", 2)]), &tree(&[("a", 1)]));
    assert_eq!(plan.actions, [Action::Record("a".into())]);
    assert!(plan.conflicts.is_empty() && plan.changes().count() == 0);
}
