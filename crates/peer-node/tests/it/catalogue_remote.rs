//! Other nodes' shares: addresses, listing, search, deltas, owners that are away and nodes that lie.

use crate::catalogue_office::{Machine, Office, PeerService, everyone, in_process};
use common::error::Reason;
use common::model::{ChunkId, ChunkRef, Right};
use peer_node::catalogue::{Entry, ItemKind, Page};
use proto::peer::v1 as wire;
use proto::peer::v1::catalogue_service_server::{CatalogueService, CatalogueServiceServer};
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

fn addresses(page: &Page) -> Vec<&str> {
    page.items.iter().map(|i| i.address.as_str()).collect()
}

async fn list(at: &Machine, address: &str) -> Page {
    at.catalogue.list(address, false, None, 1_000).await.unwrap()
}

fn big(len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(b"big").finalize_xof().fill(&mut out);
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hierarchy_is_listed_level_by_level_and_by_wildcards() {
    let office = Office::new();
    let anna = Machine::new(&office, "acme/sales/anna-pc", "anna");
    let ben = Machine::new(&office, "acme/sales/ben-pc", "ben");
    let carla = Machine::new(&office, "acme/carla-pc", "carla");
    anna.write("plans/2024/a.pdf", "1");
    anna.write("plans/2025/b.pdf", "22");
    anna.write("plans/top.txt", "333");
    ben.write("music/song", "4");
    anna.share("plans", &[everyone(Right::Read)]).await;
    anna.share("private", &[]).await;
    ben.share("music", &[everyone(Right::See)]).await;

    assert_eq!(addresses(&list(&carla, "").await), ["acme"]);
    assert_eq!(addresses(&list(&carla, "acme").await), ["acme/carla-pc", "acme/sales"]);
    let sales = list(&carla, "/acme/Sales/").await;
    assert_eq!(addresses(&sales), ["acme/sales/anna-pc", "acme/sales/ben-pc"]);
    assert_eq!((sales.items[0].kind, sales.items[0].online, &*sales.items[0].person), (ItemKind::Node, true, "anna"));
    let shares = list(&carla, "acme/sales/*/*").await;
    assert_eq!(addresses(&shares), ["acme/sales/anna-pc/plans", "acme/sales/ben-pc/music"]);
    assert_eq!((shares.items[0].right, shares.items[0].size_bytes), (Some(Right::Read), 6));
    assert_eq!(shares.items[1].right, Some(Right::See));
    let plans = list(&carla, "acme/sales/anna-pc/plans").await;
    let names: Vec<&str> = plans.items.iter().map(|i| i.address.rsplit('/').next().unwrap()).collect();
    assert_eq!(names, ["2024", "2025", "top.txt"]);
    assert_eq!(plans.items[2].size_bytes, 3);
    let pdfs = list(&carla, "acme/*/anna-pc/plans/*/*").await;
    assert_eq!(pdfs.items.len(), 2);
    let file = list(&carla, "acme/sales/anna-pc/plans/2024/a.pdf").await;
    assert_eq!((file.items.len(), file.items[0].kind), (1, ItemKind::File));
    // All of it, in pages.
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = carla.catalogue.list("acme", true, after.as_deref(), 3).await.unwrap();
        all.extend(page.items.iter().map(|i| i.address.clone()));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let whole = carla.catalogue.list("acme", true, None, 1_000).await.unwrap();
    assert_eq!(all, addresses(&whole));
    assert_eq!(all.len(), 11, "{all:?}");
    let denied = carla.catalogue.list("acme/sales/ben-pc/music", false, None, 10).await.unwrap_err();
    assert!(denied.is(Reason::AccessDenied));
    for (address, reason) in [
        ("acme/nobody", Reason::AddressUnknown),
        ("acme/sales/anna-pc/private", Reason::AddressUnknown),
        ("acme/sales/anna-pc/plans/nothing", Reason::EntryUnknown),
        ("other", Reason::AddressUnknown),
        ("acme/../x", Reason::NameInvalid),
    ] {
        let error = carla.catalogue.list(address, false, None, 10).await.unwrap_err();
        assert!(error.is(reason), "{address}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_resolves_also_while_its_owner_is_away() {
    let office = Office::new();
    let anna = Machine::new(&office, "acme/anna-pc", "anna");
    let mut ben = Machine::new(&office, "acme/ben-pc", "ben");
    anna.write("plans/d/small", "small");
    let long = big(100 << 20);
    anna.write("plans/d/long", &long);
    anna.write("plans/other", "other");
    anna.share("plans", &[everyone(Right::Read)]).await;

    let top = ben.catalogue.resolve("acme/anna-pc/plans").await.unwrap();
    assert!(top.online && top.entry.is_none() && top.owner == anna.id() && top.name() == "plans");
    let dir = ben.catalogue.resolve("ACME/Anna-PC/PLANS/d").await.unwrap();
    let tree = ben.catalogue.tree(&dir).await.unwrap();
    let paths: Vec<&str> = tree.iter().map(|f| f.path.as_str()).collect();
    assert_eq!(paths, ["long", "small"]);
    let content = tree[0].content.as_ref().unwrap();
    assert!(content.chunks.len() > 64 && content.size_bytes == long.len() as u64, "a manifest of many chunks");
    let single = ben.catalogue.resolve("acme/anna-pc/plans/d/small").await.unwrap();
    let single = ben.catalogue.tree(&single).await.unwrap();
    assert_eq!((single[0].path.as_str(), single.len()), ("small", 1));

    office.off.lock().insert(anna.id());
    for _ in 0..2 {
        let dir = ben.catalogue.resolve("acme/anna-pc/plans/d").await.unwrap();
        assert!(!dir.online);
        let again = ben.catalogue.tree(&dir).await.unwrap();
        assert_eq!(again[0].content.as_ref(), Some(content));
        assert_eq!(again.len(), 2);
        let page = list(&ben, "acme/anna-pc/plans").await;
        assert_eq!(page.items.len(), 2);
        assert!(page.items.iter().all(|i| !i.online) && page.problems.len() == 1);
        // And after a restart.
        ben.restart().await;
    }
    let carla = Machine::new(&office, "acme/carla-pc", "carla");
    let error = carla.catalogue.resolve("acme/anna-pc/plans").await.unwrap_err();
    assert!(error.is(Reason::PeerUnreachable), "{error:?}");
    // What the owner ends is not remembered.
    office.off.lock().clear();
    anna.catalogue.unshare("plans").await.unwrap();
    assert!(ben.catalogue.resolve("acme/anna-pc/plans").await.unwrap_err().is(Reason::AddressUnknown));
    office.off.lock().insert(anna.id());
    assert!(ben.catalogue.resolve("acme/anna-pc/plans").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_heavy_entries_comes_in_pages_and_what_is_gone_is_forgotten() {
    let office = Office::new();
    let anna = Machine::new(&office, "acme/anna-pc", "anna");
    let ben = Machine::new(&office, "acme/ben-pc", "ben");
    let share = anna.share("plans", &[everyone(Right::Read)]).await;
    let index = anna.catalogue.index(&share.record.share()).unwrap();
    let chunks: Arc<[ChunkRef]> = (0..64).map(|i| ChunkRef { id: ChunkId([i; 32]), len: 100 }).collect();
    let put = |i: u32| {
        let entry = Entry {
            path: format!("f{i:04}"),
            kind: peer_node::catalogue::EntryKind::File,
            size_bytes: 6_400,
            modify_time_ns: 0,
            mode: 0o644,
            chunks: chunks.clone(),
            chunk_count: 64,
            digest: common::model::manifest_digest(&chunks),
            sequence: 0,
            deleted: false,
            version: peer_node::catalogue::VersionVector::new(vec![(1, 1)]).unwrap(),
            modified_by: 1,
        };
        let hold = index.hold(&entry.path).unwrap();
        let stamp = Some(peer_node::source::FileStamp { size: 6_400, ..Default::default() });
        index.apply(&hold, entry, chunks.clone(), stamp, 0).unwrap();
    };
    tokio::task::block_in_place(|| (0..1_200).for_each(put));
    assert_eq!(ben.catalogue.list("acme/anna-pc/plans", false, None, 10_000).await.unwrap().items.len(), 1_200);
    let (mut count, mut after) = (0, None);
    loop {
        let page = ben.catalogue.list("acme/anna-pc/plans", false, after.as_deref(), 500).await.unwrap();
        count += page.items.len();
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(count, 1_200);
    let top = ben.catalogue.resolve("acme/anna-pc/plans").await.unwrap();
    assert_eq!(ben.catalogue.tree(&top).await.unwrap().len(), 1_200);
    // There are no such files, as the next look finds. What is kept goes with the next listing.
    anna.write("plans/f0007", "real");
    anna.catalogue.scan(&share.record.share()).await.unwrap();
    assert_eq!(list(&ben, "acme/anna-pc/plans").await.items.len(), 1);
    office.off.lock().insert(anna.id());
    assert_eq!(addresses(&list(&ben, "acme/anna-pc/plans").await), ["acme/anna-pc/plans/f0007"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_changed_is_sent_and_everything_if_the_index_is_another() {
    let office = Office::new();
    let mut anna = Machine::new(&office, "acme/anna-pc", "anna");
    let ben = Machine::new(&office, "acme/ben-pc", "ben");
    (0..2_500).for_each(|i| drop(anna.write(&format!("plans/f{i:04}"), format!("{i}"))));
    let share = anna.share("plans", &[everyone(Right::Read)]).await;
    let id = share.record.share();
    let read = async |since: (u64, u64), below: &str| {
        let mut pages = ben.catalogue.read_index_of(anna.id(), id, since, below).await.unwrap();
        let (mut entries, mut state) = (Vec::<Entry>::new(), (0, 0));
        while let Some(page) = pages.next().await.unwrap() {
            entries.extend(page.entries);
            state = (page.index_id, page.up_to_sequence);
        }
        (entries, state)
    };
    let (all, state) = read((0, 0), "").await;
    assert_eq!((all.len(), state), (2_500, (share.head.index_id, 2_500)));
    let (none, same) = read(state, "").await;
    assert_eq!((none.len(), same), (0, state));

    anna.write("plans/f0007", "changed");
    std::fs::remove_file(anna.dir.path().join("plans/f0008")).unwrap();
    anna.write("plans/d/new", "new");
    anna.restart().await;
    anna.catalogue.scan(&id).await.unwrap();
    let read = async |since: (u64, u64), below: &str| {
        let mut pages = ben.catalogue.read_index_of(anna.id(), id, since, below).await.unwrap();
        let (mut entries, mut state) = (Vec::<Entry>::new(), (0, 0));
        while let Some(page) = pages.next().await.unwrap() {
            entries.extend(page.entries);
            state = (page.index_id, page.up_to_sequence);
        }
        (entries, state)
    };
    let (news, state) = read(state, "").await;
    let mut paths: Vec<(&str, bool)> = news.iter().map(|e| (e.path.as_str(), e.deleted)).collect();
    paths.sort_unstable();
    assert_eq!(paths, [("d", false), ("d/new", false), ("f0007", false), ("f0008", true)]);
    assert_eq!(read((0, 0), "d").await.0.len(), 2);
    assert_eq!(read((state.0 ^ 1, state.1), "").await.0.len(), 2_502, "another index: from the beginning");

    // The kept index goes the same way.
    let top = ben.catalogue.resolve("acme/anna-pc/plans").await.unwrap();
    assert_eq!(ben.catalogue.tree(&top).await.unwrap().len(), 2_501);
    std::fs::remove_file(anna.dir.path().join("plans/f0009")).unwrap();
    anna.catalogue.scan(&id).await.unwrap();
    assert_eq!(ben.catalogue.tree(&top).await.unwrap().len(), 2_500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_two_nodes_claim_is_shown_twice_and_not_guessed() {
    let office = Office::new();
    let anna = Machine::new(&office, "acme/pc", "anna");
    let ben = Machine::new(&office, "acme/PC", "ben");
    let carla = Machine::new(&office, "acme/carla-pc", "carla");
    anna.write("plans/a", "of anna");
    ben.write("plans/a", "of ben");
    anna.share("plans", &[everyone(Right::Read)]).await;
    ben.share("plans", &[everyone(Right::Read)]).await;
    let page = list(&carla, "acme").await;
    let disputed: Vec<_> = page.items.iter().filter(|i| i.disputed).collect();
    assert_eq!(disputed.len(), 2);
    for (machine, item) in [(&ben, disputed[0]), (&anna, disputed[1])] {
        assert!(item.address.ends_with(&format!("~{}", &machine.id().to_string()[..8])), "{}", item.address);
        let found = carla.catalogue.resolve(&format!("{}/plans/a", item.address)).await.unwrap();
        assert_eq!(found.owner, machine.id());
        assert_eq!(found.address, format!("{}/plans/a", item.address));
        let short = &item.address[..item.address.len() - 4];
        assert_eq!(list(&carla, &format!("{short}/plans")).await.items.len(), 1);
    }
    for address in ["acme/pc/plans/a", "acme/pc"] {
        let error = carla.catalogue.list(address, false, None, 10).await.unwrap_err();
        assert!(error.is(Reason::AddressAmbiguous), "{error:?}");
        for machine in [&anna, &ben] {
            assert!(error.message().contains(&machine.id().to_string()[..8]), "{error:?}");
        }
    }
    assert!(carla.catalogue.resolve("acme/pc/plans/a").await.unwrap_err().is(Reason::AddressAmbiguous));
    assert_eq!(list(&carla, "acme/*/plans").await.items.len(), 2, "a wildcard means both");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_asks_all_nodes_and_tells_who_did_not_answer() {
    let office = Office::new();
    let anna = Machine::new(&office, "acme/sales/anna-pc", "anna");
    let ben = Machine::new(&office, "acme/ben-pc", "ben");
    let off = Machine::new(&office, "acme/off-pc", "off");
    let mute = Machine::new(&office, "acme/mute-pc", "mute");
    let patience = peer_node::catalogue::CatalogueSettings {
        patience: Duration::from_millis(300),
        ..crate::catalogue_office::settings()
    };
    let carla = Machine::with(&office, "acme/carla-pc", "carla", patience);
    anna.write("plans/Berlin/Plan.pdf", "1");
    anna.write("plans/berlin plan", "2");
    anna.write("plans/other", "3");
    ben.write("secret/berlin plan", "4");
    off.write("old/plan of berlin", "5");
    carla.write("mine/PLAN-BERLIN", "6");
    anna.share("plans", &[everyone(Right::Read)]).await;
    ben.share("secret", &[everyone(Right::See)]).await;
    off.share("old", &[everyone(Right::Read)]).await;
    carla.share("mine", &[]).await;
    // Seen once, then off.
    carla.catalogue.list("acme/off-pc", true, None, 10).await.unwrap();
    office.off.lock().insert(off.id());
    office.silent.lock().insert(mute.id());

    let find = async |words: &str, below: &str, limit: usize| {
        let mut parts = carla.catalogue.find(words, below, limit).unwrap();
        let (mut found, mut problems) = (Vec::new(), Vec::new());
        while let Some(part) = parts.recv().await {
            found.extend(part.items.into_iter().map(|i| (i.address, i.online)));
            problems.extend(part.problems.into_iter().map(|p| (p.reason, p.message)));
        }
        found.sort();
        problems.sort();
        (found, problems)
    };
    let (found, problems) = find("berlin PLAN", "", 100).await;
    let found: Vec<(&str, bool)> = found.iter().map(|(a, o)| (a.as_str(), *o)).collect();
    assert_eq!(
        found,
        [
            ("acme/carla-pc/mine/PLAN-BERLIN", true),
            ("acme/off-pc/old/plan of berlin", false),
            ("acme/sales/anna-pc/plans/Berlin/Plan.pdf", true),
            ("acme/sales/anna-pc/plans/berlin plan", true),
        ]
    );
    let reasons: Vec<&str> = problems.iter().map(|p| p.0.as_str()).collect();
    assert_eq!(reasons, ["DEADLINE_EXCEEDED", "PEER_UNREACHABLE"]);
    assert!(problems[0].1.contains("mute-pc") && problems[1].1.contains("off-pc"));
    assert_eq!(find("plan", "acme/sales", 100).await.0.len(), 2);
    assert_eq!(find("plan", "acme/*/anna-pc/plans/Berlin", 100).await.0.len(), 1);
    assert_eq!(find("plan", "", 2).await.0.len(), 2);
    assert!(carla.catalogue.find("", "", 10).unwrap_err().is(Reason::FieldInvalid));
}

/// A member that answers with what it likes.
#[derive(Clone)]
struct Liar {
    shares: Vec<wire::ShareState>,
    entries: Vec<wire::IndexEntry>,
    chunks: Vec<ChunkRef>,
}

type Pages<T> = ReceiverStream<Result<T, Status>>;

fn one<T: Send + 'static>(item: T) -> Pages<T> {
    let (to, from) = tokio::sync::mpsc::channel(1);
    to.try_send(Ok(item)).unwrap_or_else(|_| panic!("an empty channel takes one"));
    ReceiverStream::new(from)
}

#[tonic::async_trait]
impl CatalogueService for Liar {
    async fn list_shares(
        &self,
        _: Request<wire::ListSharesRequest>,
    ) -> Result<Response<wire::ListSharesResponse>, Status> {
        Ok(Response::new(wire::ListSharesResponse { shares: self.shares.clone() }))
    }
    type ReadIndexStream = Pages<wire::ReadIndexResponse>;
    async fn read_index(&self, _: Request<wire::ReadIndexRequest>) -> Result<Response<Self::ReadIndexStream>, Status> {
        let page = wire::ReadIndexResponse { index_id: 1, entries: self.entries.clone(), up_to_sequence: 100 };
        Ok(Response::new(one(page)))
    }
    async fn list_entries(
        &self,
        _: Request<wire::ListEntriesRequest>,
    ) -> Result<Response<wire::ListEntriesResponse>, Status> {
        Ok(Response::new(wire::ListEntriesResponse { entries: self.entries.clone(), next_page_token: String::new() }))
    }
    type ReadManifestStream = Pages<wire::ReadManifestResponse>;
    async fn read_manifest(
        &self,
        _: Request<wire::ReadManifestRequest>,
    ) -> Result<Response<Self::ReadManifestStream>, Status> {
        Ok(Response::new(one(wire::ReadManifestResponse { chunks: common::wire::chunks_to(&self.chunks) })))
    }
    type WatchSharesStream = Pages<wire::WatchSharesResponse>;
    async fn watch_shares(
        &self,
        _: Request<wire::WatchSharesRequest>,
    ) -> Result<Response<Self::WatchSharesStream>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn search(&self, _: Request<wire::SearchRequest>) -> Result<Response<wire::SearchResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lying_node_says_is_refused_with_its_name() {
    let office = Office::new();
    let anna = Machine::new(&office, "acme/anna-pc", "anna");
    let mallory = Machine::new(&office, "acme/mallory-pc", "mallory");
    let ben = Machine::new(&office, "acme/ben-pc", "ben");
    anna.write("plans/a", "real");
    let annas = anna.share("plans", &[everyone(Right::Read)]).await;
    let hers = mallory.share("trap", &[everyone(Right::Read)]).await;
    let state = |record: &peer_node::catalogue::ShareRecord| wire::ShareState {
        record: Some(record.signed().clone()),
        index_id: 1,
        max_sequence: 100,
        complete: true,
        ..Default::default()
    };
    let mut forged = state(&annas.record);
    forged.record.as_mut().unwrap().signature = vec![1; 64].into();
    let chunk = ChunkRef { id: ChunkId([1; 32]), len: 5 };
    let good = wire::IndexEntry {
        path: "a".into(),
        kind: wire::EntryKind::File.into(),
        size_bytes: 5,
        chunks: common::wire::chunks_to(&[chunk]),
        chunk_count: 1,
        manifest_digest: common::model::manifest_digest(&[chunk]).to_vec().into(),
        sequence: 1,
        ..Default::default()
    };
    let entry = |change: &dyn Fn(&mut wire::IndexEntry)| {
        let mut entry = good.clone();
        change(&mut entry);
        entry
    };
    let cases: Vec<(&str, Vec<wire::IndexEntry>)> = vec![
        ("a path out of the folder", vec![entry(&|e| e.path = "../../etc/passwd".into())]),
        ("an absolute path", vec![entry(&|e| e.path = "/etc/passwd".into())]),
        ("a digest of something else", vec![entry(&|e| e.manifest_digest = vec![2; 32].into())]),
        ("another size", vec![entry(&|e| e.size_bytes = u64::MAX)]),
        ("sequences that go back", vec![entry(&|e| e.sequence = 5), entry(&|e| e.sequence = 4)]),
        ("a sequence beyond the page", vec![entry(&|e| e.sequence = 101)]),
        ("an endless page", (1..=1_001).map(|i| entry(&|e| e.sequence = i)).collect()),
        ("a manifest that does not fit", vec![entry(&|e| (e.chunk_count, e.size_bytes) = (500, 2_500))]),
    ];
    for (what, entries) in cases {
        let liar = Liar {
            shares: vec![forged.clone(), state(&annas.record), state(&hers.record)],
            entries,
            chunks: vec![chunk; 500],
        };
        let service = CatalogueServiceServer::new(liar);
        let made: PeerService = Arc::new(move |from| in_process(service.clone(), from));
        office.services.lock().insert(mallory.id(), made);
        let shares = ben.catalogue.shares_of(mallory.id()).await.unwrap();
        assert_eq!(shares.len(), 1, "neither the forged record nor another owner's is a share of hers");
        let top = ben.catalogue.resolve("acme/mallory-pc/trap").await.unwrap();
        let error = ben.catalogue.tree(&top).await.unwrap_err();
        assert!(error.is(Reason::PeerMisbehaves), "{what}: {error:?}");
        assert!(error.message().contains("mallory-pc"), "{what}: {error:?}");
    }
    // A copy's word about a share does not replace its owner's.
    assert_eq!(ben.catalogue.copies_of(&annas.record.share()), [mallory.id()]);
    let real = ben.catalogue.resolve("acme/anna-pc/plans/a").await.unwrap();
    assert_eq!(real.entry.unwrap().chunks[0].id, ChunkId::of(b"real"));
}
