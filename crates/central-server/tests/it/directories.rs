//! Public and private directories, and rights.

use crate::desk::{Desk, is, make};
use crate::fixture::{fresh, local};
use central_server::app::answers::Once;
use central_server::app::caller::Caller;
use central_server::app::directories::{self, Directory, NewDirectory, PrincipalName};
use central_server::app::groups::{self, NewGroup};
use central_server::app::{accounts, retention};
use common::error::{Reason, Result};
use common::model::{EntryName, Right, RootName};

fn root(name: &str) -> RootName {
    RootName::parse(name).unwrap()
}

fn user(name: &str) -> PrincipalName {
    PrincipalName::User(name.to_owned())
}

async fn create(desk: &Desk, who: &Caller, name: &str, grants: Vec<(PrincipalName, Right)>) -> Result<Directory> {
    let name = EntryName::new(name).unwrap();
    let new = NewDirectory { name, grants, quota_bytes: 7, case_sensitive: false };
    directories::create(&desk.app, who, new, Once::always()).await.map(fresh)
}

fn names(desk: &Desk, who: &Caller) -> Vec<String> {
    let (found, end) = directories::list(&desk.app, who, 0, "").unwrap();
    assert_eq!(end, "");
    found.into_iter().map(|d| d.root.name).collect()
}

#[tokio::test]
async fn everyone_sees_what_is_for_them() {
    let desk = Desk::new().await;
    assert_eq!(names(&desk, &desk.anna), ["home/anna", "public/board", "public/cases", "public/plans"]);
    assert_eq!(names(&desk, &desk.gast), ["home/gast"]);
    assert_eq!(names(&desk, &desk.chef), ["home/chef", "public/board", "public/cases", "public/plans"]);
    assert_eq!(names(&desk, &local()), ["public/board", "public/cases", "public/plans"]);
    is(directories::list(&desk.app, &Caller::default(), 0, ""), Reason::CredentialsMissing);
    let plans = directories::get(&desk.app, &desk.anna, &root("public/plans")).unwrap();
    assert_eq!((plans.my_right, plans.grants.len()), (Right::Write, 3));
    assert_eq!(plans.grants[0], (user("anna"), Right::Write));
    let board = directories::get(&desk.app, &desk.anna, &root("public/board")).unwrap();
    assert_eq!((board.my_right, board.grants.len()), (Right::See, 0), "who may not read is not told the rules");
    is(directories::get(&desk.app, &desk.gast, &root("public/plans")), Reason::DirectoryUnknown);
    is(directories::get(&desk.app, &desk.bert, &root("home/anna")), Reason::DirectoryUnknown);
    let managed = directories::get(&desk.app, &desk.chef, &root("home/anna")).unwrap();
    assert_eq!(managed.my_right, Right::See);
    let readable = directories::readable_roots(&desk.app, &desk.anna).await.unwrap();
    let mut readable: Vec<_> = readable.into_values().collect();
    readable.sort();
    assert_eq!(readable, ["home/anna", "public/cases", "public/plans"]);
    is(directories::require_readable(&desk.app, &desk.anna, &root("public/board")), Reason::AccessDenied);
}

#[tokio::test]
async fn pages_of_roots_do_not_tell_of_hidden_ones() {
    let desk = Desk::new().await;
    for name in ["a1", "b-hidden", "c1", "d-hidden"] {
        let grants = if name.contains("hidden") { vec![] } else { vec![(user("gast"), Right::See)] };
        make(&desk.app, name, grants, false).await;
    }
    let page = |token: &str| directories::list(&desk.app, &desk.gast, 2, token).unwrap();
    let (first, token) = page("");
    assert_eq!(first.iter().map(|d| &d.root.name[..]).collect::<Vec<_>>(), ["home/gast", "public/a1"]);
    let text: Vec<u8> =
        (0..token.len() / 2).map(|i| u8::from_str_radix(&token[2 * i..2 * i + 2], 16).unwrap()).collect();
    assert!(!String::from_utf8_lossy(&text).contains("hidden"), "the token names a hidden root");
    let (second, end) = page(&token);
    assert_eq!(second.iter().map(|d| &d.root.name[..]).collect::<Vec<_>>(), ["public/c1"]);
    assert_eq!(end, "", "no further page for what cannot be seen");
    is(directories::list(&desk.app, &desk.anna, 2, &token), Reason::PageTokenInvalid);
}

