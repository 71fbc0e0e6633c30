//! Looking after second copies of this machine's shares: proofs, repairs, and moving one whose lender leaves.
//!
//! Every now and then (`devices.mirror_look`) each copy's place is looked at. What is to be done is decided by
//! `device::disk::mirror::proof`; this file does it:
//!
//! * **Proof**, each `devices.mirror_proof`: the place shows that it has a sample of the newest copy. What it cannot show
//!   is sent again, and that is said in the log and by `atrium space mirrors`.
//! * **Moving**: a lender that wants its disk back only says so, since what it keeps is the owner's. The owner copies
//!   everything, sealed as it is, to the disk that was chosen for this (`Kept::next_disk`), or home to
//!   `STATE/devices/mirrors/home`; then it is written down where the copy is; then the old place is given back, which is
//!   what the lender waits for. A kill at any moment leaves two copies rather than none, and the next look goes on.
//!
//! A copy that is gone, or is at home only, is shown as that and is never forgotten: its person chooses another disk.

use super::Devices;
use super::address::Target;
use super::copies::{Copier, Kept, Left, ShareSource, Spot, now_ms};
use super::disk::{RESERVE, blocking};
use super::far_place::said;
use super::remote::{in_time, own_problem};
use common::error::{Error, Kind as ErrorKind, Reason, Result};
use device::disk::mirror::proof::{self, Rules, Step};
use device::disk::mirror::{MirrorKey, MirrorWriter, Proof, drain};
use device::disk::{Borrow, Kind as PlaceKind, Lender, PlaceId, Settings, SystemClocks};
use proto::peer::v1 as wire;
use std::sync::Arc;
use std::time::Duration;

/// A failed proof or repair is tried again after this time, or sooner if proofs are more frequent.
const AGAIN: Duration = Duration::from_secs(600);
/// What may be taken home, in all: as much as the disk has beyond the reserve.
const HOME_BYTES: u64 = 1 << 60;

/// Objects that are retired at a time.
const RETIRE: usize = 4_096;

/// How a place looks, with why.
pub(super) enum Seen {
    /// It answers.
    There,
    /// Its lender wants it back.
    Leaving,
    /// It does not answer.
    Away(Error),
    /// There is no such place.
    Gone(Error),
}

impl Seen {
    fn plain(&self) -> proof::Seen {
        match self {
            Self::There => proof::Seen::There,
            Self::Leaving => proof::Seen::Leaving,
            Self::Away(_) => proof::Seen::Away,
            Self::Gone(_) => proof::Seen::Gone,
        }
    }
}

/// The place has something else than was written, or nothing.
fn is_damage(error: &Error) -> bool {
    error.is(Reason::ChunkDamaged) || error.is(Reason::EntryUnknown)
}

fn choose_again(kept: &Kept) -> String {
    format!("choose a disk for it: atrium space mirror {} DISK", kept.share)
}

fn at_home(kept: &Kept) -> Error {
    Error::new(Reason::MirrorMissing, "the second copy is on this machine only")
        .why_is("its lender has left, and no other disk was chosen for it, or that one does not take it")
        .fix_is(choose_again(kept))
}

fn lost(kept: &Kept, error: &Error) -> Error {
    Error::new(Reason::MirrorMissing, "there is no second copy any more")
        .why_is(format!("it was wiped, or its disk is not shared with you any more: {}", error.message()))
        .fix_is(choose_again(kept))
}

impl Devices {
    fn rules(&self) -> Rules {
        let every = self.0.mirror_proof;
        Rules { every, again: AGAIN.min(every) }
    }

    /// What is kept of copies that were taken home.
    ///
    /// # Errors
    /// STORE_BUSY, IO_FAILED.
    pub(super) fn home(&self) -> Result<Lender> {
        let mut home = self.0.home.lock();
        if let Some(home) = &*home {
            return Ok(home.clone());
        }
        let settings = Settings::new(HOME_BYTES, RESERVE);
        let opened = Lender::open(&self.mirrors().join("home"), settings, Arc::new(SystemClocks::new()))?;
        *home = Some(opened.clone());
        Ok(opened)
    }

