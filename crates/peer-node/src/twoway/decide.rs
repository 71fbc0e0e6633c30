//! What is to be done about another copy's version of a path. No IO: (here, there, on the disk) → what to do.
//!
//! | here \ there | has seen what is here | has not, and is the same | has not, and is another |
//! |---|---|---|---|
//! | nothing, or gone | taken | joined | a change is taken: it outweighs a deletion that has not seen it |
//! | a file | taken; the old one goes to the trash | joined | the greater rank wins; a file that loses becomes a conflict copy |
//! | a directory | gone: removed if empty | joined | stays |
//!
//! Of a conflict only the side that loses acts: it makes a version that has seen both. The side that wins learns of that
//! version, which has its own content. So each conflict is settled once, whoever meets whom in which order. Everything else
//! is a join that both sides make by themselves.

use super::vector::{self, Rank, has_seen, same_look, same_thing};
use crate::catalogue::entry::{Entry, Relation};

/// What this copy may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// Its changes count.
    TwoWay,
    /// It only follows: the share is read-only, or this device has not the right to write.
    Follow,
}

/// What is at the path, compared with what the index says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// What the index says, also if that is nothing.
    AsIndexed,
    /// Something else: it must be indexed first. Nothing that was not indexed is ever replaced.
    Changed,
    /// Something that is not shared has the name: a link, a device, another file system, an ignored name.
    Occupied,
}

/// Where the file goes that is there now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Save {
    /// There is none.
    Nothing,
    /// Replaced by a version that has seen it.
    Trash,
    /// It lost against a version that has not seen it.
    Conflict,
}

/// Why nothing can be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// See [`State::Occupied`].
    Occupied,
    /// The version vector is not believable, or would become too long.
    Version,
}

/// What to do. Entries are what the index says afterwards.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// What is here has seen that version, or wins against it.
    Nothing,
    /// Have the path indexed, then decide again.
    Wait,
    /// Only the index changes.
    Note(Box<Entry>),
    /// The same content gets other times and permissions.
    Touch(Box<Entry>),
    /// The content is put in place.
    Install(Box<Entry>, Save),
    /// The file goes to the trash.
    Remove(Box<Entry>),
    /// A directory is made, the file that is there moved away.
    MakeDirectory(Box<Entry>, Save),
    /// The directory is removed if nothing is in it; else see [`stubborn`].
    RemoveDirectory(Box<Entry>),
    /// The directory is removed if nothing is in it, and the content put in its place; else see [`stubborn`].
    ReplaceDirectory(Box<Entry>),
    /// Cannot be done.
    Blocked(Why),
}

impl Action {
    /// True if the remote content is needed.
    pub fn needs_content(&self) -> bool {
        matches!(self, Self::Install(..) | Self::ReplaceDirectory(_))
    }
}

/// Decides. `me` is this device in version vectors.
pub fn decide(me: u64, policy: Policy, local: Option<&Entry>, remote: &Entry, state: State) -> Action {
    if !vector::is_plausible(&remote.version) {
        return Action::Blocked(Why::Version);
    }
    let relation = match vector::relation(local, remote) {
        Relation::Newer => return Action::Nothing,
        Relation::Equal if local.is_some_and(|l| same_thing(l, remote)) => Relation::Equal,
        // The same vector for two contents: a device has forgotten its counts, or lies.
        Relation::Equal => Relation::Concurrent,
        other => other,
    };
    let wanted = match (relation, local) {
        (Relation::Older, _) | (_, None) => Some((remote.clone(), Save::Trash)),
        (Relation::Equal, Some(local)) => {
            // Joins in other orders can have left other times.
            let wins = Rank::of(remote) > Rank::of(local) && !same_look(local, remote);
            wins.then(|| (remote.clone(), Save::Trash))
        }
        (_, Some(local)) => match concurrent(me, policy, local, remote) {
            Ok(wanted) => {
                wanted.filter(|(w, _)| w.version != local.version || !same_thing(w, local) || !same_look(w, local))
            }
            Err(why) => return Action::Blocked(why),
        },
    };
    let Some((wanted, save)) = wanted else { return Action::Nothing };
    match state {
        State::Changed => Action::Wait,
        State::Occupied if wanted.deleted && local.is_none_or(|l| l.deleted) => Action::Note(Box::new(wanted)),
        State::Occupied => Action::Blocked(Why::Occupied),
        State::AsIndexed => take(local.filter(|l| !l.deleted), wanted, save),
    }
}

