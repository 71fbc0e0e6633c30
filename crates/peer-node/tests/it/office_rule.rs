//! Who belongs, by a set of records: each rule by itself, any order, bounds, and what is malformed.

use crate::office_world::{Knower, profile, seeded_key, seen, settle, sync};
use common::error::Reason;
use common::identity::DeviceKey;
use common::model::{DeviceId, Right};
use peer_node::office::{
    Announced, Announcement, Board, Kind, Ledger, MAX_AUTHOR_RECORDS, MAX_RECORD_BYTES, MAX_RECORDS, MemberPatch,
    NodeInfo, REVOCATION_RESERVE, Record, id_of, sealing_key,
};
use proptest::prelude::*;
use prost::Message;
use proto::peer::v1 as peer;
use proto::v1 as central;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::sync::Arc;

fn rights(may_invite: Option<bool>, may_manage: Option<bool>) -> MemberPatch {
    MemberPatch { may_invite, may_manage, ..MemberPatch::default() }
}

#[test]
fn an_office_grows_by_admissions_of_those_who_may() {
    let mut anna = Knower::founder("anna");
    let mut bert = anna.admit("bert", true, false);
    let mut carl = bert.admit("carl", false, false);
    assert!(
        carl.try_state(|d| d.admit([1; 32], [2; 32], profile("x", false, false))).unwrap_err().is(Reason::AccessDenied)
    );
    let greedy = bert.try_state(|d| d.admit([1; 32], [2; 32], profile("x", false, true)));
    assert!(greedy.unwrap_err().is(Reason::AccessDenied), "nobody gives more than it has");
    anna.learn(&bert.ledger);
    let view = anna.view();
    assert_eq!(view.members().map(|m| m.person.as_str()).collect::<Vec<_>>(), ["anna", "bert", "carl"]);
    assert_eq!(view.member(&carl.device()).unwrap().admitted_by, Some(bert.device()));
    assert_eq!(view.member(&anna.device()).unwrap().admitted_by, None);
    assert_eq!(view.node_name(&carl.device()), "acme/carl-pc");
}

#[test]
fn what_somebody_without_the_right_states_is_not_even_kept() {
    let mut anna = Knower::founder("anna");
    let bert = anna.admit("bert", false, false);
    let (thief, key) = (Arc::new(DeviceKey::generate()), Arc::new(DeviceKey::generate()));
    let admission = |key: &DeviceKey| {
        Kind::Admission(peer_node::office::AdmissionRecord::new(
            key.public_key(),
            sealing_key(key).unwrap(),
            profile("eve", true, true),
        ))
    };
    let stranger = Knower { key: thief, ledger: anna.ledger.clone() };
    let lies = [
        bert.lie_first(admission(&key)),
        bert.lie_first(Kind::Revocation {
            device: anna.device(),
            last_sequence: 0,
            heads: vec![],
            reason: String::new(),
        }),
        stranger.lie_first(admission(&key)),
        stranger.lie_first(Kind::Server { revision: 9, server: "evil:1".into(), ca_pem: String::new() }),
    ];
    let before = anna.ledger.digest();
    assert_eq!(anna.take(&lies).early.len(), lies.len());
    assert_eq!(anna.ledger.digest(), before);
    assert!(!anna.view().is_member(&key.device_id()) && anna.view().is_member(&anna.device()));
}

#[test]
fn of_an_admission_only_the_rights_count_that_the_admitter_has() {
    let mut anna = Knower::founder("anna");
    let mut bert = anna.admit("bert", true, false);
    let key = DeviceKey::generate();
    let admission = peer_node::office::AdmissionRecord::new(key.public_key(), [1; 32], profile("eve", true, true));
    let record = bert.lie_first(Kind::Admission(admission));
    bert.take(&[record]);
    let view = bert.view();
    let eve = view.member(&key.device_id()).unwrap();
    assert!(eve.may_invite && !eve.may_manage);
}

