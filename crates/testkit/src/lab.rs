//! A network lab: machines (network namespaces) with cables (veth pairs) on switches (bridges in a namespace of their
//! own), with line rates, cuts, lost datagrams and changing addresses.
//!
//! ```text
//!   atl<tag>-s0 (switch namespace)          atl<tag>-m0, -m1, ... (one namespace a machine)
//!   ┌──────── bridge br0 ────────┐
//!   │ p0 ─ tbf (down)   p1 ...   │
//!   └─┼───────────────────┼──────┘
//!     └ veth ┐            └ veth ┐
//!   machine: eth0 ─ tbf (up)   machine: eth0
//! ```
//!
//! Nothing of this is in the namespace that the test runs in, so nothing can disturb the host and parallel labs do not
//! see each other. A machine on switch k has the addresses 10.k.0.(n+1)/24 and fd00:k::(n+1)/64. Dropping the lab removes
//! everything; what a killed run has left is removed when the next lab is made, since the tag says whose it was.
//!
//! Needs root, `ip` and `tc` (iproute2), for datagram loss and blocked pairs `nft`. [`Lab::new`] gives `None` with one
//! line on standard error where that is missing, so that callers skip and say so.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

/// Prefix of all namespaces of all labs.
const PREFIX: &str = "atl";

/// A network. Removed when dropped, with processes that still run in it.
#[derive(Debug)]
pub struct Lab {
    tag: String,
    switches: u8,
    machines: Vec<Machine>,
    /// Addresses that machines got while others hold the lab too.
    changed: Mutex<BTreeMap<(usize, u8), u8>>,
}

/// A machine of the lab.
#[derive(Clone, Debug)]
pub struct Machine {
    namespace: String,
    /// Cards by switch: the name of the interface and the number of the address.
    cards: BTreeMap<u8, (String, u8)>,
}

/// Which machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MachineId(pub usize);

