//! Taking in what is found at open, and finishing what a crash left unfinished.

use super::PlaceId;
use super::lender::{Lender, Place, Sealed, borrower, object_name};
use super::mirror::place::ObjectId;
use super::object::{self, Header};
use super::record::{self, PlaceRecord, State};
use super::scratch::{Part, Visible};
use common::error::{Reason, Result};

impl Lender {
    pub(super) fn recover(&self) -> Result<()> {
        let mut names = self.disk().list()?;
        names.sort();
        let mut removed = false;
        for name in &names {
            if name.ends_with(".tmp") || name.starts_with("t-") {
                self.disk().remove(name)?;
                removed = true;
            } else if let Some(id) = name.strip_prefix("place-").and_then(|id| id.parse().ok()) {
                self.recover_place(id, name)?;
            }
        }
        for name in names.iter().filter(|n| !n.ends_with(".tmp")) {
            removed |= self.recover_file(name)?;
        }
        removed |= self.remove_doubles()?;
        self.recover_retired(&names)?;
        if removed {
            self.disk().sync_names()?;
        }
        let unfinished = |(id, place): (&PlaceId, &Place)| (place.record.state == State::Wiping).then_some(*id);
        let wiping: Vec<PlaceId> = self.state(|s| s.places.iter().filter_map(unfinished).collect());
        wiping.into_iter().try_for_each(|id| self.finish_wiping(id))
    }

    fn recover_place(&self, id: PlaceId, name: &str) -> Result<()> {
        match record::read::<PlaceRecord>(self.disk(), name) {
            Ok(Some(record)) => self.state(|s| {
                if !matches!(record.state, State::Wiped(_)) {
                    s.books.restore(borrower(&record.owner), record.bytes);
                }
                s.places.insert(id, Place::new(record));
            }),
            Ok(None) => {}
            Err(e) if e.is(Reason::StoreCorrupt) => {
                tracing::error!(place = %id, "a record of lent space is damaged; what is in it is kept, and locked");
                self.state(|s| s.damaged.insert(id));
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Takes a file of a place in; whether it was removed, because its place is not there or it is no whole one.
    fn recover_file(&self, name: &str) -> Result<bool> {
        let Some((letter, rest)) = name.split_once('-') else { return Ok(false) };
        let Some((place, tail)) = rest.split_once('-') else { return Ok(false) };
        let Ok(id) = place.parse::<PlaceId>() else { return Ok(false) };
        if !matches!(letter, "o" | "p" | "m") {
            return Ok(false);
        }
        let (known, damaged) = self.state(|s| (s.places.contains_key(&id), s.damaged.contains(&id)));
        if !known && !damaged {
            self.disk().remove(name)?;
            return Ok(true);
        }
        let file = self.disk().open(name)?;
        let len = file.len()?;
        if known && letter != "m" {
            let number = u64::from_str_radix(tail, 16).unwrap_or(0);
            match Header::read(&*file)? {
                Some(header) if header.place == id => self.state(|s| {
                    s.number = s.number.max(number.saturating_add(1)).max(header.sequence.saturating_add(1));
                    let Some(place) = s.places.get_mut(&id) else { return };
                    if letter == "o" {
                        place.recover_visible(number, header);
                    } else {
                        place.parts.insert(number, Part::found(header, len));
                    }
                }),
                // The header of an upload is synced before anybody hears of it.
                _ if letter == "p" => {
                    self.disk().remove(name)?;
                    return Ok(true);
                }
                _ => tracing::error!(place = %id, "an object of lent space has a damaged header"),
            }
        } else if known && let Ok(object) = tail.parse::<ObjectId>() {
            let len = u32::try_from(len.saturating_sub(object::MIRROR_HEADER)).unwrap_or(u32::MAX);
            self.state(|s| {
                if let Some(place) = s.places.get_mut(&id) {
                    place.sealed.insert(object, Sealed { len, retired: None });
                    s.sealed_total += 1;
                }
            });
        }
        self.state(|s| {
            s.books.found(len);
            if let Some(place) = s.places.get_mut(&id) {
                place.used += len;
            }
        });
        Ok(false)
    }

    /// Of two objects of one name, the earlier one was about to go.
    pub(super) fn remove_doubles(&self) -> Result<bool> {
        let older = self.state(|s| {
            let mut older = Vec::new();
            for (id, place) in &mut s.places {
                older.extend(place.take_doubles().into_iter().map(|number| (*id, number)));
            }
            older
        });
        let mut result = Ok(!older.is_empty());
        for (id, number) in older {
            if let Err(error) = self.remove_object(id, number) {
                self.state(|s| s.places.get_mut(&id).map(|p| p.doubles.push(number)));
                result = Err(error);
            }
        }
        result
    }

    /// Removes the file of an object, and refunds it.
    fn remove_object(&self, id: PlaceId, number: u64) -> Result<()> {
        let name = object_name(id, number);
        let len = match self.disk().open(&name) {
            Ok(file) => file.len()?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        self.disk().remove(&name)?;
        self.refund(id, len);
        Ok(())
    }
}

impl Place {
    /// Takes an object in that was found at open.
    fn recover_visible(&mut self, number: u64, header: Header) {
        let found = Visible { number, sequence: header.sequence, size: header.size, digest: header.digest };
        match self.visible.get(&header.name) {
            Some(other) if other.sequence > found.sequence => self.doubles.push(number),
            Some(other) => {
                self.doubles.push(other.number);
                self.visible.insert(header.name, found);
            }
            None => {
                self.visible.insert(header.name, found);
            }
        }
    }

    fn take_doubles(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.doubles)
    }
}