#[tokio::test]
async fn administrators_make_public_directories() {
    let desk = Desk::new().await;
    is(create(&desk, &desk.anna, "new", vec![]).await, Reason::AdminRequired);
    is(create(&desk, &Caller::default(), "new", vec![]).await, Reason::CredentialsMissing);
    let new = create(&desk, &desk.chef, "new", vec![(user("anna"), Right::Manage)]).await.unwrap();
    assert_eq!((&new.root.name[..], new.root.quota_bytes, new.my_right), ("public/new", 7, Right::Manage));
    is(create(&desk, &desk.chef, "new", vec![]).await, Reason::DirectoryExists);
    is(create(&desk, &desk.chef, "NEW", vec![]).await, Reason::NameClash);
    is(create(&desk, &desk.chef, "other", vec![(user("nobody"), Right::Read)]).await, Reason::UserUnknown);
    let group = PrincipalName::Group("nobody".into());
    is(create(&desk, &desk.chef, "other", vec![(group, Right::Read)]).await, Reason::GroupUnknown);
    for device in ["xyz".to_owned(), "0".repeat(64)] {
        let device = PrincipalName::Device(device);
        is(create(&desk, &desk.chef, "other", vec![(device, Right::Read)]).await, Reason::DeviceUnknown);
    }
    let changed = directories::set_quota(&desk.app, &desk.chef, root("public/new"), 99).await.unwrap();
    assert_eq!(changed.root.quota_bytes, 99);
    assert_ne!(changed.root.etag(), new.root.etag());
    is(directories::set_quota(&desk.app, &desk.anna, root("public/new"), 1).await, Reason::AdminRequired);
    is(directories::set_quota(&desk.app, &desk.chef, root("home/anna"), 1).await, Reason::FieldInvalid);
    is(directories::delete(&desk.app, &desk.chef, root("home/anna"), true).await, Reason::FieldInvalid);
    directories::delete(&desk.app, &desk.chef, root("public/new"), false).await.unwrap();
    is(directories::get(&desk.app, &desk.chef, &root("public/new")), Reason::DirectoryUnknown);
    let again = create(&desk, &desk.chef, "new", vec![]).await.unwrap();
    assert_ne!(again.root.id, new.root.id);
    let actions: Vec<String> = desk.office.audit().into_iter().map(|a| a.action).collect();
    for action in ["directory.create", "directory.quota", "directory.delete"] {
        assert!(actions.iter().any(|a| a == action), "{action} is in the audit log");
    }
    assert!(desk.office.audit().iter().any(|a| a.action == "directory.create" && !a.success), "so are refusals");
    desk.check();
}

#[tokio::test]
async fn grants_are_given_changed_and_taken() {
    let desk = Desk::new().await;
    let grant = |who, name: &str, p, right| directories::grant(&desk.app, who, root(name), p, right);
    let revoke = |who, name: &str, p| directories::revoke(&desk.app, who, root(name), p);
    is(grant(&desk.anna, "public/plans", user("gast"), Right::Read).await, Reason::AccessDenied);
    is(grant(&desk.gast, "public/plans", user("gast"), Right::Read).await, Reason::DirectoryUnknown);
    is(grant(&desk.anna, "home", user("bert"), Right::Read).await, Reason::FieldInvalid);
    grant(&desk.bert, "public/plans", user("gast"), Right::Read).await.unwrap();
    assert_eq!(names(&desk, &desk.gast), ["home/gast", "public/plans"]);
    let revision = desk.app.store.revision();
    let same = grant(&desk.bert, "public/plans", user("gast"), Right::Read).await.unwrap();
    assert_eq!((same.grants.len(), desk.app.store.revision()), (4, revision), "again changes nothing");
    let lowered = grant(&desk.bert, "public/plans", user("gast"), Right::See).await.unwrap();
    assert!(lowered.grants.contains(&(user("gast"), Right::See)));
    revoke(&desk.bert, "public/plans", user("gast")).await.unwrap();
    revoke(&desk.bert, "public/plans", user("gast")).await.unwrap();
    assert_eq!(names(&desk, &desk.gast), ["home/gast"]);
    is(revoke(&desk.bert, "public/plans", user("nobody")).await, Reason::UserUnknown);
    let left = revoke(&desk.bert, "public/plans", user("bert")).await.unwrap();
    assert_eq!(left.my_right, Right::Read, "as everyone");
    is(revoke(&desk.bert, "public/plans", user("anna")).await, Reason::AccessDenied);
    let told = crate::desk::changes(&desk.app).into_iter().filter(|(_, c)| c.kind == 6).count();
    assert_eq!(told, 3 + 4, "three were made, four changes of rights were told");
    desk.check();
}

