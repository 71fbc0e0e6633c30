//! From messages about devices to the objects of the JSON contract.

use super::uuid_text;
use crate::args::value::Whom;
use crate::commands::peers::convert::{filled, word};
use crate::output::format::{hex, rfc3339, timestamp_ms};
use crate::output::schema::{
    DeviceAuditRecord, DeviceLease, DeviceNote, DiskDetail, DriveDetail, Grant, Lease, Mirror, OwnDevice, PrintJob,
    PrinterDetail, Problem, SharedDevice, Space, SpaceObject, right_word,
};
use proto::peer::v1 as wire;
use wire::device::Detail;
use wire::share_device_request::Kind;

impl From<wire::Device> for SharedDevice {
    fn from(d: wire::Device) -> Self {
        let (mut printer, mut drive, mut disk) = (None, None, None);
        match d.detail {
            Some(Detail::Printer(p)) => printer = Some(PrinterDetail::from(p)),
            Some(Detail::Drive(d)) => drive = Some(DriveDetail::from(d)),
            Some(Detail::Disk(d)) => disk = Some(DiskDetail::from(d)),
            None => {}
        }
        Self {
            r#type: word(wire::DeviceKind::try_from(d.kind).ok().map(|k| k.as_str_name()), "DEVICE_KIND_"),
            address: d.address,
            name: d.name,
            description: d.description,
            owner_device_id: d.owner_device_id,
            person: d.person,
            right: right_word(d.right),
            state: d.state,
            state_reason: filled(d.state_reason),
            holder: filled(d.holder),
            waiting_count: d.waiting_count.into(),
            leases: d.leases.into_iter().map(DeviceLease::from).collect(),
            simulated: d.simulated,
            online: d.online,
            printer,
            drive,
            disk,
        }
    }
}

impl From<wire::DeviceLease> for DeviceLease {
    fn from(l: wire::DeviceLease) -> Self {
        Self {
            id: uuid_text(&l.lease_id),
            mode: word(wire::LeaseMode::try_from(l.mode).ok().map(|m| m.as_str_name()), "LEASE_MODE_"),
            state: word(wire::LeaseState::try_from(l.state).ok().map(|s| s.as_str_name()), "LEASE_STATE_"),
            holder: l.holder,
            purpose: l.purpose,
        }
    }
}

impl From<wire::PrinterDetail> for PrinterDetail {
    fn from(p: wire::PrinterDetail) -> Self {
        Self {
            job_count: p.job_count.into(),
            formats: p.formats,
            color: p.color,
            duplex: p.duplex,
            uris: p.uris,
            location: p.location,
            sheets_left: p.sheets_left,
            bytes_left: p.bytes_left,
            members: p.members,
        }
    }
}

impl From<wire::DriveDetail> for DriveDetail {
    fn from(d: wire::DriveDetail) -> Self {
        Self {
            title: d.title,
            size_bytes: d.size_bytes,
            generation: d.generation,
            format: d.format,
            bad_block_count: d.bad_block_count.into(),
        }
    }
}

impl From<wire::DiskDetail> for DiskDetail {
    fn from(d: wire::DiskDetail) -> Self {
        Self {
            size_bytes: d.size_bytes,
            used_bytes: d.used_bytes,
            free_bytes: d.free_bytes,
            per_person_bytes: d.per_person_bytes,
        }
    }
}

