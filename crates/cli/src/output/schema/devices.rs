//! What the verbs of printers, drives and disks write.

use super::{Description, Grant, JsonType, Object, Problem};
use serde::Serialize;

objects! {
    device_objects;
    /// A printer, drive or disk of a machine.
    SharedDevice "shared_device" {
        /// Full address, for example acme/anna-pc/printers/laser.
        address: String,
        /// printer, drive, disk or unknown.
        r#type: String,
        /// Last part of the address.
        name: String,
        /// For people.
        description: String,
        /// Device id of the machine that it hangs on.
        owner_device_id: String,
        /// Whose machine that is.
        person: String,
        /// What you may do: see, read, write or manage; null if not known.
        right: Option<String>,
        /// A printer's idle, processing or stopped; a drive's empty, open, loading, ready or away; a disk's ready, full or away.
        state: String,
        /// Why it is stopped or away; null otherwise.
        state_reason: Option<String>,
        /// Who holds it alone, "person at machine"; null if nobody does.
        holder: Option<String>,
        /// How many wait for it.
        waiting_count: u64,
        /// Who holds it and who waits for it, the next one first; empty unless you manage it.
        leases: Vec<DeviceLease>,
        /// Whether it is a folder or an image file that plays a device.
        simulated: bool,
        /// Whether it could be asked just now; otherwise this is what was known last.
        online: bool,
        /// More about a printer; null for others.
        printer: Option<PrinterDetail>,
        /// More about a drive; null for others.
        drive: Option<DriveDetail>,
        /// More about a disk; null for others.
        disk: Option<DiskDetail>,
    }
    /// A lease of a device, or a place in its queue.
    DeviceLease "device_lease" {
        /// For `atrium release --lease`.
        id: String,
        /// shared, exclusive or unknown.
        mode: String,
        /// held, waiting or unknown.
        state: String,
        /// Who, "person at machine".
        holder: String,
        /// What for; may be empty.
        purpose: String,
    }
    /// More about a printer.
    PrinterDetail "printer_detail" {
        /// Jobs that have not ended.
        job_count: u64,
        /// Media types that it takes.
        formats: Vec<String>,
        /// Prints in colour.
        color: bool,
        /// Prints on both sides.
        duplex: bool,
        /// Where programs print to, by IPP; empty if only members may.
        uris: Vec<String>,
        /// Where it stands.
        location: String,
        /// Sheets that you may still print in this period; null: no quota.
        sheets_left: Option<u64>,
        /// Bytes likewise.
        bytes_left: Option<u64>,
        /// Printers behind this queue; empty for a single one.
        members: Vec<String>,
    }
    /// More about a drive.
    DriveDetail "drive_detail" {
        /// The disc's title; empty if there is none.
        title: String,
        /// The disc's size.
        size_bytes: u64,
        /// Rises with each change of the disc; 0 while there is none.
        generation: u64,
        /// iso9660, udf, iso9660+udf or unknown; empty without a disc.
        format: String,
        /// Bad blocks met so far.
        bad_block_count: u64,
    }
    /// More about disk space.
    DiskDetail "disk_detail" {
        /// What is lent at most.
        size_bytes: u64,
        /// What is used of it.
        used_bytes: u64,
        /// What could be borrowed now.
        free_bytes: u64,
        /// What one borrower may have.
        per_person_bytes: u64,
    }
    /// A device of this machine: result of `share`, items of `devices --own`.
    OwnDevice "own_device" {
        /// As others see it.
        device: SharedDevice,
        /// What it is: folder:DIRECTORY, cups:QUEUE, an IPP address or group:A,B of a printer; the device file or image:FILE of a drive; the directory of disk space.
        target: String,
        /// Of a printer that is reached by ipps: which certificate is believed: system, sha256:FINGERPRINT, or file for those that were given; null for others.
        trust: Option<String>,
        /// Of a printer: whether it is not offered to programs by IPP.
        members_only: bool,
        /// Of disk space: what stays free for the owner; null for others.
        reserve_bytes: Option<u64>,
        /// Who may do what.
        grants: Vec<Grant>,
        /// What is wrong with it.
        problems: Vec<Problem>,
    }
    /// What was granted or refused at a device of this machine: items of `devices --audit`. With --verify, the list has the fields `verified` (boolean) and `problem`.
    DeviceAuditRecord "device_audit_record" {
        /// Rises by one.
        sequence: u64,
        /// When, RFC 3339.
        time: Option<String>,
        /// Whose request.
        person: String,
        /// From which machine.
        machine: String,
        /// That machine's device id.
        device_id: String,
        /// The device, such as drives/dvd.
        resource: String,
        /// What was asked, such as lease.exclusive, print or eject.
        verb: String,
        /// Whether it was granted.
        granted: bool,
        /// Why not; null if granted.
        reason: Option<String>,
        /// Further equal refusals that this line stands for.
        repeated_count: u64,
    }
    /// Somebody asks for a device that is held.
    DeviceNote "device_note" {
        /// "person at machine".
        from: String,
        /// What they say.
        text: String,
        /// How long ago, in milliseconds.
        age_ms: u64,
    }
    /// The right to use a device: result of `use`.
    Lease "lease" {
        /// The device, as it was named.
        device: String,
        /// Names the lease.
        lease_id: String,
        /// shared, exclusive or unknown.
        mode: String,
        /// held, waiting or unknown.
        state: String,
        /// Only rises with each lease of the device.
        fencing_token: u64,
        /// What is left of it before the peer renews it.
        ttl_ms: u64,
        /// While waiting: how many are before you.
        position: u64,
        /// Who asks for the device.
        notes: Vec<DeviceNote>,
    }
    /// A print job: result of `print`, items of `jobs`.
    PrintJob "print_job" {
        /// For `jobs cancel` and its like: PRINTER#NUMBER.
        id: String,
        /// Number at its printer.
        number: u64,
        /// The printer's full address.
        printer: String,
        /// For people.
        name: String,
        /// Whose.
        person: String,
        /// The machine that it came from.
        machine: String,
        /// pending, pending-held, processing, processing-stopped, canceled, aborted or completed.
        state: String,
        /// Why; null if there is nothing to say.
        state_reason: Option<String>,
        /// Bytes of the document.
        size_bytes: u64,
        /// Sheets that it takes, or took.
        sheets: u64,
        /// 1 to 100.
        priority: u64,
        /// How many are before it.
        position: u64,
        /// Media type.
        format: String,
        /// Whether it waits for its PIN.
        needs_pin: bool,
        /// When it was taken, RFC 3339.
        create_time: Option<String>,
        /// When it ended, RFC 3339.
        end_time: Option<String>,
    }
    /// A file or directory on a disc: items of `ls`, whose list has the fields `path` and `generation`.
    DiscEntry "disc_entry" {
        /// Where, as it can be typed.
        address: String,
        /// Below the top of the disc.
        path: String,
        /// "file" or "directory".
        r#type: String,
        /// Size; 0 for directories.
        size_bytes: u64,
        /// Modification time, RFC 3339.
        modify_time: Option<String>,
    }
    /// Where bytes of a disc came from.
    DiscSource "disc_source" {
        /// The machine's name.
        node_name: String,
        /// Bytes from it.
        received_bytes: u64,
    }
    /// A copy of a disc: result of `disc rip`.
    DiscCopy "disc_copy" {
        /// The drive, as it was named.
        device: String,
        /// The file.
        path: String,
        /// The disc's title.
        title: String,
        /// Read well.
        done_bytes: u64,
        /// The disc's size.
        total_bytes: u64,
        /// Sectors of 2,048 bytes that cannot be read; PATH.map lists them.
        bad_sector_count: u64,
        /// Where it came from.
        sources: Vec<DiscSource>,
        /// Duration.
        elapsed_ms: u64,
    }
    /// Where a disc is offered to programs: lines of `disc export`.
    DiscExport "disc_export" {
        /// The drive, as it was named.
        device: String,
        /// Addresses for programs: of this machine, and with --listen of others.
        uris: Vec<String>,
        /// Whether the disc was changed since; every read fails then.
        disc_changed: bool,
        /// Where the keys for the other side are; null without --tls.
        tls_directory: Option<String>,
    }
    /// Borrowed or lent space.
    Space "space" {
        /// For `space put` and its like.
        id: String,
        /// The disk's full address.
        disk: String,
        /// scratch, mirror or unknown.
        r#type: String,
        /// At most.
        size_bytes: u64,
        /// Used.
        used_bytes: u64,
        /// Files in it.
        object_count: u64,
        /// When it is wiped, RFC 3339; null for a mirror place.
        expire_time: Option<String>,
        /// For people.
        label: String,
        /// Who has borrowed it.
        person: String,
        /// From which machine (device id).
        device_id: String,
        /// Whether more than four fifths are used.
        nearly_full: bool,
        /// Whether its owner wants it back.
        leaving: bool,
        /// Of a mirror place of this machine's shares: when it was proven last, RFC 3339; null if never, and for others.
        proven_time: Option<String>,
    }
    /// A file in borrowed space: result of `space put` and `space get`, items of `space ls`.
    SpaceObject "space_object" {
        /// Its name.
        name: String,
        /// Size of all of it.
        size_bytes: u64,
        /// BLAKE3 of all of it.
        digest: String,
        /// When it was put, RFC 3339.
        create_time: Option<String>,
        /// Bytes that are there of one that is not whole; null for a whole one.
        partial_bytes: Option<u64>,
    }
    /// Where a second copy of a share is: items of `space mirrors`.
    Mirror "mirror" {
        /// The share.
        share: String,
        /// The disk's address; empty if it is on this machine only.
        disk: String,
        /// whole, away, moving, home, damaged, lost or unknown.
        state: String,
        /// Of the newest copy of the whole.
        generation: u64,
        /// When some of its parts were proven last to be there whole, RFC 3339; null if never.
        proven_time: Option<String>,
        /// How many parts that were.
        proven_count: u64,
        /// Of so many.
        part_count: u64,
        /// When a proof failed last, RFC 3339; null if never.
        failed_time: Option<String>,
        /// Parts that were sent again because they could not be proven.
        repaired_count: u64,
        /// The disk to which it moves when its machine leaves; empty: back to this machine.
        next_disk: String,
        /// What is wrong; null if nothing is.
        problem: Option<Problem>,
    }
    /// A second copy of a share: result of `space mirror` and `space restore`.
    MirrorCopy "mirror_copy" {
        /// mirror or restore.
        action: String,
        /// The share.
        share: String,
        /// Files.
        file_count: u64,
        /// Bytes in all.
        total_bytes: u64,
        /// Bytes that were there already.
        present_bytes: u64,
        /// Rises with each copy of the whole.
        generation: u64,
        /// Duration.
        elapsed_ms: u64,
        /// Whoever has it reads the copy from another machine of the same person; of a copy that was made here.
        recovery_key: Option<String>,
        /// Files that are not in it, and why.
        left_out: Vec<Problem>,
    }
}