    /// Looks after all copies, for ever.
    pub(super) async fn keep_mirrors(self) {
        loop {
            tokio::time::sleep(self.0.mirror_look).await;
            for share in self.mirrored().await {
                // One that is copied just now is looked at the next time.
                let Ok(_copying) = self.begin_copy(&share, Copier::Keeper) else { continue };
                let looked = self.look_after(&share).await;
                let mut problems = self.0.mirror_problems.lock();
                match looked {
                    Ok(()) => drop(problems.remove(&share)),
                    // It is tried again; `space mirrors` says that the machine does not answer.
                    Err(error) if error.kind() == ErrorKind::Unavailable => {
                        tracing::debug!(%error, share, "a second copy could not be looked after");
                    }
                    Err(error) => {
                        let problem = own_problem(&share, &error);
                        if problems.get(&share) != Some(&problem) {
                            tracing::warn!(%error, share, "a second copy could not be looked after");
                        }
                        problems.insert(share, problem);
                    }
                }
            }
        }
    }

    /// What is wrong with second copies, as they were looked at last.
    pub fn mirror_problems(&self) -> Vec<wire::NodeProblem> {
        let problems = self.0.mirror_problems.lock();
        let mut shown: Vec<wire::NodeProblem> = problems.values().cloned().collect();
        shown.sort_by(|a, b| a.message.cmp(&b.message));
        shown
    }

    async fn look_after(&self, share: &str) -> Result<()> {
        let Some((mut kept, key)) = self.read_kept(share).await? else { return Ok(()) };
        let key = Arc::new(key);
        // One that does not answer is asked again; the copy itself is looked after all the same.
        let given = self.give_back_left(&mut kept).await;
        self.look_at(&mut kept, key).await.and(given)
    }

    async fn look_at(&self, kept: &mut Kept, key: Arc<MirrorKey>) -> Result<()> {
        if kept.at.is_home() {
            return self.place_anew(kept).await;
        }
        let seen = self.see(&kept.at).await;
        if let Seen::Gone(error) = &seen {
            return Err(lost(kept, error));
        }
        if matches!(seen, Seen::There) && kept.moving.is_some() {
            // It stays after all.
            kept.left.extend(kept.moving.take().map(Left::from));
            self.write_kept(kept).await?;
        }
        match kept.standing.step(seen.plain(), now_ms(), &self.rules()) {
            Step::Wait => Ok(()),
            Step::Move => self.move_copy(kept).await,
            Step::Prove(round) => self.prove(kept, key, round, false).await,
            Step::Repair(round) => self.prove(kept, key, round, true).await,
        }
    }

    /// How a place looks now.
    pub(super) async fn see(&self, at: &Spot) -> Seen {
        if at.is_home() {
            return Seen::There;
        }
        let gone = |e: &Error| e.kind() == ErrorKind::NotFound || e.is(Reason::SpaceExpired);
        match self.space_at(at).await {
            Ok(space) if space.leaving => Seen::Leaving,
            Ok(_) => Seen::There,
            Err(error) if gone(&error) => Seen::Gone(error),
            Err(error) => Seen::Away(error),
        }
    }

    async fn space_at(&self, at: &Spot) -> Result<wire::Space> {
        let (node, request) = (at.node()?, wire::ListSpacesRequest { device: at.disk.clone() });
        let spaces = if node == self.me() {
            self.list_spaces(&node, request).await?.spaces
        } else {
            in_time(async { said(self.client(node).await?.list_spaces(request).await) }).await?.spaces
        };
        let found = spaces.into_iter().find(|s| s.space_id == at.place.as_bytes()[..]);
        found.ok_or_else(|| Error::new(Reason::SpaceUnknown, "the machine has no such copy any more"))
    }