impl From<wire::LocalDevice> for OwnDevice {
    fn from(d: wire::LocalDevice) -> Self {
        let share = d.share.unwrap_or_default();
        let (mut target, mut members_only, mut reserve_bytes) = (String::new(), false, None);
        let mut trust = None;
        match share.kind {
            Some(Kind::Printer(p)) => {
                members_only = p.members_only;
                trust = match p.trust.as_str() {
                    "" => None,
                    short if short == "system" || short.starts_with("sha256:") => Some(p.trust),
                    _ => Some("file".to_owned()),
                };
                target = output_text(p.output);
            }
            Some(Kind::Drive(d)) => {
                target = match d.kind {
                    Some(wire::drive_share::Kind::DeviceFile(path)) => path,
                    Some(wire::drive_share::Kind::Image(path)) => format!("image:{path}"),
                    None => String::new(),
                };
            }
            Some(Kind::Disk(d)) => {
                reserve_bytes = Some(d.reserve_bytes);
                target = d.folder;
            }
            None => {}
        }
        let grants = share.grants.iter().map(|g| Grant {
            who: Whom::text_of(g.principal.as_ref()),
            right: right_word(g.right).unwrap_or_else(|| "unknown".into()),
        });
        Self {
            grants: grants.collect(),
            device: d.device.unwrap_or_default().into(),
            target,
            trust,
            members_only,
            reserve_bytes,
            problems: d.problems.into_iter().map(Problem::from).collect(),
        }
    }
}

fn output_text(output: Option<wire::PrinterOutput>) -> String {
    use wire::printer_output::Kind;
    match output.and_then(|o| o.kind) {
        Some(Kind::Folder(path)) => format!("folder:{path}"),
        Some(Kind::CupsQueue(queue)) => format!("cups:{queue}"),
        Some(Kind::Uri(uri)) => uri,
        Some(Kind::Group(group)) => format!("group:{}", group.members.join(",")),
        None => String::new(),
    }
}

impl From<wire::DeviceAuditRecord> for DeviceAuditRecord {
    fn from(r: wire::DeviceAuditRecord) -> Self {
        Self {
            sequence: r.sequence,
            time: rfc3339(Some(&timestamp_ms(r.time_ms))),
            person: r.person,
            machine: r.machine,
            device_id: r.device_id,
            resource: r.resource,
            verb: r.verb,
            granted: r.granted,
            reason: filled(r.reason),
            repeated_count: r.repeated_count,
        }
    }
}

impl From<wire::DeviceNote> for DeviceNote {
    fn from(n: wire::DeviceNote) -> Self {
        Self { from: n.from, text: n.text, age_ms: n.age_ms }
    }
}

impl Lease {
    /// From the contract; `device` is what it was named by.
    pub(super) fn of(lease: wire::Lease, device: &str) -> Self {
        Self {
            device: device.to_owned(),
            lease_id: uuid_text(&lease.lease_id),
            mode: word(wire::LeaseMode::try_from(lease.mode).ok().map(|m| m.as_str_name()), "LEASE_MODE_"),
            state: word(wire::LeaseState::try_from(lease.state).ok().map(|s| s.as_str_name()), "LEASE_STATE_"),
            fencing_token: lease.fencing_token,
            ttl_ms: lease.ttl_ms,
            position: lease.position.into(),
            notes: lease.notes.into_iter().map(DeviceNote::from).collect(),
        }
    }
}

impl From<wire::PrintJob> for PrintJob {
    fn from(j: wire::PrintJob) -> Self {
        Self {
            id: format!("{}#{}", j.printer, j.job_id),
            number: j.job_id,
            printer: j.printer,
            name: j.job_name,
            person: j.person,
            machine: j.machine,
            state: j.state,
            state_reason: filled(j.state_reason),
            size_bytes: j.size_bytes,
            sheets: j.sheets,
            priority: j.priority.into(),
            position: j.position.into(),
            format: j.format,
            needs_pin: j.needs_pin,
            create_time: rfc3339(j.create_time.as_ref()),
            end_time: rfc3339(j.end_time.as_ref()),
        }
    }
}

impl From<wire::Space> for Space {
    fn from(s: wire::Space) -> Self {
        Self {
            id: uuid_text(&s.space_id),
            r#type: word(wire::SpaceKind::try_from(s.kind).ok().map(|k| k.as_str_name()), "SPACE_KIND_"),
            disk: s.disk,
            size_bytes: s.size_bytes,
            used_bytes: s.used_bytes,
            object_count: s.object_count,
            expire_time: rfc3339(s.expire_time.as_ref()),
            label: s.label,
            person: s.person,
            device_id: s.device_id,
            nearly_full: s.nearly_full,
            leaving: s.leaving,
            proven_time: rfc3339(s.proven_time.as_ref()),
        }
    }
}

