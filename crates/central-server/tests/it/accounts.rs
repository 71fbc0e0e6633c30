//! Users and groups.

use crate::fixture::{PASSWORD, TestOffice, fresh, local, new_user};
use central_server::app::accounts::{self, Named, UserChange};
use central_server::app::answers::{Answer, Once};
use central_server::app::caller::Caller;
use central_server::app::groups::{self, NewGroup};
use central_server::app::sessions::Password;
use central_server::app::{App, expiry, records};
use central_server::grpc::account::Accounts;
use common::error::{Error, Reason, Result};
use common::model::Role;
use common::settings::ByteSize;
use common::status::from_status;
use proptest::prelude::*;
use proto::record::v1 as record;
use proto::v1;
use proto::v1::account_service_server::AccountService;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

async fn create(office: &TestOffice, name: &str, role: Role) -> Result<Answer<accounts::User>> {
    accounts::create(&office.app, &local(), new_user(name, role, ""), Once::always()).await
}

async fn update(office: &TestOffice, name: &str, change: UserChange) -> Result<accounts::User> {
    accounts::update(&office.app, &local(), name, change, Once::always()).await.map(fresh)
}

async fn make_group(office: &TestOffice, name: &str, members: &[&str]) -> Result<groups::Group> {
    let members = members.iter().map(|m| (*m).to_owned()).collect();
    let new = NewGroup { name: name.to_owned(), display_name: String::new(), members };
    groups::create(&office.app, &local(), new, Once::always()).await.map(fresh)
}

async fn change_group(office: &TestOffice, name: &str, add: &[&str], remove: &[&str]) -> Result<groups::Group> {
    let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    groups::update(&office.app, &local(), name, owned(add), owned(remove)).await
}

fn is(error: Error, reason: Reason) {
    assert!(error.is(reason), "{error:?} is not {reason:?}");
}

#[tokio::test]
async fn a_user_is_made_with_a_private_directory() {
    let office = TestOffice::with(|s| s.files.home_quota = ByteSize::gib(1));
    let anna = office.user("anna", Role::Member).await;
    assert_eq!((anna.quota_bytes, anna.used_bytes, anna.disabled, anna.role), (1 << 30, 0, false, Role::Member));
    let root: record::Root = records::load(&office.app.store, &records::home_key("anna")).unwrap().unwrap();
    assert_eq!((&root.owner[..], &root.name[..]), (&anna.uid.as_bytes()[..], "home/anna"));
    assert_eq!(accounts::get(&office.app, &local(), "anna").unwrap(), anna);
    let changed = update(&office, "anna", UserChange { quota_bytes: Some(5), ..UserChange::default() }).await.unwrap();
    assert_eq!(changed.quota_bytes, 5);
    let root: record::Root = records::load(&office.app.store, &records::home_key("anna")).unwrap().unwrap();
    assert_eq!(root.quota_bytes, 5, "the directory's own record has the limit");
    assert_eq!(accounts::name_of(&office.app.store, anna.uid).unwrap(), Some(Named::User("anna".into())));
}

#[tokio::test]
async fn names_are_checked_and_given_once() {
    let office = TestOffice::new();
    for bad in ["", "Anna", "1a", "a b", "../x", "a\0", &"x".repeat(65)] {
        is(create(&office, bad, Role::Member).await.unwrap_err(), Reason::FieldInvalid);
    }
    office.user("anna", Role::Member).await;
    is(create(&office, "anna", Role::Member).await.unwrap_err(), Reason::UserExists);
    accounts::delete(&office.app, &local(), "anna").await.unwrap();
    is(create(&office, "anna", Role::Member).await.unwrap_err(), Reason::UserExists);
    is(accounts::get(&office.app, &local(), "anna").unwrap_err(), Reason::UserUnknown);
    is(accounts::delete(&office.app, &local(), "anna").await.unwrap_err(), Reason::UserUnknown);
    is(update(&office, "anna", UserChange::default()).await.unwrap_err(), Reason::UserUnknown);
    let kept: record::User = records::load(&office.app.store, &records::user_key("anna")).unwrap().unwrap();
    assert!(kept.deleted && kept.password_phc.is_empty());
    let weak = new_user("ben", Role::Member, "short");
    is(accounts::create(&office.app, &local(), weak, Once::always()).await.unwrap_err(), Reason::PasswordTooWeak);
}

