//! Machines that are asked besides: the seed list of the settings, and addresses that people type.

use super::Presence;
use crate::net::FoundBy;
use common::error::Result;
use common::identity::DeviceId;
use std::net::SocketAddr;
use std::time::Duration;

/// First delay after a failure, and shortest between two looks.
const FIRST: Duration = Duration::from_secs(1);
/// Longest delay.
const LONGEST: Duration = Duration::from_secs(60);
/// How often it is checked that the link to a seed stands.
const CHECK: Duration = Duration::from_secs(5);
/// Addresses of one name.
const ADDRESSES: usize = 8;
/// For the look-up of a name.
const LOOK_UP: Duration = Duration::from_secs(5);

/// Attends to one seed for as long as the node runs.
pub(super) async fn attend(presence: Presence, seed: String, how: FoundBy) {
    let mut delay = FIRST;
    loop {
        let (words, device) = look(&presence, &seed, how).await;
        presence.note_seed(&seed, words);
        match device {
            Some(device) if device == presence.network().me() => {
                tokio::time::sleep(LONGEST).await;
            }
            Some(device) => {
                delay = FIRST;
                // A link that has been made is looked after by the network; when it is gone the name may mean another
                // address.
                loop {
                    tokio::time::sleep(CHECK).await;
                    if presence.network().linked(&device).is_none() {
                        break;
                    }
                }
            }
            None => {
                tokio::select! {
                    () = tokio::time::sleep(delay) => delay = (delay * 2).min(LONGEST),
                    () = presence.hurried() => delay = FIRST,
                }
            }
        }
    }
}

async fn look(presence: &Presence, seed: &str, how: FoundBy) -> (String, Option<DeviceId>) {
    let addresses = match resolve(seed, presence.default_port()).await {
        Ok(addresses) => addresses,
        Err(words) => return (words, None),
    };
    let mut words = "no machine of this name is known".to_owned();
    for address in addresses {
        match presence.network().who_is_at(address, how).await {
            Ok(identity) if identity.device == presence.network().me() => {
                return ("is this machine itself".to_owned(), Some(identity.device));
            }
            Ok(identity) if identity.member => {
                return (format!("{address} is {:?}, a member", identity.device), Some(identity.device));
            }
            Ok(identity) => words = format!("{address} is {:?}, no member of this office", identity.device),
            Err(error) => words = error.message().to_owned(),
        }
    }
    (words, None)
}

/// The addresses that a seed means; without a port the usual one.
pub(super) async fn resolve(seed: &str, default_port: u16) -> Result<Vec<SocketAddr>, String> {
    let (host, port) = split(seed, default_port).ok_or_else(|| "not an address like host:port".to_owned())?;
    let looking = tokio::net::lookup_host((host.as_str(), port));
    match tokio::time::timeout(LOOK_UP, looking).await {
        Ok(Ok(found)) => Ok(found.take(ADDRESSES).collect()),
        Ok(Err(error)) => Err(format!("the name cannot be looked up: {error}")),
        Err(_) => Err("the look-up of the name takes too long".to_owned()),
    }
}

fn split(seed: &str, default_port: u16) -> Option<(String, u16)> {
    let seed = seed.trim();
    if seed.is_empty() || seed.len() > 256 {
        return None;
    }
    if let Ok(v6) = seed.parse::<std::net::Ipv6Addr>() {
        return Some((v6.to_string(), default_port));
    }
    if let Some(rest) = seed.strip_prefix('[') {
        let (inside, behind) = rest.split_once(']')?;
        let port = if behind.is_empty() { default_port } else { behind.strip_prefix(':')?.parse().ok()? };
        return inside.parse::<std::net::Ipv6Addr>().ok().map(|v6| (v6.to_string(), port));
    }
    match seed.split_once(':') {
        Some((host, port)) if !host.is_empty() => Some((host.to_owned(), port.parse().ok().filter(|p| *p != 0)?)),
        Some(_) => None,
        None => Some((seed.to_owned(), default_port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_people_write_is_understood() {
        let at = |text: &'static str| async move { resolve(text, 7444).await.map(|a| a[0].to_string()) };
        assert_eq!(at("127.0.0.1").await.unwrap(), "127.0.0.1:7444");
        assert_eq!(at(" 127.0.0.1:99 ").await.unwrap(), "127.0.0.1:99");
        assert_eq!(at("::1").await.unwrap(), "[::1]:7444");
        assert_eq!(at("[::1]:5").await.unwrap(), "[::1]:5");
        assert_eq!(at("localhost:7").await.unwrap().rsplit(':').next(), Some("7"));
        for wrong in ["", ":1", "a:b", "a:0", "[::1", "[x]:1", "a:99999"] {
            assert!(at(wrong).await.is_err(), "{wrong}");
        }
    }
}