impl Lab {
    /// A lab with so many switches and no machines; `None`, with a line that says why, where it cannot be made.
    ///
    /// # Errors
    /// A command failed though all that is needed is there.
    pub fn new(switches: u8) -> Result<Option<Self>> {
        if let Some(missing) = missing() {
            eprintln!("skipped: the network lab needs {missing}");
            return Ok(None);
        }
        sweep();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let tag = format!("{PREFIX}{:x}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let lab = Self { tag, switches, machines: Vec::new(), changed: Mutex::default() };
        for switch in 0..switches {
            let namespace = lab.switch(switch);
            ip(&["netns", "add", &namespace])?;
            ip(&[
                "-n",
                &namespace,
                "link",
                "add",
                "br0",
                "type",
                "bridge",
                "forward_delay",
                "0",
                "mcast_snooping",
                "0",
            ])?;
            ip(&["-n", &namespace, "link", "set", "br0", "up"])?;
        }
        Ok(Some(lab))
    }

    /// A lab with one switch and so many machines on it.
    ///
    /// # Errors
    /// As [`Lab::new`].
    pub fn with_machines(count: usize) -> Result<Option<Self>> {
        let Some(mut lab) = Self::new(1)? else { return Ok(None) };
        for _ in 0..count {
            lab.machine(&[0])?;
        }
        Ok(Some(lab))
    }

    /// A new machine with a card on each of these switches; at most 200 machines a switch.
    ///
    /// # Errors
    /// A command failed.
    pub fn machine(&mut self, switches: &[u8]) -> Result<MachineId> {
        let id = MachineId(self.machines.len());
        let namespace = format!("{}-m{}", self.tag, id.0);
        ip(&["netns", "add", &namespace])?;
        self.machines.push(Machine { namespace: namespace.clone(), cards: BTreeMap::new() });
        ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
        for (at, &switch) in switches.iter().enumerate() {
            if switch >= self.switches || id.0 >= 200 {
                bail!("no switch {switch}, or too many machines");
            }
            let (card, port) = (format!("eth{at}"), port(id));
            let bridge = self.switch(switch);
            ip(&["-n", &bridge, "link", "add", &port, "type", "veth", "peer", "name", &card, "netns", &namespace])?;
            ip(&["-n", &bridge, "link", "set", &port, "master", "br0", "up"])?;
            ip(&["-n", &namespace, "link", "set", &card, "up"])?;
            let number = u8::try_from(id.0 + 1)?;
            self.machines[id.0].cards.insert(switch, (card, number));
            self.change_address(id, switch, number)?;
        }
        Ok(id)
    }

    /// What the names of all its namespaces begin with.
    pub fn name(&self) -> &str {
        &self.tag
    }

    /// The machines, in the order in which they were made.
    pub fn machines(&self) -> impl Iterator<Item = MachineId> + use<> {
        (0..self.machines.len()).map(MachineId)
    }

    /// A command that will run on the machine.
    pub fn command(&self, machine: MachineId, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.machines[machine.0].namespace]).arg(program);
        command
    }

    /// The machine's IPv4 address on a switch.
    pub fn address(&self, machine: MachineId, switch: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, switch, 0, self.number(machine, switch))
    }

    /// The machine's IPv6 address on a switch.
    pub fn address_v6(&self, machine: MachineId, switch: u8) -> Ipv6Addr {
        let number = self.number(machine, switch);
        Ipv6Addr::new(0xfd00, switch.into(), 0, 0, 0, 0, 0, number.into())
    }

    /// Gives the machine other addresses on a switch: 10.k.0.NUMBER and fd00:k::NUMBER.
    ///
    /// # Errors
    /// A command failed.
    pub fn change_address(&self, machine: MachineId, switch: u8, number: u8) -> Result<()> {
        let namespace = &self.machines[machine.0].namespace;
        let card = &self.machines[machine.0].cards[&switch].0;
        ip(&["-n", namespace, "-4", "address", "flush", "dev", card])?;
        ip(&["-n", namespace, "-6", "address", "flush", "dev", card, "scope", "global"])?;
        self.changed.lock().unwrap_or_else(PoisonError::into_inner).insert((machine.0, switch), number);
        let v4 = format!("{}/24", self.address(machine, switch));
        ip(&["-n", namespace, "address", "add", &v4, "broadcast", "+", "dev", card])?;
        let v6 = format!("{}/64", self.address_v6(machine, switch));
        ip(&["-n", namespace, "address", "add", &v6, "dev", card, "nodad"])?;
        // Announcements to groups and to everyone need a way out even without a router.
        ip(&["-n", namespace, "route", "replace", "224.0.0.0/4", "dev", card])
    }

    fn number(&self, machine: MachineId, switch: u8) -> u8 {
        let changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        changed.get(&(machine.0, switch)).copied().unwrap_or(self.machines[machine.0].cards[&switch].1)
    }

    /// Limits all cards of the machine to so many Mbit/s each way.
    ///
    /// # Errors
    /// A command failed.
    pub fn set_rate(&self, machine: MachineId, mbit: u32) -> Result<()> {
        let rate = format!("{mbit}mbit");
        // A bucket of 4 ms, two packets at least, and at most 50 ms of queue: a small office switch.
        let burst = format!("{}", (u64::from(mbit) * 1_000_000 / 8 / 250).max(10_000));
        let tbf = |namespace: &str, device: &str| {
            let line =
                ["qdisc", "replace", "dev", device, "root", "tbf", "rate", &rate, "burst", &burst, "latency", "50ms"];
            run("tc", &[&["-n", namespace], &line[..]].concat())
        };
        for (&switch, (card, _)) in &self.machines[machine.0].cards {
            tbf(&self.machines[machine.0].namespace, card)?;
            tbf(&self.switch(switch), &port(machine))?;
        }
        Ok(())
    }

    /// Pulls the machine's cable out of a switch, or puts it in again.
    ///
    /// # Errors
    /// A command failed.
    pub fn set_cable(&self, machine: MachineId, switch: u8, connected: bool) -> Result<()> {
        let state = if connected { "up" } else { "down" };
        ip(&["-n", &self.switch(switch), "link", "set", &port(machine), state])
    }

    /// Drops so many percent of the UDP datagrams that come to the machine; 0 ends it.
    ///
    /// # Errors
    /// A command failed, or `nft` is missing.
    pub fn set_datagram_loss(&self, machine: MachineId, percent: u8) -> Result<()> {
        self.nft(machine, "delete table inet loss").ok();
        if percent == 0 {
            return Ok(());
        }
        self.nft(machine, "add table inet loss")?;
        self.nft(machine, "add chain inet loss input { type filter hook input priority 0 ; }")?;
        let rule = format!("add rule inet loss input meta l4proto udp numgen random mod 100 < {percent} drop");
        self.nft(machine, &rule)
    }

    /// The machine refuses connections that others begin (a firewall), or takes them again.
    ///
    /// # Errors
    /// As [`Lab::set_datagram_loss`].
    pub fn set_firewall(&self, machine: MachineId, closed: bool) -> Result<()> {
        self.nft(machine, "delete table inet wall").ok();
        if !closed {
            return Ok(());
        }
        self.nft(machine, "add table inet wall")?;
        self.nft(machine, "add chain inet wall input { type filter hook input priority 10 ; }")?;
        self.nft(machine, "add rule inet wall input tcp flags & (syn|ack) == syn drop")
    }

    /// Bytes that the machine's cards have sent and received since they were made.
    ///
    /// # Errors
    /// The counters cannot be read.
    pub fn traffic(&self, machine: MachineId) -> Result<(u64, u64)> {
        let mut sum = (0, 0);
        for (card, _) in self.machines[machine.0].cards.values() {
            let read = |which: &str| -> Result<u64> {
                let path = format!("/sys/class/net/{card}/statistics/{which}");
                let output = self.command(machine, "cat").arg(path).output()?;
                Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
            };
            sum = (sum.0 + read("tx_bytes")?, sum.1 + read("rx_bytes")?);
        }
        Ok(sum)
    }

    fn nft(&self, machine: MachineId, line: &str) -> Result<()> {
        run("ip", &[&["netns", "exec", &self.machines[machine.0].namespace, "nft"], &[line][..]].concat())
    }

    fn switch(&self, number: u8) -> String {
        format!("{}-s{number}", self.tag)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for machine in &self.machines {
            remove(&machine.namespace);
        }
        for switch in 0..self.switches {
            remove(&self.switch(switch));
        }
    }
}