#[test]
fn a_revocation_ends_what_comes_after_it_and_keeps_what_was_before() {
    let mut anna = Knower::founder("anna");
    let mut bert = anna.admit("bert", true, true);
    let early = bert.admit("early", false, false);
    sync(&mut anna, &mut bert);
    anna.revoke(&bert);
    // Bert, who has not heard of it, goes on.
    let late = bert.admit("late", false, false);
    bert.state(|d| d.set_group("sales".into(), vec!["bert".into()], &[], false));
    sync(&mut anna, &mut bert);
    let view = anna.view();
    assert!(view.revoked(&bert.device()) && !view.is_member(&bert.device()));
    assert!(view.is_member(&early.device()) && !view.is_member(&late.device()) && !view.revoked(&late.device()));
    assert!(view.groups().is_empty());
    assert!(view.member(&bert.device()).unwrap().revoked, "it is still listed");
    assert!(bert.try_state(|d| d.set_server("a:1".into(), String::new())).unwrap_err().is(Reason::DeviceRevoked));
}

#[test]
fn a_device_that_was_cut_off_cannot_come_back_nor_bring_others() {
    let mut anna = Knower::founder("anna");
    let mut bert = anna.admit("bert", true, true);
    bert.admit("early", false, false);
    bert.state(|d| d.set_group("sales".into(), vec![], &[], false));
    sync(&mut anna, &mut bert);
    anna.revoke(&bert);
    // A new admission of the same key does not help.
    let again = anna.try_state(|d| d.admit(bert.key.public_key(), [1; 32], profile("bert", true, true)));
    assert!(again.unwrap_err().is(Reason::DeviceRevoked));
    let mut helper = anna.admit("helper", true, false);
    let forced = peer_node::office::AdmissionRecord::new(bert.key.public_key(), [1; 32], profile("bert", true, true));
    let forced = helper.lie_first(Kind::Admission(forced));
    // Nor do statements under numbers that were used before.
    let eve = DeviceKey::generate();
    let admission = || {
        Kind::Admission(peer_node::office::AdmissionRecord::new(eve.public_key(), [1; 32], profile("eve", true, true)))
    };
    let lies = [bert.lie(1, admission()), bert.lie_first(admission()), bert.lie(2, admission()), forced];
    helper.take(&lies);
    anna.learn(&helper.ledger);
    let view = anna.view();
    assert!(view.revoked(&bert.device()) && !view.is_member(&bert.device()));
    assert!(!view.is_member(&eve.device_id()));
}

#[test]
fn of_two_that_cut_each_other_off_the_senior_one_stays() {
    let mut anna = Knower::founder("anna");
    let mut bert = anna.admit("bert", true, true);
    let mut carl = bert.admit("carl", true, true);
    sync(&mut anna, &mut bert);
    bert.revoke(&carl);
    carl.revoke(&bert);
    sync(&mut bert, &mut carl);
    anna.learn(&bert.ledger);
    for view in [anna.view(), bert.view(), carl.view()] {
        assert!(view.is_member(&bert.device()) && view.revoked(&carl.device()));
    }
    // Of equals, the one with the lower device id.
    let mut dora = anna.admit("dora", false, true);
    let mut emil = anna.admit("emil", false, true);
    sync(&mut dora, &mut emil);
    dora.revoke(&emil);
    emil.revoke(&dora);
    sync(&mut dora, &mut emil);
    let (stays, goes) = if dora.device() < emil.device() { (&dora, &emil) } else { (&emil, &dora) };
    for view in [dora.view(), emil.view()] {
        assert!(view.is_member(&stays.device()) && view.revoked(&goes.device()));
    }
}

#[test]
fn the_founder_can_be_cut_off_and_the_office_goes_on() {
    let mut anna = Knower::founder("anna");
    let mut bert = anna.admit("bert", true, true);
    let mut carl = bert.admit("carl", false, false);
    bert.revoke(&anna);
    anna.learn(&bert.ledger);
    carl.learn(&bert.ledger);
    let view = carl.view();
    assert_eq!(view.name(), "acme");
    assert!(view.revoked(&anna.device()) && view.is_member(&bert.device()) && view.is_member(&carl.device()));
    bert.admit("dora", false, false);
    // A revocation by the founder that was made before it heard of it wins, since nobody is more senior.
    let mut other = Knower::founder("anna");
    let mut manager = other.admit("bert", true, true);
    manager.revoke(&other);
    other.revoke(&manager);
    sync(&mut other, &mut manager);
    assert!(other.view().is_member(&other.device()) && other.view().revoked(&manager.device()));
}

