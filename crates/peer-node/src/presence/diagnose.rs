//! Whether a device is reachable in both directions, and in words why not and what to do. Free of IO.

use super::cards::Card;
use crate::net::book::Known;
use crate::net::{Failure, ProbeAnswer, Way};
use common::error::{Error, Reason};
use common::identity::DeviceId;

/// Clocks that differ by more are worth a word: records and files carry times for people.
pub const CLOCK_TOLERANCE_MS: u64 = 120_000;

/// In which directions two nodes reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Both.
    Both,
    /// From here only.
    OutOnly,
    /// From there only; calls from here go back over its connection.
    InOnly,
    /// Through a third member.
    Relayed,
    /// Not now.
    None,
}

/// What is wrong with a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Stable word.
    pub reason: &'static str,
    /// What.
    pub message: String,
    /// Why.
    pub why: String,
    /// What to do.
    pub fix: String,
}

/// What a judgement is made from.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// This node.
    pub me: DeviceId,
    /// The port on which this node listens.
    pub port: u16,
    /// This machine's addresses and networks.
    pub cards: &'a [Card],
    /// How calls go there.
    pub link: Option<Way>,
    /// How calls come from there.
    pub incoming: Option<Way>,
    /// What it said when it was asked to connect back; an error if it could not be asked.
    pub probe: Option<&'a Result<ProbeAnswer, String>>,
    /// Its addresses and what became of them.
    pub known: &'a [Known],
    /// Its beacons or mDNS records have arrived here lately.
    pub heard: bool,
    /// It was there and has gone.
    pub left: bool,
    /// It said goodbye.
    pub goodbye: bool,
    /// Why there is no link, as far as the other side said so.
    pub refused: Option<&'a Error>,
    /// Its program's version, if known.
    pub version: &'a str,
    /// How far its clock is ahead.
    pub clock_ahead_ms: Option<i64>,
}

/// The judgement.
pub fn judge(facts: &Facts<'_>) -> (Reach, Option<Problem>) {
    match (facts.link, facts.incoming) {
        (Some(Way::Direct(_)), Some(Way::Direct(_))) => (Reach::Both, clock(facts)),
        (Some(Way::Direct(_)), _) => match facts.probe {
            Some(Ok(answer)) if !answer.reached.is_empty() => (Reach::Both, clock(facts)),
            Some(Ok(answer)) => (Reach::OutOnly, Some(not_reached(facts, answer))),
            Some(Err(_)) | None => (Reach::OutOnly, clock(facts)),
        },
        (Some(Way::Relayed(by)), _) if by == facts.me => (Reach::InOnly, why_not(facts)),
        (Some(Way::Relayed(_)), _) => (Reach::Relayed, why_not(facts)),
        (None, Some(Way::Direct(_))) => (Reach::InOnly, why_not(facts)),
        (None, _) => (Reach::None, why_not(facts)),
    }
}

fn problem(reason: &'static str, message: &str, why: String, fix: String) -> Option<Problem> {
    Some(Problem { reason, message: message.to_owned(), why, fix })
}

fn clock(facts: &Facts<'_>) -> Option<Problem> {
    let ahead = facts.clock_ahead_ms.filter(|ms| ms.unsigned_abs() > CLOCK_TOLERANCE_MS)?;
    let (amount, side) = (spoken(ahead.unsigned_abs()), if ahead > 0 { "ahead of" } else { "behind" });
    problem(
        "CLOCK_DIFFERS",
        &format!("its clock is {amount} {side} this machine's"),
        "one of the two clocks is wrong; connections work, but times of files and records mislead".into(),
        "set the clock of the machine that is wrong, or switch on time synchronization (`timedatectl set-ntp true`)"
            .into(),
    )
}

fn spoken(ms: u64) -> String {
    match ms / 60_000 {
        minutes @ 0..120 => format!("{minutes} minutes"),
        minutes if minutes < 2880 => format!("{} hours", minutes / 60),
        minutes => format!("{} days", minutes / 1440),
    }
}

/// It can be called and cannot call back.
fn not_reached(facts: &Facts<'_>, answer: &ProbeAnswer) -> Problem {
    let said = answer.problems.join("; ");
    let port = facts.port;
    let (reason, why, fix) = if said.contains("no answer") {
        (
            "FIREWALL_HERE",
            format!(
                "connections from it get no answer ({said}): a firewall on this machine, or between the two, drops them"
            ),
            open_port("this machine", port),
        )
    } else if said.contains("nothing listens") {
        (
            "PORT_CLOSED_HERE",
            format!("this machine refuses connections on port {port} ({said})"),
            "check node.listen in the settings of this machine: it must name an address that others can reach".into(),
        )
    } else {
        (
            "NO_WAY_BACK",
            format!("no way leads from it to this machine ({said}): this one is behind an address translator, or in a network that the other does not know"),
            "nothing needs to be done as long as this machine is on: the other one calls back over the connection from here"
                .into(),
        )
    };
    Problem { reason, message: "it cannot connect to this machine".into(), why, fix }
}

