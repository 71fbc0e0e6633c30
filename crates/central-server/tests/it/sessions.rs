//! Signing in and what tokens are worth.

use crate::fixture::{PASSWORD, TestOffice, attempt, fresh, local, new_user};
use central_server::app::accounts::{self, UserChange};
use central_server::app::answers::Once;
use central_server::app::caller::Caller;
use central_server::app::groups::{self, NewGroup};
use central_server::app::sessions::{self, Password};
use central_server::app::{expiry, records};
use common::error::Reason;
use common::model::{DeviceId, Role};
use common::settings::ByteSize;
use proto::record::v1 as record;
use std::time::Duration;

const DAY: u64 = 24 * 3600;

fn password(text: &str) -> Password {
    Password::new(text.to_owned())
}

fn refused(office: &TestOffice, token: &str) {
    assert!(sessions::authenticate(&office.app, token).unwrap_err().is(Reason::SessionInvalid));
}

fn count(office: &TestOffice, prefix: &[u8]) -> usize {
    records::under(&office.app.store, prefix, 10_000).unwrap().len()
}

#[tokio::test]
async fn a_token_stands_for_its_user_and_is_stored_nowhere() {
    let office = TestOffice::new();
    let anna = office.user("anna", Role::Auditor).await;
    let login = office.login("anna").await;
    assert!(login.token.starts_with("atr_") && login.token.len() == 68);
    assert_eq!(login.expire_ms, 1_700_000_000_000 + 30 * DAY * 1000);
    assert_eq!(login.user, anna);
    let who = sessions::authenticate(&office.app, &login.token).unwrap();
    assert_eq!(
        (who.uid, &*who.name, who.role, who.session_expire_ms),
        (anna.uid, "anna", Role::Auditor, login.expire_ms)
    );
    assert_ne!(login.token, office.login("anna").await.token);
    let secrets = [&login.token.as_bytes()[4..], PASSWORD.as_bytes()];
    for (key, value) in office.app.store.range(b"", b"", 10_000).unwrap() {
        for secret in secrets {
            assert!(!key.windows(secret.len()).chain(value.windows(secret.len())).any(|w| w == secret), "{key:?}");
        }
    }
}

#[tokio::test]
async fn tokens_that_are_none_are_refused() {
    let office = TestOffice::new();
    office.user("anna", Role::Member).await;
    let token = office.login("anna").await.token;
    let hash = blake3::hash(token.as_bytes()).to_hex();
    let nearly = format!("{}{}", &token[..67], if token.ends_with('0') { '1' } else { '0' });
    for bad in ["", "atr_", &token[..67], &format!("{token}0"), &nearly, &token.to_uppercase(), &format!("atr_{hash}")]
    {
        refused(&office, bad);
    }
    refused(&office, &"ä".repeat(34));
}

#[tokio::test]
async fn all_failures_look_alike() {
    let office = TestOffice::new();
    let (app, local) = (&office.app, local());
    for name in ["anna", "gone", "away"] {
        office.user(name, Role::Member).await;
    }
    fresh(accounts::create(app, &local, new_user("bare", Role::Member, ""), Once::always()).await.unwrap());
    accounts::delete(app, &local, "gone").await.unwrap();
    let disable = UserChange { disabled: Some(true), ..UserChange::default() };
    accounts::update(app, &local, "away", disable, Once::always()).await.unwrap();
    let mut seen = Vec::new();
    for (name, word) in [
        ("anna", "wrong password"),
        ("gone", PASSWORD),
        ("away", PASSWORD),
        ("bare", PASSWORD),
        ("nobody", PASSWORD),
        ("../etc", PASSWORD),
        ("", PASSWORD),
    ] {
        let error = office.try_login(name, word).await.unwrap_err();
        assert!(error.is(Reason::LoginFailed), "{name}: {error:?}");
        seen.push((error.message().to_owned(), error.why().to_owned(), error.fix().to_owned(), error.metadata().len()));
    }
    seen.dedup();
    assert_eq!(seen.len(), 1);
    for bad in ["", &"x".repeat(1025)] {
        assert!(office.try_login("anna", bad).await.unwrap_err().is(Reason::FieldInvalid));
    }
}