#[test]
fn a_ring_of_revocations_has_one_outcome() {
    let mut anna = Knower::founder("anna");
    let mut x = anna.admit("x", true, true);
    let mut y = x.admit("y", true, true);
    let mut z = y.admit("z", true, true);
    x.learn(&y.ledger);
    // x -> z -> y -> x, all at the same time.
    let records: Vec<Record> = [x.revoke(&z), z.revoke(&y), y.revoke(&x)].concat();
    anna.learn(&y.ledger);
    anna.take(&records);
    let view = anna.view();
    assert!(view.revoked(&z.device()), "x is the most senior of the three");
    assert!(view.is_member(&y.device()), "z could not, since it was cut off");
    assert!(view.revoked(&x.device()), "y could");
}

#[test]
fn a_member_can_leave() {
    let mut anna = Knower::founder("anna");
    let mut bert = anna.admit("bert", true, false);
    let carl = bert.admit("carl", false, false);
    let device = bert.device();
    bert.state(|d| d.revoke(device, "sold".into()));
    anna.learn(&bert.ledger);
    assert!(anna.view().revoked(&bert.device()) && anna.view().is_member(&carl.device()));
    let own = anna.device();
    let last = anna.try_state(|d| d.revoke(own, String::new()));
    assert!(last.unwrap_err().is(Reason::LastAdmin));
}

#[test]
fn rights_that_are_taken_away_are_missing_to_what_was_not_known_then() {
    let mut anna = Knower::founder("anna");
    let mut bert = anna.admit("bert", true, true);
    let early = bert.admit("early", false, false);
    sync(&mut anna, &mut bert);
    anna.state(|d| d.change_member(bert.device(), rights(Some(false), Some(false))));
    let late = bert.admit("late", false, false);
    bert.revoke(&early);
    sync(&mut anna, &mut bert);
    let view = anna.view();
    assert!(view.is_member(&early.device()) && !view.is_member(&late.device()));
    assert!(!view.member(&bert.device()).unwrap().may_invite);
    assert!(
        bert.try_state(|d| d.admit([1; 32], [1; 32], profile("x", false, false))).unwrap_err().is(Reason::AccessDenied)
    );
    // Given back by another manager, they count from then on, and not for what was made without them.
    let mut dora = anna.admit("dora", true, true);
    dora.state(|d| d.change_member(bert.device(), rights(Some(true), Some(true))));
    bert.learn(&dora.ledger);
    let new = bert.admit("new", false, false);
    bert.revoke(&early);
    anna.learn(&bert.ledger);
    let view = anna.view();
    assert!(view.is_member(&new.device()) && !view.is_member(&late.device()) && view.revoked(&early.device()));
}

#[test]
fn two_managers_that_take_each_others_rights_leave_one() {
    let mut anna = Knower::founder("anna");
    let mut bert = anna.admit("bert", true, true);
    sync(&mut anna, &mut bert);
    anna.state(|d| d.change_member(bert.device(), rights(None, Some(false))));
    bert.state(|d| d.change_member(anna.device(), rights(None, Some(false))));
    sync(&mut anna, &mut bert);
    let view = anna.view();
    assert!(view.member(&anna.device()).unwrap().may_manage && !view.member(&bert.device()).unwrap().may_manage);
}

#[test]
fn the_last_manager_keeps_the_right() {
    let mut anna = Knower::founder("anna");
    anna.admit("bert", true, false);
    let own = anna.device();
    assert!(anna.try_state(|d| d.change_member(own, rights(None, Some(false)))).unwrap_err().is(Reason::LastAdmin));
}

