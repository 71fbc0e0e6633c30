//! Who may do what with a root.
//!
//! A private directory belongs to its owner alone; administrators see that it is there (they manage quotas) and no more.
//! In a public directory the highest of all rules that apply counts: grants to the user, to the user's groups, to the
//! device, to every member, and MANAGE for administrators. Guests are not members.

use super::caller::Caller;
use super::directories::Root;
use common::model::{DeviceId, Principal, Right, Role};
use uuid::Uuid;

/// Who a question about rights is about.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// The user.
    pub user: Option<Uuid>,
    /// The user's groups.
    pub groups: Vec<Uuid>,
    /// The user's role.
    pub role: Option<Role>,
    /// The machine.
    pub device: Option<DeviceId>,
    /// The administrator at the server itself.
    pub local_admin: bool,
}

impl From<&Caller> for Subject {
    fn from(caller: &Caller) -> Self {
        Self {
            user: caller.user.as_ref().map(|u| u.uid),
            groups: caller.user.as_ref().map(|u| u.groups.to_vec()).unwrap_or_default(),
            role: caller.user.as_ref().map(|u| u.role),
            device: caller.device,
            local_admin: caller.local_admin,
        }
    }
}

/// A rule that applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The private directory's owner.
    Owner,
    /// An administrator, about somebody's private directory.
    AdminOfHome,
    /// An administrator, about a public directory.
    Admin,
    /// A grant.
    Grant(Principal),
}

/// Whether a grant to this principal is for the caller. Allocates nothing: it runs for every file of a commit.
fn applies(principal: &Principal, caller: &Caller) -> bool {
    match principal {
        Principal::User(uid) => caller.user.as_ref().is_some_and(|u| u.uid == *uid),
        Principal::Group(uid) => caller.user.as_ref().is_some_and(|u| u.groups.contains(uid)),
        Principal::Device(id) => caller.device == Some(*id),
        Principal::Everyone => caller.user.as_ref().is_some_and(|u| u.role != Role::Guest),
    }
}

/// The caller's right to a root.
pub fn right_of(root: &Root, caller: &Caller) -> Option<Right> {
    if let Some(owner) = root.owner {
        return match &caller.user {
            Some(user) if user.uid == owner => Some(Right::Manage),
            _ if caller.is_admin() => Some(Right::See),
            _ => None,
        };
    }
    granted(&root.grants, caller)
}

/// The highest right that these rules give the caller. An administrator manages everything.
pub fn granted(grants: &[(Principal, Right)], caller: &Caller) -> Option<Right> {
    if caller.is_admin() {
        return Some(Right::Manage);
    }
    grants.iter().filter(|(p, _)| applies(p, caller)).map(|(_, r)| *r).max()
}

/// All rules that apply, the deciding one first.
pub fn rules_for(root: &Root, subject: &Subject) -> Vec<(Rule, Right)> {
    let admin = subject.local_admin || subject.role == Some(Role::Admin);
    let mut rules = Vec::new();
    match root.owner {
        Some(owner) if subject.user == Some(owner) => rules.push((Rule::Owner, Right::Manage)),
        Some(_) if admin => rules.push((Rule::AdminOfHome, Right::See)),
        Some(_) => {}
        None => {
            if admin {
                rules.push((Rule::Admin, Right::Manage));
            }
            for (principal, right) in &root.grants {
                let applies = match principal {
                    Principal::User(uid) => subject.user == Some(*uid),
                    Principal::Group(uid) => subject.groups.contains(uid),
                    Principal::Device(id) => subject.device == Some(*id),
                    Principal::Everyone => subject.role.is_some_and(|r| r != Role::Guest),
                };
                if applies {
                    rules.push((Rule::Grant(principal.clone()), *right));
                }
            }
        }
    }
    rules.sort_by_key(|(_, right)| std::cmp::Reverse(*right));
    rules
}

/// A principal as it is stored.
pub fn encode(principal: &Principal) -> String {
    match principal {
        Principal::User(uid) => format!("user:{uid}"),
        Principal::Group(uid) => format!("group:{uid}"),
        Principal::Device(id) => format!("device:{id}"),
        Principal::Everyone => "everyone".to_owned(),
    }
}