#[tokio::test]
async fn a_session_ends_at_its_time_and_leaves_nothing() {
    let office = TestOffice::new();
    office.user("anna", Role::Member).await;
    let app = &office.app;
    let short = sessions::Attempt { lifetime: Duration::from_secs(60), ..attempt("anna", PASSWORD, "192.0.2.1") };
    let short = sessions::login(app, short).await.unwrap();
    let endless = sessions::Attempt { lifetime: Duration::MAX, ..attempt("anna", PASSWORD, "192.0.2.1") };
    let endless = sessions::login(app, endless).await.unwrap();
    assert_eq!(endless.expire_ms - 1_700_000_000_000, 90 * DAY * 1000, "capped");
    office.advance(59);
    let caller = office.by_token(&short.token);
    office.advance(1);
    refused(&office, &short.token);
    assert!(!sessions::is_living(app, caller.user.as_ref().unwrap().session).unwrap());
    assert!(sessions::refresh(app, &caller).unwrap_err().is(Reason::SessionInvalid));
    let own = office.by_token(&endless.token);
    assert_eq!(sessions::list(app, &own, "").await.unwrap().len(), 1);
    assert_eq!(expiry::sweep(app).await.unwrap(), 1);
    assert_eq!(expiry::sweep(app).await.unwrap(), 0);
    office.by_token(&endless.token);
    office.advance(90 * DAY);
    refused(&office, &endless.token);
    assert_eq!(expiry::sweep(app).await.unwrap(), 1);
    for prefix in [b"x/", b"y/", b"j/", b"e/"] {
        assert_eq!(count(&office, prefix), 0);
    }
}

#[tokio::test]
async fn a_sweep_works_in_steps_until_all_is_gone() {
    let office = TestOffice::with(|s| s.sessions.hash_queue = 1000);
    for user in 0..7 {
        let name = format!("u{user}");
        office.user(&name, Role::Member).await;
        for _ in 0..50 {
            office.login(&name).await;
        }
    }
    assert_eq!(count(&office, b"x/"), 350);
    office.advance(30 * DAY);
    assert_eq!(expiry::sweep(&office.app).await.unwrap(), 350, "more than one step of 256");
    assert_eq!(count(&office, b"e/") + count(&office, b"y/"), 0);
}

#[tokio::test]
async fn the_hundred_and_first_session_ends_the_oldest() {
    let office = TestOffice::new();
    office.user("anna", Role::Member).await;
    let mut tokens = Vec::new();
    for _ in 0..102 {
        tokens.push(office.login("anna").await.token);
        office.advance(1);
    }
    refused(&office, &tokens[0]);
    refused(&office, &tokens[1]);
    let caller = office.by_token(&tokens[2]);
    let living = sessions::list(&office.app, &caller, "").await.unwrap();
    assert_eq!(living.len(), 100);
    assert!(living.is_sorted_by_key(|s| s.create_ms));
    assert_eq!(
        (count(&office, b"x/"), count(&office, b"y/"), count(&office, b"j/"), count(&office, b"e/")),
        (100, 100, 100, 100)
    );
}

#[tokio::test]
async fn logout_ends_the_own_session_and_may_be_repeated() {
    let office = TestOffice::new();
    office.user("anna", Role::Member).await;
    let (one, two) = (office.login("anna").await.token, office.login("anna").await.token);
    let caller = office.by_token(&one);
    let mut events = office.app.identity.subscribe();
    sessions::logout(&office.app, &caller).await.unwrap();
    assert!(events.has_changed().unwrap(), "open streams are told");
    events.mark_unchanged();
    refused(&office, &one);
    office.by_token(&two);
    sessions::logout(&office.app, &caller).await.unwrap();
    sessions::logout(&office.app, &Caller::default()).await.unwrap();
    assert_eq!(office.audit().iter().filter(|r| r.action == "logout").count(), 1);
}