#[test]
fn the_last_change_counts_and_of_equals_the_greater_id() {
    let mut anna = Knower::founder("anna");
    let mut bert = anna.admit("bert", true, true);
    let first = anna.state(|d| d.set_group("sales".into(), vec!["anna".into()], &[], false));
    let second = bert.state(|d| d.set_group("Sales".into(), vec!["bert".into()], &[], false));
    sync(&mut anna, &mut bert);
    let wins = if first[0].id() > second[0].id() { "anna" } else { "bert" };
    assert_eq!(anna.view().groups().values().collect::<Vec<_>>(), [&vec![wins.to_owned()]]);
    bert.state(|d| d.set_group("SALES".into(), vec!["carl".into()], &[wins.to_owned()], false));
    sync(&mut anna, &mut bert);
    assert_eq!(anna.view().groups().values().collect::<Vec<_>>(), [&vec!["carl".to_owned()]]);
    anna.state(|d| d.set_group("sales".into(), vec![], &[], true));
    bert.learn(&anna.ledger);
    assert!(bert.view().groups().is_empty());
    bert.state(|d| d.set_server("server:7443".into(), "pem".into()));
    assert_eq!(bert.view().server().unwrap().server, "server:7443");
    bert.state(|d| d.set_server(String::new(), String::new()));
    assert!(bert.view().server().is_none());
}

#[test]
fn grants_are_for_persons_groups_devices_and_everyone() {
    let mut anna = Knower::founder("anna");
    let mut bert = anna.admit("bert", false, false);
    let carl = anna.admit("carl", false, false);
    anna.state(|d| d.set_group("sales".into(), vec!["Bert".into()], &[], false));
    bert.learn(&anna.ledger);
    let grant = |kind, right: central::Right| central::Grant {
        principal: Some(central::Principal { kind: Some(kind) }),
        right: right as i32,
    };
    use central::principal::Kind as P;
    let view = bert.view();
    let grants = [
        grant(P::User("ANNA".into()), central::Right::Manage),
        grant(P::Group("Sales".into()), central::Right::Write),
        grant(P::Device(carl.device().to_string()), central::Right::Read),
        grant(P::Everyone(true), central::Right::See),
    ];
    assert_eq!(view.right(&anna.device(), &grants), Some(Right::Manage));
    assert_eq!(view.right(&bert.device(), &grants), Some(Right::Write));
    assert_eq!(view.right(&carl.device(), &grants), Some(Right::Read));
    assert_eq!(view.right(&carl.device(), &grants[..2]), None);
    assert_eq!(view.right(&DeviceKey::generate().device_id(), &grants), None, "strangers have nothing");
    anna.revoke(&carl);
    assert_eq!(anna.view().right(&carl.device(), &grants), None, "nor has who was cut off");
    let nonsense = [central::Grant { principal: None, right: 4 }, grant(P::Everyone(false), central::Right::Manage)];
    assert_eq!(view.right(&anna.device(), &nonsense), None);
}

#[test]
fn receivers_are_understood_as_people_write_them() {
    let mut anna = Knower::founder("anna");
    let bert = anna.admit("bert", false, false);
    let second = anna.admit("bert", false, false);
    let carl = anna.admit("carl", false, false);
    anna.state(|d| d.set_group("sales".into(), vec!["bert".into(), "carl".into()], &[], false));
    let named = MemberPatch { display_name: Some("carl".into()), unit: Some("sales".into()), ..MemberPatch::default() };
    anna.state(|d| d.change_member(carl.device(), named));
    let view = anna.view();
    let sorted = |text: &str| {
        let mut devices = view.resolve_members(text).unwrap();
        devices.sort();
        devices
    };
    let of = |knowers: &[&Knower]| {
        let mut devices: Vec<DeviceId> = knowers.iter().map(|k| k.device()).collect();
        devices.sort();
        devices
    };
    assert_eq!(sorted("everyone"), of(&[&anna, &bert, &second, &carl]));
    assert_eq!(sorted("group:SALES"), of(&[&bert, &second, &carl]));
    assert_eq!(sorted("Bert"), of(&[&bert, &second]));
    assert_eq!(sorted("carl"), of(&[&carl]), "a person and its own machine of the same name");
    assert_eq!(sorted("acme/sales/carl"), of(&[&carl]));
    assert_eq!(sorted("anna-pc"), of(&[&anna]));
    assert_eq!(sorted(&anna.device().to_string()[..10]), of(&[&anna]));
    assert!(view.resolve_members("bert-pc").unwrap_err().is(Reason::FieldInvalid), "two machines of one name");
    let disputed = view.node_name(&bert.device());
    assert_eq!(disputed, format!("acme/bert-pc~{}", &bert.device().to_string()[..8]));
    assert_eq!(view.resolve_members(&disputed).unwrap(), [bert.device()]);
    for unknown in ["nobody", "group:nobody", "", "acme/x/y"] {
        assert!(view.resolve_members(unknown).unwrap_err().is(Reason::MemberUnknown), "{unknown}");
    }
    anna.revoke(&second);
    assert_eq!(anna.view().node_name(&bert.device()), "acme/bert-pc", "no dispute any more");
    assert_eq!(anna.view().resolve_members("bert").unwrap(), [bert.device()]);
}

