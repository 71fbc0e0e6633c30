//! Who ever had a right, and how near to the founder.
//!
//! The closure of a set of statements: the founder has all rights; a statement whose author has the right to it gives the
//! rights that it names, as far as its author has them. It only grows with the set, whatever the order, so it decides
//! what a node keeps. Taking rights away again is not in it (`rule.rs`).

use super::record::{Kind, Rights, Statement};
use common::model::DeviceId;
use std::collections::{HashMap, VecDeque};

/// Rights and seniority by device.
#[derive(Clone, Debug, Default)]
pub struct Closure {
    rights: HashMap<DeviceId, Rights>,
    depth: HashMap<DeviceId, u32>,
}

impl Closure {
    /// Of these statements.
    pub fn of<'a>(statements: impl Iterator<Item = &'a Statement>) -> Self {
        let mut by_author: HashMap<DeviceId, Vec<&Statement>> = HashMap::new();
        let mut closure = Self::default();
        let mut grown = VecDeque::new();
        for statement in statements {
            if let Kind::Founding { .. } = statement.kind {
                closure.rights.insert(statement.author, Rights::ALL);
                closure.depth.insert(statement.author, 0);
                grown.push_back(statement.author);
            }
            // Only these give rights.
            if matches!(statement.kind, Kind::Admission(_) | Kind::Member { .. }) {
                by_author.entry(statement.author).or_default().push(statement);
            }
        }
        let mut seniors = grown.clone();
        while let Some(author) = grown.pop_front() {
            for statement in by_author.get(&author).into_iter().flatten() {
                grown.extend(closure.apply(statement));
            }
        }
        // By generations, so the first depth that a device gets is its smallest.
        while let Some(author) = seniors.pop_front() {
            let depth = closure.depth.get(&author).map_or(0, |d| d.saturating_add(1));
            for statement in by_author.get(&author).into_iter().flatten() {
                if let Kind::Admission(admission) = &statement.kind
                    && closure.allows(statement)
                    && !closure.depth.contains_key(&admission.device)
                {
                    closure.depth.insert(admission.device, depth);
                    seniors.push_back(admission.device);
                }
            }
        }
        closure
    }

    /// Gives what the statement gives; tells whose rights have grown.
    fn apply(&mut self, statement: &Statement) -> Option<DeviceId> {
        if !self.allows(statement) {
            return None;
        }
        let own = self.rights(&statement.author);
        let (device, member, named) = match &statement.kind {
            Kind::Admission(admission) => (admission.device, true, admission.profile.rights()),
            Kind::Member { device, profile, .. } => (*device, false, profile.rights()),
            _ => return None,
        };
        let given = Rights { member, invite: named.invite && own.invite, manage: named.manage && own.manage };
        let before = self.rights(&device);
        let after = before.or(given);
        self.rights.insert(device, after);
        (after != before).then_some(device)
    }

    /// Rights of a device; none if it is not known.
    pub fn rights(&self, device: &DeviceId) -> Rights {
        self.rights.get(device).copied().unwrap_or_default()
    }

    /// True if the author has the right to state this.
    pub fn allows(&self, statement: &Statement) -> bool {
        self.rights(&statement.author).has(statement.needs())
    }

    /// Seniority: the smaller, the more senior. Nearness to the founder in the tree of admissions, then device id.
    pub fn rank(&self, device: &DeviceId) -> (u32, DeviceId) {
        (self.depth.get(device).copied().unwrap_or(u32::MAX), *device)
    }
}
