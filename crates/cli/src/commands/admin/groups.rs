//! `admin groups`.

use super::{Context, call, request_id};
use crate::args::GroupsAction;
use crate::commands::places::PAGE;
use crate::connect::Office;
use crate::exit::Exit;
use crate::output::format::{count, pad, safe};
use crate::output::schema::{Done, Group};
use crate::prompt::confirm;
use common::error::Result;
use proto::v1;

pub(super) async fn groups(c: &Context, office: &Office, action: GroupsAction) -> Result<Exit> {
    match action {
        GroupsAction::List => list(c, office).await?,
        GroupsAction::Show { name } => {
            let group = call(office.accounts().get_group(v1::GetGroupRequest { name })).await?;
            c.out.object(&Group::from(&group), |g| {
                let members: Vec<String> = g.members.iter().map(|m| format!("  {}", safe(m))).collect();
                format!(
                    "{} ({})\n{}",
                    safe(&g.name),
                    count(g.members.len() as u64, "member", "members"),
                    members.join("\n")
                )
                .trim_end()
                .to_owned()
            })?;
        }
        GroupsAction::Add { name, display_name, members } => {
            let group = v1::Group { name, display_name, members, ..v1::Group::default() };
            let request = v1::CreateGroupRequest { group: Some(group), request_id: request_id() };
            let group = call(office.accounts().create_group(request)).await?;
            let members = count(group.members.len() as u64, "member", "members");
            changed(c, "groups add", &group.name, format!("added the group {} with {members}", group.name))?;
        }
        GroupsAction::Set { name, add, remove } => {
            let request = v1::UpdateGroupRequest { name, add_members: add, remove_members: remove };
            let group = call(office.accounts().update_group(request)).await?;
            let members = count(group.members.len() as u64, "member", "members");
            changed(c, "groups set", &group.name, format!("the group {} has {members} now", group.name))?;
        }
        GroupsAction::Delete { name, yes } => {
            confirm(&c.out, yes.yes, &format!("the group {name} and all its rights will go"), &name).await?;
            call(office.accounts().delete_group(v1::DeleteGroupRequest { name: name.clone() })).await?;
            changed(c, "groups delete", &name, format!("removed the group {name}"))?;
        }
    }
    Ok(Exit::Ok)
}

fn changed(c: &Context, action: &str, name: &str, message: String) -> Result<()> {
    c.out.changed(&Done::new(action, name, None, message), |d| d.message.clone())
}

async fn list(c: &Context, office: &Office) -> Result<()> {
    let mut list = c.out.list::<Group>(&[])?;
    let mut token = String::new();
    loop {
        let request = v1::ListGroupsRequest { page_size: PAGE, page_token: token };
        let page = call(office.accounts().list_groups(request)).await?;
        for group in &page.groups {
            list.item(&Group::from(group), |g| {
                let members = count(g.members.len() as u64, "member", "members");
                format!("{}  {}  {}", pad(&safe(&g.name), 16), pad(&members, 12), safe(&g.display_name))
            })?;
        }
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    list.end("no groups")?;
    Ok(())
}