#[test]
fn a_device_that_went_on_from_an_old_copy_loses_nothing() {
    let mut anna = Knower::founder("anna");
    let mut bert = anna.admit("bert", true, false);
    let mut old = bert.clone();
    let first = bert.admit("first", false, false);
    let second = old.admit("second", false, false);
    anna.learn(&bert.ledger);
    anna.learn(&old.ledger);
    assert!(anna.view().is_member(&first.device()) && anna.view().is_member(&second.device()));
    anna.revoke(&bert);
    assert!(anna.view().is_member(&first.device()) && anna.view().is_member(&second.device()));
}

#[test]
fn a_few_records_prove_a_membership() {
    let mut anna = Knower::founder("anna");
    let mut bert = anna.admit("bert", false, false);
    anna.state(|d| d.change_member(bert.device(), rights(Some(true), None)));
    for number in 0..20 {
        anna.admit(&format!("other{number}"), true, false);
    }
    bert.learn(&anna.ledger);
    let carl = bert.admit("carl", false, false);
    let proof = carl.ledger.proof(&carl.device());
    assert_eq!(proof.len(), 4, "founding, both admissions, and the change that gave the right");
    let ledger = Ledger::of(proof).unwrap();
    assert!(seen(&ledger).is_member(&carl.device()));
}

// ---- any order

/// A random history: members that know different parts of it state things, honestly and not; all records of it.
fn history(seed: u64) -> Vec<Record> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut knowers = vec![Knower::founder_with("m0", seeded_key(&mut random))];
    let mut lies = Vec::new();
    for step in 0..random.random_range(10..40) {
        let at = random.random_range(0..knowers.len());
        let other = random.random_range(0..knowers.len());
        let target = knowers[other].device();
        let (invite, manage) = (random.random_bool(0.6), random.random_bool(0.5));
        let mut one = knowers[at].clone();
        match random.random_range(0..10) {
            0..=3 => {
                let key = seeded_key(&mut random);
                let name = format!("m{step}");
                let admission = (key.public_key(), [3; 32], profile(&name, invite, manage));
                if one.try_state(|d| d.admit(admission.0, admission.1, admission.2)).is_ok() {
                    knowers.push(Knower { key, ledger: one.ledger.clone() });
                }
            }
            4 => drop(one.try_state(|d| d.revoke(target, String::new()))),
            5 => drop(one.try_state(|d| d.change_member(target, rights(Some(invite), Some(manage))))),
            6 => drop(one.try_state(|d| d.set_group("g".into(), vec![format!("p{step}")], &[], false))),
            7 => {
                let lie = Kind::Revocation { device: target, last_sequence: 1, heads: vec![], reason: String::new() };
                lies.push(one.lie_first(lie));
            }
            _ => {
                let from = knowers[other].ledger.clone();
                one.learn(&from);
            }
        }
        knowers[at] = one;
    }
    let mut records: Vec<Record> = knowers.iter().flat_map(|k| k.ledger.records().cloned()).chain(lies).collect();
    records.sort_by_key(Record::id);
    records.dedup();
    records
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_same_records_make_the_same_office_in_any_order_and_division(seed in any::<u64>(), order in any::<u64>()) {
        let mut records = history(seed);
        let straight = Ledger::of(records.clone()).unwrap();
        let mut one = straight.clone();
        settle(&mut one, &records);
        let mut random = StdRng::seed_from_u64(order);
        records.shuffle(&mut random);
        let mut two = Ledger::found(one.founding().clone()).unwrap();
        // In parts of any size, again and again, as gossip brings them.
        loop {
            let before = two.digest();
            for part in records.chunks(random.random_range(1..8)) {
                two.insert(part.to_vec());
            }
            if two.digest() == before {
                break;
            }
        }
        prop_assert_eq!(one.digest(), two.digest());
        prop_assert_eq!(seen(&one), seen(&two));
        // And two halves of it come together in either direction.
        let (left, right) = records.split_at(records.len() / 2);
        let mut a = Ledger::found(one.founding().clone()).unwrap();
        while !a.insert(left.to_vec()).accepted.is_empty() || !a.insert(right.to_vec()).accepted.is_empty() {}
        prop_assert_eq!(seen(&a), seen(&one));
    }
}

