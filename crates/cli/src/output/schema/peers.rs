//! What the verbs of an office of peers write.

use super::{Description, Grant, JsonType, Object, Problem};
use serde::Serialize;

objects! {
    peer_objects;
    /// How this machine's peer is.
    PeerStatus "peer_status" {
        /// Program version.
        version: String,
        /// This device's id.
        device_id: String,
        /// The office's name; null before init or join.
        office: Option<String>,
        /// Full hierarchical name, for example acme/sales/anna-pc.
        node_name: String,
        /// Whose machine it is.
        person: String,
        /// Where it listens, IP:PORT.
        addresses: Vec<String>,
        /// Members of the office.
        member_count: u64,
        /// Those connected now.
        connected_count: u64,
        /// Own shares.
        share_count: u64,
        /// Transfers under way.
        transfer_count: u64,
        /// Parcels that wait for their receivers.
        outbox_count: u64,
        /// Parcels that wait for an answer of this person.
        inbox_waiting_count: u64,
        /// The central server of the office, HOST:PORT; null if it has none.
        server: Option<String>,
        /// Below which address the server's directories are, for example acme/server; null if there is no server.
        server_address: Option<String>,
        /// Whether this machine has joined the server.
        server_joined: bool,
        /// Who is signed in at the server without an agent; null if nobody is.
        server_user: Option<String>,
        /// Members that have yet to join the server, as far as this machine invites them.
        server_waiting_count: u64,
        /// Whether this machine has been cut off.
        revoked: bool,
    }
    /// A new code for a machine to join an office of peers; shown only once.
    OfficeInvite "office_invite" {
        /// The whole code.
        code: String,
        /// When it dies, RFC 3339.
        expire_time: Option<String>,
        /// Addresses of this machine, for machines that do not find it by themselves.
        addresses: Vec<String>,
    }
    /// Another machine.
    Peer "peer" {
        /// Device id.
        device_id: String,
        /// Full hierarchical name; of strangers, what they call themselves.
        node_name: String,
        /// Whose machine it is.
        person: String,
        /// How it can be reached: both, out_only, in_only, relayed, none or unknown.
        reach: String,
        /// The address in use, or that was tried last.
        address: String,
        /// How it was found: mdns, beacon, seed, member, incoming.
        found_by: Vec<String>,
        /// Round trip; null if not known.
        round_trip_us: Option<u64>,
        /// Last sign of life, RFC 3339.
        last_seen_time: Option<String>,
        /// Why it cannot be reached, or only in one direction; null if it can.
        problem: Option<Problem>,
        /// Program version.
        version: String,
        /// The member through which the connection goes; null if it is direct.
        relayed_by: Option<String>,
        /// True for a machine of no office or of another one.
        stranger: bool,
    }
    /// A member of an office of peers.
    Member "member" {
        /// Device id.
        device_id: String,
        /// The machine's name.
        display_name: String,
        /// Whose machine it is.
        person: String,
        /// Its part of the hierarchy; may be empty.
        unit: String,
        /// Whether it may invite others.
        may_invite: bool,
        /// Whether it may change and revoke members and groups.
        may_manage: bool,
        /// Whether it is cut off.
        revoked: bool,
        /// Device id of the member that admitted it; empty for the founder.
        admitted_by: String,
        /// When, RFC 3339, by the clock of who admitted it.
        create_time: Option<String>,
    }
    /// A group of people of an office of peers.
    PeerGroup "peer_group" {
        /// Group name.
        name: String,
        /// Who is in it.
        persons: Vec<String>,
    }
    /// A folder that this machine shares, or its copy of another machine's two-way share.
    FolderShare "share" {
        /// Stays with the share.
        share_id: String,
        /// Name.
        name: String,
        /// Full address, for example acme/sales/anna-pc/plans.
        address: String,
        /// The folder here.
        path: String,
        /// Who may do what.
        grants: Vec<Grant>,
        /// Whether members change it on copies of their own.
        two_way: bool,
        /// Whether this is the copy of another machine's share.
        mirror: bool,
        /// Files.
        file_count: u64,
        /// Their bytes.
        total_bytes: u64,
        /// Files seen so far while the folder is being looked through; null when that is done.
        scanning_count: Option<u64>,
        /// Conflicts that wait.
        conflict_count: u64,
        /// Of a copy: files that are not here yet.
        missing_count: u64,
        /// Entries that are not shared, and why; at most 100.
        problems: Vec<Problem>,
        /// Ignore rules in force.
        ignore_rules: String,
    }
    /// Something below a hierarchical address.
    Item "item" {
        /// unit, node, share, directory, file, server_directory or unknown.
        r#type: String,
        /// Full address.
        address: String,
        /// Size; 0 for all but files and shares.
        size_bytes: u64,
        /// Modification time, RFC 3339.
        modify_time: Option<String>,
        /// What you may do: see, read, write or manage; null if not known.
        right: Option<String>,
        /// Machines from which it can be had now.
        holder_count: u64,
        /// Whether its owner is there.
        online: bool,
        /// Whether more than one machine claims this name.
        disputed: bool,
        /// The owner's person.
        person: String,
        /// Equal digests mean equal content; empty for all but files.
        manifest_digest: String,
    }
    /// Where a transfer's bytes come from.
    TransferSource "transfer_source" {
        /// The machine's name, or "server".
        node_name: String,
        /// Verified bytes from it.
        received_bytes: u64,
        /// Present rate.
        bytes_per_second: u64,
        /// Chunks from it that were wrong.
        bad_chunk_count: u64,
        /// direct, relayed or local disk.
        way: String,
    }
    /// A transfer from other machines: result of `get`, item of `transfers`, progress lines of both on standard error.
    PeerTransfer "peer_transfer" {
        /// For `transfers pause` and its like.
        id: String,
        /// listing, running, waiting, paused, done, failed, cancelled or unknown.
        state: String,
        /// What is fetched.
        title: String,
        /// Where it goes.
        destination: String,
        /// Files in all.
        file_count: u64,
        /// Files that are there.
        done_file_count: u64,
        /// Bytes in all.
        total_bytes: u64,
        /// Bytes that are there and verified.
        done_bytes: u64,
        /// Of these, taken from the local disk.
        local_bytes: u64,
        /// Present rate.
        bytes_per_second: u64,
        /// Time left at this rate; null if it cannot be told.
        seconds_left: Option<u64>,
        /// Bytes given to others meanwhile.
        served_bytes: u64,
        /// Where it comes from.
        sources: Vec<TransferSource>,
        /// What limits it now: source, network, disk, cap, yield or waiting.
        limit: String,
        /// Time used divided by the least time that is possible with these machines; null if not known.
        floor_ratio: Option<f64>,
        /// Duration.
        elapsed_ms: u64,
        /// Why it failed or waits; null otherwise.
        problem: Option<Problem>,
    }
    /// How much bandwidth transfers may take.
    Limits "limits" {
        /// Most bytes a second to others; 0 means no limit.
        upload_rate: u64,
        /// Most bytes a second from others; 0 means no limit.
        download_rate: u64,
        /// When both hold; empty means always.
        schedule: String,
        /// Whether they stay out of the way of other traffic.
        yields: bool,
    }
    /// A parcel at one receiver.
    Delivery "delivery" {
        /// The machine's name.
        node_name: String,
        /// Whose machine it is.
        person: String,
        /// queued, asking, running, delivered, refused, cancelled, expired or unknown.
        state: String,
        /// For people.
        message: String,
        /// When it arrived, RFC 3339.
        receipt_time: Option<String>,
        /// Other machines that keep the parcel for it.
        kept_by: Vec<String>,
    }
    /// A parcel that was sent: result of `send`, items of `outbox`.
    OutboxItem "outbox_item" {
        /// For `outbox cancel`.
        parcel_id: String,
        /// What it is called.
        title: String,
        /// Bytes.
        total_bytes: u64,
        /// When, RFC 3339.
        create_time: Option<String>,
        /// How far it is at each receiver.
        deliveries: Vec<Delivery>,
    }
    /// A parcel that came in.
    InboxItem "inbox_item" {
        /// For `inbox accept` and `inbox refuse`.
        parcel_id: String,
        /// The sender's machine.
        node_name: String,
        /// The sender.
        person: String,
        /// What it is called.
        title: String,
        /// A word from the sender.
        note: String,
        /// Files.
        file_count: u64,
        /// Bytes.
        total_bytes: u64,
        /// Bytes that are here.
        done_bytes: u64,
        /// asks, running, done, refused or unknown.
        state: String,
        /// When it was sent, RFC 3339.
        create_time: Option<String>,
        /// Where it is or will be.
        path: String,
    }
    /// Who may send without asking.
    AcceptRules "accept_rules" {
        /// People whose parcels are taken.
        accept_persons: Vec<String>,
        /// Whether those of everyone are.
        accept_all: bool,
        /// Parcels larger than this always ask; 0 means no limit.
        ask_above_bytes: u64,
        /// People whose parcels are refused.
        refuse_persons: Vec<String>,
        /// Where parcels go.
        directory: String,
    }
}
