//! `admin directories` and `admin quota`.

use super::{Context, call, request_id, users};
use crate::args::DirectoriesAction;
use crate::args::value::{QuotaTarget, RootArg};
use crate::commands::browse;
use crate::connect::Office;
use crate::exit::Exit;
use crate::output::format::{bytes, limit};
use crate::output::schema::{Done, Quota, typed_path};
use crate::output::usage;
use crate::prompt::confirm;
use common::error::Result;
use common::model::RootName;
use proto::v1;

pub(super) async fn directories(c: &Context, office: &Office, action: DirectoriesAction) -> Result<Exit> {
    match action {
        DirectoriesAction::List => return browse::directories(c, office, true).await,
        DirectoriesAction::Add { directory, grants, quota, case_sensitive } => {
            only_public(&directory)?;
            let grants =
                grants.iter().map(|g| v1::Grant { principal: Some(g.whom.wire()), right: g.right as i32 }).collect();
            let request = v1::CreateDirectoryRequest {
                name: directory.wire(),
                grants,
                quota_bytes: quota,
                case_sensitive,
                request_id: request_id(),
            };
            let made = call(office.directories().create_directory(request)).await?;
            let path = typed_path(&made.name, "");
            changed(c, "directories add", &directory, format!("made the public directory {path}"))?;
            if made.grants.is_empty() {
                c.out.hint(&format!("atrium share {path} --with everyone --right read"));
            }
        }
        DirectoriesAction::Delete { directory, force, yes } => {
            only_public(&directory)?;
            if force {
                let what = format!("{directory} with its content, old versions and trash will be deleted for good");
                confirm(&c.out, yes.yes, &what, &directory.to_string()).await?;
            }
            let request = v1::DeleteDirectoryRequest { name: directory.wire(), force };
            call(office.directories().delete_directory(request)).await?;
            changed(c, "directories delete", &directory, format!("deleted {directory}"))?;
        }
    }
    Ok(Exit::Ok)
}

fn only_public(directory: &RootArg) -> Result<()> {
    match directory.0 {
        RootName::Public(_) => Ok(()),
        _ => Err(usage(
            format!("{directory} is a private directory"),
            "private directories come with their users (`atrium admin users add`); write public:NAME here",
        )),
    }
}

fn changed(c: &Context, action: &str, directory: &RootArg, message: String) -> Result<()> {
    c.out.changed(&Done::new(action, directory, None, message), |d| d.message.clone())
}

pub(super) async fn quota(c: &Context, office: &Office, target: QuotaTarget, wanted: Option<u64>) -> Result<Exit> {
    let quota = match (&target, wanted) {
        (QuotaTarget::User(name), None) => {
            of_user(call(office.accounts().get_user(v1::GetUserRequest { name: name.clone() })).await?)
        }
        (QuotaTarget::User(name), Some(quota_bytes)) => {
            let user = v1::User { name: name.clone(), quota_bytes, ..v1::User::default() };
            of_user(users::update(office, user, &["quota_bytes"], String::new()).await?)
        }
        (QuotaTarget::Public(name), None) => of_directory(
            call(office.directories().get_directory(v1::GetDirectoryRequest { name: name.clone() })).await?,
        ),
        (QuotaTarget::Public(name), Some(quota_bytes)) => {
            let request = v1::UpdateDirectoryRequest { name: name.clone(), quota_bytes };
            of_directory(call(office.directories().update_directory(request)).await?)
        }
    };
    let text = |q: &Quota| format!("{}: {} used, limit: {}", q.target, bytes(q.used_bytes), limit(q.quota_bytes));
    match wanted {
        None => c.out.object(&quota, text)?,
        Some(_) => c.out.changed(&quota, text)?,
    }
    Ok(Exit::Ok)
}

fn of_user(user: v1::User) -> Quota {
    Quota { target: user.name, quota_bytes: user.quota_bytes, used_bytes: user.used_bytes }
}

fn of_directory(directory: v1::Directory) -> Quota {
    Quota {
        target: typed_path(&directory.name, ""),
        quota_bytes: directory.quota_bytes,
        used_bytes: directory.used_bytes,
    }
}