// ---- bounds

fn flood(author: &Knower, count: usize) -> Vec<Record> {
    let group = |n: u64| Kind::Group { group: "g".into(), revision: n, persons: vec![], removed: false };
    let ledger = &author.ledger;
    let mut records: Vec<Record> = Vec::new();
    for n in 0..count as u64 {
        let (sequence, previous) = match records.last() {
            None => ledger.next(&author.device()),
            Some(last) => (last.statement().sequence + 1, Some(last.statement_id())),
        };
        let statement = peer_node::office::Statement {
            office: Some(ledger.office()),
            author_key: author.key.public_key(),
            author: author.device(),
            sequence,
            previous,
            create_ms: 0,
            kind: group(n),
        };
        records.push(Record::sign(&author.key, &statement).unwrap());
    }
    records
}

#[test]
fn a_flood_of_one_author_is_refused_and_all_keep_the_same_of_it() {
    let mut anna = Knower::founder("anna");
    let mut bert = anna.admit("bert", false, true);
    let records = flood(&bert, MAX_AUTHOR_RECORDS + 500);
    let mut forwards = anna.clone();
    for part in records.chunks(512) {
        forwards.ledger.insert(part.to_vec());
    }
    let mut backwards = anna.clone();
    for part in records.rchunks(512) {
        backwards.ledger.insert(part.to_vec());
    }
    assert_eq!(forwards.ledger.by(&bert.device()).count(), MAX_AUTHOR_RECORDS);
    assert_eq!(forwards.ledger.digest(), backwards.ledger.digest());
    assert!(!forwards.ledger.has_room(&bert.device(), 1) && forwards.ledger.has_room(&anna.device(), 1));
    let refused = forwards.ledger.insert(records[MAX_AUTHOR_RECORDS..].to_vec()).refused;
    assert!(!refused.is_empty() && refused.iter().all(|author| *author == bert.device()), "the author is named");
    // Others go on.
    forwards.revoke(&bert);
    assert!(forwards.view().revoked(&bert.device()));
    bert.learn(&forwards.ledger);
}

#[test]
fn a_full_office_still_takes_revocations() {
    let mut anna = Knower::founder("anna");
    let flooders: Vec<Knower> = (0..5).map(|n| anna.admit(&format!("f{n}"), false, true)).collect();
    let mut ledger = anna.ledger.clone();
    for flooder in &flooders {
        ledger.insert(flood(flooder, MAX_AUTHOR_RECORDS));
    }
    assert_eq!(ledger.len(), MAX_RECORDS);
    let mut full = Knower { ledger, ..anna };
    let refused = full.try_state(|d| d.set_group("x".into(), vec![], &[], false));
    assert!(refused.unwrap_err().is(Reason::OfficeFull));
    for flooder in &flooders {
        full.revoke(flooder);
    }
    assert_eq!(full.ledger.len(), MAX_RECORDS + flooders.len());
    const { assert!(REVOCATION_RESERVE >= 1_000) };
    assert!(flooders.iter().all(|f| full.view().revoked(&f.device())));
}

// ---- what is malformed