fn open_port(machine: &str, port: u16) -> String {
    format!(
        "allow TCP port {port} on {machine}, for example `sudo ufw allow {port}/tcp` or `sudo firewall-cmd --permanent --add-port={port}/tcp && sudo firewall-cmd --reload`"
    )
}

/// Why there is no direct connection to it.
fn why_not(facts: &Facts<'_>) -> Option<Problem> {
    if let Some(refused) = facts.refused
        && (refused.is(Reason::NotAMember) || refused.is(Reason::DeviceRevoked))
    {
        let reason = if refused.is(Reason::NotAMember) { "NOT_A_MEMBER" } else { "DEVICE_REVOKED" };
        return problem(reason, refused.message(), refused.why().into(), refused.fix().into());
    }
    let failed: Vec<(&Known, &Failure)> =
        facts.known.iter().filter_map(|k| k.failed.as_ref().map(|(_, failure)| (k, failure))).collect();
    if facts.goodbye || failed.is_empty() && facts.link.is_none() && facts.incoming.is_none() {
        return unknown(facts);
    }
    let most_telling = failed.iter().max_by_key(|(known, failure)| telling(facts, known, failure))?;
    explained(facts, most_telling.0, most_telling.1)
}

fn unknown(facts: &Facts<'_>) -> Option<Problem> {
    if facts.left || facts.goodbye {
        return problem(
            "OFF",
            "it was there and has gone",
            "it was switched off, its peer-node has ended, or its cable or Wi-Fi is off".into(),
            "switch it on; it is found again by itself".into(),
        );
    }
    if facts.cards.iter().all(|c| c.ip.is_loopback()) {
        return problem(
            "NO_NETWORK_HERE",
            "this machine is in no network",
            "none of its cards is up and has an address".into(),
            "plug in the cable or connect to the Wi-Fi".into(),
        );
    }
    if facts.heard {
        return problem(
            "CONNECTING",
            "it is there and no connection has been made yet",
            "it was heard of just now".into(),
            "wait a moment".into(),
        );
    }
    problem(
        "NEVER_SEEN",
        "it has not been heard of in this network",
        "it is off, in another network, or the network does not pass announcements on (guest Wi-Fi, VPN)".into(),
        "switch it on; if it is in another network, name its address in discovery.seeds of one of the two".into(),
    )
}

/// Greater tells more about the cause.
fn telling(facts: &Facts<'_>, known: &Known, failure: &Failure) -> (u8, bool, u64) {
    let rank = match failure {
        Failure::NotWelcome => 7,
        Failure::Refused => 6,
        Failure::Tls(_) => 5,
        Failure::NoAnswer | Failure::NoSuchMachine if near(facts, known) => 4,
        Failure::NoAnswer => 3,
        Failure::NoSuchMachine | Failure::Broken => 2,
        Failure::OtherDevice | Failure::NoRelay => 1,
        Failure::NoWay => 0,
    };
    (rank, known.reached_ms.is_some(), known.heard_ms)
}

fn near(facts: &Facts<'_>, known: &Known) -> bool {
    facts.cards.iter().any(|card| card.contains(known.address.ip()))
}