/// The version that shall be here, and where the file goes that is; `None` if all stays as it is.
fn concurrent(me: u64, policy: Policy, local: &Entry, remote: &Entry) -> Result<Option<(Entry, Save)>, Why> {
    let joined = vector::join(&local.version, &remote.version).ok_or(Why::Version)?;
    let version = |of: &Entry, save| Ok(Some((Entry { version: joined.clone(), ..of.clone() }, save)));
    let event =
        |of: &Entry, save| Ok(Some((Entry { version: joined.bumped(me), modified_by: me, ..of.clone() }, save)));
    let same_vector = local.version == remote.version;
    let here_seen = !same_vector && has_seen(&remote.version, local);
    let there_seen = !same_vector && has_seen(&local.version, remote);
    let remote_wins = Rank::of(remote) > Rank::of(local);
    let greater = if remote_wins { remote } else { local };
    match (local.deleted, remote.deleted) {
        (true, true) => version(greater, Save::Trash),
        (true, false) if there_seen => version(local, Save::Nothing),
        (true, false) => version(remote, Save::Trash),
        (false, true) if here_seen => version(remote, Save::Trash),
        // A change that was made here stays, and is told as a problem; it is not deleted because of others.
        (false, true) if policy == Policy::Follow => Ok(None),
        (false, true) => version(local, Save::Nothing),
        _ if same_thing(local, remote) => match (here_seen, there_seen) {
            // One event; it is other things that only one of them has seen.
            _ if vector::same_event(local, remote) => version(greater, Save::Trash),
            (true, false) => version(remote, Save::Trash),
            (false, true) => version(local, Save::Nothing),
            (false, false) => version(greater, Save::Trash),
            // Each was deleted where the other was made: nobody wants it gone any more.
            (true, true) if policy == Policy::TwoWay => event(greater, Save::Trash),
            (true, true) => version(remote, Save::Trash),
        },
        _ if policy == Policy::Follow => version(remote, Save::Conflict),
        _ if here_seen && !there_seen => version(remote, Save::Trash),
        _ if there_seen && !here_seen => version(local, Save::Nothing),
        _ if remote_wins => event(remote, Save::Conflict),
        _ => Ok(None),
    }
}

/// How to come from what is here to what is wanted, both being known and the disk as indexed.
fn take(local: Option<&Entry>, wanted: Entry, save: Save) -> Action {
    let wanted = Box::new(wanted);
    match local {
        None if wanted.deleted => Action::Note(wanted),
        None if wanted.is_file() => Action::Install(wanted, Save::Nothing),
        None => Action::MakeDirectory(wanted, Save::Nothing),
        Some(local) if same_thing(local, &wanted) => {
            if same_look(local, &wanted) {
                Action::Note(wanted)
            } else {
                Action::Touch(wanted)
            }
        }
        Some(local) if local.is_file() => match (wanted.deleted, wanted.is_file()) {
            (true, _) => Action::Remove(wanted),
            (_, true) => Action::Install(wanted, save),
            (_, false) => Action::MakeDirectory(wanted, save),
        },
        Some(_) if wanted.deleted => Action::RemoveDirectory(wanted),
        Some(_) => Action::ReplaceDirectory(wanted),
    }
}