fn port(machine: MachineId) -> String {
    format!("p{}", machine.0)
}

fn remove(namespace: &str) {
    // A namespace lives on while a process is in it.
    if let Ok(output) = Command::new("ip").args(["netns", "pids", namespace]).output() {
        for pid in String::from_utf8_lossy(&output.stdout).split_whitespace() {
            if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
    let _ = ip(&["netns", "delete", namespace]);
}

/// Removes what labs of ended processes have left.
fn sweep() {
    let Ok(output) = Command::new("ip").args(["netns", "list"]).output() else { return };
    for name in String::from_utf8_lossy(&output.stdout).lines().filter_map(|l| l.split_whitespace().next()) {
        let owner =
            name.strip_prefix(PREFIX).and_then(|r| r.split_once('x')).map(|(pid, _)| i32::from_str_radix(pid, 16));
        if let Some(Ok(pid)) = owner
            && !std::path::Path::new(&format!("/proc/{pid}")).exists()
        {
            remove(name);
        }
    }
}

/// What is missing for a lab, in words.
fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("root");
    }
    let there = |program: &str, argument: &str| {
        let status = Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|s| s.success())
    };
    if !there("ip", "-V") || !there("tc", "-V") {
        return Some("iproute2 (ip and tc)");
    }
    if !there("nft", "--version") {
        return Some("nftables (nft)");
    }
    // A container may have root and still not be allowed to.
    let probe = format!("{PREFIX}{:x}xprobe", std::process::id());
    if ip(&["netns", "add", &probe]).is_err() {
        return Some("the right to make network namespaces");
    }
    let _ = ip(&["netns", "delete", &probe]);
    None
}

fn ip(arguments: &[&str]) -> Result<()> {
    run("ip", arguments)
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}", arguments.join(" "), said.trim());
    }
    Ok(())
}