#[tokio::test]
async fn sessions_are_listed_and_revoked_by_owner_and_administrator_only() {
    let office = TestOffice::new();
    let app = &office.app;
    for (name, role) in [("anna", Role::Member), ("ben", Role::Member), ("chef", Role::Admin)] {
        office.user(name, role).await;
    }
    let annas = office.login("anna").await.token;
    let (anna, ben, chef) = (office.by_token(&annas), office.caller("ben").await, office.caller("chef").await);
    let id = anna.user.as_ref().unwrap().session.to_string();
    assert_eq!(sessions::list(app, &anna, "").await.unwrap()[0].id.to_string(), id);
    assert_eq!(sessions::list(app, &anna, "anna").await.unwrap().len(), 1);
    assert_eq!(sessions::list(app, &chef, "anna").await.unwrap().len(), 1);
    assert!(sessions::list(app, &ben, "anna").await.unwrap_err().is(Reason::AdminRequired));
    assert!(sessions::list(app, &ben, "nobody").await.unwrap_err().is(Reason::AdminRequired), "before existence");
    assert!(sessions::list(app, &chef, "nobody").await.unwrap_err().is(Reason::UserUnknown));
    assert!(sessions::list(app, &local(), "").await.unwrap_err().is(Reason::CredentialsMissing));
    assert!(sessions::revoke(app, &ben, &id).await.unwrap_err().is(Reason::SessionUnknown));
    assert!(sessions::revoke(app, &Caller::default(), &id).await.unwrap_err().is(Reason::CredentialsMissing));
    assert!(sessions::revoke(app, &ben, "no id").await.unwrap_err().is(Reason::FieldInvalid));
    office.by_token(&annas);
    sessions::revoke(app, &chef, &id).await.unwrap();
    refused(&office, &annas);
    assert!(sessions::revoke(app, &chef, &id).await.unwrap_err().is(Reason::SessionUnknown));
    let again = office.caller("anna").await;
    sessions::revoke(app, &again, &again.user.as_ref().unwrap().session.to_string()).await.unwrap();
}

#[tokio::test]
async fn disabled_and_deleted_users_are_out_at_once_and_stay_out() {
    let office = TestOffice::new();
    let app = &office.app;
    office.user("anna", Role::Member).await;
    office.user("ben", Role::Member).await;
    let (anna, ben) = (office.login("anna").await.token, office.login("ben").await.token);
    for disabled in [true, false] {
        let change = UserChange { disabled: Some(disabled), ..UserChange::default() };
        accounts::update(app, &local(), "anna", change, Once::always()).await.unwrap();
        refused(&office, &anna);
    }
    office.login("anna").await;
    accounts::delete(app, &local(), "ben").await.unwrap();
    refused(&office, &ben);
    // Even a record that came back by a defect would not count.
    let mut user: record::User = records::load(&app.store, &records::user_key("anna")).unwrap().unwrap();
    let token = office.login("anna").await.token;
    user.disabled = true;
    app.store.transact(move |txn| records::save(txn, &records::user_key("anna"), &user)).await.unwrap();
    refused(&office, &token);
}