#[test]
fn forged_and_malformed_records_are_refused() {
    let mut anna = Knower::founder("anna");
    let record = anna.state(|d| d.set_group("sales".into(), vec!["anna".into()], &[], false)).remove(0);
    let good = record.wire();
    assert_eq!(Record::read(&good).unwrap(), record);
    assert_eq!(id_of(&good), record.id());
    let decoded = peer::Statement::decode(&good.statement[..]).unwrap();
    let with = |change: &dyn Fn(&mut peer::Statement)| {
        let mut statement = decoded.clone();
        change(&mut statement);
        let bytes = statement.encode_to_vec();
        let signature = anna.key.sign(&[b"atrium membership record v1\0", &bytes[..]].concat());
        peer::Record { statement: bytes.into(), signature: signature.to_vec().into() }
    };
    Record::read(&with(&|_| {})).unwrap();
    let group = |group: peer::GroupChange| Some(peer::statement::Kind::GroupChange(group));
    let bad = [
        peer::Record { signature: vec![0; 64].into(), ..good.clone() },
        peer::Record { signature: good.signature.slice(..63), ..good.clone() },
        peer::Record { statement: vec![0xff; 40].into(), ..good.clone() },
        peer::Record::default(),
        with(&|s| s.sequence = 0),
        with(&|s| s.sequence = 1),
        with(&|s| s.previous = Default::default()),
        with(&|s| s.previous = vec![1; 31].into()),
        with(&|s| s.office_id = Default::default()),
        with(&|s| s.office_id = vec![1; 33].into()),
        with(&|s| s.author_key = vec![1; 5].into()),
        with(&|s| s.author_key = vec![0; 32].into()),
        with(&|s| s.kind = None),
        with(&|s| s.kind = group(peer::GroupChange { group: "a/b".into(), ..Default::default() })),
        with(&|s| {
            let persons = vec!["x".into(); 501];
            s.kind = group(peer::GroupChange { group: "a".into(), persons, ..Default::default() });
        }),
        with(&|s| s.create_time = Some(prost_types::Timestamp { seconds: -5, nanos: 0 })),
        with(&|s| {
            let ca_pem = "x".repeat(MAX_RECORD_BYTES);
            s.kind = Some(peer::statement::Kind::ServerChange(peer::ServerChange { ca_pem, ..Default::default() }));
        }),
    ];
    for (at, wire) in bad.iter().enumerate() {
        let error = Record::read(wire).unwrap_err();
        assert!(error.is(Reason::RecordInvalid) || error.is(Reason::FieldInvalid), "{at}: {error:?}");
    }
}

#[test]
fn records_of_another_office_are_refused() {
    let mut anna = Knower::founder("anna");
    let mut other = Knower::founder("eve");
    let bert = other.admit("bert", true, true);
    let inserted = anna.ledger.insert(bert.ledger.records().cloned().collect());
    assert_eq!((inserted.accepted.len(), inserted.refused.len()), (0, 2));
    assert_eq!(anna.ledger.len(), 1);
}