#[tokio::test]
async fn there_is_always_an_administrator() {
    let office = TestOffice::new();
    let role = |role| UserChange { role: Some(role), ..UserChange::default() };
    let disabled = |disabled| UserChange { disabled: Some(disabled), ..UserChange::default() };
    create(&office, "anna", Role::Admin).await.unwrap();
    is(update(&office, "anna", role(Role::Member)).await.unwrap_err(), Reason::LastAdmin);
    is(update(&office, "anna", disabled(true)).await.unwrap_err(), Reason::LastAdmin);
    is(accounts::delete(&office.app, &local(), "anna").await.unwrap_err(), Reason::LastAdmin);
    create(&office, "ben", Role::Admin).await.unwrap();
    update(&office, "ben", disabled(true)).await.unwrap();
    is(update(&office, "anna", role(Role::Guest)).await.unwrap_err(), Reason::LastAdmin);
    update(&office, "ben", disabled(false)).await.unwrap();
    update(&office, "anna", role(Role::Guest)).await.unwrap();
    is(accounts::delete(&office.app, &local(), "ben").await.unwrap_err(), Reason::LastAdmin);
    assert_eq!(accounts::get(&office.app, &local(), "ben").unwrap().role, Role::Admin, "what failed changed nothing");
}

#[tokio::test]
async fn a_stale_etag_is_refused() {
    let office = TestOffice::new();
    let before = office.user("anna", Role::Member).await;
    let with = |etag: &str, name: &str| UserChange {
        etag: Some(etag.to_owned()),
        display_name: Some(name.to_owned()),
        ..UserChange::default()
    };
    let after = update(&office, "anna", with(&before.etag, "Anna A")).await.unwrap();
    assert_ne!(before.etag, after.etag);
    is(update(&office, "anna", with(&before.etag, "Anna B")).await.unwrap_err(), Reason::EtagStale);
    assert_eq!(accounts::get(&office.app, &local(), "anna").unwrap().display_name, "Anna A");
    is(update(&office, "anna", with(&after.etag, "An\u{7}na")).await.unwrap_err(), Reason::FieldInvalid);
}

#[tokio::test]
async fn the_mask_says_what_changes() {
    let office = TestOffice::new();
    office.user("anna", Role::Member).await;
    let service = Accounts::new(office.app.clone());
    let call = |paths: &[&str], user: v1::User, caller: Caller| {
        let mask = prost_types::FieldMask { paths: paths.iter().map(|p| (*p).to_owned()).collect() };
        let mut request = tonic::Request::new(v1::UpdateUserRequest {
            user: Some(v1::User { name: "anna".into(), ..user }),
            update_mask: Some(mask),
            ..v1::UpdateUserRequest::default()
        });
        request.extensions_mut().insert(caller);
        service.update_user(request)
    };
    let all = v1::User { display_name: "Anna".into(), quota_bytes: 7, disabled: true, role: 4, ..v1::User::default() };
    let user = call(&["display_name"], all.clone(), local()).await.unwrap().into_inner();
    assert_eq!((user.display_name.as_str(), user.quota_bytes, user.disabled, user.role), ("Anna", 0, false, 2));
    let user = call(&["quota_bytes", "disabled"], all.clone(), local()).await.unwrap().into_inner();
    assert_eq!((user.quota_bytes, user.disabled, user.role), (7, true, 2));
    for bad in [&[][..], &["name"], &["etag"], &["*"], &["password"], &["display_name", "nothing"]] {
        let error = from_status(&call(bad, all.clone(), local()).await.unwrap_err());
        assert!(error.is(Reason::FieldInvalid) || error.is(Reason::PasswordTooWeak), "{bad:?}: {error:?}");
    }
    for role in [0, 5, -1] {
        let status = call(&["role"], v1::User { role, ..v1::User::default() }, local()).await.unwrap_err();
        is(from_status(&status), Reason::FieldInvalid);
    }
    let status = call(&["role"], all, Caller::default()).await.unwrap_err();
    is(from_status(&status), Reason::CredentialsMissing);
}