fn explained(facts: &Facts<'_>, known: &Known, failure: &Failure) -> Option<Problem> {
    let (address, port) = (known.address, known.address.port());
    let message = format!("no connection to {address}: {failure}");
    let near = near(facts, known);
    let (reason, why, fix) = match failure {
        Failure::Refused => (
            "NOT_RUNNING",
            "the machine is on, but its peer-node does not run or listens on another port".to_owned(),
            "start it there: `systemctl --user start peer-node`".to_owned(),
        ),
        Failure::NoAnswer if near && facts.heard => (
            "FIREWALL_THERE",
            "its announcements arrive here, but connections to it get no answer: a firewall on it drops them".to_owned(),
            open_port("that machine", port),
        ),
        Failure::NoSuchMachine if near && facts.heard => (
            "AP_ISOLATION",
            "its announcements arrive here, but the network carries nothing directly between the two: the Wi-Fi access \
             point keeps its clients apart"
                .to_owned(),
            "switch off client isolation (also: AP isolation, guest mode) at the access point, or connect one of the two \
             by cable; a member that both reach can relay meanwhile"
                .to_owned(),
        ),
        Failure::NoAnswer | Failure::NoSuchMachine if near => (
            "NO_ANSWER",
            "it is off, or a firewall or an access point that keeps its clients apart is in between".to_owned(),
            format!("switch it on; if it is on: {}", open_port("that machine", port)),
        ),
        Failure::NoAnswer | Failure::NoSuchMachine | Failure::NoWay => (
            "OTHER_NETWORK",
            "it is in another network than this machine, and nothing passes from here to there".to_owned(),
            "connect both to one network, or let the routers between them pass the port on; a member that both reach can \
             relay (relay.enabled in its settings)"
                .to_owned(),
        ),
        Failure::OtherDevice => (
            "ADDRESS_TAKEN",
            "the address belongs to another machine now".to_owned(),
            "switch the machine on; it is found again under its new address".to_owned(),
        ),
        Failure::Tls(what) => (
            "NOT_A_NODE",
            version_or(facts, format!("what answers there does not speak this protocol ({what})")),
            "update the older of the two programs; if the versions are the same, check what listens on that port".to_owned(),
        ),
        Failure::NotWelcome => (
            "NOT_A_MEMBER",
            "it has not heard yet that this machine is a member".to_owned(),
            "wait until the news has reached it: any member that both reach passes it on".to_owned(),
        ),
        Failure::Broken => (
            "BROKEN",
            version_or(facts, "the connection breaks while it is being made".to_owned()),
            "look at the log of the other machine".to_owned(),
        ),
        Failure::NoRelay => (
            "OTHER_NETWORK",
            "no member passes connections on between the two".to_owned(),
            "switch on relay.enabled at a member that both reach".to_owned(),
        ),
    };
    problem(reason, &message, why, fix)
}