/// A stored principal; `None` if this version does not know its kind (the grant is passed over, which only takes away).
pub fn decode(text: &str) -> Option<Principal> {
    Some(match text.split_once(':') {
        Some(("user", uid)) => Principal::User(uid.parse().ok()?),
        Some(("group", uid)) => Principal::Group(uid.parse().ok()?),
        Some(("device", id)) => Principal::Device(id.parse().ok()?),
        None if text == "everyone" => Principal::Everyone,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::caller::UserIdentity;
    use common::model::RootId;

    fn root(owner: Option<Uuid>, grants: Vec<(Principal, Right)>) -> Root {
        Root {
            id: RootId::generate(),
            name: "public/plans".into(),
            owner,
            grants,
            quota_bytes: 0,
            case_sensitive: false,
            create_ms: 0,
            revision: 1,
        }
    }

    fn caller(uid: Uuid, role: Role, groups: Vec<Uuid>, device: Option<DeviceId>) -> Caller {
        Caller {
            user: Some(UserIdentity {
                uid,
                name: "anna".into(),
                role,
                groups: groups.into(),
                session: Uuid::nil(),
                session_expire_ms: 0,
            }),
            device,
            ..Caller::default()
        }
    }

    #[test]
    fn the_highest_rule_that_applies_counts() {
        let (anna, sales, laptop) = (Uuid::from_u128(1), Uuid::from_u128(2), DeviceId([7; 32]));
        let grants = vec![
            (Principal::Everyone, Right::See),
            (Principal::User(anna), Right::Read),
            (Principal::Group(sales), Right::Write),
            (Principal::Device(laptop), Right::Manage),
        ];
        let public = root(None, grants);
        let cases = [
            (caller(Uuid::from_u128(9), Role::Member, vec![], None), Some(Right::See)),
            (caller(anna, Role::Member, vec![], None), Some(Right::Read)),
            (caller(anna, Role::Member, vec![sales], None), Some(Right::Write)),
            (caller(anna, Role::Member, vec![sales], Some(laptop)), Some(Right::Manage)),
            (caller(anna, Role::Guest, vec![], None), Some(Right::Read)),
            (caller(Uuid::from_u128(9), Role::Guest, vec![], None), None),
            (caller(Uuid::from_u128(9), Role::Auditor, vec![], None), Some(Right::See)),
            (caller(Uuid::from_u128(9), Role::Admin, vec![], None), Some(Right::Manage)),
            (Caller { device: Some(laptop), ..Caller::default() }, Some(Right::Manage)),
            (Caller { device: Some(DeviceId([8; 32])), ..Caller::default() }, None),
            (Caller { local_admin: true, ..Caller::default() }, Some(Right::Manage)),
            (Caller::default(), None),
        ];
        for (who, expected) in cases {
            assert_eq!(right_of(&public, &who), expected, "{who:?}");
            let rules = rules_for(&public, &Subject::from(&who));
            assert_eq!(rules.first().map(|(_, r)| *r), expected, "the explanation agrees for {who:?}");
        }
    }

    #[test]
    fn a_private_directory_is_its_owners_alone() {
        let anna = Uuid::from_u128(1);
        // A grant on a private directory, however it came there, counts for nothing.
        let home = root(Some(anna), vec![(Principal::Everyone, Right::Manage)]);
        let cases = [
            (caller(anna, Role::Member, vec![], None), Some(Right::Manage)),
            (caller(anna, Role::Guest, vec![], None), Some(Right::Manage)),
            (caller(Uuid::from_u128(2), Role::Member, vec![], None), None),
            (caller(Uuid::from_u128(2), Role::Admin, vec![], None), Some(Right::See)),
            (Caller { local_admin: true, ..Caller::default() }, Some(Right::See)),
            (Caller::default(), None),
        ];
        for (who, expected) in cases {
            assert_eq!(right_of(&home, &who), expected, "{who:?}");
            let rules = rules_for(&home, &Subject::from(&who));
            assert_eq!(rules.first().map(|(_, r)| *r), expected, "{who:?}");
        }
    }

    #[test]
    fn principals_survive_storage() {
        for principal in [
            Principal::User(Uuid::from_u128(5)),
            Principal::Group(Uuid::from_u128(6)),
            Principal::Device(DeviceId([9; 32])),
            Principal::Everyone,
        ] {
            assert_eq!(decode(&encode(&principal)), Some(principal));
        }
        for unknown in ["", "user:", "user:x", "robot:1", "everyone:1", "device:zz"] {
            assert_eq!(decode(unknown), None, "{unknown}");
        }
    }
}
