//! Text that names something among peers: addresses of files and devices, conflict copies, schedules, and the maps of rips.
#![no_main]

use device::optical::rip::map::Map;
use peer_node::catalogue::names;
use peer_node::devices::Target;
use peer_node::transfer::limits::Schedule;
use peer_node::twoway::conflict;

fn inputs() -> Vec<Vec<u8>> {
    seeds::texts([
        "acme/sales/anna-pc/printers/laser",
        "acme/anna-pc~0123abcd/drives/dvd/one/two.txt",
        "printers/laser",
        "mon-fri 08:00-18:00, sat 22:00-06:00",
        "plan.conflict-bert-pc-20251122-230900-2.odt",
        "# Atrium rip, disc X\n0x0 ? 1\n0x0 0x1000 +\n0x1000 0xF000 ?\n",
    ])
}

libfuzzer_sys::fuzz_target!(init: seeds::plant(inputs), |data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(segments) = names::parse(text) {
        assert!(segments.iter().all(|s| !s.contains(['/', '\0']) && s != "." && s != ".."));
        assert_eq!(names::parse(&segments.join("/")).ok(), Some(segments));
    }
    if let Ok((kind, name)) = peer_node::devices::local(text) {
        let target = Target { node: common::model::DeviceId([1; 32]), kind, name, below: Vec::new() };
        assert_eq!(peer_node::devices::local(&target.local_name()).ok(), Some((target.kind, target.name)));
    }
    if let Ok(schedule) = Schedule::parse(text) {
        for minute in [0, 1, 719, 1439] {
            let _ = schedule.holds(6, minute);
        }
    }
    if let Some(parsed) = conflict::parse(text) {
        assert!(!parsed.name.is_empty() && !parsed.machine.is_empty());
        let again = conflict::parse(&conflict::name_for(text, &parsed.machine, 1_763_852_940_000_000_000, 2));
        assert!(again.is_some(), "a conflict copy that loses is one again");
    }
    if let Ok(map) = Map::parse(text, 65_536) {
        assert_eq!(Map::parse(&map.to_string(), 65_536).map(|m| m.to_string()).ok(), Some(map.to_string()));
    }
});