    /// Asks for proof, and sends again what cannot be proven. `known`: it is known that something cannot.
    async fn prove(&self, kept: &mut Kept, key: Arc<MirrorKey>, round: u64, known: bool) -> Result<()> {
        let source = match ShareSource::open(&self.0.catalogue, &kept.share).await {
            Ok((_, source)) => Arc::new(source),
            Err(error) if error.is(Reason::Starting) => return Ok(()),
            Err(error) => return Err(error),
        };
        let writer = MirrorWriter::new(key.clone(), self.place_at(&kept.at)?);
        if !known && !self.ask(&writer, kept, &source, round).await? {
            return Ok(());
        }
        let repaired = writer.repair(source.clone(), kept.generation).await;
        if let Ok(parts) = &repaired {
            kept.standing.repaired(*parts);
        }
        kept.standing.broken_off(now_ms());
        self.write_kept(kept).await?;
        let parts = repaired?;
        if let Err(error) = writer.challenge(source.clone(), round, kept.generation).await
            && is_damage(&error)
        {
            // The list of files is not whole: a new one is made of what is in the share now.
            self.snapshot(kept, key, source.clone()).await?;
        }
        tracing::warn!(share = kept.share, parts, "parts of a second copy could not be proven, and were sent again");
        if self.ask(&writer, kept, &source, round).await? {
            return Err(Error::new(Reason::ChunkDamaged, format!("the second copy of {} stays damaged", kept.share))
                .why_is("its lender does not take what was sent again, or loses it at once")
                .fix_is("choose another disk: atrium space mirror"));
        }
        Ok(())
    }

    /// One proof; whether something must be repaired.
    async fn ask(&self, writer: &MirrorWriter, kept: &mut Kept, source: &Arc<ShareSource>, round: u64) -> Result<bool> {
        let failed = match writer.challenge(source.clone(), round, kept.generation).await {
            // All of these files have changed since, so that there is nothing to compare with.
            Ok(Proof { asked: 0, parts, .. }) if parts > 0 => {
                kept.standing.broken_off(now_ms());
                false
            }
            Ok(proof) => kept.standing.proven(&proof, now_ms()),
            Err(error) if is_damage(&error) => {
                kept.standing.unreadable(now_ms());
                true
            }
            Err(error) => {
                kept.standing.broken_off(now_ms());
                self.write_kept(kept).await?;
                return Err(error);
            }
        };
        self.write_kept(kept).await?;
        Ok(failed)
    }

    /// Copies a copy from a place whose lender leaves, or from home, to where it is to be from now on.
    ///
    /// # Errors
    /// Those of both places; what was copied is not copied again.
    pub(super) async fn move_copy(&self, kept: &mut Kept) -> Result<()> {
        let to = match kept.moving.clone() {
            Some(to) => to,
            None => {
                if kept.size_bytes == 0 {
                    // An earlier version did not note it.
                    kept.size_bytes = self.space_at(&kept.at).await?.size_bytes;
                }
                let to = self.choose(kept).await?;
                kept.moving = Some(to.clone());
                self.write_kept(kept).await?;
                to
            }
        };
        let copied = match self.drain_to(kept, &to).await {
            Ok(copied) => copied,
            Err(error) => {
                let definite = error.kind() != ErrorKind::Unavailable || error.is(Reason::DeviceAway);
                // The old place is as it was: it is the new one that does not take it.
                if !to.is_home() && definite && matches!(self.see(&kept.at).await, Seen::There | Seen::Leaving) {
                    kept.moving = None;
                    kept.left.push(to.into());
                    kept.next_disk.clear();
                    self.write_kept(kept).await?;
                }
                return Err(error);
            }
        };
        tracing::info!(share = kept.share, home = to.is_home(), copied, "a second copy has moved");
        kept.left.push(std::mem::replace(&mut kept.at, to).into());
        kept.moving = None;
        self.write_kept(kept).await?;
        self.give_back_left(kept).await
    }