#[tokio::test]
async fn a_new_password_ends_the_other_sessions() {
    let office = TestOffice::new();
    let app = &office.app;
    office.user("anna", Role::Member).await;
    office.user("chef", Role::Admin).await;
    let (here, there) = (office.login("anna").await.token, office.login("anna").await.token);
    let caller = office.by_token(&here);
    let new = password("another password");
    let wrong = sessions::change_password(app, &caller, &password("guess"), &new, None).await.unwrap_err();
    assert!(wrong.is(Reason::LoginFailed));
    let weak =
        sessions::change_password(app, &caller, &password(PASSWORD), &password("short"), None).await.unwrap_err();
    assert!(weak.is(Reason::PasswordTooWeak));
    office.by_token(&there);
    sessions::change_password(app, &caller, &password(PASSWORD), &new, None).await.unwrap();
    office.by_token(&here);
    refused(&office, &there);
    assert!(office.try_login("anna", PASSWORD).await.is_err());
    office.try_login("anna", "another password").await.unwrap();
    // Set by an administrator: all of them end, but the administrator's own stays.
    let chef = office.login("chef").await.token;
    let change = || UserChange { password: Some(password("third password")), ..UserChange::default() };
    accounts::update(app, &office.by_token(&chef), "anna", change(), Once::always()).await.unwrap();
    refused(&office, &here);
    accounts::update(app, &office.by_token(&chef), "chef", change(), Once::always()).await.unwrap();
    office.by_token(&chef);
}

#[tokio::test]
async fn guessing_a_password_in_change_password_is_limited_too() {
    let office = TestOffice::new();
    office.user("anna", Role::Member).await;
    let caller = office.caller("anna").await;
    let guess = || async {
        let (old, new) = (password("guess"), password("new password"));
        sessions::change_password(&office.app, &caller, &old, &new, None).await.unwrap_err()
    };
    for _ in 0..10 {
        assert!(guess().await.is(Reason::LoginFailed));
    }
    assert!(guess().await.is(Reason::LoginRateLimited));
}

#[tokio::test]
async fn failures_are_limited_and_success_is_not() {
    let office = TestOffice::new();
    office.user("anna", Role::Member).await;
    for _ in 0..30 {
        office.login("anna").await;
    }
    for _ in 0..10 {
        let guess = sessions::login(&office.app, attempt("anna", "guess", "198.51.100.7")).await.unwrap_err();
        assert!(guess.is(Reason::LoginFailed));
    }
    let limited = sessions::login(&office.app, attempt("anna", PASSWORD, "198.51.100.7")).await.unwrap_err();
    assert!(limited.is(Reason::LoginRateLimited) && limited.is_transient());
    assert_eq!(limited.retry_delay(), Some(Duration::from_secs(30)));
    office.login("anna").await;
    office.advance(30);
    sessions::login(&office.app, attempt("anna", PASSWORD, "198.51.100.7")).await.unwrap();
}

