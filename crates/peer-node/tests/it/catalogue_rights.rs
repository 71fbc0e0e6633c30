//! Who may do what with a share, over the service and as holders see it.

use crate::catalogue_office::{Machine, Office, everyone, grant};
use common::error::Reason;
use common::identity::DeviceKey;
use common::model::{DeviceId, Right};
use common::status::from_status;
use peer_node::catalogue::{ShareChange, ShareRecord, Terms};
use peer_node::model::Scope;
use peer_node::source::ChunkSource;
use prost::Message;
use proto::peer::v1 as wire;
use proto::v1::principal::Kind;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio_stream::StreamExt;
use tonic::{Code, Status};

/// Calls one method about a share, with everything else as it should be.
async fn call(anna: &Machine, from: DeviceId, method: &str, share: &[u8]) -> Result<usize, Status> {
    let mut client = anna.client(from);
    let share_id: bytes::Bytes = share.to_vec().into();
    match method {
        "ListShares" => {
            let shares = client.list_shares(wire::ListSharesRequest {}).await?.into_inner().shares;
            Ok(shares.iter().filter(|s| is_about(s, share)).count())
        }
        "ReadIndex" => {
            let request = wire::ReadIndexRequest { share_id, ..Default::default() };
            let mut pages = client.read_index(request).await?.into_inner();
            let mut entries = 0;
            while let Some(page) = pages.message().await? {
                entries += page.entries.len();
            }
            Ok(entries)
        }
        "ListEntries" => {
            let request = wire::ListEntriesRequest { share_id, ..Default::default() };
            Ok(client.list_entries(request).await?.into_inner().entries.len())
        }
        "ReadManifest" => {
            let digest = common::model::manifest_digest(&[common::model::ChunkRef {
                id: common::model::ChunkId::of(b"secret plan"),
                len: 11,
            }]);
            let scope = Some(wire::Scope { kind: Some(wire::scope::Kind::ShareId(share_id)) });
            let request = wire::ReadManifestRequest { scope, manifest_digest: digest.to_vec().into() };
            let mut parts = client.read_manifest(request).await?.into_inner();
            Ok(parts.message().await?.map_or(0, |p| p.chunks.len()))
        }
        "WatchShares" => {
            let mut pages = client.watch_shares(wire::WatchSharesRequest {}).await?.into_inner();
            let page = pages.message().await?.unwrap_or_default();
            Ok(page.changed.iter().filter(|s| is_about(s, share)).count())
        }
        "Search" => {
            let request = wire::SearchRequest { words: "plan".into(), limit: 10 };
            let found = client.search(request).await?.into_inner().matches;
            Ok(found.iter().filter(|m| m.share_id == share).count())
        }
        other => panic!("{other} has no authorization test"),
    }
}

fn is_about(state: &wire::ShareState, share: &[u8]) -> bool {
    let record = ShareRecord::verify(state.record.as_ref().unwrap()).unwrap();
    record.share().as_bytes()[..] == *share
}