#[tokio::test]
async fn the_number_of_grants_is_bounded() {
    let desk = Desk::new().await;
    for n in 0..directories::MAX_GRANTS {
        let new = NewGroup { name: format!("g{n}"), display_name: String::new(), members: vec![] };
        groups::create(&desk.app, &local(), new, Once::always()).await.unwrap();
    }
    for n in 0..directories::MAX_GRANTS - 1 {
        let group = PrincipalName::Group(format!("g{n}"));
        directories::grant(&desk.app, &desk.chef, root("public/board"), group, Right::Read).await.unwrap();
    }
    let last = || PrincipalName::Group(format!("g{}", directories::MAX_GRANTS - 1));
    is(
        directories::grant(&desk.app, &desk.chef, root("public/board"), last(), Right::Read).await,
        Reason::FieldInvalid,
    );
}

#[tokio::test]
async fn the_deciding_rule_is_told() {
    let desk = Desk::new().await;
    let new =
        NewGroup { name: "sales".into(), display_name: String::new(), members: vec!["gast".into(), "anna".into()] };
    groups::create(&desk.app, &local(), new, Once::always()).await.unwrap();
    let sales = PrincipalName::Group("sales".into());
    directories::grant(&desk.app, &desk.chef, root("public/plans"), sales.clone(), Right::Manage).await.unwrap();
    let why = |who: &Caller, name: &str, user: &str| directories::explain(&desk.app, who, &root(name), user);
    let anna = why(&desk.bert, "public/plans", "anna").unwrap();
    assert_eq!((anna.right, &anna.rule[..]), (Some(Right::Manage), "group sales has manage"));
    assert_eq!(anna.considered, ["group sales has manage", "user anna has write", "everyone has read"]);
    assert_eq!(why(&desk.bert, "public/plans", "").unwrap().rule, "user bert has manage");
    assert_eq!(why(&desk.bert, "public/plans", "bert").unwrap().rule, "user bert has manage");
    assert_eq!(why(&desk.bert, "public/plans", "gast").unwrap().rule, "group sales has manage");
    assert_eq!(why(&desk.chef, "public/board", "gast").unwrap().right, None);
    assert!(why(&desk.chef, "public/board", "gast").unwrap().rule.contains("guest"));
    is(
        why(&desk.anna, "public/cases", "bert").map(drop).and(why(&desk.bert, "public/cases", "anna")),
        Reason::AccessDenied,
    );
    is(why(&desk.bert, "public/plans", "nobody"), Reason::UserUnknown);
    is(why(&desk.bert, "home/anna", ""), Reason::DirectoryUnknown);
    assert_eq!(why(&desk.anna, "home", "").unwrap().rule, "the owner has manage");
    let admin = why(&desk.chef, "home/anna", "").unwrap();
    assert_eq!((admin.right, admin.considered.len()), (Some(Right::See), 1));
    // A group that is gone grants nothing; its grant is shown by id and can be taken away by it.
    groups::delete(&desk.app, &local(), "sales").await.unwrap();
    let plans = directories::get(&desk.app, &desk.bert, &root("public/plans")).unwrap();
    let PrincipalName::Group(id) = plans.grants[3].0.clone() else { panic!("{:?}", plans.grants) };
    assert!(uuid::Uuid::parse_str(&id).is_ok());
    let group = PrincipalName::Group(id);
    let left = directories::revoke(&desk.app, &desk.bert, root("public/plans"), group).await.unwrap();
    assert_eq!(left.grants.len(), 3);
}

#[tokio::test]
async fn the_private_directory_of_a_deleted_user_goes_when_an_administrator_says_so() {
    let desk = Desk::new().await;
    desk.file("home:a", b"kept").await;
    is(directories::delete(&desk.app, &desk.chef, root("home/anna"), true).await, Reason::FieldInvalid);
    accounts::delete(&desk.app, &local(), "anna").await.unwrap();
    is(directories::delete(&desk.app, &desk.chef, root("home/anna"), false).await, Reason::DirectoryNotEmpty);
    assert_eq!(desk.used("home/anna"), (4, 1));
    is(directories::delete(&desk.app, &desk.bert, root("home/anna"), true).await, Reason::AdminRequired);
    directories::delete(&desk.app, &desk.chef, root("home/anna"), true).await.unwrap();
    while retention::purge_step(&desk.app).await.unwrap() {}
    is(directories::get(&desk.app, &desk.chef, &root("home/anna")), Reason::DirectoryUnknown);
    desk.check();
}
