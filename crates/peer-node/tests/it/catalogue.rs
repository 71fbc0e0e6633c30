//! Sharing folders of one machine: indexing, events, restarts, rules, chunks.

use crate::catalogue_office::{Machine, Office, count_files, everyone, settings, until};
use common::error::Reason;
use common::model::{ChunkId, Right};
use peer_node::catalogue::{CatalogueSettings, EntryKind, NewShare, ShareChange};
use peer_node::model::Scope;
use peer_node::source::{ChunkSource, Place};
use std::time::{Duration, Instant};

fn watching() -> CatalogueSettings {
    CatalogueSettings { watch: true, quiet: Duration::from_millis(20), ..settings() }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_small_files_are_indexed_once_and_not_again_after_a_restart() {
    let office = Office::new();
    let mut anna = Machine::new(&office, "acme/anna-pc", "anna");
    for d in 0..20 {
        let dir = anna.folder(&format!("many/d{d:02}"));
        for f in 0..500 {
            std::fs::write(dir.join(format!("f{f:03}")), format!("{d}/{f}").repeat(1_000)).unwrap();
        }
    }
    let begin = Instant::now();
    let share = anna.share("many", &[]).await;
    let took = begin.elapsed();
    println!("10,000 files in {took:?}: {:.0} files/s (not optimized)", 10_000.0 / took.as_secs_f64());
    assert_eq!((share.head.file_count, share.head.max_sequence), (10_000, 10_020));
    assert!(share.complete && share.problem_count == 0);
    let before = share.head;

    anna.restart().await;
    let id = share.record.share();
    let begin = Instant::now();
    let report = anna.catalogue.scan(&id).await.unwrap();
    println!("looked through again in {:?}", begin.elapsed());
    assert_eq!((report.hashed_files, report.changed, report.seen), (0, 0, 10_020));
    let share = anna.catalogue.local_share("many").unwrap();
    assert_eq!(share.head, before, "the same index, the same sequence");
    assert_eq!(share.record.terms().revision, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_of_a_gibibyte_is_read_in_place() {
    let office = Office::new();
    let anna = Machine::new(&office, "acme/anna-pc", "anna");
    let block: Vec<u8> = (0..4_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut data = Vec::new();
    (0..64_u8).for_each(|i| data.extend(block.iter().map(|b| b ^ i)));
    let path = anna.write("big/film", &data);
    let begin = Instant::now();
    let share = anna.share("big", &[]).await;
    let took = begin.elapsed();
    println!("256 MiB in {took:?}: {:.2} GB/s (our part not optimized)", data.len() as f64 / 1e9 / took.as_secs_f64());
    let index = anna.catalogue.index(&share.record.share()).unwrap();
    let entry = index.entry("film").unwrap().unwrap();
    let content = index.content(&entry).unwrap().unwrap();
    assert!(content.chunks.len() > 64, "its chunks are in pages");
    assert_eq!(content.size_bytes, data.len() as u64);
    // Every chunk is found where it is.
    let scope = Scope::Share(share.record.share());
    let mut offset = 0;
    for chunk in content.chunks.iter() {
        let Some(Place::File { path: there, offset: at, len, stamp }) =
            anna.catalogue.locate(&scope, &chunk.id).unwrap()
        else {
            panic!("not found");
        };
        assert_eq!((there, len, stamp.unwrap().size), (path.canonicalize().unwrap(), chunk.len, data.len() as u64));
        assert_eq!(ChunkId::of(&data[at as usize..at as usize + len as usize]), chunk.id);
        assert!(at == offset || data[at as usize..][..len as usize] == data[offset as usize..][..len as usize]);
        offset += u64::from(len);
    }
    assert_eq!(count_files(anna.dir.path()), 1, "nothing was copied");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_noticed_by_themselves() {
    let office = Office::new();
    let anna = Machine::with(&office, "acme/anna-pc", "anna", watching());
    anna.write("plans/a.txt", "1");
    let share = anna.share("plans", &[]).await;
    let index = anna.catalogue.index(&share.record.share()).unwrap();
    let has = |path: &str| index.entry(path).unwrap().is_some_and(|e| !e.deleted);
    assert!(has("a.txt"));
    anna.write("plans/new/deep/b.txt", "2");
    until(&anna.catalogue, "a new directory", || has("new/deep/b.txt")).await;
    let before = index.entry("a.txt").unwrap().unwrap();
    anna.write("plans/a.txt", "another content");
    until(&anna.catalogue, "a change", || index.entry("a.txt").unwrap().unwrap().digest != before.digest).await;
    std::fs::rename(anna.folder("plans/new"), anna.dir.path().join("plans/renamed")).unwrap();
    until(&anna.catalogue, "a rename", || has("renamed/deep/b.txt") && !has("new/deep/b.txt") && !has("new")).await;
    std::fs::remove_dir_all(anna.folder("plans/renamed")).unwrap();
    until(&anna.catalogue, "a removal", || !has("renamed/deep/b.txt") && !has("renamed")).await;
    assert!(index.entry("renamed/deep/b.txt").unwrap().unwrap().deleted);
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_the_folder_travel_in_the_record() {
    let office = Office::new();
    let anna = Machine::with(&office, "acme/anna-pc", "anna", watching());
    anna.write("src/.atriumignore", "*.o\n");
    anna.write("src/a.c", "1");
    anna.write("src/a.o", "2");
    anna.write("src/a.tmp", "3");
    let path = anna.folder("src");
    let new = NewShare { path: path.clone(), ignore_rules: "*.tmp".into(), ..NewShare::default() };
    let share = anna.catalogue.share(new).await.unwrap();
    let id = share.record.share();
    anna.catalogue.scan(&id).await.unwrap();
    let index = anna.catalogue.index(&id).unwrap();
    let there = || -> Vec<String> { index.walk("", "").map(|s| s.unwrap().entry.path).collect() };
    assert_eq!(there(), [".atriumignore", "a.c"]);
    assert_eq!(share.record.terms().ignore_rules, "*.o\n*.tmp");
    // The file changes: the record is signed anew, and the index follows.
    let new = anna.write("elsewhere/rules", "*.c\n");
    std::fs::rename(new, anna.dir.path().join("src/.atriumignore")).unwrap();
    until(&anna.catalogue, "new rules", || there() == [".atriumignore", "a.o"]).await;
    let record = anna.catalogue.record(&id).unwrap();
    assert_eq!((record.terms().revision, record.terms().ignore_rules.as_str()), (2, "*.c\n*.tmp"));
    let change = ShareChange { ignore_rules: Some(String::new()), ..ShareChange::default() };
    anna.catalogue.update("src", change).await.unwrap();
    until(&anna.catalogue, "own rules gone", || there() == [".atriumignore", "a.o", "a.tmp"]).await;
    // Rules that cannot be used change nothing, and are told.
    let new = anna.write("elsewhere/rules", "x\n".repeat(20_000));
    std::fs::rename(new, anna.dir.path().join("src/.atriumignore")).unwrap();
    anna.catalogue.scan(&id).await.unwrap();
    let share = anna.catalogue.local_share("src").unwrap();
    assert!(share.problems.iter().any(|p| p.reason == "IGNORE_RULE_INVALID" && p.message == ".atriumignore"));
    assert_eq!(there(), [".atriumignore", "a.o", "a.tmp"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_shared_is_refused() {
    let office = Office::new();
    let anna = Machine::new(&office, "acme/anna-pc", "anna");
    let file = anna.write("a file", "x");
    anna.write("My Plans/a", "x");
    let share = |path: &std::path::Path, name: &str| {
        anna.catalogue.share(NewShare { path: path.to_owned(), name: name.into(), ..NewShare::default() })
    };
    assert!(share(&file, "").await.unwrap_err().is(Reason::FolderInvalid));
    assert!(share(&anna.dir.path().join("nowhere"), "").await.unwrap_err().is(Reason::FolderInvalid));
    assert!(share("relative".as_ref(), "").await.unwrap_err().is(Reason::FolderInvalid));
    assert!(share(&anna.folder("x"), "a/b").await.unwrap_err().is(Reason::NameInvalid));
    assert!(share(&anna.folder("x"), "*").await.unwrap_err().is(Reason::ShareInvalid));
    let plans = share(&anna.folder("My Plans"), "").await.unwrap();
    assert_eq!((plans.record.name(), plans.address.as_str()), ("my-plans", "acme/anna-pc/my-plans"));
    assert!(share(&anna.folder("x"), "MY-PLANS").await.unwrap_err().is(Reason::ShareExists));
    assert!(share(&anna.folder("My Plans"), "other").await.unwrap_err().is(Reason::ShareExists));
    // The same folder again means the same share.
    let again = share(&anna.folder("My Plans"), "").await.unwrap();
    assert_eq!(again.record.share(), plans.record.share());
    assert!(anna.catalogue.unshare("nothing").await.unwrap_err().is(Reason::ShareUnknown));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_is_not_there_any_longer_is_not_given_out_and_the_file_is_read_again() {
    let office = Office::new();
    let anna = Machine::new(&office, "acme/anna-pc", "anna");
    anna.write("plans/a.txt", "first");
    let share = anna.share("plans", &[everyone(Right::Read)]).await;
    let scope = Scope::Share(share.record.share());
    let chunk = ChunkId::of(b"first");
    let place = anna.catalogue.locate(&scope, &chunk).unwrap().unwrap();
    assert!(ChunkSource::find(&anna.catalogue, &chunk).is_some());
    assert!(anna.catalogue.holdings(&scope, &[]).unwrap().complete);
    anna.write("plans/a.txt", "second");
    anna.catalogue.moved(&scope, &chunk, &place);
    let second = ChunkId::of(b"second");
    until(&anna.catalogue, "the new content", || anna.catalogue.locate(&scope, &second).unwrap().is_some()).await;
    assert!(anna.catalogue.locate(&scope, &chunk).unwrap().is_none());
    assert!(ChunkSource::find(&anna.catalogue, &chunk).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn ending_a_share_leaves_the_files_and_nothing_else() {
    let office = Office::new();
    let mut anna = Machine::new(&office, "acme/anna-pc", "anna");
    anna.write("plans/a.txt", "1");
    let share = anna.share("plans", &[everyone(Right::Read)]).await;
    let id = share.record.share();
    anna.catalogue.unshare("plans").await.unwrap();
    assert!(anna.dir.path().join("plans/a.txt").exists());
    assert!(anna.catalogue.index(&id).is_err() && anna.catalogue.local_shares().is_empty());
    assert!(anna.catalogue.record(&id).unwrap().removed());
    assert!(anna.store.range(b"c/e", b"c/f", 10).unwrap().is_empty());
    anna.restart().await;
    assert!(anna.catalogue.local_shares().is_empty());
    // Sharing the folder again makes another share.
    let again = anna.share("plans", &[]).await;
    assert_ne!(again.record.share(), id);
    assert_eq!(again.head.file_count, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_has_an_index_of_its_own() {
    let office = Office::new();
    let (anna, ben) = (Machine::new(&office, "acme/anna-pc", "anna"), Machine::new(&office, "acme/ben-pc", "ben"));
    anna.write("plans/a.txt", "from anna");
    let share = anna.share("plans", &[everyone(Right::Write)]).await;
    let id = share.record.share();
    let top = ben.dir.path().join("copy");
    assert!(ben.catalogue.mirror(&id, &top).await.unwrap_err().is(Reason::ShareUnknown));
    ben.catalogue.shares_of(anna.id()).await.unwrap();
    let mirror = ben.catalogue.mirror(&id, &top).await.unwrap();
    assert!(mirror.mirror && mirror.address == "acme/anna-pc/plans");
    ben.catalogue.scan(&id).await.unwrap();
    let index = ben.catalogue.index(&id).unwrap();
    let scope = Scope::Share(id);
    assert_eq!(ben.catalogue.holdings(&scope, &[]).unwrap().have.len(), 0);

    // As a module that keeps copies equal does it.
    let theirs = anna.catalogue.index(&id).unwrap().entry("a.txt").unwrap().unwrap();
    let hold = index.hold("a.txt").unwrap();
    let path = ben.write("copy/a.txt", "from anna");
    let stamp = peer_node::source::FileStamp::of(&std::fs::metadata(&path).unwrap());
    let apply = || index.apply(&hold, theirs.clone(), theirs.chunks.clone(), Some(stamp), 0).unwrap();
    let sequence = tokio::task::block_in_place(apply);
    drop(hold);
    let report = ben.catalogue.scan(&id).await.unwrap();
    assert_eq!((report.changed, report.hashed_files), (0, 0), "it is not taken for a change of this machine");
    let mine = index.entry("a.txt").unwrap().unwrap();
    assert_eq!((mine.kind, mine.sequence, &mine.version), (EntryKind::File, sequence, &theirs.version));
    assert_eq!(ben.catalogue.holdings(&scope, &[]).unwrap().have, [ChunkId::of(b"from anna")]);
    assert!(ben.catalogue.holdings(&scope, &[theirs.digest]).unwrap().complete);

    let mut news = index.subscribe();
    let seen = *news.borrow_and_update();
    ben.write("copy/a.txt", "from ben");
    ben.catalogue.scan(&id).await.unwrap();
    assert!(news.has_changed().unwrap());
    let changed = index.after(seen, 10).unwrap();
    assert_eq!(changed.len(), 1);
    assert_eq!(changed[0].version.relation(&theirs.version), peer_node::catalogue::Relation::Newer);
    assert_eq!(changed[0].modified_by, peer_node::catalogue::short_id(&ben.id()));
}