impl From<wire::Mirror> for Mirror {
    fn from(m: wire::Mirror) -> Self {
        Self {
            share: m.share,
            disk: m.disk,
            state: word(wire::MirrorState::try_from(m.state).ok().map(|s| s.as_str_name()), "MIRROR_STATE_"),
            generation: m.generation,
            proven_time: rfc3339(m.proven_time.as_ref()),
            proven_count: m.proven_count,
            part_count: m.part_count,
            failed_time: rfc3339(m.failed_time.as_ref()),
            repaired_count: m.repaired_count,
            next_disk: m.next_disk,
            problem: m.problem.map(Problem::from),
        }
    }
}

impl From<wire::SpaceObject> for SpaceObject {
    fn from(o: wire::SpaceObject) -> Self {
        Self {
            name: o.name,
            size_bytes: o.size_bytes,
            digest: hex(&o.digest),
            create_time: rfc3339(o.create_time.as_ref()),
            partial_bytes: (o.partial_bytes != 0).then_some(o.partial_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::envelope;
    use serde_json::json;

    #[test]
    fn a_device_has_the_detail_of_its_kind_only() {
        let device = wire::Device {
            address: "acme/anna-pc/drives/dvd".into(),
            kind: 2,
            name: "dvd".into(),
            right: 3,
            state: "ready".into(),
            holder: "bert at bert-pc".into(),
            online: true,
            detail: Some(Detail::Drive(wire::DriveDetail {
                title: "PLANS".into(),
                generation: 7,
                ..Default::default()
            })),
            ..Default::default()
        };
        let value = envelope(&SharedDevice::from(device));
        assert_eq!(
            (&value["kind"], &value["type"], &value["right"]),
            (&json!("shared_device"), &json!("drive"), &json!("write"))
        );
        assert_eq!((&value["holder"], &value["state_reason"]), (&json!("bert at bert-pc"), &json!(null)));
        assert_eq!(value["drive"]["generation"], 7);
        assert!(value["printer"].is_null() && value["disk"].is_null());
        assert_eq!(SharedDevice::from(wire::Device { kind: 99, ..Default::default() }).r#type, "unknown");
    }

    #[test]
    fn jobs_spaces_and_leases_have_names_that_can_be_typed() {
        let job =
            PrintJob::from(wire::PrintJob { job_id: 12, printer: "acme/a/printers/x".into(), ..Default::default() });
        assert_eq!(job.id, "acme/a/printers/x#12");
        let space = Space::from(wire::Space { space_id: vec![1; 16].into(), kind: 1, ..Default::default() });
        assert_eq!((space.id.as_str(), space.r#type.as_str()), ("01010101-0101-0101-0101-010101010101", "scratch"));
        let lease = Lease::of(wire::Lease { state: 2, mode: 2, position: 3, ..Default::default() }, "dvd");
        assert_eq!((lease.state.as_str(), lease.mode.as_str(), lease.position), ("waiting", "exclusive", 3));
    }

    #[test]
    fn what_a_device_was_shared_as_is_written_like_the_option() {
        let output = |kind| output_text(Some(wire::PrinterOutput { kind: Some(kind) }));
        use wire::printer_output::Kind;
        let group = wire::PrinterGroup { members: vec!["a".into(), "b".into()] };
        assert_eq!(output(Kind::Group(group)), "group:a,b");
        assert_eq!(output(Kind::Folder("/srv/out".into())), "folder:/srv/out");
        assert_eq!(output(Kind::Uri("ipp://h/ipp/print".into())), "ipp://h/ipp/print");
        assert_eq!(output_text(None), "");
    }
}