    async fn drain_to(&self, kept: &mut Kept, to: &Spot) -> Result<usize> {
        let (from, new) = (self.place_at(&kept.at)?, self.place_at(to)?);
        let drained = drain(&*from, &*new).await?;
        let newest = drained.generations.last().copied().unwrap_or(0);
        if newest < kept.generation || !drained.damaged.is_empty() {
            tracing::warn!(
                share = kept.share,
                "a second copy was not whole when it moved; what is missing is sent again"
            );
            kept.generation = newest;
            kept.standing.unreadable(now_ms());
        }
        Ok(drained.copied)
    }

    /// Where a copy goes that has to leave: to the disk that was chosen, or home.
    async fn choose(&self, kept: &Kept) -> Result<Spot> {
        if !kept.next_disk.is_empty() {
            match self.borrow_next(kept).await {
                Ok(Some(spot)) => return Ok(spot),
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::Unavailable && !error.is(Reason::DeviceAway) => {
                    return Err(error);
                }
                Err(error) => {
                    let disk = &kept.next_disk;
                    tracing::warn!(%error, disk, share = kept.share, "a second copy comes home instead of to that disk");
                }
            }
        }
        let who = super::access::caller(&*self.0.roster, &self.me())?;
        let (devices, mut id) = (self.clone(), PlaceId(kept.at.place));
        let (bytes, label) = (kept.size_bytes.max(HOME_BYTES >> 10), kept.share.clone());
        blocking(move || {
            let home = devices.home()?;
            let wish = |id| Borrow { id, kind: PlaceKind::Mirror, bytes, time: Duration::ZERO, label: label.clone() };
            if home.borrow(&who, &wish(id)).is_err() {
                id = PlaceId::generate();
                home.borrow(&who, &wish(id))?;
            }
            Ok(Spot { node: devices.me().to_string(), disk: String::new(), place: id.0 })
        })
        .await
    }

    /// Borrows on the chosen disk; `None` if that is the one that it has to leave.
    async fn borrow_next(&self, kept: &Kept) -> Result<Option<Spot>> {
        let target: Target = self.find(&kept.next_disk).await?;
        if kept.at.is_at(&target) {
            return Ok(None);
        }
        self.borrow_for(kept, &target).await.map(Some)
    }

    /// A copy that is at home goes to the chosen disk as soon as that takes it.
    async fn place_anew(&self, kept: &mut Kept) -> Result<()> {
        if kept.moving.is_none() {
            match kept.next_disk.is_empty() {
                true => return Err(at_home(kept)),
                false => kept.moving = self.borrow_next(kept).await?,
            }
            self.write_kept(kept).await?;
        }
        self.move_copy(kept).await
    }