#[tokio::test]
async fn unknown_names_are_limited_like_known_ones() {
    let office = TestOffice::new();
    office.user("anna", Role::Member).await;
    let mut outcomes = Vec::new();
    for name in ["anna", "nobody"] {
        let mut reasons = Vec::new();
        for host in 0..12 {
            let tried = attempt(name, "guess", &format!("203.0.113.{host}"));
            reasons.push(sessions::login(&office.app, tried).await.unwrap_err().reason().to_owned());
        }
        outcomes.push(reasons);
    }
    assert_eq!(outcomes[0], outcomes[1]);
    assert_eq!(outcomes[0][9..11], ["LOGIN_FAILED", "LOGIN_RATE_LIMITED"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_a_time_are_served_or_told_when_to_come_back() {
    let crowd = |queue| async move {
        let office = TestOffice::with(|s| s.sessions.hash_queue = queue);
        let names: Vec<String> = (0..50).map(|n| format!("u{n}")).collect();
        for name in &names {
            office.user(name, Role::Member).await;
        }
        let tries = names.iter().map(|name| office.try_login(name, PASSWORD));
        let outcomes = futures_util::future::join_all(tries).await;
        (office, outcomes)
    };
    let (office, outcomes) = crowd(8).await;
    let (mut signed_in, mut busy) = (0, 0);
    for outcome in outcomes {
        match outcome {
            Ok(_) => signed_in += 1,
            Err(error) => {
                assert!(error.is(Reason::Overloaded) && error.retry_delay().is_some(), "{error:?}");
                busy += 1;
            }
        }
    }
    assert!(signed_in >= 10 && signed_in + busy == 50, "at least two at work and eight waiting: {signed_in}");
    // Being turned away is no failed attempt: this address may fail as often as before.
    for n in 0..50 {
        let guess = office.try_login(&format!("v{n}"), "guess").await.unwrap_err();
        assert!(guess.is(Reason::LoginFailed), "{guess:?}");
    }
    let (_, outcomes) = crowd(48).await;
    assert!(outcomes.iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_raised_cost_is_applied_at_the_next_login() {
    let office = TestOffice::new();
    office.user("anna", Role::Member).await;
    let raised = TestOffice::over(office.app.store.clone(), |s| s.sessions.hash_memory = ByteSize::kib(16));
    let phc = || {
        let user: record::User = records::load(&office.app.store, &records::user_key("anna")).unwrap().unwrap();
        user.password_phc
    };
    assert!(phc().contains("m=8,"));
    raised.try_login("anna", "wrong password").await.unwrap_err();
    assert!(phc().contains("m=8,"));
    raised.login("anna").await;
    assert!(phc().starts_with("$argon2id$v=19$m=16,t=1,p=1$"), "{}", phc());
    office.login("anna").await;
    assert!(phc().contains("m=16,"), "a lower cost is not applied");
}

#[tokio::test]
async fn a_session_counts_no_more_when_its_device_is_cut_off() {
    let office = TestOffice::new();
    let app = &office.app;
    office.user("anna", Role::Member).await;
    let id = DeviceId([7; 32]);
    let device = record::Device { id: id.to_string(), ..record::Device::default() };
    app.store.transact(move |txn| records::save(txn, &records::device_key(&device.id), &device)).await.unwrap();
    let there = sessions::Attempt { device: Some(id), ..attempt("anna", PASSWORD, "192.0.2.1") };
    let there = sessions::login(app, there).await.unwrap().token;
    let elsewhere = office.login("anna").await.token;
    let caller = Caller { device: Some(id), ..office.by_token(&there) };
    central_server::app::devices::revoke(app, &local(), &id.to_string()).await.unwrap();
    refused(&office, &there);
    office.by_token(&elsewhere);
    assert!(sessions::refresh(app, &caller).unwrap_err().is(Reason::DeviceRevoked));
}

#[tokio::test]
async fn an_open_stream_sees_new_groups_and_roles() {
    let office = TestOffice::new();
    let app = &office.app;
    office.user("anna", Role::Member).await;
    let caller = office.caller("anna").await;
    let new = NewGroup { name: "sales".into(), display_name: String::new(), members: vec!["anna".into()] };
    let group = fresh(groups::create(app, &local(), new, Once::always()).await.unwrap());
    let change = UserChange { role: Some(Role::Guest), ..UserChange::default() };
    accounts::update(app, &local(), "anna", change, Once::always()).await.unwrap();
    let now = sessions::refresh(app, &caller).unwrap().user.unwrap();
    assert_eq!((now.role, &now.groups[..]), (Role::Guest, &[group.uid][..]));
}

#[tokio::test]
async fn a_password_typed_as_name_is_not_logged() {
    let office = TestOffice::new();
    office.user("anna", Role::Member).await;
    for name in ["hunter2secret", "My Secret!", "anna"] {
        office.try_login(name, "guess").await.unwrap_err();
    }
    let failed: Vec<_> = office.audit().into_iter().filter(|r| !r.success).collect();
    let subjects: Vec<&str> = failed.iter().map(|r| r.subject.as_str()).collect();
    assert_eq!(subjects, ["user:(unknown)", "user:(unknown)", "user:anna"]);
    assert!(failed.iter().all(|r| r.action == "login" && r.detail == "LOGIN_FAILED from 192.0.2.1"));
}
