//! `admin users`.

use super::{Context, call, request_id};
use crate::args::{UserSet, UsersAction};
use crate::commands::places::PAGE;
use crate::connect::Office;
use crate::exit::Exit;
use crate::output::format::{bytes, limit, pad, safe};
use crate::output::schema::{Done, User};
use crate::prompt::{self, confirm};
use common::error::Result;
use prost_types::FieldMask;
use proto::v1;

pub(super) async fn users(c: &Context, office: &Office, action: UsersAction) -> Result<Exit> {
    match action {
        UsersAction::List => list(c, office).await?,
        UsersAction::Show { name } => {
            let user = call(office.accounts().get_user(v1::GetUserRequest { name })).await?;
            c.out.object(&User::from(&user), describe)?;
        }
        UsersAction::Add { name, display_name, role, quota, password, no_password } => {
            let secret = if no_password {
                prompt::Secret::default()
            } else {
                prompt::new_password(&c.out, password.password_file.as_deref(), "--password-file")?
            };
            let user = v1::User { name, display_name, role: role as i32, quota_bytes: quota, ..v1::User::default() };
            let request =
                v1::CreateUserRequest { user: Some(user), password: secret.to_string(), request_id: request_id() };
            let user = call(office.accounts().create_user(request)).await?;
            changed(c, "users add", &user.name, format!("added {} with a private directory", user.name))?;
            c.out.hint("atrium admin invite  (makes a code for their machine)");
        }
        UsersAction::Set(set) => self::set(c, office, set).await?,
        UsersAction::Password { name, password } => {
            let secret = prompt::new_password(&c.out, password.password_file.as_deref(), "--password-file")?;
            let user = v1::User { name: name.clone(), ..v1::User::default() };
            update(office, user, &["password"], secret.to_string()).await?;
            changed(c, "users password", &name, format!("{name} has a new password"))?;
        }
        UsersAction::Delete { name, yes } => {
            confirm(
                &c.out,
                yes.yes,
                &format!("{name} will be shut out for good; the name is never given again"),
                &name,
            )
            .await?;
            call(office.accounts().delete_user(v1::DeleteUserRequest { name: name.clone() })).await?;
            changed(c, "users delete", &name, format!("{name} is shut out; the private directory is kept"))?;
        }
    }
    Ok(Exit::Ok)
}

fn changed(c: &Context, action: &str, name: &str, message: String) -> Result<()> {
    c.out.changed(&Done::new(action, name, None, message), |d| d.message.clone())
}

async fn list(c: &Context, office: &Office) -> Result<()> {
    let mut list = c.out.list::<User>(&[])?;
    let mut token = String::new();
    loop {
        let request = v1::ListUsersRequest { page_size: PAGE, page_token: token };
        let page = call(office.accounts().list_users(request)).await?;
        for user in &page.users {
            list.item(&User::from(user), |u| {
                let off = if u.disabled { "  [disabled]" } else { "" };
                let name = pad(&safe(&u.name), 16);
                format!("{name}  {:8} {:>11}  {}{off}", u.role, bytes(u.used_bytes), safe(&u.display_name))
            })?;
        }
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    list.end("no users")?;
    Ok(())
}

fn describe(u: &User) -> String {
    let mut text = format!(
        "name    {}\ncalled  {}\nrole    {}\nused    {}\nquota   {}",
        safe(&u.name),
        safe(&u.display_name),
        u.role,
        bytes(u.used_bytes),
        limit(u.quota_bytes)
    );
    if !u.groups.is_empty() {
        text.push_str(&format!("\ngroups  {}", safe(&u.groups.join(", "))));
    }
    if u.disabled {
        text.push_str("\nstate   disabled");
    }
    text
}

async fn set(c: &Context, office: &Office, set: UserSet) -> Result<()> {
    let mut user = v1::User { name: set.name.clone(), ..v1::User::default() };
    let (mut mask, mut told) = (Vec::new(), Vec::new());
    if let Some(display_name) = set.display_name {
        told.push(format!("is called {display_name}"));
        user.display_name = display_name;
        mask.push("display_name");
    }
    if let Some(role) = set.role {
        told.push(format!("has the role {}", role.word()));
        user.role = role as i32;
        mask.push("role");
    }
    if let Some(quota) = set.quota {
        told.push(format!("may keep {}", if quota == 0 { "any amount".to_owned() } else { bytes(quota) }));
        user.quota_bytes = quota;
        mask.push("quota_bytes");
    }
    if set.disable || set.enable {
        told.push(if set.disable { "cannot sign in any more" } else { "can sign in again" }.to_owned());
        user.disabled = set.disable;
        mask.push("disabled");
    }
    update(office, user, &mask, String::new()).await?;
    changed(c, "users set", &set.name, format!("{} {}", set.name, told.join(", ")))
}

/// Changes the masked fields of a user.
pub(super) async fn update(office: &Office, user: v1::User, mask: &[&str], password: String) -> Result<v1::User> {
    let paths = mask.iter().map(|p| (*p).to_owned()).collect();
    let request = v1::UpdateUserRequest {
        user: Some(user),
        update_mask: Some(FieldMask { paths }),
        password,
        request_id: request_id(),
    };
    call(office.accounts().update_user(request)).await
}