fn version_or(facts: &Facts<'_>, otherwise: String) -> String {
    let mine = env!("CARGO_PKG_VERSION");
    let major = |version: &str| version.split('.').next().map(str::to_owned);
    match facts.version.is_empty() || major(facts.version) == major(mine) {
        true => otherwise,
        false => format!("it runs version {}, this machine {mine}: {otherwise}", facts.version),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::FoundBy;
    use std::collections::BTreeSet;
    use std::net::SocketAddr;

    fn card(ip: &str, prefix: u8) -> Card {
        Card { name: "eth0".into(), index: 1, ip: ip.parse().unwrap(), broadcast: None, prefix }
    }

    fn known(address: &str, failure: Option<Failure>) -> Known {
        Known {
            address: address.parse().unwrap(),
            found_by: BTreeSet::from([FoundBy::Beacon]),
            heard_ms: 1,
            reached_ms: None,
            failed: failure.map(|f| (1, f)),
        }
    }

    fn facts<'a>(cards: &'a [Card], known: &'a [Known]) -> Facts<'a> {
        Facts {
            me: DeviceId([1; 32]),
            port: 7444,
            cards,
            link: None,
            incoming: None,
            probe: None,
            known,
            heard: false,
            left: false,
            goodbye: false,
            refused: None,
            version: "",
            clock_ahead_ms: None,
        }
    }

    fn direct() -> Option<Way> {
        Some(Way::Direct(SocketAddr::from(([10, 0, 0, 2], 7444))))
    }

    #[test]
    fn each_cause_has_its_word() {
        let cards = [card("10.0.0.1", 24), card("127.0.0.1", 8)];
        let near = |f: Failure| [known("10.0.0.2:7444", Some(f))];
        let far = |f: Failure| [known("192.168.7.2:7444", Some(f))];
        let reason = |known: &[Known], heard: bool| {
            let facts = Facts { heard, ..facts(&cards, known) };
            let (reach, problem) = judge(&facts);
            assert_eq!(reach, Reach::None);
            let problem = problem.unwrap();
            assert!(problem.why.len() > 10 && problem.fix.len() > 10);
            problem.reason
        };
        assert_eq!(reason(&near(Failure::Refused), true), "NOT_RUNNING");
        assert_eq!(reason(&near(Failure::NoAnswer), true), "FIREWALL_THERE");
        assert_eq!(reason(&near(Failure::NoSuchMachine), true), "AP_ISOLATION");
        assert_eq!(reason(&near(Failure::NoAnswer), false), "NO_ANSWER");
        assert_eq!(reason(&far(Failure::NoAnswer), true), "OTHER_NETWORK");
        assert_eq!(reason(&far(Failure::NoWay), false), "OTHER_NETWORK");
        assert_eq!(reason(&near(Failure::OtherDevice), true), "ADDRESS_TAKEN");
        assert_eq!(reason(&near(Failure::NotWelcome), true), "NOT_A_MEMBER");
        assert_eq!(reason(&near(Failure::Tls("x".into())), true), "NOT_A_NODE");
        assert_eq!(reason(&near(Failure::Broken), true), "BROKEN");
        assert_eq!(reason(&[], true), "CONNECTING");
        assert_eq!(reason(&[], false), "NEVER_SEEN");
        // Of several addresses the one in the own network tells more than the one in another.
        let both = [far(Failure::NoWay), near(Failure::NoAnswer)].concat();
        assert_eq!(reason(&both, true), "FIREWALL_THERE");
        let alone = [card("127.0.0.1", 8)];
        assert_eq!(judge(&facts(&alone, &[])).1.unwrap().reason, "NO_NETWORK_HERE");
        let left = Facts { left: true, ..facts(&cards, &[]) };
        assert_eq!(judge(&left).1.unwrap().reason, "OFF");
    }

    #[test]
    fn both_directions_count() {
        let cards = [card("10.0.0.1", 24)];
        let me = DeviceId([1; 32]);
        let failed = [known("10.0.0.2:7444", Some(Failure::NoAnswer))];
        let base = Facts { heard: true, ..facts(&cards, &failed) };
        let judged = |link, incoming, probe: Option<&Result<ProbeAnswer, String>>| {
            let (reach, problem) = judge(&Facts { link, incoming, probe, ..base.clone() });
            (reach, problem.map(|p| p.reason))
        };
        let reached = Ok(ProbeAnswer { reached: vec!["10.0.0.1:7444".parse().unwrap()], problems: vec![] });
        let said = |words: &str| Ok(ProbeAnswer { reached: vec![], problems: vec![words.into()] });
        assert_eq!(judged(direct(), direct(), None), (Reach::Both, None));
        assert_eq!(judged(direct(), None, Some(&reached)), (Reach::Both, None));
        assert_eq!(judged(direct(), None, None), (Reach::OutOnly, None));
        let silent = said("10.0.0.1:7444: no answer");
        assert_eq!(judged(direct(), None, Some(&silent)), (Reach::OutOnly, Some("FIREWALL_HERE")));
        let closed = said("10.0.0.1:7444: the machine answers, but nothing listens on that port");
        assert_eq!(judged(direct(), None, Some(&closed)), (Reach::OutOnly, Some("PORT_CLOSED_HERE")));
        let lost = said("10.0.0.1:7444: this machine knows no way there");
        assert_eq!(judged(direct(), None, Some(&lost)), (Reach::OutOnly, Some("NO_WAY_BACK")));
        assert_eq!(judged(Some(Way::Relayed(me)), direct(), None), (Reach::InOnly, Some("FIREWALL_THERE")));
        assert_eq!(judged(None, direct(), None), (Reach::InOnly, Some("FIREWALL_THERE")));
        let third = Some(Way::Relayed(DeviceId([3; 32])));
        assert_eq!(judged(third, third, None), (Reach::Relayed, Some("FIREWALL_THERE")));
    }

    #[test]
    fn wrong_clocks_other_versions_and_refusals_are_named() {
        let cards = [card("10.0.0.1", 24)];
        let ahead = Facts { link: direct(), incoming: direct(), ..facts(&cards, &[]) };
        let clock = |ms| judge(&Facts { clock_ahead_ms: Some(ms), ..ahead.clone() }).1.map(|p| p.message);
        assert_eq!(clock(60_000), None);
        assert_eq!(clock(3 * 3600 * 1000).unwrap(), "its clock is 3 hours ahead of this machine's");
        assert_eq!(clock(-10 * 60_000).unwrap(), "its clock is 10 minutes behind this machine's");
        let failed = [known("10.0.0.2:7444", Some(Failure::Tls("odd".into())))];
        let old = Facts { version: "99.1.0", ..facts(&cards, &failed) };
        assert!(judge(&old).1.unwrap().why.contains("version 99.1.0"));
        let error = Error::new(Reason::NotAMember, "x");
        let refused = Facts { refused: Some(&error), ..facts(&cards, &failed) };
        assert_eq!(judge(&refused).1.unwrap().reason, "NOT_A_MEMBER");
    }
}