#[tokio::test]
async fn the_same_request_id_gives_the_first_answer() {
    let office = TestOffice::new();
    let service = Accounts::new(office.app.clone());
    let id = Uuid::new_v4().to_string();
    let call = |name: &str, id: &str, password: &str| {
        let mut request = tonic::Request::new(v1::CreateUserRequest {
            user: Some(v1::User { name: name.into(), ..v1::User::default() }),
            password: password.into(),
            request_id: id.into(),
        });
        request.extensions_mut().insert(local());
        service.create_user(request)
    };
    let first = call("anna", &id, PASSWORD).await.unwrap().into_inner();
    update(&office, "anna", UserChange { display_name: Some("later".into()), ..UserChange::default() }).await.unwrap();
    assert_eq!(call("anna", &id, PASSWORD).await.unwrap().into_inner(), first);
    is(from_status(&call("ben", &id, PASSWORD).await.unwrap_err()), Reason::RequestIdReused);
    is(from_status(&call("ben", "no uuid", PASSWORD).await.unwrap_err()), Reason::FieldInvalid);
    is(from_status(&call("anna", "", PASSWORD).await.unwrap_err()), Reason::UserExists);
    // What failed is not remembered.
    let again = Uuid::new_v4().to_string();
    is(from_status(&call("anna", &again, PASSWORD).await.unwrap_err()), Reason::UserExists);
    call("clara", &again, PASSWORD).await.unwrap();
    assert_eq!(office.audit().iter().filter(|r| r.action == "user.create").count(), 2);
    office.advance(24 * 3600);
    is(from_status(&call("anna", &id, PASSWORD).await.unwrap_err()), Reason::UserExists);
    assert_eq!(expiry::sweep(&office.app).await.unwrap(), 2);
    assert!(records::under(&office.app.store, b"r/", 10).unwrap().is_empty());
}