/// What becomes of a directory that was to go and has things in it that stay: it stays too, for everyone. `None` if this
/// copy only follows, or the vector has no room: then it is a problem of this copy.
pub fn stubborn(me: u64, policy: Policy, local: &Entry, remote: &Entry) -> Option<Entry> {
    let joined = vector::join(&local.version, &remote.version)?;
    (policy == Policy::TwoWay).then(|| Entry { version: joined.bumped(me), modified_by: me, ..local.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{EntryKind, VersionVector};

    const ME: u64 = 1;

    fn file(content: u8, version: &[(u64, u64)], mtime: i64) -> Entry {
        Entry {
            path: "a".into(),
            kind: EntryKind::File,
            size_bytes: 1,
            modify_time_ns: mtime,
            mode: 0o644,
            chunks: [].into(),
            chunk_count: 1,
            digest: [content; 32],
            sequence: 3,
            deleted: false,
            version: VersionVector::new(version.to_vec()).unwrap(),
            modified_by: version.last().unwrap().0,
        }
    }

    fn gone(version: &[(u64, u64)]) -> Entry {
        Entry { deleted: true, size_bytes: 0, chunk_count: 0, digest: [0; 32], ..file(0, version, 0) }
    }

    fn directory(version: &[(u64, u64)]) -> Entry {
        Entry { kind: EntryKind::Directory, size_bytes: 0, chunk_count: 0, digest: [0; 32], ..file(0, version, 0) }
    }

    fn two_way(local: Option<&Entry>, remote: &Entry) -> Action {
        decide(ME, Policy::TwoWay, local, remote, State::AsIndexed)
    }

    fn follow(local: Option<&Entry>, remote: &Entry) -> Action {
        decide(ME, Policy::Follow, local, remote, State::AsIndexed)
    }

    #[test]
    fn newer_versions_are_taken_as_they_are() {
        let (old, new) = (file(1, &[(2, 1)], 10), file(2, &[(2, 2)], 5));
        for decide in [two_way, follow] {
            assert_eq!(decide(None, &new), Action::Install(Box::new(new.clone()), Save::Nothing));
            assert_eq!(decide(Some(&old), &new), Action::Install(Box::new(new.clone()), Save::Trash));
            assert_eq!(decide(Some(&new), &old), Action::Nothing);
            assert_eq!(decide(Some(&new), &new), Action::Nothing);
            let removed = gone(&[(2, 3)]);
            assert_eq!(decide(Some(&new), &removed), Action::Remove(Box::new(removed.clone())));
            assert_eq!(decide(None, &removed), Action::Note(Box::new(removed.clone())), "deletions are kept");
            assert_eq!(decide(Some(&removed), &new), Action::Nothing, "an old file does not come back");
        }
    }

    #[test]
    fn of_two_concurrent_files_one_side_acts() {
        let (early, late) = (file(1, &[(1, 1)], 10), file(2, &[(2, 1)], 20));
        let Action::Install(entry, Save::Conflict) = two_way(Some(&early), &late) else { panic!("the loser acts") };
        assert_eq!((entry.digest, entry.modify_time_ns), (late.digest, 20));
        assert_eq!(entry.version.counts(), [(1, 2), (2, 1)], "a new event that has seen both");
        assert_eq!(entry.modified_by, ME);
        assert_eq!(decide(2, Policy::TwoWay, Some(&late), &early, State::AsIndexed), Action::Nothing);
        assert_eq!(two_way(Some(&late), &entry), Action::Note(entry), "and the winner takes note of it");
    }

    #[test]
    fn equal_contents_are_joined_without_a_conflict() {
        let (a, b) = (file(1, &[(1, 1)], 10), file(1, &[(2, 1)], 20));
        let Action::Touch(entry) = two_way(Some(&a), &b) else { panic!("the later time is taken") };
        assert_eq!(entry.version.counts(), [(1, 1), (2, 1)]);
        let Action::Note(other) = two_way(Some(&b), &a) else { panic!("only the vector changes") };
        assert_eq!((other.version.clone(), other.modify_time_ns), (entry.version.clone(), entry.modify_time_ns));
        let (x, y) = (gone(&[(1, 2)]), gone(&[(2, 2)]));
        let Action::Note(both) = two_way(Some(&x), &y) else { panic!("both deleted it") };
        assert!(both.deleted && both.version.counts().len() == 2);
    }

    #[test]
    fn a_change_outweighs_a_concurrent_deletion() {
        let (removed, changed) = (gone(&[(1, 2)]), file(2, &[(1, 1), (2, 1)], 5));
        let Action::Install(back, Save::Nothing) = two_way(Some(&removed), &changed) else { panic!("it comes back") };
        assert_eq!(back.version.counts(), [(1, 2), (2, 1)]);
        assert_eq!(two_way(Some(&changed), &removed), Action::Note(back.clone()), "both sides come to the same");
        // Whoever deletes what he has seen means it, whatever else happened elsewhere.
        let gone_again = Entry { modified_by: 3, ..gone(&[(2, 1), (3, 1)]) };
        let Action::Remove(entry) = two_way(Some(&back), &gone_again) else { panic!("the content was seen") };
        assert_eq!(entry.version.counts(), [(1, 2), (2, 1), (3, 1)]);
        assert!(
            matches!(two_way(Some(&gone_again), &back), Action::Note(e) if e.deleted && e.version == entry.version)
        );
    }

    #[test]
    fn a_content_that_was_seen_is_no_conflict() {
        // Deleted at 3 without knowing, and changed again at 2, who has seen it.
        let here = Entry { modified_by: 1, ..file(1, &[(1, 1), (3, 1)], 50) };
        let there = Entry { modified_by: 2, ..file(2, &[(1, 1), (2, 1)], 10) };
        let Action::Install(entry, Save::Trash) = two_way(Some(&here), &there) else { panic!("it was seen") };
        assert_eq!(entry.version.counts(), [(1, 1), (2, 1), (3, 1)]);
        assert_eq!(two_way(Some(&there), &here), Action::Note(entry));
    }

    #[test]
    fn a_directory_outweighs_a_concurrent_file() {
        let (f, d) = (file(1, &[(1, 1)], 99), directory(&[(2, 1)]));
        assert!(matches!(two_way(Some(&f), &d), Action::MakeDirectory(_, Save::Conflict)));
        assert_eq!(two_way(Some(&d), &f), Action::Nothing);
        assert!(matches!(two_way(Some(&d), &file(1, &[(2, 2)], 0)), Action::ReplaceDirectory(_)));
        assert!(matches!(two_way(Some(&d), &gone(&[(2, 2)])), Action::RemoveDirectory(_)));
        assert!(matches!(two_way(Some(&f), &directory(&[(1, 2)])), Action::MakeDirectory(_, Save::Trash)));
    }

    #[test]
    fn a_directory_that_cannot_go_stays_for_everyone_who_may_say_so() {
        let (here, there) = (directory(&[(2, 1)]), gone(&[(2, 2)]));
        let stays = stubborn(ME, Policy::TwoWay, &here, &there).unwrap();
        assert!(!stays.deleted && stays.version.counts() == [(1, 1), (2, 2)]);
        assert_eq!(stubborn(ME, Policy::Follow, &here, &there), None);
    }

    #[test]
    fn a_copy_that_follows_makes_no_versions_of_its_own() {
        let (mine, theirs) = (file(1, &[(1, 1), (2, 1)], 99), file(2, &[(2, 2)], 5));
        let Action::Install(entry, Save::Conflict) = follow(Some(&mine), &theirs) else { panic!("theirs is taken") };
        assert_eq!(entry.version.counts(), [(1, 1), (2, 2)]);
        let mine = Entry { modified_by: ME, ..mine };
        assert_eq!(follow(Some(&mine), &gone(&[(2, 2)])), Action::Nothing);
    }

    #[test]
    fn what_was_not_indexed_is_never_touched() {
        let (old, new) = (file(1, &[(2, 1)], 10), file(2, &[(2, 2)], 5));
        assert_eq!(decide(ME, Policy::TwoWay, Some(&old), &new, State::Changed), Action::Wait);
        assert_eq!(decide(ME, Policy::TwoWay, None, &new, State::Changed), Action::Wait);
        assert_eq!(decide(ME, Policy::TwoWay, Some(&new), &old, State::Changed), Action::Nothing);
        assert_eq!(decide(ME, Policy::TwoWay, None, &new, State::Occupied), Action::Blocked(Why::Occupied));
    }

    #[test]
    fn one_vector_for_two_contents_is_a_conflict_and_heals() {
        let (a, b) = (file(1, &[(2, 1)], 10), file(2, &[(2, 1)], 20));
        let Action::Install(entry, Save::Conflict) = two_way(Some(&a), &b) else { panic!("the loser acts") };
        assert_eq!(entry.version.counts(), [(1, 1), (2, 1)]);
        assert_eq!(two_way(Some(&b), &a), Action::Nothing);
        let full = VersionVector::new(vec![(2, u64::MAX)]).unwrap();
        let lie = Entry { version: full, ..b };
        assert_eq!(two_way(Some(&a), &lie), Action::Blocked(Why::Version));
    }
}