    /// Gives back the places in which a copy was before. Their lenders wait for that.
    async fn give_back_left(&self, kept: &mut Kept) -> Result<()> {
        // One to which the copy has come back, or is about to, is not left.
        let (at, moving) = (kept.at.clone(), kept.moving.clone());
        kept.left.retain(|l| l.at != at && Some(&l.at) != moving.as_ref());
        let mut result = Ok(());
        for left in kept.left.clone() {
            let given = match self.return_at(&left.at).await {
                // Its lender does not leave, so that it has to wait until all in it was retired long enough.
                Err(error) if error.is(Reason::MirrorAppendOnly) && left.retired => continue,
                Err(error) if error.is(Reason::MirrorAppendOnly) => self.retire_all(&left.at).await.map(|()| true),
                Err(error) => Err(error),
                Ok(()) => Ok(false),
            };
            match given {
                Ok(true) => kept.left.iter_mut().filter(|l| **l == left).for_each(|l| l.retired = true),
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    result = Err(error);
                    continue;
                }
                // Given back, or gone.
                _ => kept.left.retain(|l| *l != left),
            }
            self.write_kept(kept).await?;
        }
        result
    }

    /// Lets everything in a place go after its time.
    async fn retire_all(&self, at: &Spot) -> Result<()> {
        let (place, mut after) = (self.place_at(at)?, None);
        loop {
            let page = place.list(after, RETIRE).await?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(*last);
            place.retire(page.into_iter().map(|(id, _)| id).collect()).await?;
        }
    }

    async fn return_at(&self, at: &Spot) -> Result<()> {
        if at.is_home() {
            let (home, place) = (self.home()?, PlaceId(at.place));
            return blocking(move || home.take_back(place).and_then(|()| home.tick())).await;
        }
        let node = at.node()?;
        let space_id = at.place.as_bytes().to_vec().into();
        let request = wire::ReturnSpaceRequest { space_id, device: at.disk.clone() };
        if node == self.me() {
            return self.return_space(&node, request).await.map(drop);
        }
        said(self.client(node).await?.return_space(request).await).map(drop)
    }

    /// All copies, and how they are.
    pub(super) async fn list_mirrors(&self) -> wire::ListMirrorsResponse {
        let mut mirrors = Vec::new();
        for share in self.mirrored().await {
            let mirror = match self.read_kept(&share).await {
                Ok(Some((kept, _))) => self.describe_mirror(&kept).await,
                Ok(None) => continue,
                Err(error) => {
                    let problem = Some(own_problem(&share, &error));
                    wire::Mirror { share, problem, ..Default::default() }
                }
            };
            mirrors.push(mirror);
        }
        wire::ListMirrorsResponse { mirrors }
    }

    async fn describe_mirror(&self, kept: &Kept) -> wire::Mirror {
        use wire::MirrorState as State;
        let known = self.0.mirror_problems.lock().get(&kept.share).cloned();
        let (state, problem) = if kept.at.is_home() {
            (State::Home, Some(own_problem(&kept.share, &at_home(kept))))
        } else {
            match self.see(&kept.at).await {
                Seen::Gone(error) => (State::Lost, Some(own_problem(&kept.share, &lost(kept, &error)))),
                Seen::Away(error) => (State::Away, Some(own_problem(&kept.share, &error))),
                Seen::Leaving => (State::Moving, known),
                Seen::There if kept.standing.damaged => (State::Damaged, known),
                Seen::There => (State::Whole, known),
            }
        };
        let time = |ms: u64| prost_types::Timestamp {
            seconds: (ms / 1000).cast_signed(),
            nanos: (ms % 1000 * 1_000_000) as i32,
        };
        wire::Mirror {
            share: kept.share.clone(),
            disk: if kept.at.is_home() { String::new() } else { self.spot_address(&kept.at) },
            state: state as i32,
            generation: kept.generation,
            proven_time: kept.standing.proven_ms.map(time),
            proven_count: kept.standing.proven_count,
            part_count: kept.standing.part_count,
            failed_time: kept.standing.failed_ms.map(time),
            repaired_count: kept.standing.repaired,
            next_disk: kept.next_disk.clone(),
            problem,
        }
    }

    fn spot_address(&self, at: &Spot) -> String {
        let claims = self.0.remote.claims();
        let node = claims.iter().find(|c| c.what.device.to_string() == at.node).map(|c| c.shown());
        format!("{}/{}", node.as_deref().unwrap_or(&at.node), at.disk)
    }

    /// The full address of a device.
    pub(super) fn full_address(&self, target: &Target) -> String {
        let claims = self.0.remote.claims();
        let node = claims.into_iter().find(|c| c.what.device == target.node).map(|c| c.shown());
        format!("{}/{}", node.unwrap_or_default(), target.local_name())
    }

    /// When each copy of this machine's shares was proven last, by its place.
    pub(super) async fn proven_times(&self) -> Vec<(uuid::Uuid, prost_types::Timestamp)> {
        let mut times = Vec::new();
        for share in self.mirrored().await {
            let Ok(Some((kept, _))) = self.read_kept(&share).await else { continue };
            let Some(ms) = kept.standing.proven_ms else { continue };
            let nanos = (ms % 1000 * 1_000_000) as i32;
            times.push((kept.at.place, prost_types::Timestamp { seconds: (ms / 1000).cast_signed(), nanos }));
        }
        times
    }
}