fn methods() -> BTreeSet<String> {
    let set = prost_types::FileDescriptorSet::decode(proto::DESCRIPTORS).unwrap();
    let services = set.file.iter().filter(|f| f.package() == "atrium.peer.v1").flat_map(|f| &f.service);
    let methods = services.filter(|s| s.name() == "CatalogueService").flat_map(|s| &s.method);
    methods.map(|m| m.name().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_asks_for_rights_first() {
    let office = Office::new();
    let anna = Machine::new(&office, "acme/anna-pc", "anna");
    let ben = Machine::new(&office, "acme/ben-pc", "ben");
    let carla = Machine::new(&office, "acme/carla-pc", "carla");
    let dora = Machine::new(&office, "acme/dora-pc", "dora");
    let stranger = DeviceKey::generate().device_id();
    anna.write("plans/plan.txt", "secret plan");
    let grants = [grant(Kind::User("ben".into()), Right::Read), grant(Kind::User("carla".into()), Right::See)];
    let share = anna.share("plans", &grants).await;
    let id = share.record.share();
    let methods = methods();
    assert_eq!(methods.len(), 6);
    // Those that are about one share, and those that list what one may see.
    let listing = ["ListShares", "WatchShares", "Search"];
    for method in &methods {
        let lists = listing.contains(&method.as_str());
        assert_eq!(call(&anna, ben.id(), method, id.as_bytes()).await.unwrap(), 1, "{method}: read");
        assert_eq!(call(&anna, anna.id(), method, id.as_bytes()).await.unwrap(), 1, "{method}: the owner");
        let see = call(&anna, carla.id(), method, id.as_bytes()).await;
        match method.as_str() {
            "ListShares" | "WatchShares" => assert_eq!(see.unwrap(), 1, "{method}: see"),
            "Search" => assert_eq!(see.unwrap(), 0, "{method}: see"),
            _ => assert_eq!(see.unwrap_err().code(), Code::PermissionDenied, "{method}: see"),
        }
        // What one may not see is answered like what does not exist: the same words and details.
        let unseen = call(&anna, dora.id(), method, id.as_bytes()).await;
        let nothing = call(&anna, dora.id(), method, &[7; 16]).await;
        if lists {
            assert_eq!((unseen.unwrap(), nothing.unwrap()), (0, 0), "{method}: nothing");
        } else {
            let (unseen, nothing) = (unseen.unwrap_err(), nothing.unwrap_err());
            assert_eq!(unseen.code(), Code::NotFound, "{method}: nothing");
            assert_eq!((unseen.message(), unseen.details()), (nothing.message(), nothing.details()), "{method}");
        }
        let strange = call(&anna, stranger, method, id.as_bytes()).await.unwrap_err();
        assert_eq!(from_status(&strange).reason(), Reason::NotAMember.word(), "{method}: a stranger");
    }
    // Cut off: everything ends at once, although the grant is still there.
    office.change(|m| m.revoked.extend([ben.id()]));
    for method in &methods {
        assert!(call(&anna, ben.id(), method, id.as_bytes()).await.is_err(), "{method}: revoked");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_are_to_persons_groups_devices_and_everyone() {
    let office = Office::new();
    let anna = Machine::new(&office, "acme/anna-pc", "anna");
    let ben = Machine::new(&office, "acme/ben-pc", "ben");
    let laptop = Machine::new(&office, "acme/ben-laptop", "ben");
    let carla = Machine::new(&office, "acme/carla-pc", "carla");
    office.change(|m| drop(m.groups.insert("sales".into(), vec!["ben".into()])));
    let share = anna.share("plans", &[]).await;
    let id = share.record.share();
    let devices = [&ben, &laptop, &carla];
    let kinds = [
        (Kind::User("ben".into()), [true, true, false]),
        (Kind::Group("sales".into()), [true, true, false]),
        (Kind::Device(ben.id().to_string()), [true, false, false]),
        (Kind::Everyone(true), [true, true, true]),
    ];
    for (kind, who) in kinds {
        for right in [Right::See, Right::Read, Right::Write, Right::Manage] {
            let change = ShareChange { set_grants: vec![grant(kind.clone(), right)], ..ShareChange::default() };
            let changed = anna.catalogue.update("plans", change).await.unwrap();
            let principal = changed.record.terms().grants[0].principal.clone().unwrap();
            for (machine, has) in devices.iter().zip(who) {
                let expected = has.then_some(right);
                assert_eq!(anna.catalogue.right(&id, &machine.id()), expected, "{kind:?} {right:?}");
                let read =
                    call(&anna, machine.id(), "ReadIndex", id.as_bytes()).await.map(|_| ()).map_err(|s| s.code());
                let expected = match expected {
                    None => Err(Code::NotFound),
                    Some(Right::See) => Err(Code::PermissionDenied),
                    Some(_) => Ok(()),
                };
                assert_eq!(read, expected, "{kind:?} {right:?}");
                let chunks = anna.catalogue.may_have(&Scope::Share(id), &machine.id());
                assert_eq!(chunks.is_ok_and(|yes| yes), expected.is_ok(), "{kind:?} {right:?}");
            }
            let change = ShareChange { remove_principals: vec![principal], ..ShareChange::default() };
            assert!(anna.catalogue.update("plans", change).await.unwrap().record.terms().grants.is_empty());
        }
    }
    assert_eq!(anna.catalogue.right(&id, &ben.id()), None);
    assert_eq!(anna.catalogue.right(&id, &anna.id()), Some(Right::Manage));
    // A scope that may not be seen, and one that does not exist.
    let unseen = anna.catalogue.may_have(&Scope::Share(id), &ben.id()).unwrap_err();
    let nothing = peer_node::source::unknown_scope();
    assert_eq!((unseen.reason(), unseen.message(), unseen.why()), (nothing.reason(), nothing.message(), nothing.why()));
    let nowhere = peer_node::model::ShareId::generate();
    assert!(!anna.catalogue.may_have(&Scope::Share(nowhere), &ben.id()).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn holders_go_by_the_owners_newest_record() {
    let office = Office::new();
    let anna = Machine::new(&office, "acme/anna-pc", "anna");
    let mut ben = Machine::new(&office, "acme/ben-pc", "ben");
    let carla = Machine::new(&office, "acme/carla-pc", "carla");
    let first = anna.share("plans", &[everyone(Right::Read)]).await.record;
    let id = first.share();
    ben.catalogue.shares_of(anna.id()).await.unwrap();
    assert!(ben.catalogue.may_have(&Scope::Share(id), &carla.id()).unwrap());

    let only_ben = ShareChange {
        set_grants: vec![grant(Kind::User("ben".into()), Right::Read)],
        remove_principals: vec![everyone(Right::Read).principal.unwrap()],
        ..ShareChange::default()
    };
    let second = anna.catalogue.update("plans", only_ben).await.unwrap().record;
    assert!(ben.catalogue.merge_record(&second).await.unwrap());
    assert!(ben.catalogue.may_have(&Scope::Share(id), &carla.id()).is_err());
    // The old one is played back, by whomever: nothing changes.
    assert!(!ben.catalogue.merge_record(&first).await.unwrap());
    assert!(!ben.catalogue.merge_record(&second).await.unwrap());
    assert!(ben.catalogue.may_have(&Scope::Share(id), &carla.id()).is_err());
    ben.restart().await;
    assert!(!ben.catalogue.merge_record(&first).await.unwrap(), "also after a restart");
    assert_eq!(ben.catalogue.record(&id).unwrap().terms().revision, 2);

    // Removed: whatever comes later.
    anna.catalogue.unshare("plans").await.unwrap();
    let removed = anna.catalogue.record(&id).unwrap();
    ben.catalogue.shares_of(anna.id()).await.unwrap();
    assert!(ben.catalogue.record(&id).unwrap().removed(), "the owner's list tells of it");
    assert!(ben.catalogue.may_have(&Scope::Share(id), &ben.id()).is_err());
    let later = Terms { revision: 99, removed: false, ..removed.terms().clone() }.sign(&anna.key).unwrap();
    assert!(!ben.catalogue.merge_record(&later).await.unwrap());
    ben.restart().await;
    assert!(ben.catalogue.record(&id).unwrap().removed());

    // Forged, or another office's.
    let terms = Terms { revision: 100, ..second.terms().clone() };
    let forged = terms.sign(&carla.key).unwrap();
    assert_ne!(forged.share(), id, "another owner's record is about another share");
    let elsewhere = Terms::new(peer_node::model::OfficeId([1; 32]), "x").sign(&carla.key).unwrap();
    assert!(ben.catalogue.merge_record(&elsewhere).await.unwrap_err().is(Reason::ShareInvalid));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_sees_shares_come_change_and_go() {
    let office = Office::new();
    let anna = Machine::new(&office, "acme/anna-pc", "anna");
    let ben = Machine::new(&office, "acme/ben-pc", "ben");
    let mut client = anna.client(ben.id());
    let mut news = client.watch_shares(wire::WatchSharesRequest {}).await.unwrap().into_inner();
    let next = async |news: &mut tonic::Streaming<wire::WatchSharesResponse>| {
        tokio::time::timeout(Duration::from_secs(30), news.next()).await.expect("nothing came").unwrap()
    };
    assert_eq!(next(&mut news).await.unwrap(), wire::WatchSharesResponse::default());
    anna.write("plans/a", "1");
    let share = anna.share("plans", &[]).await;
    office.change(|m| drop(m.groups.insert("sales".into(), vec!["ben".into()])));
    // Not visible until it is granted to a group that ben is in.
    let change =
        ShareChange { set_grants: vec![grant(Kind::Group("sales".into()), Right::Read)], ..Default::default() };
    anna.catalogue.update("plans", change).await.unwrap();
    let seen = next(&mut news).await.unwrap();
    assert!(seen.changed.len() == 1 && seen.changed[0].file_count == 1 && seen.changed[0].complete);
    anna.write("plans/b", "2");
    anna.catalogue.scan(&share.record.share()).await.unwrap();
    loop {
        let seen = next(&mut news).await.unwrap();
        if seen.changed[0].file_count == 2 {
            break;
        }
    }
    office.change(|m| m.groups.clear());
    loop {
        let seen = next(&mut news).await.unwrap();
        if seen.gone == [share.record.share().as_bytes().to_vec()] {
            break;
        }
    }
    office.change(|m| m.revoked.extend([ben.id()]));
    let ended = next(&mut news).await.unwrap_err();
    assert_eq!(from_status(&ended).reason(), Reason::NotAMember.word());
}