#[test]
fn announcements_count_for_members_and_only_the_newest() {
    let mut anna = Knower::founder("anna");
    let bert = anna.admit("bert", false, false);
    let stranger = DeviceKey::generate();
    let info = |key: &DeviceKey, sequence| NodeInfo {
        office: anna.ledger.office(),
        device_key: key.public_key(),
        device: key.device_id(),
        sequence,
        node_name: "acme/x".into(),
        addresses: vec!["192.0.2.7:7444".parse().unwrap(), "[2001:db8::7]:7444".parse().unwrap()],
        version: "1".into(),
        relays: false,
        keeps_parcels: true,
        instance: [1; 8],
    };
    assert_eq!(Announced::default().addresses.len(), 0);
    let make = |key: &DeviceKey, sequence| Announcement::sign(key, &info(key, sequence)).unwrap();
    let view = anna.view();
    let mut board = Board::default();
    assert!(board.take(make(&bert.key, 5), &view));
    assert!(!board.take(make(&bert.key, 4), &view) && !board.take(make(&bert.key, 5), &view));
    assert!(board.take(make(&bert.key, 6), &view));
    assert!(!board.take(make(&stranger, 9), &view));
    let mut other = Board::default();
    assert!(other.take(make(&anna.key, 1), &view) && other.take(make(&bert.key, 3), &view));
    let difference = board.compare(&other.held()).unwrap();
    assert_eq!(difference.newer.iter().map(|a| a.info().device).collect::<Vec<_>>(), [bert.device()]);
    assert_eq!(difference.wanted, [anna.device()]);
    assert!(board.compare(&[0; 39]).unwrap_err().is(Reason::FieldInvalid));
    let wire = make(&bert.key, 7).wire();
    assert_eq!(Announcement::read(&wire).unwrap().info(), &info(&bert.key, 7));
    let forged = peer::Announcement { signature: make(&stranger, 7).wire().signature, ..wire };
    assert!(Announcement::read(&forged).unwrap_err().is(Reason::RecordInvalid));
    anna.revoke(&bert);
    assert_eq!(board.drop_strangers(&anna.view()), [bert.device()]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_bytes_never_panic(
        statement in proptest::collection::vec(any::<u8>(), 0..400),
        signature in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let record = peer::Record { statement: statement.clone().into(), signature: signature.clone().into() };
        prop_assert!(Record::read(&record).is_err());
        let announcement = peer::Announcement { info: statement.into(), signature: signature.into() };
        prop_assert!(Announcement::read(&announcement).is_err());
    }

    #[test]
    fn no_changed_bit_of_a_record_goes_unnoticed(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        thread_local!(static RECORD: Record = {
            let mut anna = Knower::founder("anna");
            let bert = anna.admit("bert", true, true);
            anna.revoke(&bert).remove(0)
        });
        let wire = RECORD.with(Record::wire);
        let mut bytes = [&wire.statement[..], &wire.signature[..]].concat();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let (statement, signature) = bytes.split_at(wire.statement.len());
        let changed = peer::Record { statement: statement.to_vec().into(), signature: signature.to_vec().into() };
        prop_assert!(Record::read(&changed).is_err());
    }

    #[test]
    fn statements_with_any_fields_never_panic(
        key in proptest::collection::vec(any::<u8>(), 30..34),
        sequence in any::<u64>(),
        names in proptest::collection::vec(".{0,70}", 4),
        revision in any::<u64>(),
        heads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 31..33), 0..70),
        which in 0..6,
        seconds in any::<i64>(),
    ) {
        use peer::statement::Kind as K;
        let heads: Vec<bytes::Bytes> = heads.into_iter().map(Into::into).collect();
        let member = peer::Admission {
            device_key: key.clone().into(),
            display_name: names[0].clone(),
            person: names[1].clone(),
            may_invite: true,
            may_manage: true,
            sealing_key: vec![1; 32].into(),
            unit: names[2].clone(),
        };
        let kind = match which {
            0 => K::Founding(peer::Founding { office: names[3].clone(), nonce: vec![1; 16].into(), member: Some(member) }),
            1 => K::Admission(member),
            2 => K::Revocation(peer::Revocation { device_id: key.clone().into(), last_sequence: revision, reason: names[0].clone(), heads }),
            3 => K::MemberChange(peer::MemberChange { device_id: key.clone().into(), revision, member: Some(member), unit: names[3].clone(), heads }),
            4 => K::GroupChange(peer::GroupChange { group: names[0].clone(), revision, persons: names.clone(), removed: false }),
            _ => K::ServerChange(peer::ServerChange { revision, server: names[0].clone(), ca_pem: names[1].clone() }),
        };
        let statement = peer::Statement {
            office_id: if which == 0 { Default::default() } else { vec![9; 32].into() },
            author_key: key.clone().into(),
            sequence,
            create_time: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            previous: Default::default(),
            kind: Some(kind),
        };
        let wire = peer::Record { statement: statement.encode_to_vec().into(), signature: vec![0; 64].into() };
        // Without the signature, so that what comes after it is reached; nothing that is taken in panics.
        if let Ok(record) = Record::decode(&wire)
            && let Ok(mut ledger) = Ledger::found(record.clone())
        {
            ledger.insert(vec![record]);
            let _ = seen(&ledger);
        }
    }
}