#[tokio::test]
async fn pages_give_everyone_once_and_leave_out_the_deleted() {
    let office = TestOffice::new();
    for n in 0..25 {
        create(&office, &format!("u{n:02}"), Role::Member).await.unwrap();
        make_group(&office, &format!("g{n:02}"), &[]).await.unwrap();
    }
    for n in [0, 7, 8, 24] {
        accounts::delete(&office.app, &local(), &format!("u{n:02}")).await.unwrap();
    }
    for size in [1, 2, 7, 20, 21, 25, 1000] {
        let (mut names, mut token) = (Vec::new(), String::new());
        loop {
            let page = accounts::list(&office.app, &local(), size, &token).unwrap();
            assert!(page.users.len() <= size as usize);
            names.extend(page.users.into_iter().map(|u| u.name));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(names.len(), 21);
        assert!(names.is_sorted());
        let (mut names, mut token) = (Vec::new(), String::new());
        loop {
            let page = groups::list(&office.app, &local(), size, &token).unwrap();
            names.extend(page.groups.into_iter().map(|g| g.name));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(names.len(), 25);
    }
    let token = accounts::list(&office.app, &local(), 5, "").unwrap().next_page_token;
    is(groups::list(&office.app, &local(), 5, &token).unwrap_err(), Reason::PageTokenInvalid);
}

#[tokio::test]
async fn everyone_knows_everyone_but_guests_only_themselves() {
    let office = TestOffice::new();
    let app = &office.app;
    for (name, role) in [("anna", Role::Member), ("gast", Role::Guest), ("chef", Role::Admin)] {
        office.user(name, role).await;
    }
    update(&office, "anna", UserChange { quota_bytes: Some(9), ..UserChange::default() }).await.unwrap();
    let (anna, gast, chef) = (office.caller("anna").await, office.caller("gast").await, office.caller("chef").await);
    assert_eq!(accounts::get(app, &anna, "anna").unwrap().quota_bytes, 9);
    assert_eq!(accounts::get(app, &chef, "anna").unwrap().quota_bytes, 9);
    assert_eq!(accounts::list(app, &anna, 0, "").unwrap().users.len(), 3);
    accounts::get(app, &gast, "gast").unwrap();
    for name in ["anna", "nobody"] {
        is(accounts::get(app, &gast, name).unwrap_err(), Reason::AccessDenied);
    }
    is(accounts::list(app, &gast, 0, "").unwrap_err(), Reason::AccessDenied);
    is(groups::list(app, &gast, 0, "").unwrap_err(), Reason::AccessDenied);
    is(groups::get(app, &gast, "sales").unwrap_err(), Reason::AccessDenied);
    is(accounts::get(app, &Caller::default(), "anna").unwrap_err(), Reason::CredentialsMissing);
    office.user("ben", Role::Member).await;
    let ben = office.caller("ben").await;
    assert_eq!(accounts::get(app, &ben, "anna").unwrap().quota_bytes, 0, "another's limit is not shown");
}

#[tokio::test]
async fn changes_need_an_administrator_and_refusals_are_noted() {
    let office = TestOffice::new();
    let app = &office.app;
    for (name, role) in [("anna", Role::Member), ("audi", Role::Auditor), ("gast", Role::Guest)] {
        office.user(name, role).await;
    }
    make_group(&office, "sales", &[]).await.unwrap();
    let before = app.store.revision();
    for name in ["anna", "audi", "gast"] {
        let caller = office.caller(name).await;
        let new = || NewGroup { name: "g".into(), display_name: String::new(), members: vec![] };
        let change = UserChange { role: Some(Role::Admin), ..UserChange::default() };
        let outcomes = [
            accounts::create(app, &caller, new_user("x", Role::Admin, ""), Once::always()).await.err(),
            accounts::update(app, &caller, name, change, Once::always()).await.err(),
            accounts::delete(app, &caller, "nobody").await.err(),
            groups::create(app, &caller, new(), Once::always()).await.err(),
            groups::update(app, &caller, "nothing", vec![name.into()], vec![]).await.err(),
            groups::delete(app, &caller, "sales").await.err(),
        ];
        outcomes.into_iter().for_each(|o| is(o.unwrap(), Reason::AdminRequired));
        assert_eq!(
            accounts::get(app, &local(), name).unwrap().role.word().len(),
            caller.user.unwrap().role.word().len()
        );
    }
    let noted = office.audit();
    let refused: Vec<_> = noted.iter().filter(|r| !r.success).collect();
    assert_eq!(refused.len(), 18);
    assert!(refused.iter().all(|r| r.detail == "ADMIN_REQUIRED" && r.actor.starts_with("user:")));
    assert!(app.store.revision() > before);
    is(accounts::delete(app, &Caller::default(), "anna").await.unwrap_err(), Reason::CredentialsMissing);
}

#[tokio::test]
async fn groups_have_members_and_users_have_groups() {
    let office = TestOffice::new();
    for name in ["anna", "ben", "clara"] {
        create(&office, name, Role::Member).await.unwrap();
    }
    let sales = make_group(&office, "sales", &["ben", "anna", "ben"]).await.unwrap();
    assert_eq!(sales.members, ["anna", "ben"]);
    is(make_group(&office, "sales", &[]).await.unwrap_err(), Reason::GroupExists);
    is(make_group(&office, "other", &["nobody"]).await.unwrap_err(), Reason::UserUnknown);
    is(make_group(&office, "Other", &[]).await.unwrap_err(), Reason::FieldInvalid);
    is(change_group(&office, "none", &["anna"], &[]).await.unwrap_err(), Reason::GroupUnknown);
    is(change_group(&office, "sales", &["nobody"], &[]).await.unwrap_err(), Reason::UserUnknown);
    is(change_group(&office, "sales", &["clara"], &["clara"]).await.unwrap_err(), Reason::FieldInvalid);
    let same = change_group(&office, "sales", &["anna"], &["nobody", "clara"]).await.unwrap();
    assert_eq!(same.etag, sales.etag, "nothing changed");
    let changed = change_group(&office, "sales", &["clara", "anna"], &["ben"]).await.unwrap();
    assert_eq!(changed.members, ["anna", "clara"]);
    assert_ne!(changed.etag, sales.etag);
    make_group(&office, "a-team", &["anna"]).await.unwrap();
    assert_eq!(accounts::get(&office.app, &local(), "anna").unwrap().groups, ["a-team", "sales"]);
    accounts::delete(&office.app, &local(), "anna").await.unwrap();
    assert_eq!(groups::get(&office.app, &local(), "sales").unwrap().members, ["clara"]);
    is(change_group(&office, "sales", &["anna"], &[]).await.unwrap_err(), Reason::UserUnknown);
    groups::delete(&office.app, &local(), "sales").await.unwrap();
    assert!(accounts::get(&office.app, &local(), "clara").unwrap().groups.is_empty());
    assert_eq!(accounts::name_of(&office.app.store, sales.uid).unwrap(), None);
    let again = make_group(&office, "sales", &[]).await.unwrap();
    assert_ne!(again.uid, sales.uid, "grants of the old one do not come back");
    check_indexes(&office.app);
}

#[tokio::test]
async fn groups_and_memberships_are_bounded() {
    let office = TestOffice::new();
    let names: Vec<String> = (0..501).map(|n| format!("u{n}")).collect();
    for name in &names {
        create(&office, name, Role::Member).await.unwrap();
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    is(make_group(&office, "all", &names).await.unwrap_err(), Reason::GroupTooLarge);
    make_group(&office, "all", &names[..500]).await.unwrap();
    is(change_group(&office, "all", &["u500"], &[]).await.unwrap_err(), Reason::GroupTooLarge);
    change_group(&office, "all", &["u500"], &["u0"]).await.unwrap();
    for n in 1..500 {
        make_group(&office, &format!("g{n}"), &["u1"]).await.unwrap();
    }
    is(make_group(&office, "more", &["u1"]).await.unwrap_err(), Reason::TooManyGroups);
    is(groups::get(&office.app, &local(), "more").unwrap_err(), Reason::GroupUnknown);
    accounts::delete(&office.app, &local(), "u1").await.unwrap();
    check_indexes(&office.app);
}

/// Every index says what the records say, and nothing else.
fn check_indexes(app: &App) {
    let all = |prefix: &[u8]| records::under(&app.store, prefix, 100_000).unwrap();
    let mut admins = BTreeSet::new();
    let mut names = BTreeMap::new();
    let mut uids = BTreeMap::new();
    for (key, value) in all(b"u/") {
        let user: record::User = records::decode(value).unwrap();
        assert_eq!(key[..], records::user_key(&user.name)[..]);
        let uid = records::uuid(&user.uid).unwrap();
        names.insert(records::name_key(uid), format!("u{}", user.name).into_bytes());
        if !user.deleted && !user.disabled && user.role == Role::Admin as u32 {
            admins.insert(records::admin_key(&user.name));
        }
        uids.insert(user.name, (uid, user.deleted));
    }
    let mut memberships = BTreeMap::new();
    for (_, value) in all(b"g/") {
        let group: record::Group = records::decode(value).unwrap();
        let uid = records::uuid(&group.uid).unwrap();
        assert!(group.members.is_sorted_by(|a, b| a < b));
        names.insert(records::name_key(uid), format!("g{}", group.name).into_bytes());
        for member in &group.members {
            let (user, deleted) = uids[member];
            assert!(!deleted);
            memberships.insert(records::membership_key(user, uid), group.name.clone().into_bytes());
        }
    }
    let index = |prefix| all(prefix).into_iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect::<BTreeMap<_, _>>();
    assert_eq!(index(b"h/"), memberships);
    assert_eq!(index(b"n/"), names);
    assert_eq!(index(b"k/").into_keys().collect::<BTreeSet<_>>(), admins);
}

#[derive(Clone, Debug)]
enum Step {
    Create(usize, u8),
    Delete(usize),
    SetRole(usize, u8),
    SetDisabled(usize, bool),
    SetPassword(usize),
    MakeGroup(usize, Vec<usize>),
    DeleteGroup(usize),
    ChangeGroup(usize, Vec<usize>, Vec<usize>),
}

const USERS: [&str; 5] = ["anna", "ben", "clara", "dora", "emil"];
const GROUPS: [&str; 3] = ["sales", "staff", "team"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let user = 0..USERS.len();
    let group = 0..GROUPS.len();
    let users = || proptest::collection::vec(0..USERS.len(), 0..3);
    let step = prop_oneof![
        4 => (user.clone(), 1u8..=4).prop_map(|(u, r)| Step::Create(u, r)),
        1 => user.clone().prop_map(Step::Delete),
        2 => (user.clone(), 1u8..=4).prop_map(|(u, r)| Step::SetRole(u, r)),
        2 => (user.clone(), any::<bool>()).prop_map(|(u, d)| Step::SetDisabled(u, d)),
        1 => user.prop_map(Step::SetPassword),
        2 => (group.clone(), users()).prop_map(|(g, m)| Step::MakeGroup(g, m)),
        1 => group.clone().prop_map(Step::DeleteGroup),
        4 => (group, users(), users()).prop_map(|(g, a, r)| Step::ChangeGroup(g, a, r)),
    ];
    proptest::collection::vec(step, 1..40)
}

#[derive(Clone, Default)]
struct Model {
    users: BTreeMap<usize, ModelUser>,
    groups: BTreeMap<usize, BTreeSet<usize>>,
}

#[derive(Clone)]
struct ModelUser {
    role: Role,
    disabled: bool,
    deleted: bool,
}

impl ModelUser {
    fn is_admin(&self) -> bool {
        self.role == Role::Admin && !self.disabled && !self.deleted
    }
}

impl Model {
    fn living(&mut self, user: usize) -> Result<&mut ModelUser, Reason> {
        self.users.get_mut(&user).filter(|u| !u.deleted).ok_or(Reason::UserUnknown)
    }

    fn keep_an_admin(self, before: &Model) -> Result<Model, Reason> {
        let admins = |m: &Model| m.users.values().filter(|u| u.is_admin()).count();
        if admins(before) > 0 && admins(&self) == 0 { Err(Reason::LastAdmin) } else { Ok(self) }
    }

    fn apply(&self, step: &Step) -> Result<Model, Reason> {
        let mut next = self.clone();
        match step {
            Step::Create(u, role) => {
                let role = Role::from_number((*role).into()).unwrap();
                let user = ModelUser { role, disabled: false, deleted: false };
                if next.users.insert(*u, user).is_some() {
                    return Err(Reason::UserExists);
                }
            }
            Step::Delete(u) => {
                next.living(*u)?.deleted = true;
                next.groups.values_mut().for_each(|g| {
                    g.remove(u);
                });
            }
            Step::SetRole(u, role) => next.living(*u)?.role = Role::from_number((*role).into()).unwrap(),
            Step::SetDisabled(u, disabled) => next.living(*u)?.disabled = *disabled,
            Step::SetPassword(u) => {
                next.living(*u)?;
            }
            Step::MakeGroup(g, members) => {
                if next.groups.contains_key(g) {
                    return Err(Reason::GroupExists);
                }
                for member in members {
                    next.living(*member)?;
                }
                next.groups.insert(*g, members.iter().copied().collect());
            }
            Step::DeleteGroup(g) => {
                next.groups.remove(g).ok_or(Reason::GroupUnknown)?;
            }
            Step::ChangeGroup(g, add, remove) => {
                if add.iter().any(|a| remove.contains(a)) {
                    return Err(Reason::FieldInvalid);
                }
                let mut members = next.groups.get(g).cloned().ok_or(Reason::GroupUnknown)?;
                members.retain(|m| !remove.contains(m));
                for member in add {
                    if members.insert(*member) {
                        next.living(*member)?;
                    }
                }
                next.groups.insert(*g, members);
            }
        }
        next.keep_an_admin(self)
    }
}

fn named(of: &[usize]) -> Vec<&'static str> {
    of.iter().map(|m| USERS[*m]).collect()
}

async fn run(office: &TestOffice, step: &Step) -> Result<()> {
    let role = |n: &u8| Role::from_number((*n).into()).unwrap();
    let default = UserChange::default;
    match step {
        Step::Create(u, r) => create(office, USERS[*u], role(r)).await.map(|_| ()),
        Step::Delete(u) => accounts::delete(&office.app, &local(), USERS[*u]).await,
        Step::SetRole(u, r) => {
            update(office, USERS[*u], UserChange { role: Some(role(r)), ..default() }).await.map(|_| ())
        }
        Step::SetDisabled(u, d) => {
            update(office, USERS[*u], UserChange { disabled: Some(*d), ..default() }).await.map(|_| ())
        }
        Step::SetPassword(u) => {
            let password = Some(Password::new(PASSWORD.to_owned()));
            update(office, USERS[*u], UserChange { password, ..default() }).await.map(|_| ())
        }
        Step::MakeGroup(g, m) => make_group(office, GROUPS[*g], &named(m)).await.map(|_| ()),
        Step::DeleteGroup(g) => groups::delete(&office.app, &local(), GROUPS[*g]).await,
        Step::ChangeGroup(g, a, r) => change_group(office, GROUPS[*g], &named(a), &named(r)).await.map(|_| ()),
    }
}

fn compare(office: &TestOffice, model: &Model) {
    let users = accounts::list(&office.app, &local(), 0, "").unwrap().users;
    let found: BTreeMap<String, (Role, bool, Vec<String>)> =
        users.into_iter().map(|u| (u.name, (u.role, u.disabled, u.groups))).collect();
    let expected = model.users.iter().filter(|(_, u)| !u.deleted).map(|(n, u)| {
        let groups = model.groups.iter().filter(|(_, m)| m.contains(n)).map(|(g, _)| GROUPS[*g].to_owned()).collect();
        (USERS[*n].to_owned(), (u.role, u.disabled, groups))
    });
    assert_eq!(found, expected.collect());
    let groups = groups::list(&office.app, &local(), 0, "").unwrap().groups;
    let found: BTreeMap<String, Vec<String>> = groups.into_iter().map(|g| (g.name, g.members)).collect();
    let expected = model
        .groups
        .iter()
        .map(|(g, m)| (GROUPS[*g].to_owned(), m.iter().map(|u| USERS[*u].to_owned()).collect::<Vec<_>>()));
    assert_eq!(found, expected.collect());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn accounts_and_groups_agree_with_a_model(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let office = TestOffice::new();
            let mut model = Model::default();
            for step in &steps {
                let outcome = run(&office, step).await;
                match model.apply(step) {
                    Ok(next) => {
                        outcome.unwrap();
                        model = next;
                    }
                    Err(reason) => is(outcome.unwrap_err(), reason),
                }
                compare(&office, &model);
            }
            check_indexes(&office.app);
            assert_eq!(central_server::app::audit::verify(&office.app.store).unwrap().first_bad, None);
        });
    }
}
